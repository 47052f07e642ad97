"""Latency, throughput, memory, size and cold start of one checkpoint in ours and in other libraries, in one run.

    python -m benchmarks.inference --name=student --config=configs/config-bert-cls.json \\
        --data_dir=data/movie-reviews --bert_output_dir=runs/demo/student

Every engine runs in a process of its own, other libraries than PyTorch in virtual environments of their own, and only
one engine computes at a time. benchmarks/README.md says what each column means. Needs an otherwise idle machine. Models
are made once, and measurements kept, in --work_dir: an interrupted run continues. The result is
results/inference-NAME.json and a table; the last lines say which targets are met.
"""

import argparse
import os
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.measures import BATCH_SIZES, measure_latency, measure_throughput
from benchmarks.processes import (
    VENVS,
    Setup,
    Worker,
    answer_of,
    make_models,
    prepare,
    read_partial,
    write_partial,
)
from benchmarks.results import (
    OURS,
    count_macs,
    gemm_results,
    latency_results,
    layer_shapes,
    million_results,
    table,
    targets,
    throughput_results,
)
from benchmarks.targets import print_targets, write_results
from utils.arguments import add_data_options, positive_int, script_parser
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.machine import describe_machine

COLD_STARTS = 3


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--bert_output_dir", required=True, help="checkpoint folder, BERT, not pruned")
    parser.add_argument("--name", required=True, help="the result is results/inference-NAME.json")
    parser.add_argument("--work_dir", help="models and partial results; default: runs/benchmarks/inference/NAME")
    parser.add_argument("--ours_fp32", help="folder that quantize.py wrote; default: made in --work_dir")
    parser.add_argument("--ours_int8", help="folder that quantize.py wrote; default: made in --work_dir")
    for peer in VENVS:
        python = f".venv-{peer}/bin/python"
        parser.add_argument(f"--{peer}_python", default=python, help=f"Python with requirements-{peer}.txt")
    parser.add_argument("--num_threads", type=positive_int, default=2, help="CPU threads of every engine")
    parser.add_argument("--num_processes", type=positive_int, default=5, help="fresh processes of each engine")
    parser.add_argument("--num_rows", type=positive_int, help="rows of test.txt that are timed; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the engines' order")
    parser.add_argument("--million", action="store_true", help="measure a million predictions in one process, too")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 50 rows, 1 process, one cold start")
    parser.add_argument("--fresh", action="store_true", help="measure everything again; models are kept")
    args = parser.parse_args()
    args.work_dir = Path(args.work_dir or f"runs/benchmarks/inference/{args.name}")
    if args.quick:  # has files of its own, but shares the models
        args.num_processes, args.num_rows, args.name = 1, args.num_rows or 50, f"{args.name}-quick"
    if len(os.sched_getaffinity(0)) < args.num_threads:
        raise UserError(f"--num_threads {args.num_threads}: this process may use fewer CPUs: choose fewer threads")
    return args


def measure_rates(setup: Setup, _: int) -> dict:
    """Throughput of every engine over all rows, by one process and by one a CPU."""
    throughput = {}
    for engine in tqdm(setup.models, desc="throughput", disable=None):
        with Worker(setup, engine) as worker:
            one = measure_throughput([worker])
        with ExitStack() as stack:
            many = measure_throughput([stack.enter_context(Worker(setup, engine, cpu)) for cpu in setup.cpus])
        throughput[engine] = {f"1x{setup.num_threads}": one, f"{setup.num_threads}x1": many}
    # In the same minutes as the engines, or a share of the peak would compare two different loads of the machine.
    return {"throughput": throughput, "gemm": measure_gemm(setup)}


def measure_cold(setup: Setup, number: int) -> dict:
    """Seconds from the start of a process to its first answer, for every engine."""
    engines = list(setup.models)
    order = random.Random(setup.seed * 1000 + number).sample(engines, len(engines))
    seconds = {}
    for engine in tqdm(order, desc=f"cold start {number}", disable=None):
        answer_of(setup, engine, "once")  # fills the machine's file cache
        _, seconds[engine] = answer_of(setup, engine, "once")
    return seconds


def measure_memory(setup: Setup, _: int) -> dict:
    """Peak memory of a fresh process that labels all rows, for every engine."""
    return {engine: answer_of(setup, engine, "memory")[0] for engine in tqdm(setup.models, desc="memory", disable=None)}


