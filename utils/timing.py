"""Latency of one batch after another, of one model or of several in turns."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import datasets
import numpy as np

from utils.bars import progress_bar
from utils.data import collate

WARMUP_BATCHES = 20
ROWS_A_TURN, WARMUP_ROWS = 100, 10


def timed(run: Callable[[Any], np.ndarray], batches: Iterable, warmup: list) -> tuple[list, np.ndarray]:
    """Run every batch in turn; `warmup` is run first and not counted.

    Returns:
        The outputs, and the latency of each batch in milliseconds.
    """
    for batch in warmup:
        run(batch)
    outputs, milliseconds = [], []
    for batch in batches:
        start = time.perf_counter()
        outputs.append(run(batch))
        milliseconds.append((time.perf_counter() - start) * 1000)
    return outputs, np.array(milliseconds)


def latency_summary(milliseconds: np.ndarray) -> dict[str, float]:
    """Mean, median and tail of latencies, in milliseconds a batch."""
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return {"mean": float(milliseconds.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def timed_in_turns(
    engines: list[Callable[[Any], np.ndarray]],
    make_inputs: list[Callable[[int], Any]],
    num_rows: int,
    every: list[int] | None = None,
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Run every engine over every row, alone, taking turns, so that a noisy machine is unfair to none.

    Args:
        make_inputs: what an engine takes, made of a row's number, uncounted.
        every: the steps in which an engine goes through the rows, for one that is too slow for all of them.

    Returns:
        For every engine its logits [rows, labels], and its latencies in milliseconds, an array [rows] for each turn.
    """
    logits: list[list] = [[] for _ in engines]
    milliseconds: list[list] = [[] for _ in engines]
    with progress_bar(total=len(engines) * num_rows, desc="measure", unit="row") as bar:
        for start in range(0, num_rows, ROWS_A_TURN):
            end = min(start + ROWS_A_TURN, num_rows)
            for i, engine in enumerate(engines):
                inputs = [make_inputs[i](row) for row in range(start, end, every[i] if every else 1)]
                outputs, latencies = timed(engine, inputs, warmup=inputs[:WARMUP_ROWS])
                logits[i] += outputs
                milliseconds[i].append(latencies)
                bar.update(end - start)
    return [np.concatenate(outputs) for outputs in logits], milliseconds


def single_rows(split: datasets.Dataset, pad_token_id: int) -> Callable[[int], dict]:
    """For `timed_in_turns`: each row as a batch of its own, at its own length."""
    return lambda row: collate(split, np.array([row]), pad_token_id)


def aligned_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as text: the first column flush left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for name, *numbers in [header, ["-" * width for width in widths], *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
