"""The ladder: accuracy, latency and size of every rung, measured side by side in one run.

    python report.py --config=configs/config-bert-cls.json --data_dir=data/movie-reviews \\
        --output_json=results/demo.json \\
        --rung "teacher, padded to n_ctx" pytorch_fixed runs/demo/teacher \\
        --rung "teacher" pytorch runs/demo/teacher \\
        --rung "student, int8" onnx runs/demo/student.int8.onnx

A rung is a name, an engine and a path. Engines: pytorch and pytorch_fixed (every row padded to n_ctx, the naive way)
run a checkpoint folder, onnx a file that quantize.py wrote. The speed-up is over the first rung. Every rung classifies
each row of test.txt once, alone, and they take turns every 100 rows, so that a noisy machine is unfair to none.
The table goes to standard output, the same as JSON to --output_json.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from utils.arguments import add_data_options, positive_int, script_parser
from utils.checkpoint import load_tokenizer
from utils.cli import UserError, run
from utils.config import Config, load_config
from utils.data import load_data, row_labels
from utils.engines import Engine, onnx_engine, pytorch_engine
from utils.files import check_output_file, write_json
from utils.machine import describe_machine
from utils.model import load_model
from utils.timing import aligned_table, latency_summary, timed_in_turns

ENGINES = ("pytorch_fixed", "pytorch", "onnx")


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--rung", nargs=3, action="append", required=True, metavar=("NAME", "ENGINE", "PATH"),
        help=f"one rung, from the slowest on; the first is a checkpoint folder; engines: {', '.join(ENGINES)}",
    )  # fmt: skip
    parser.add_argument("--output_json", required=True, help="file for the result")
    parser.add_argument("--num_threads", type=positive_int, default=os.cpu_count(), help="CPU threads of each rung")
    return parser.parse_args()


def open_rung(engine: str, path: str, config: Config, labels: list[str], num_threads: int) -> tuple[Engine, int]:
    """A rung's engine and the size of its weights in bytes.

    Raises:
        UserError: the engine is unknown, or the path holds no such model.
    """
    if engine == "onnx":
        return onnx_engine(path, num_threads, len(labels)), os.path.getsize(path)
    if engine in ENGINES:
        model = load_model(path, "--rung", config, labels)
        return pytorch_engine(model), os.path.getsize(Path(path) / "model.safetensors")
    raise UserError(f"--rung: unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")


def result(logits: np.ndarray, milliseconds: np.ndarray, true: np.ndarray) -> dict:
    """One rung's accuracy, latency and throughput, from its logits [rows, labels] and latencies [rows]."""
    num_correct = int((logits.argmax(-1) == true).sum())
    return {
        "accuracy": num_correct / len(true),
        "num_correct": num_correct,
        "num_examples": len(true),
        "latency_ms": latency_summary(milliseconds),
        "throughput_per_s": 1000 / float(milliseconds.mean()),
    }


def table(rungs: list[dict]) -> str:
    """The rungs as aligned text."""
    header = ["rung", "accuracy", "correct", "mean ms", "p50", "p99", "examples/s", "MB", "speed-up"]
    rows = [
        [
            rung["name"],
            f"{rung['accuracy']:.4f}",
            f"{rung['num_correct']}/{rung['num_examples']}",
            *(f"{rung['latency_ms'][key]:.2f}" for key in ("mean", "p50", "p99")),
            f"{rung['throughput_per_s']:.0f}",
            f"{rung['model_bytes'] / 1e6:.1f}",
            f"{rung['speedup']:.1f}x",
        ]
        for rung in rungs
    ]
    return aligned_table(header, rows)


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    _, first_engine, first_path = args.rung[0]
    if first_engine == "onnx":
        raise UserError("--rung: the first rung must be a checkpoint folder: its tokenizer is the ladder's")
    tokenizer = load_tokenizer(first_path, "--rung")
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    check_output_file(args.output_json, "--output_json")
    torch.set_num_threads(args.num_threads)
    opened = [open_rung(engine, path, config, data.labels, args.num_threads) for _, engine, path in args.rung]

    test = data.splits["test"]
    widths = [config.n_ctx if engine == "pytorch_fixed" else None for _, engine, _ in args.rung]
    logits, milliseconds = timed_in_turns([engine for engine, _ in opened], widths, test, tokenizer.pad_token_id)

    true = row_labels(test)
    rungs = [
        {"name": name, "engine": engine, "model_bytes": num_bytes} | result(scores, latencies, true)
        for (name, engine, _), (_, num_bytes), scores, latencies in zip(
            args.rung, opened, logits, milliseconds, strict=True
        )
    ]
    for rung in rungs:
        rung["speedup"] = rungs[0]["latency_ms"]["mean"] / rung["latency_ms"]["mean"]
    machine = describe_machine() | {"num_threads": args.num_threads}
    write_json(args.output_json, {"machine": machine, "data_dir": args.data_dir, "rungs": rungs})
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rungs))


if __name__ == "__main__":
    run(main)
