"""Latency of one batch after another, of one model or of several in turns."""

import time
from collections.abc import Iterable

import datasets
import numpy as np
from tqdm import tqdm

from utils.data import collate
from utils.engines import Engine

WARMUP_BATCHES = 20
ROWS_A_TURN, WARMUP_ROWS = 100, 10


def timed(run: Engine, batches: Iterable[dict], warmup: list[dict]) -> tuple[list, np.ndarray]:
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
    engines: list[Engine], widths: list[int | None], split: datasets.Dataset, pad_token_id: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Run every engine over every row, alone, taking turns, so that a noisy machine is unfair to none.

    Args:
        widths: length each engine's rows are padded to, or None for their own.

    Returns:
        For every engine its logits [rows, labels], and its latency of each row in milliseconds, [rows].
    """
    logits: list[list] = [[] for _ in engines]
    milliseconds: list[list] = [[] for _ in engines]
    with tqdm(total=len(engines) * len(split), desc="measure", unit="row", disable=None) as bar:
        for start in range(0, len(split), ROWS_A_TURN):
            rows = range(start, min(start + ROWS_A_TURN, len(split)))
            for i, engine in enumerate(engines):
                batches = [collate(split, np.array([row]), pad_token_id, widths[i]) for row in rows]
                outputs, latencies = timed(engine, batches, warmup=batches[:WARMUP_ROWS])
                logits[i] += outputs
                milliseconds[i].append(latencies)
                bar.update(len(rows))
    return [np.concatenate(outputs) for outputs in logits], [np.concatenate(parts) for parts in milliseconds]


def aligned_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as text: the first column flush left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for name, *numbers in [header, ["-" * width for width in widths], *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
