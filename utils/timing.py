"""Latency of one batch after another."""

import time
from collections.abc import Callable, Iterable

import numpy as np

WARMUP_BATCHES = 20


def timed(run: Callable[[dict], np.ndarray], batches: Iterable[dict], warmup: list[dict]) -> tuple[list, np.ndarray]:
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
