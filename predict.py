"""Label texts with a model folder that quantize.py --output_dir wrote, or with a cascade of cascade.py.

    python predict.py my-model < texts.txt
    python predict.py my-model --input=tickets.csv --text_column=subject --format=jsonl --batch_size=64

Each line is a text, or text_a<TAB>text_b where the model was trained on pairs, in UTF-8; of a .csv, .tsv, .jsonl or
.parquet file, each row. Each gets a line on standard output, in the same order: label<TAB>probability, or, as jsonl,
{"label": ..., "probabilities": {...}} with every label's probability, of a cascade also {"stage": ...}, the number of
the model that answered, from 0. A line is answered before the next one is read; --batch_size=64 reads and answers 64 at
a time, which is faster.

With --min_probability=0.8, for those who give unsure answers to a person, each line says further whether the label's
probability is at least that: sure or unsure, or, as jsonl, {"sure": true} or false.

Where a text has any number of labels they are joined, as by |, and so are their probabilities; jsonl has a list of
labels as well. A model of scores writes these, of a reranker that of each query<TAB>passage.

Of lines on standard input, the file predictor.py in the model folder does the same without this project.
"""

import utils.system.interrupts  # isort: skip  # noqa: F401

import argparse

from utils.arguments import column_names, script_parser
from utils.data.texts_to_label import has_columns, read_columns
from utils.predictor import Predictor, add_predict_options, check_streams, print_predictions, read_lines
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
    add_predict_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    columns = column_names(args.text_column)
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
