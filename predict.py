"""Label texts with a model folder that quantize.py --output_dir wrote.

    python predict.py my-model < texts.txt
    python predict.py my-model --input=tickets.csv --text_column=subject --format=jsonl --batch_size=64

Each line is a text, or text_a<TAB>text_b where the model was trained on pairs, in UTF-8; of a .csv, .tsv, .jsonl or
.parquet file, each row. Each gets a line on standard output, in the same order: label<TAB>probability, or, as jsonl,
{"label": ..., "probabilities": {...}} with every label's probability. A line is answered before the next one is read;
--batch_size=64 reads and answers 64 at a time, which is faster.

Needs requirements-runtime.txt alone (and pyarrow for .parquet); `utils.runtime.Predictor` does the same from Python.
"""

import utils.system.interrupts  # isort: skip  # noqa: F401

import argparse
import io
import itertools
import json
import os
import sys

from utils.arguments import column_names, positive_int, script_parser
from utils.data.unlabelled import has_columns, read_columns, read_lines
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
    group.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="form of the output lines")
    group = parser.add_argument_group("speed")
    group.add_argument("--num_threads", type=positive_int, default=usable_cpus(), help="CPU threads of the model")
    group.add_argument("--batch_size", type=positive_int, default=1, help="lines read and answered at a time")
    return parser.parse_args()


def output_line(prediction: Prediction, form: str) -> str:
    """A prediction as a line of --format `form`, without its end."""
    if form == "jsonl":
        return json.dumps(prediction._asdict(), ensure_ascii=False)
    return f"{prediction.label}\t{prediction.probabilities[prediction.label]:.6f}"


def main() -> None:
    args = parse_args()
    columns = column_names(args.text_column)
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
                print("\n".join(output_line(prediction, args.format) for prediction in predictions), flush=True)
        except BrokenPipeError:  # who reads the output has had enough, as `head` does
            # Python flushes standard output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_script(main)
