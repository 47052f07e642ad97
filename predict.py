"""Label texts with a model folder that quantize.py --output_dir wrote, or with a cascade of cascade.py.

    python predict.py my-model < texts.txt
    python predict.py my-model --input=tickets.csv --text_column=subject --format=jsonl --batch_size=64
    python predict.py my-model --input=tickets.parquet --text_column=subject --output=labelled.parquet

Each line is a text, or text_a<TAB>text_b where the model was trained on pairs, in UTF-8; of a .csv, .tsv, .jsonl or
.parquet file, each row. Each gets a line on standard output, in the same order: label<TAB>probability, or, as jsonl,
{"label": ..., "probabilities": {...}} with every label's probability, of a cascade also {"stage": ...}, the number of
the model that answered, from 0. A line is answered before the next one is read; --batch_size=64 reads and answers 64 at
a time, which is faster.

With --min_probability=0.8, for those who give unsure answers to a person, each line says further whether the label's
probability is at least that: sure or unsure, or, as jsonl, {"sure": true} or false.

With --output, for files of any number of rows, that file gets every row of --input as it is, with the columns label and
probability, of a cascade also stage, and with --min_probability also sure (True or False). --num_instances processes of
one thread label the rows. Stopped or killed, the same command continues where it was; the file is there when it is
whole. Its ending says its form: .csv, .tsv, .jsonl (of JSON lines always) or .parquet.

Needs requirements-runtime.txt alone (with --output requirements.txt, and for .parquet pyarrow);
`utils.runtime.Predictor` does the same from Python.
"""

import utils.system.interrupts  # isort: skip  # noqa: F401

import argparse
import io
import itertools
import json
import os
import sys
from pathlib import Path

from utils.arguments import add_resume_options, column_names, fraction, positive_int, script_parser
from utils.data.texts_to_label import has_columns, read_columns, read_lines
from utils.runtime import Prediction, Predictor
from utils.system.cli import run_script
from utils.system.cpus import usable_cpus
from utils.system.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model folder")
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input", help="file of lines, .csv, .tsv, .jsonl or .parquet; without it, lines of standard input"
    )
    group.add_argument(
        "--text_column", default="text", help="column of the text; of a pair, two, such as q1,q2 (not of plain lines)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--output", help="file for the rows and their labels; without it, standard output")
    group.add_argument(
        "--prefix",
        help="with --output: stands before the names of the added columns, such as predicted_; without it, none",
    )
    group.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="form of the output lines")
    group.add_argument(
        "--min_probability",
        type=fraction,
        help="mark each answer as sure, of at least this probability, or unsure; without it, none is marked",
    )
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--num_threads",
        type=thread_counts,
        default=usable_cpus(),
        help="CPU threads of the model; of a cascade's stages, such as 1,2, if they are to differ",
    )
    group.add_argument("--batch_size", type=positive_int, default=1, help="lines read and answered at a time")
    group.add_argument(
        "--num_instances",
        type=positive_int,
        default=usable_cpus(),
        help="with --output: processes, each of one thread and with a core of its own",
    )
    add_resume_options(parser, training=False)
    args = parser.parse_args()
    without = ("prefix", "num_instances", "resume", "overwrite")
    for name in ("format", "num_threads", "batch_size") if args.output else without:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} is of no use with{'' if args.output else 'out'} --output: leave it out")
    return args


def thread_counts(text: str) -> int | list[int]:
    """An argparse type: a whole number of at least 1, or several with commas between."""
    counts = [positive_int(part) for part in text.split(",")]
    return counts if len(counts) > 1 else counts[0]


def output_line(prediction: Prediction, form: str, min_probability: float | None) -> str:
    """A prediction as a line of --format `form`, without its end."""
    probability = prediction.probabilities[prediction.label]
    sure = None if min_probability is None else probability >= min_probability
    if form == "jsonl":
        values = prediction._asdict() | {"sure": sure}
        return json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)
    return f"{prediction.label}\t{probability:.6f}" + {None: "", True: "\tsure", False: "\tunsure"}[sure]


def write_output(args: argparse.Namespace, columns: tuple[str, ...]) -> None:
    """Label --input into --output."""
    if not args.input:
        raise UserError("--output needs a file whose rows can be read twice: name it with --input")
    try:
        from utils.label_files import label_file
    except ImportError as error:  # not among requirements-runtime.txt
        raise UserError(f"--output needs the package {error.name}: pip install -r requirements.txt") from error
    label_file(
        args.model_dir,
        Path(args.input),
        Path(args.output),
        columns,
        args.num_instances,
        args.min_probability,
        args.prefix or "",
        args.resume,
        args.overwrite,
    )


def main() -> None:
    args = parse_args()
    columns = column_names(args.text_column)
    if args.output:
        write_output(args, columns)
        return
    if sys.stdout is None:
        raise UserError("standard output is closed, so there is nowhere to write the labels: leave out >&-")
    if sys.stdin is None and not args.input:
        raise UserError("standard input is closed, so there is nothing to label: name a file of texts with --input")
    name = args.input or "standard input"
    try:
        file = open(args.input or 0, "rb")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): name a file of texts with --input") from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the input, whatever the system's own
    with file:
        predictor = Predictor(args.model_dir, args.num_threads)
        if args.input and has_columns(args.input):
            texts = read_columns(args.input, columns, predictor.texts_a_row)
        else:
            texts = read_lines(file, name, columns, predictor.texts_a_row, predictor.labels)
        try:
            while chunk := list(itertools.islice(texts, args.batch_size)):
                predictions = predictor.predict_batch(chunk, args.batch_size)
                lines = [output_line(prediction, args.format, args.min_probability) for prediction in predictions]
                print("\n".join(lines), flush=True)
        except BrokenPipeError:  # who reads the output has had enough, as `head` does
            # Python flushes standard output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_script(main)
