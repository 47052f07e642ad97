"""Label texts with a model folder that quantize.py --output_dir wrote.

    python predict.py my-model < texts.txt
    python predict.py my-model --input=texts.txt --format=jsonl --batch_size=64

Each line is a sentence, or sentence_a<TAB>sentence_b, in UTF-8. Each gets a line on standard output, in the same order:
label<TAB>probability, or, as jsonl, {"label": ..., "probabilities": {...}} with every label's probability. A line is
answered before the next one is read; --batch_size=64 reads and answers 64 at a time, which is faster.

Needs requirements-runtime.txt alone; `utils.runtime.Predictor` does the same from Python.
"""

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from utils.arguments import positive_int, script_parser
from utils.data.tokenization import Text
from utils.runtime import Prediction, Predictor
from utils.system.cli import run_script
from utils.system.cpus import usable_cpus
from utils.system.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model folder")
    group = parser.add_argument_group("input")
    group.add_argument("--input", help="text file; without it, standard input")
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="form of the output lines")
    group = parser.add_argument_group("speed")
    group.add_argument("--num_threads", type=positive_int, default=usable_cpus(), help="CPU threads of the model")
    group.add_argument("--batch_size", type=positive_int, default=1, help="lines read and answered at a time")
    return parser.parse_args()


def read_texts(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the text or the pair of each line, trimmed as preprocess.py trims them.

    Raises:
        UserError: a line is not UTF-8, or has more than two columns; names `name` and the line.
    """
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 ({error.reason}): save the text as UTF-8") from error
        texts = tuple(field.strip() for field in line.rstrip("\r\n").split("\t"))
        if len(texts) > 2:
            raise UserError(
                f"{name}, line {number}: {len(texts)} columns: each line is sentence or sentence_a<TAB>sentence_b"
            )
        yield texts if len(texts) == 2 else texts[0]


def output_line(prediction: Prediction, form: str) -> str:
    """A prediction as a line of --format `form`, without its end."""
    if form == "jsonl":
        return json.dumps(prediction._asdict(), ensure_ascii=False)
    return f"{prediction.label}\t{prediction.probabilities[prediction.label]:.6f}"


def main() -> None:
    args = parse_args()
    name = args.input or "standard input"
    try:
        file = open(args.input or 0, "rb")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): name a text file with --input") from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the input, whatever the system's own
    with file:
        predictor = Predictor(args.model_dir, args.num_threads)
        texts = read_texts(file, name)
        try:
            while chunk := list(itertools.islice(texts, args.batch_size)):
                predictions = predictor.predict_batch(chunk, args.batch_size)
                print("\n".join(output_line(prediction, args.format) for prediction in predictions), flush=True)
        except BrokenPipeError:  # who reads the output has had enough, as `head` does
            # Python flushes standard output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_script(main)
