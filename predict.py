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

Where a text has any number of labels they are joined, as by |, and so are their probabilities; jsonl has a list of
labels as well. A model of scores writes these, of a reranker that of each query<TAB>passage.

With --output, for files of any number of rows, that file gets every row of --input as it is, with the columns label and
probability, of a cascade also stage, and with --min_probability also sure (True or False). --num_instances processes of
one thread label the rows. Stopped or killed, the same command continues where it was; the file is there when it is
whole. Its ending says its form: .csv, .tsv, .jsonl (of JSON lines always) or .parquet. Of a model of scores the columns
are these scores.

Of lines on standard input, the package predictor in the model folder does the same without this project.
"""

import utils.system.startup  # isort: skip  # noqa: F401

import argparse
from pathlib import Path

from utils.arguments import add_resume_options, column_names, positive_int, script_parser
from utils.data.texts_to_label import has_columns, read_columns
from utils.predictor import Predictor
from utils.predictor.command_line import add_predict_options, check_streams, print_predictions
from utils.predictor.cpus import usable_cpus
from utils.predictor.lines import read_lines
from utils.system.cli import run_script
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
    group = parser.add_argument_group("output to a file")
    group.add_argument("--output", help="file for the rows and their labels; without it, standard output")
    group.add_argument(
        "--prefix",
        help="with --output: stands before the names of the added columns, such as predicted_; without it, none",
    )
    group.add_argument(
        "--num_instances",
        type=positive_int,
        default=usable_cpus(),
        help="with --output: processes, each of one thread and with a core of its own",
    )
    add_predict_options(parser)
    add_resume_options(parser, training=False)
    args = parser.parse_args()
    without = ("prefix", "num_instances", "resume", "overwrite")
    for name in ("format", "num_threads", "batch_size") if args.output else without:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} is of no use with{'' if args.output else 'out'} --output: leave it out")
    return args


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
    check_streams(reads_input=not args.input)
    name = args.input or "standard input"
    try:
        file = open(args.input or 0, "rb")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): name a file of texts with --input") from error
    with file:
        predictor = Predictor(args.model_dir, args.num_threads)
        if args.input and has_columns(args.input):
            texts = read_columns(args.input, columns, predictor.texts_a_row)
        else:
            texts = read_lines(file, name, columns, predictor.texts_a_row, predictor.labels)
        print_predictions(predictor, texts, args.format, args.min_probability, args.batch_size)


if __name__ == "__main__":
    run_script(main)
