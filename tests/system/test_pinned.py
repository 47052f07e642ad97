"""Processes with cores of their own map items in order, have few at a time, and end with what started them."""

import itertools
import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
from conftest import ROOT

from utils.predictor.cpus import allowed_cores
from utils.system import pinned
from utils.system.errors import UserError
from utils.system.pinned import map_in_instances


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    cores = allowed_cores()
    monkeypatch.setattr(pinned, "allowed_cores", lambda: [cores[0], cores[-1]])


def test_in_order():
    """The first is the slowest: others overtake it."""
    waits = [0.3, *itertools.repeat(0.001, 30)]
    assert list(map_in_instances(partial(partial, operator.methodcaller("__abs__")), [-1, 2, -3], 2)) == [1, 2, 3]
    assert list(map_in_instances(partial(partial, time.sleep), waits, 2)) == [None] * 31
    assert list(map_in_instances(partial(partial, abs), [], 1)) == []


def test_each_has_a_core_of_its_own():
    cores = list(map_in_instances(partial(partial, os.sched_getaffinity), [0] * 40, 2))
    assert set(map(frozenset, cores)) <= {frozenset([core]) for core in pinned.allowed_cores()}


def test_large_items_do_not_block():
    """Each more than a pipe holds, both ways."""
    texts = [str(i) * 200_000 for i in range(10)]
    opener = partial(partial, str.lower)
    assert list(map_in_instances(opener, texts, 2)) == texts


def test_few_items_at_a_time():
    taken = []
    results = map_in_instances(partial(partial, abs), (taken.append(i) or i for i in itertools.count()), 1)
    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(taken) <= 20 + 2 * pinned.AHEAD
    results.close()


@pytest.mark.parametrize(
    ("opener", "reason"),
    [(partial(os._exit, 3), "exit code 3"), (partial(signal.raise_signal, signal.SIGKILL), "signal 9"),
     (partial(partial, os._exit), "exit code 1")],
)  # fmt: skip
def test_one_that_dies(opener, reason):
    with pytest.raises(UserError, match=f"--num_instances=2 .*{reason}"):
        list(map_in_instances(opener, [1] * 10, 2))


def test_too_few_cores():
    with pytest.raises(UserError, match="--num_instances=3 .* only 2"):
        next(map_in_instances(partial(partial, abs), [1], 3))


def test_they_end_with_the_script():
    """However it is ended."""
    code = """
import sys, time
from functools import partial
from utils.system.pinned import map_in_instances
results = map_in_instances(partial(partial, time.sleep), [0.01] * 100_000, 1)
next(results)
print("started", flush=True)
list(results)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        process.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
