"""A function over many items in processes gives what map gives, whatever finishes first."""

import itertools
import os
import time

import pytest

from utils.system.pool import chunks, map_in_processes


def slow_first(number: int) -> tuple[int, int]:
    if number == 0:
        time.sleep(0.3)
    return number * number, os.getpid()


@pytest.mark.parametrize("num_proc", [1, 2])
def test_in_order(num_proc):
    """More items than are under way at a time, and fewer."""
    for count in (0, 1, 9):
        results = list(map_in_processes(slow_first, range(count), num_proc))
        assert [square for square, _ in results] == [number**2 for number in range(count)]
        assert (os.getpid() in {process for _, process in results}) == (num_proc == 1 and count > 0)


def test_items_are_taken_as_they_are_needed():
    """Two for each process, and another when one is done."""
    taken = []
    results = map_in_processes(slow_first, (taken.append(number) or number for number in itertools.count()), 2)
    next(results)
    assert len(taken) == 4
    next(results)
    assert len(taken) == 5
    results.close()


def test_chunks():
    assert list(chunks(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(chunks("", 2)) == []