def measure_gemm(setup: Setup) -> dict:
    """The machine's int8 rates: one process with all threads, and one process a CPU; their rates added up."""
    one = answer_of(setup, "gemm", "gemm")[0]["operations_per_s"]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(setup, "gemm", cpu, "gemm")) for cpu in setup.cpus]
        rates = [worker.receive()["operations_per_s"] for worker in workers]
    many = {shape: sum(rate[shape] for rate in rates) for shape in rates[0]}
    return {f"1x{setup.num_threads}": one, f"{setup.num_threads}x1": many}


def measure_million(setup: Setup, _: int) -> dict:
    """Memory of ours_int8 over a million predictions."""
    return answer_of(setup, OURS, "million")[0]


def measure_all(setup: Setup, args: argparse.Namespace) -> dict[str, list]:
    """Every measurement, or what an earlier run kept of it: a list each, of its repetitions."""
    plan: list[tuple[str, Callable[[Setup, int], dict], int]] = [
        ("latency", measure_latency, args.num_processes),
        ("throughput", measure_rates, 1),
        ("cold", measure_cold, 1 if args.quick else COLD_STARTS),
        ("memory", measure_memory, 1),
        ("million", measure_million, int(args.million)),
    ]
    results: dict[str, list] = {}
    for name, measure, count in plan:
        results[name] = []
        for number in range(count):
            value = read_partial(setup, name, number)
            if value is None:
                value = measure(setup, number)
                write_partial(setup, name, number, value)
            results[name].append(value)
    # Measured by an earlier run, it still belongs to the result.
    if not args.million and (value := read_partial(setup, "million", 0)):
        results["million"] = [value]
    return results


def summarise(setup: Setup, measurements: dict[str, list], layers: list[tuple[int, int, int]]) -> dict:
    """The result file's content, without the machine and the targets; `layers` as of `layer_shapes`."""
    engines = {}
    for engine, model in setup.models.items():
        engines[engine] = {
            **latency_results([measured["latencies"][engine] for measured in measurements["latency"]]),
            "throughput": throughput_results(
                [measured["throughput"][engine] for measured in measurements["throughput"]]
            ),
            "accuracy": measurements["memory"][0][engine]["right"] / measurements["memory"][0][engine]["num_rows"],
            "num_correct": measurements["memory"][0][engine]["right"],
            "disk_mb": model.num_bytes / 1e6,
            "peak_rss_mb": measurements["memory"][0][engine]["peak_rss_mb"],
            "cold_start_s": statistics.median(seconds[engine] for seconds in measurements["cold"]),
            "versions": measurements["latency"][0]["versions"][engine],
        }
    macs, all_macs = (
        np.array([count_macs(layers, setup.num_labels, length) for length in lengths])
        for lengths in (setup.lengths, setup.all_lengths)
    )
    ours = [measured["latencies"][OURS] for measured in measurements["latency"]]
    gemm = gemm_results(
        [measured["gemm"] for measured in measurements["throughput"]], engines[OURS]["throughput"], ours, macs, all_macs
    )
    million = million_results(measurements["million"][0]) if measurements["million"] else None
    return {"engines": engines, "gemm": gemm, "million": million}


def main() -> None:
    args = parse_args()
    prepared = prepare(args)
    setup = make_models(args, prepared)
    machine = describe_machine() | {"num_threads": args.num_threads, "load_at_start": os.getloadavg()[0]}
    layers = layer_shapes(args.bert_output_dir)
    result = summarise(setup, measure_all(setup, args), layers)
    settings = {
        "checkpoint": args.bert_output_dir,
        "data_dir": args.data_dir,
        "num_rows": setup.num_rows,
        "num_processes": args.num_processes,
        "batch_sizes": BATCH_SIZES,
        "seed": args.seed,
    }
    lines = targets(result["engines"], result["gemm"], result["million"], len(layers))
    write_results(f"inference-{args.name}.json", {"machine": machine, "settings": settings} | result, lines)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(result["engines"]))
    gemm = result["gemm"]
    print(
        f"int8 GEMM peak {gemm['peak_per_s'] / 1e9:.0f} billion operations/s ({gemm['at']}); ours_int8 reaches "
        f"{gemm['fraction_batch_1']:.2f} of it at batch 1, {gemm['fraction_best']:.2f} at {gemm['best_at']}"
    )
    print_targets(lines)


if __name__ == "__main__":
    run_script(main)
