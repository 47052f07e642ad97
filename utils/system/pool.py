"""A function over many items in several processes, in order, with a few items in memory at a time."""

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from utils.system.signals import ctrl_c_ignored

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], num_proc: int) -> Iterator[Result]:
    """As `map`, in `num_proc` processes, or for 1 in this one."""
    if num_proc == 1:
        yield from map(function, items)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes take the place of its threads
    iterator = iter(items)
    # The function goes to each process once, not with each item.
    with ProcessPoolExecutor(num_proc, initializer=_take, initargs=(function,)) as pool:
        first = list(itertools.islice(iterator, 2 * num_proc))
        with ctrl_c_ignored():
            under_way = [pool.submit(_apply, item) for item in first]
        while under_way:
            yield under_way.pop(0).result()
            under_way += [pool.submit(_apply, item) for item in itertools.islice(iterator, 1)]


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _take(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a process that was started later, too


def _apply(item: Any) -> Any:
    return _function(item)
