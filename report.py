"""The ladder: accuracy, speed, size and price of every rung, measured side by side in one run.

    python report.py --config=configs/config-bert-cls.json --data_dir=data/movie-reviews --output_dir=results/demo \\
        --rung "teacher, padded to n_ctx" pytorch_fixed runs/demo/teacher \\
        --rung "+ own length" pytorch runs/demo/teacher \\
        --rung "+ distillation" pytorch runs/demo/student \\
        --rung "+ graph, int8" onnx runs/demo/models/student \\
        --rung "+ 2 instances" onnx_instances runs/demo/models/student \\
        --rung "BERT-base's shape" bert_base - --rung "TF-IDF + logistic regression" linear -

A rung is a name, an engine and a path. Engines: pytorch and pytorch_fixed (every row padded to n_ctx, the naive way)
run a checkpoint folder in fp32; onnx runs a file or a folder that quantize.py wrote, of a folder the graph for single
rows, or a folder of cascade.py; onnx_instances runs it in as many processes of one thread as there are --num_threads,
and its speed is that of all together. Three are no steps of the ladder: bert_base, 12 layers of 768, padded to n_ctx,
is the paper's baseline (its weights are random, which its time does not depend on, and it runs every 20th row); linear
is scikit-learn's TF-IDF and logistic regression, what a student must beat to be worth it; where spaces do not separate
words, as in Chinese, of characters. The path of both is -. model2vec runs a classifier on static embeddings, a folder
that the library of this name saved.

Every rung classifies the texts of test.txt one at a time, each with its own tokenizer, which is timed too; "from
tokens" is what is left without it. They take turns every 100 rows, so that a noisy machine is unfair to none; several
instances serve all rows, 3 to 10 times, between these turns. The range is that of the turns.
Into --output_dir go ladder.json, ladder.md, ladder.png and ladder.svg. A rung that fails has a row that says why; the
others are measured all the same, and the exit code is 2.
"""

import argparse
import shlex
import sys
from pathlib import Path

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np
import torch

from utils.arguments import (
    add_column_options,
    add_data_options,
    positive_float,
    positive_int,
    script_parser,
    text_columns,
)
from utils.data.label_checks import read_labels
from utils.data.labels import encoded_labels
from utils.data.texts import SPLITS, labelled_texts, split_path
from utils.measuring.engines import folder_thresholds
from utils.measuring.ladder import (
    ComparedRung,
    MeasuredRung,
    compared,
    markdown_table,
    measured_rung,
    rung_as_json,
    text_table,
)
from utils.measuring.picture import ladder_figure, save_figure
from utils.measuring.rungs import OPENERS, Failure, Rung, Setting, measure_rungs, open_rung
from utils.models.checkpoint import load_tokenizer
from utils.models.config import MULTI_LABEL, load_config
from utils.predictor.cpus import usable_cpus
from utils.predictor.tokens import Text
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.files import atomic_file, check_output_folder, write_json
from utils.system.machine import describe_machine
from utils.training.metrics import NAMES, main_measure, tuned_thresholds


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_data_options(parser)
    group.add_argument(
        "--rung",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "ENGINE", "PATH"),
        help=f"one rung, from the slowest on; the first is a checkpoint folder; engines: {', '.join(OPENERS)}",
    )
    add_column_options(parser)
    group.add_argument(
        "--tune_thresholds",
        action="store_true",
        help="for multi_label: choose the probability above which checkpoints give each label by its F1 on valid; "
        "without it, 0.5; folders of quantize.py have their own",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="folder for ladder.json, .md, .png and .svg")
    group = parser.add_argument_group("hardware")
    group.add_argument("--num_threads", type=positive_int, default=usable_cpus(), help="CPU threads of each rung")
    group.add_argument(
        "--usd_per_hour",
        type=positive_float,
        default=0.085,
        help="price of the machine, US dollars an hour; the default is that of a cloud's 2 virtual CPUs",
    )
    return parser.parse_args()


def write_ladder(
    folder: Path,
    rungs: list[ComparedRung],
    has_baseline: bool,
    failures: list[tuple[str, str]],
    args: argparse.Namespace,
) -> None:
    """Write the ladder as JSON, Markdown and picture; print it as text."""
    command = shlex.join(["python", *sys.argv])
    settings = {"num_threads": args.num_threads, "data_dir": args.data_dir, "usd_per_hour": args.usd_per_hour}
    header = describe_machine() | settings
    result: dict[str, object] = {"machine": header, "command": command, "rungs": [rung_as_json(rung) for rung in rungs]}
    folder.mkdir(parents=True, exist_ok=True)
    if failures:
        result["failed"] = [{"name": name, "reason": reason} for name, reason in failures]
    write_json(folder / "ladder.json", result)
    shown = ", ".join(f"{key} {value}" for key, value in header.items())
    with atomic_file(folder / "ladder.md") as temporary:
        table = markdown_table(rungs, has_baseline, failures)
        picture = f"![{NAMES[rungs[0].measure]} against latency](ladder.svg)"
        temporary.write_text(f"{shown}\n\n`{command}`\n\n{table}\n{picture}\n", encoding="utf-8")
    if any(rung.score is not None for rung in rungs):  # on its log axis, none cannot be drawn
        save_figure(ladder_figure(rungs), folder, "ladder")
    print(shown)
    print(text_table(rungs, has_baseline, failures))


