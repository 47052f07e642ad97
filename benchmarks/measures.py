"""Latency and throughput of every engine, by its worker processes."""

import random
from contextlib import ExitStack

from tqdm import tqdm

from benchmarks.processes import Setup, Worker

ROWS_A_TURN = 50
BATCH_SIZES = (8, 32)


def measure_latency(setup: Setup, number: int, command: str = "latencies") -> dict:
    """Latency of every timed row in every engine, taking turns; with fresh processes.

    Args:
        number: how many fresh processes were measured before.
        command: of the worker: `latencies`, or `graph_latencies` without what begins with a text.
    """
    order = random.Random(setup.seed * 1000 + number)
    engines = list(setup.models)
    latencies: dict[str, dict] = {engine: {} for engine in engines}
    with ExitStack() as stack:
        workers = {engine: stack.enter_context(Worker(setup, engine)) for engine in engines}
        for start in tqdm(range(0, setup.num_rows, ROWS_A_TURN), desc=f"latency, processes {number + 1}", disable=None):
            for engine in order.sample(engines, len(engines)):
                stop = min(start + ROWS_A_TURN, setup.num_rows)
                measured = workers[engine].ask(command, start=start, stop=stop)
                for key, value in measured.items():
                    # Lists and counts both add up.
                    latencies[engine][key] = latencies[engine][key] + value if start else value
    return {"latencies": latencies, "versions": {engine: setup.versions[engine] for engine in engines}}


def measure_throughput(workers: list[Worker], command: str = "throughput") -> dict:
    """Examples a second of processes that share the rows, for each batch size.

    Args:
        command: of the worker: `throughput`, or `graph_throughput` without what begins with a text.
    """
    rates = {}
    for size in BATCH_SIZES:
        for i, worker in enumerate(workers):
            worker.send(command, batch_size=size, part=i, parts=len(workers))
        measured = [worker.receive() for worker in workers]
        num_rows = sum(each["num_rows"] for each in measured)
        rates[str(size)] = {
            path: num_rows / max(each[f"{path}_seconds"] for each in measured)
            for path in ("text", "graph")
            if f"{path}_seconds" in measured[0]
        }
    return rates
