"""Label texts with the model whose folder holds this package, which quantize.py or cascade.py of FastFormers wrote.

    python my-model/predictor < texts.txt

Each line of standard input is a text, or text_a<TAB>text_b where the model was trained on pairs, in UTF-8. Each gets a
line on standard output: label<TAB>probability, or, as jsonl, {"label": ..., "probabilities": {...}} with every label's,
of a cascade also {"stage": ...}, the number of the model that answered, from 0. A line is answered before the next one
is read; --batch_size=64 reads and answers 64 at a time, which is faster. With --min_probability=0.8 each line says
further whether the label's probability is at least that: sure or unsure, or, as jsonl, {"sure": true} or false.
Where a text has any number of labels they are joined by |, as are their probabilities; jsonl has {"labels": [...]} as
well. A model of scores writes these, with tabs between, or {"score": ...}, of several {"scores": {...}}.
"""

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator

from . import cpus
from .errors import UserError
from .lines import read_lines
from .model import Prediction, Predictor
from .tokens import Text


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """--format, --min_probability, --num_threads and --batch_size."""
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="form of the output lines")
    group.add_argument(
        "--min_probability",
        type=float,
        help="mark each answer as sure, of at least this probability, or unsure; without it, none is marked",
    )
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--num_threads",
        type=_thread_counts,
        default=cpus.usable_cpus(),
        help="CPU threads of the model; of a cascade's stages, such as 1,2, if they are to differ",
    )
    group.add_argument("--batch_size", type=int, default=1, help="lines read and answered at a time")


def _thread_counts(text: str) -> int | list[int]:
    counts = [int(part) for part in text.split(",")]
    return counts if len(counts) > 1 else counts[0]


def output_line(prediction: Prediction, form: str, min_probability: float | None) -> str:
    """A prediction as a line of --format `form`, without its end."""
    if prediction.scores is not None:
        if form == "jsonl":
            one = len(prediction.scores) == 1
            values = {"score": prediction.score} if one else {"scores": prediction.scores}
            return json.dumps(values, ensure_ascii=False)
        return "\t".join(f"{score:.6f}" for score in prediction.scores.values())
    labels = [prediction.label] if prediction.labels is None else prediction.labels
    sure = None if min_probability is None else is_sure(prediction, min_probability)
    if form == "jsonl":
        values = prediction._asdict() | {"sure": sure}
        return json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)
    shares = "|".join(f"{prediction.probabilities[label]:.6f}" for label in labels)
    return f"{prediction.label}\t{shares}" + {None: "", True: "\tsure", False: "\tunsure"}[sure]


def is_sure(prediction: Prediction, min_probability: float) -> bool:
    """Whether the label has at least this probability; of any number of labels, whether that is so of each that is
    given, and all others have at most 1 less it."""
    if prediction.labels is None:
        return prediction.probabilities[prediction.label] >= min_probability
    return all(
        (share if label in prediction.labels else 1 - share) >= min_probability
        for label, share in prediction.probabilities.items()
    )


def print_predictions(
    predictor: Predictor, texts: Iterator[Text], form: str, min_probability: float | None, batch_size: int
) -> None:
    """Print a line for each text, as soon as its batch is labelled, until whoever reads them has had enough.

    Raises:
        UserError: min_probability is not from 0 to 1, batch_size is below 1, or as `predict_batch`.
    """
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise UserError(f"--min_probability={min_probability} is not from 0 to 1")
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} is below 1")
    if min_probability is not None and predictor.problem_type == "regression":
        raise UserError("--min_probability is for labels, and this model gives scores, which have none: leave it out")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the input, whatever the system's own
    try:
        while chunk := list(itertools.islice(texts, batch_size)):
            predictions = predictor.predict_batch(chunk, batch_size)
            print("\n".join(output_line(each, form, min_probability) for each in predictions), flush=True)
    except BrokenPipeError:  # as `head` does; Python flushes standard output once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_streams(reads_input: bool) -> None:
    """Check that there is a standard output and, where it is read, a standard input.

    Raises:
        UserError: one of them is closed.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed, so there is nowhere to write the labels: leave out >&-")
    if sys.stdin is None and reads_input:
        raise UserError("standard input is closed, so there is nothing to label: give texts with < FILE")


def main() -> None:
    """The command line of a model's folder, which ends the process where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="predictor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_predict_options(parser)
    args = parser.parse_args()
    try:
        check_streams(reads_input=True)
        predictor = Predictor(num_threads=args.num_threads)
        lines = read_lines(sys.stdin.buffer, "standard input", (), predictor.texts_a_row, predictor.labels)
        print_predictions(predictor, lines, args.format, args.min_probability, args.batch_size)
    except (UserError, OSError) as error:  # of the system: such as a full disk
        print(f"predictor: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