def thresholds_of(
    rung: Rung,
    engine: str,
    path: str,
    valid: tuple[list[Text], np.ndarray] | None,
    setting: Setting,
    tuned: dict[tuple[str, str], np.ndarray],
) -> np.ndarray | None:
    """The probability above which a rung gives each label, [labels], where rows have any number; None for 0.5.

    Args:
        valid: texts and labels of valid, to choose by where the rung is no folder of quantize.py; None to do without.
        tuned: what was chosen for other rungs, by engine and path, to which this one's is added; a checkpoint's are the
            same with padding and without.
    """
    if engine in ("onnx", "onnx_instances") and Path(path).is_dir():
        return folder_thresholds(path)
    if valid is None or rung.has_random_weights:
        return None
    key = (engine.removesuffix("_fixed"), path)
    if key not in tuned:
        if engine == "pytorch_fixed":  # rows without padding take less time
            unpadded = open_rung("pytorch", path, setting)
            assert isinstance(unpadded, Rung)
            rung = unpadded
        texts, labels = valid
        bar = progress_bar(texts, desc="thresholds", unit="row")
        tuned[key] = tuned_thresholds(
            np.concatenate([rung.engine.run(rung.engine.encode(text)) for text in bar]), labels
        )
    return tuned[key]


def main() -> None:
    args = parse_args()
    config, data_dir = load_config(args.config), Path(args.data_dir)
    columns = text_columns(args, config.task)
    names, engines, paths = map(list, zip(*args.rung, strict=True))
    if engines[0] not in ("pytorch", "pytorch_fixed"):
        raise UserError("--rung: the first rung must be a checkpoint folder: its tokenizer is that of ONNX files")
    tokenizer = load_tokenizer(paths[0], "--rung")
    labels = list(read_labels(data_dir, columns)[0])
    splits = SPLITS if args.tune_thresholds else [split for split in SPLITS if split != "valid"]
    rows = {split: labelled_texts(split_path(data_dir, split), columns) for split in splits}
    texts = {split: [text for text, _ in own] for split, own in rows.items()}
    targets = {
        split: np.array(encoded_labels([label for _, label in own], labels, columns, has_empty=False))
        for split, own in rows.items()
    }
    if args.tune_thresholds and config.task != MULTI_LABEL:
        raise UserError(f"--tune_thresholds is for the task multi_label, and this one is {config.task}: leave it out")
    check_output_folder(args.output_dir, "--output_dir")
    torch.set_num_threads(args.num_threads)
    setting = Setting(
        texts["test"], texts["train"], targets["train"], labels, config.n_ctx, tokenizer, args.num_threads, config.task
    )
    opened = [open_rung(engine, path, setting) for engine, path in zip(engines, paths, strict=True)]
    measurements = measure_rungs(opened, setting)

    valid = (texts["valid"], targets["valid"]) if args.tune_thresholds else None
    tuned: dict[tuple[str, str], np.ndarray] = {}
    rungs: list[MeasuredRung] = []
    failures: list[tuple[str, str]] = []
    for name, engine, path, rung, measurement in zip(names, engines, paths, opened, measurements, strict=True):
        if isinstance(measurement, Failure):
            failures.append((name, measurement.reason))
            continue
        assert isinstance(rung, Rung)
        rungs.append(
            measured_rung(
                name,
                measurement,
                targets["test"],
                engine=engine,
                step=rung.is_step,
                parameters=rung.parameters,
                model_bytes=rung.model_bytes,
                chosen=main_measure(config.task),
                thresholds=(
                    thresholds_of(rung, engine, path, valid, setting, tuned) if config.task == MULTI_LABEL else None
                ),
            )
        )
    if rungs:
        baseline = next((rung for rung in rungs if rung.engine == "bert_base"), None)
        ladder = compared(rungs, baseline, args.usd_per_hour)
        write_ladder(Path(args.output_dir), ladder, baseline is not None, failures, args)
    if failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures)
        others = f"{args.output_dir} has the others" if rungs else "nothing was written"
        raise UserError(
            f"{len(failures)} of {len(names)} rungs failed ({reasons}), {others}: mend these or leave them out"
        )


if __name__ == "__main__":
    run_script(main)
