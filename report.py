"""The ladder: accuracy, speed, size and price of every rung, measured side by side in one run.

    python report.py --config=configs/config-bert-cls.json --data_dir=data/movie-reviews --output_dir=results/demo \\
        --rung "teacher, padded to n_ctx" pytorch_fixed runs/demo/teacher \\
        --rung "+ own length" pytorch runs/demo/teacher \\
        --rung "+ distillation" pytorch runs/demo/student \\
        --rung "+ graph, int8" onnx runs/demo/models/student \\
        --rung "+ 2 instances" onnx_instances runs/demo/models/student \\
        --rung "BERT-base's shape" bert_base - --rung "TF-IDF + logistic regression" linear -

A rung is a name, an engine and a path. Engines: pytorch and pytorch_fixed (every row padded to n_ctx, the naive way)
run a checkpoint folder; onnx runs a file or a folder that quantize.py wrote, of a folder the graph for single rows;
onnx_instances runs it in as many processes of one thread as there are --num_threads, and its speed is that of all
together. Two are no steps of the ladder, and their path is -: bert_base, 12 layers of 768, padded to n_ctx, is the
paper's baseline (its weights are random, which its time does not depend on, and it runs every 20th row); linear is
scikit-learn's TF-IDF and logistic regression from text to label, what a student must beat to be worth it.

Every rung classifies the rows of test.txt one at a time, and they take turns every 100 rows, so that a noisy machine is
unfair to none; several instances serve all rows, 3 to 10 times, between these turns. The range is that of the turns.
Into --output_dir go ladder.json, ladder.md, ladder.png and ladder.svg.
"""

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, BertConfig

from utils.arguments import (
    add_column_options,
    add_data_options,
    positive_float,
    positive_int,
    script_parser,
    text_columns,
)
from utils.data.tables import Data, collate, load_data, row_labels
from utils.data.texts import read_rows, split_path
from utils.measuring.engines import graph_size, onnx_engine, pytorch_engine
from utils.measuring.instances import serve
from utils.measuring.ladder import compared, markdown_table, measured_rung, text_table
from utils.measuring.picture import ladder_figure, save_figure
from utils.measuring.timing import timed_in_turns
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import Config, load_config
from utils.runtime import GRAPH, UNPADDED_GRAPH
from utils.system.cli import run_script
from utils.system.cpus import usable_cpus
from utils.system.errors import UserError
from utils.system.files import atomic_file, check_output_folder, write_json
from utils.system.machine import describe_machine

ENGINES = ("pytorch_fixed", "pytorch", "onnx", "onnx_instances", "bert_base", "linear")
NO_STEPS = ("bert_base", "linear")
SERVED_LEAST, SERVED_MOST = 3, 10  # how often several instances serve all rows, by the number of turns
WARMUP = 20  # rows that each instance runs before
BASELINE_EVERY = 20


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_data_options(parser)
    group.add_argument(
        "--rung", nargs=3, action="append", required=True, metavar=("NAME", "ENGINE", "PATH"),
        help=f"one rung, from the slowest on; the first is a checkpoint folder; engines: {', '.join(ENGINES)}",
    )  # fmt: skip
    add_column_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="folder for ladder.json, .md, .png and .svg")
    group = parser.add_argument_group("hardware")
    group.add_argument("--num_threads", type=positive_int, default=usable_cpus(), help="CPU threads of each rung")
    group.add_argument(
        "--usd_per_hour", type=positive_float, default=0.085,
        help="price of the machine, US dollars an hour; the default is that of a cloud's 2 virtual CPUs",
    )  # fmt: skip
    return parser.parse_args()


def open_linear(args: argparse.Namespace, data: Data) -> dict:
    """As `open_rung`: TF-IDF of words and pairs of words, and logistic regression, from a text."""
    names, data_dir = text_columns(args), Path(args.data_dir)
    rows = {split: list(read_rows(split_path(data_dir, split), names)) for split in ("train", "test")}
    texts = {split: [" ".join(parts) for parts, _ in rows[split]] for split in rows}
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LogisticRegression(C=10.0, max_iter=1000)
    )
    model.fit(texts["train"], [label for _, label in rows["train"]])
    order = [list(model.classes_).index(label) for label in data.labels]
    parameters = model[-1].coef_.size
    return {
        "run": lambda text: model.predict_proba([text])[:, order], "make_input": texts["test"].__getitem__,
        "parameters": parameters, "model_bytes": 8 * parameters,
    }  # fmt: skip


