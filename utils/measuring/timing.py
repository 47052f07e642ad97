"""Latency of one batch after another, of one model or of several in turns."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.system.bars import progress_bar
from utils.system.journal import Cached, uncached

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
    cached: Cached = uncached,
    between: Callable[[int, int], None] = lambda turn, turns: None,
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Run every engine over every row, alone, taking turns, so that a noisy machine is unfair to none.

    Args:
        make_inputs: what an engine takes, made of a row's number, uncounted.
        every: the steps in which an engine goes through the rows, for one that is too slow for all of them.
        cached: keeps each turn, and gives those that were kept before.
        between: called after every turn with its number and that of all turns, for what is timed by other means.

    Returns:
        For every engine its logits [rows, labels], and its latencies in milliseconds, an array [rows] for each turn.
    """
    turns = []
    with progress_bar(total=len(engines) * num_rows, desc="measure", unit="row") as bar:
        starts = range(0, num_rows, ROWS_A_TURN)
        for number, start in enumerate(starts):
            end = min(start + ROWS_A_TURN, num_rows)
            turn = partial(_turn, engines, make_inputs, every or [1] * len(engines), start, end, bar)
            turns.append(cached(f"rows {start} to {end}", turn))
            bar.update(len(engines) * end - bar.n)
            between(number, len(starts))
    by_engine = list(zip(*turns, strict=True))
    logits = [np.concatenate([np.asarray(outputs) for outputs, _ in parts]) for parts in by_engine]
    return logits, [[np.asarray(latencies) for _, latencies in parts] for parts in by_engine]


def _turn(
    engines: list[Callable[[Any], np.ndarray]],
    make_inputs: list[Callable[[int], Any]],
    every: list[int],
    start: int,
    end: int,
    bar: tqdm,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The logits and latencies of every engine for rows `start` to `end`."""
    turns = []
    for engine, make, step in zip(engines, make_inputs, every, strict=True):
        inputs = [make(row) for row in range(start, end, step)]
        outputs, latencies = timed(engine, inputs, warmup=inputs[:WARMUP_ROWS])
        turns.append((np.concatenate(outputs), latencies))
        bar.update(end - start)
    return turns


def aligned_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as text: the first column flush left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for name, *numbers in [header, ["-" * width for width in widths], *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def evenly_spaced(count: int, size: int) -> np.ndarray:
    """Up to `count` different indices from 0 to `size` - 1, the first and the last among them, int [indices].

    Of rows sorted by length they are rows of all lengths.
    """
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(int))
