"""Several processes that share the work, each with cores of its own: how a CPU with many cores is filled.

One instance's threads wait for one another within every layer; instances of one thread each never wait. Imports little,
as every instance does it again.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

import numpy as np

from utils.predictor import allowed_cores
from utils.system.errors import UserError
from utils.system.signals import ctrl_c_ignored

ENDED_SECONDS = 5  # what a process that has closed its connection is given to end by itself


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
    cores = allowed_cores()
    if num_instances * num_threads > len(cores):
        raise UserError(
            f"--num_instances={num_instances} of --num_threads={num_threads} need {num_instances * num_threads} cores "
            f"but only {len(cores)} can be used: lower one of them"
        )
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of libraries' threads
    next_batch = context.Value("q", 0)
    processes, connections = [], []
    try:
        for i in range(num_instances):
            own, others = context.Pipe()
            part = cores[i * num_threads : (i + 1) * num_threads]
            args = (open_engine, num_warmup, others, next_batch, part)
            processes.append(context.Process(target=_instance, args=args))
            connections.append(own)
            _start_without_script(processes[-1])
            others.close()  # so that the connection breaks when the process dies
        _send_all(connections, batches, processes)
        _receive_all(connections, processes)  # loaded and warmed up
        _send_all(connections, "start", processes)
        parts = _receive_all(connections, processes)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
    served, starts, ends = zip(*parts, strict=True)
    ordered = sorted((item for part in served for item in part), key=lambda item: item[0])
    _, outputs, milliseconds = zip(*ordered, strict=True)
    return list(outputs), np.array(milliseconds), max(ends) - min(starts)


def _instance(open_engine, num_warmup: int, connection: Connection, next_batch, cores: list[int]) -> None:
    """One process: receives the batches, says when it is ready, waits for the start, sends what it has done."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # threads started from here on inherit it
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


def _start_without_script(process: multiprocessing.process.BaseProcess) -> None:
    # A spawned process imports the running script anew, and PyTorch with it, unless there is none, as in an interactive
    # session: seconds, and hundreds of megabytes, that an instance of an ONNX file has no use for.
    script = sys.modules["__main__"]
    path = script.__dict__.pop("__file__", None)
    try:
        with ctrl_c_ignored():
            process.start()
    finally:
        if path is not None:
            script.__file__ = path


def _send_all(connections: list[Connection], value: object, processes: list) -> None:
    for connection, process in zip(connections, processes, strict=True):
        try:
            connection.send(value)
        except OSError as error:
            raise _died(process, len(processes)) from error


def _receive_all(connections: list[Connection], processes: list) -> list:
    """One answer of each, whoever answers first; the death of one ends the wait for the others."""
    answers: dict[Connection, object] = {}
    while len(answers) < len(connections):
        ready = wait([connection for connection in connections if connection not in answers])
        for connection in (connection for connection in connections if connection in ready):
            try:
                answer = connection.recv()
            except (EOFError, OSError) as error:
                raise _died(processes[connections.index(connection)], len(processes)) from error
            if isinstance(answer, UserError):
                raise answer
            answers[connection] = answer
    return [answers[connection] for connection in connections]


def _died(process: multiprocessing.process.BaseProcess, num_instances: int) -> UserError:
    process.join(ENDED_SECONDS)
    if process.exitcode is not None and process.exitcode < 0:
        return UserError(
            f"one of --num_instances={num_instances} was ended by signal {-process.exitcode}, as happens where memory "
            "runs out: use fewer instances"
        )
    return UserError(
        f"one of --num_instances={num_instances} ended early (exit code {process.exitcode}): mend what its own message "
        "above says, or use one instance"
    )