def single_row_graph(path: str) -> Path:
    """The ONNX file that runs single rows: of a folder that quantize.py wrote, or the file itself."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    return folder / (UNPADDED_GRAPH if (folder / UNPADDED_GRAPH).is_file() else GRAPH)


def open_rung(engine: str, path: str, args: argparse.Namespace, config: Config, data: Data, pad_token_id: int) -> dict:
    """What runs a rung (`run`, from what `make_input` makes of a row's number to logits), its parameters and bytes.

    Raises:
        UserError: the engine is unknown, or the path holds no such model.
    """

    def batch(row: int, width: int | None = None) -> dict:
        return collate(data.splits["test"], np.array([row]), pad_token_id, width)

    if engine in ("onnx", "onnx_instances"):
        session = onnx_engine(single_row_graph(path), args.num_threads, len(data.labels))
        parameters, model_bytes = graph_size(single_row_graph(path))
        return {"run": session, "make_input": batch, "parameters": parameters, "model_bytes": model_bytes}
    if engine in ("pytorch", "pytorch_fixed"):
        model = load_model(path, "--rung", config, data.labels)
        width = config.n_ctx if engine == "pytorch_fixed" else None
        return {
            "run": pytorch_engine(model), "make_input": partial(batch, width=width),
            "parameters": model.num_parameters(), "model_bytes": os.path.getsize(Path(path) / "model.safetensors"),
        }  # fmt: skip
    if engine == "bert_base":
        shape = BertConfig(num_labels=len(data.labels), max_position_embeddings=max(512, config.n_ctx))
        model = AutoModelForSequenceClassification.from_config(shape).eval()

        # Token ids of another vocabulary may be larger than its own.
        def make_input(row: int) -> dict:
            made = batch(row, config.n_ctx)
            return made | {"input_ids": made["input_ids"] % shape.vocab_size}

        return {
            "run": pytorch_engine(model), "make_input": make_input, "parameters": model.num_parameters(),
            "model_bytes": 4 * model.num_parameters(),
        }  # fmt: skip
    if engine == "linear":
        return open_linear(args, data)
    raise UserError(f"--rung: unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")


def measure_rungs(opened: list[dict], engines: list[str], paths: list[str], data: Data, num_threads: int) -> list[dict]:
    """Every rung's logits, latencies turn by turn, and, of several instances, seconds of each repeat."""
    num_rows = len(data.splits["test"])
    every = [BASELINE_EVERY if engine == "bert_base" else 1 for engine in engines]
    inputs = [rung["make_input"] for rung in opened]
    served: dict[int, list] = {i: [] for i, engine in enumerate(engines) if engine == "onnx_instances"}
    batches = {i: [inputs[i](row) for row in range(num_rows)] for i in served}

    def serve_share(turn: int, turns: int) -> None:
        repeats = min(max(turns, SERVED_LEAST), SERVED_MOST)
        for _ in range((turn + 1) * repeats // turns - turn * repeats // turns):
            for i, done in served.items():
                open_one = partial(onnx_engine, single_row_graph(paths[i]), 1, len(data.labels))
                done.append(serve(open_one, batches[i], WARMUP, num_threads, 1))

    runs = [rung["run"] for rung in opened]
    logits, milliseconds = timed_in_turns(runs, inputs, num_rows, every, between=serve_share)
    measured = zip(logits, milliseconds, strict=True)
    found: list[dict] = [{"logits": scores, "milliseconds": turns, "seconds": None} for scores, turns in measured]
    for i, repeats in served.items():
        found[i] |= {"milliseconds": [each[1] for each in repeats], "seconds": [each[2] for each in repeats]}
    for i, engine in enumerate(engines):
        if engine == "bert_base":
            found[i]["logits"] = None
    return found


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    names, engines, paths = map(list, zip(*args.rung, strict=True))
    if engines[0] not in ("pytorch", "pytorch_fixed"):
        raise UserError("--rung: the first rung must be a checkpoint folder: its tokenizer is the ladder's")
    tokenizer = load_tokenizer(paths[0], "--rung")
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    check_output_folder(args.output_dir, "--output_dir")
    torch.set_num_threads(args.num_threads)
    opened = [
        open_rung(engine, path, args, config, data, tokenizer.pad_token_id)
        for engine, path in zip(engines, paths, strict=True)
    ]
    found = measure_rungs(opened, engines, paths, data, args.num_threads)

    true = row_labels(data.splits["test"])
    rungs = []
    for name, engine, rung, each in zip(names, engines, opened, found, strict=True):
        sizes = {key: rung[key] for key in ("parameters", "model_bytes")}
        made = measured_rung(name, each["logits"], true, each["milliseconds"], each["seconds"])
        rungs.append(made | sizes | {"engine": engine, "step": engine not in NO_STEPS})
    baseline = next((rung for rung in rungs if rung["engine"] == "bert_base"), None)
    compared(rungs, baseline, args.usd_per_hour)
    write_ladder(Path(args.output_dir), rungs, baseline, args)


def write_ladder(folder: Path, rungs: list[dict], baseline: dict | None, args: argparse.Namespace) -> None:
    """Write the ladder as JSON, Markdown and picture; print it as text."""
    command = shlex.join(["python", *sys.argv])
    settings = {"num_threads": args.num_threads, "data_dir": args.data_dir, "usd_per_hour": args.usd_per_hour}
    header = describe_machine() | settings
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ladder.json", {"machine": header, "command": command, "rungs": rungs})
    shown = ", ".join(f"{key} {value}" for key, value in header.items())
    with atomic_file(folder / "ladder.md") as temporary:
        table = markdown_table(rungs, baseline is not None)
        picture = "![accuracy against latency](ladder.svg)"
        temporary.write_text(f"{shown}\n\n`{command}`\n\n{table}\n{picture}\n", encoding="utf-8")
    save_figure(ladder_figure(rungs), folder, "ladder")
    print(shown)
    print(text_table(rungs, baseline is not None))


if __name__ == "__main__":
    run_script(main)
