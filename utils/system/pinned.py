"""Several processes with cores of their own, which share some work: how a CPU with many cores is filled.

One process's threads wait for one another within every layer of a model; processes of one thread each never wait.
Imports little, as every process does it again.
"""

import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from utils.predictor.cpus import allowed_cores
from utils.system.errors import UserError
from utils.system.signals import ctrl_c_ignored

Item = TypeVar("Item")
Result = TypeVar("Result")

CONTEXT = multiprocessing.get_context("spawn")  # a fork would inherit locks of libraries' threads
ENDED_SECONDS = 5  # what a process that has closed its connection is given to end by itself
AHEAD = 2  # items that an instance has at a time, so that it need not wait for the next


class Instance(NamedTuple):
    """A process that was started, and this process's end of the connection with it."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    num_instances: int  # how many were started with it


def check_cores(num_instances: int, num_threads: int) -> None:
    """Check that so many processes can have so many cores each.

    Raises:
        UserError: there are too few.
    """
    num_cores = len(allowed_cores())
    if num_instances * num_threads > num_cores:
        raise UserError(
            f"--num_instances={num_instances} of --num_threads={num_threads} need {num_instances * num_threads} cores "
            f"but only {num_cores} can be used: lower one of them"
        )


@contextmanager
def started_instances(
    function: Callable, arguments: tuple, num_instances: int, num_threads: int
) -> Iterator[list[Instance]]:
    """Yield `num_instances` processes that run `function(connection, *arguments)`; they are ended with the block.

    Args:
        function: it must pickle and not be of the script that runs.
        num_threads: cores of each; it is pinned to them where the system can do that.

    Raises:
        UserError: there are too few cores.
    """
    check_cores(num_instances, num_threads)
    cores = allowed_cores()
    instances: list[Instance] = []
    try:
        for i in range(num_instances):
            own, others = CONTEXT.Pipe()
            part = cores[i * num_threads : (i + 1) * num_threads]
            process = CONTEXT.Process(target=_pinned, args=(part, function, others, *arguments), daemon=True)
            instances.append(Instance(process, own, num_instances))
            _start_without_script(process)
            others.close()  # so that the connection breaks when the process dies
        yield instances
    finally:
        for instance in instances:
            if instance.process.pid is not None:
                instance.process.terminate()
                instance.process.join()
            instance.connection.close()


def map_in_instances(
    open_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item], num_instances: int
) -> Iterator[Result]:
    """As `map`, each item on whichever of `num_instances` processes of one thread is free, with a few items in memory.

    Close it where it is not read to its end: that ends the processes.

    Args:
        open_function: makes a process's function; called in that process, so it must pickle and not be of the script
            that runs.

    Raises:
        UserError: there are too few cores, or a process raised it, or died.
    """
    with started_instances(_answer, (open_function,), num_instances, 1) as instances:
        numbered = iter(enumerate(items))
        free = instances * AHEAD
        results: dict[int, Result] = {}
        num_sent = num_yielded = 0
        is_end = False
        while not (is_end and num_yielded == num_sent):
            # One that takes long does not make the others' results pile up.
            while free and not is_end and num_sent - num_yielded < 2 * AHEAD * num_instances:
                item = next(numbered, None)
                if item is None:
                    is_end = True
                else:
                    send(free.pop(0), item)
                    num_sent += 1
            for instance in _with_an_answer(instances) if num_yielded < num_sent else []:
                number, result = receive(instance)
                results[number] = result
                free.append(instance)
            while num_yielded in results:
                yield results.pop(num_yielded)
                num_yielded += 1


def send(instance: Instance, value: object) -> None:
    """Send a value to an instance.

    Raises:
        UserError: it has died.
    """
    try:
        instance.connection.send(value)
    except OSError as error:
        raise _died(instance) from error


def receive(instance: Instance) -> Any:
    """What an instance sends next.

    Raises:
        UserError: it sent that, or has died.
    """
    try:
        answer = instance.connection.recv()
    except (EOFError, OSError) as error:
        raise _died(instance) from error
    if isinstance(answer, UserError):
        raise answer
    return answer


def receive_all(instances: list[Instance]) -> list:
    """One answer of each, whoever answers first; the death of one ends the wait for the others.

    Raises:
        UserError: as `receive`.
    """
    answers: dict[int, object] = {}
    while len(answers) < len(instances):
        left = [instance for i, instance in enumerate(instances) if i not in answers]
        answers |= {instances.index(instance): receive(instance) for instance in _with_an_answer(left)}
    return [answers[i] for i in range(len(instances))]


def _with_an_answer(instances: list[Instance]) -> list[Instance]:
    ready = wait([instance.connection for instance in instances])
    return [instance for instance in instances if instance.connection in ready]


def _pinned(cores: list[int], function: Callable, *arguments) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # threads started from here on inherit it
    function(*arguments)


def _answer(connection: Connection, open_function: Callable[[], Callable[[Any], Any]]) -> None:
    """One process of `map_in_instances`: receives numbered items until it is ended, and sends the results."""
    items: queue.SimpleQueue = queue.SimpleQueue()

    def receive_items() -> None:  # at once, as two processes that both send and do not read would wait for ever
        while True:
            try:
                items.put(connection.recv())
            except (EOFError, OSError):
                os._exit(1)  # the script is no more, so nobody waits for an answer

    threading.Thread(target=receive_items, daemon=True).start()
    try:
        function = open_function()
        while True:
            number, item = items.get()
            connection.send((number, function(item)))
    except UserError as error:
        connection.send(error)
    except BrokenPipeError:
        os._exit(1)


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


def _died(instance: Instance) -> UserError:
    process, num_instances = instance.process, instance.num_instances
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
