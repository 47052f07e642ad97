"""Several instances of an engine that share the rows, each with cores of its own: throughput.

Imports little, as every instance does it again.
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from utils.system.errors import UserError
from utils.system.pinned import CONTEXT, receive_all, send, started_instances


def serve(
    open_engine: Callable[[], Callable[[dict], np.ndarray]],
    batches: list[dict],
    num_warmup: int,
    num_instances: int,
    num_threads: int,
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Run every batch once, on whichever of `num_instances` processes is free, after all of them are warmed up.

    Args:
        open_engine: makes an instance's engine of `num_threads` threads; called in that process, so it must pickle and
            not be of the script that runs.
        num_warmup: how many of the first batches every instance runs beforehand, uncounted.
        num_threads: cores of each instance; it is pinned to them where the system can do that.

    Returns:
        The outputs and the latencies in milliseconds, both in the order of `batches`, and the seconds between the
        start of all instances and the end of the last.

    Raises:
        UserError: there are too few cores, or an instance could not open or run its engine, or died.
    """
    arguments = (open_engine, num_warmup, CONTEXT.Value("q", 0))
    with started_instances(_instance, arguments, num_instances, num_threads) as instances:
        for instance in instances:
            send(instance, batches)
        receive_all(instances)  # loaded and warmed up
        for instance in instances:
            send(instance, "start")
        parts = receive_all(instances)
    served, starts, ends = zip(*parts, strict=True)
    ordered = sorted((item for part in served for item in part), key=lambda item: item[0])
    _, outputs, milliseconds = zip(*ordered, strict=True)
    return list(outputs), np.array(milliseconds), max(ends) - min(starts)


def _instance(connection: Connection, open_engine, num_warmup: int, next_batch) -> None:
    """One process: receives the batches, says when it is ready, waits for the start, sends what it has done."""
    batches = connection.recv()
    try:
        engine = open_engine()
        for batch in batches[:num_warmup]:
            engine(batch)
        connection.send("ready")
        connection.recv()
        served, start = [], time.perf_counter()  # the same clock in all processes
        while (index := _take(next_batch)) < len(batches):
            before = time.perf_counter()
            output = engine(batches[index])
            served.append((index, output, (time.perf_counter() - before) * 1000))
        connection.send((served, start, time.perf_counter()))
    except UserError as error:
        connection.send(error)


def _take(next_batch) -> int:
    with next_batch.get_lock():
        next_batch.value += 1
        return next_batch.value - 1
