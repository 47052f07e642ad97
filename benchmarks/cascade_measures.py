"""Which measure tells best what the fast model of a cascade gets wrong: confidence, margin or entropy.

    python benchmarks/cascade_measures.py runs/clinc/models/student runs/clinc/models/teacher --data_dir=data/clinc

Rows are passed from the first to the last model in the order of each measure, after a temperature fitted on valid: the
probability of the answer (confidence), its distance from the next one (margin), and the entropy of all probabilities.
The table has the accuracy on a split for the share of rows that is passed on, and the mean over all shares. With two
labels the three are the same.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from utils.arguments import add_column_options, add_text_options, script_parser, text_columns
from utils.data.texts import Columns, labelled_texts, split_path
from utils.measuring.calibration import fit_temperature
from utils.measuring.timing import aligned_table
from utils.predictor.model import Predictor, softmax
from utils.system.cli import run_script

SHARES = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]


def confidence(shares: np.ndarray) -> np.ndarray:
    return shares.max(1)


def margin(shares: np.ndarray) -> np.ndarray:
    ordered = np.sort(shares, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def negative_entropy(shares: np.ndarray) -> np.ndarray:
    return (shares * np.log(np.maximum(shares, 1e-30))).sum(1)


MEASURES = {"confidence": confidence, "margin": margin, "entropy": negative_entropy}


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("first", metavar="FAST_DIR", help="model folder of the fast model")
    parser.add_argument("last", metavar="SLOW_DIR", help="model folder of the slow model")
    add_text_options(parser).add_argument(
        "--split", choices=["valid", "test"], default="test", help="rows to measure on"
    )
    add_column_options(parser)
    return parser.parse_args()


def split_logits(model: Predictor, data_dir: str, split: str, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """A model's logits [rows, labels] of a split, and its label ids, int [rows]; -1 for a label that it lacks."""
    rows = labelled_texts(split_path(Path(data_dir), split), columns)
    texts = [text for text, _ in rows]
    true = [model.labels.index(label) if label in model.labels else -1 for _, label in rows]
    return model.run(model.encode(texts), texts, 16)[0], np.array(true)


def main() -> None:
    args = parse_args()
    columns = text_columns(args)
    first, last = Predictor(args.first), Predictor(args.last)
    temperature = fit_temperature(*split_logits(first, args.data_dir, "valid", columns))
    logits, true = split_logits(first, args.data_dir, args.split, columns)
    right = logits.argmax(1) == true
    right_of_last = split_logits(last, args.data_dir, args.split, columns)[0].argmax(1) == true
    table = []
    for name, measure in MEASURES.items():
        order = np.argsort(measure(softmax(logits.astype(np.float64) / temperature)), kind="stable")
        # The accuracy where 0, 1, 2, ... rows are passed on.
        gained = right_of_last[order].astype(int) - right[order]
        accuracy = (right.sum() + np.concatenate([[0], gained.cumsum()])) / len(true)
        places = [round(share * len(true)) for share in SHARES]
        table.append([name, *(f"{accuracy[place]:.4f}" for place in places), f"{accuracy.mean():.4f}"])
    print(aligned_table(["measure", *(f"{100 * share:.0f} %" for share in SHARES), "mean"], table))


if __name__ == "__main__":
    run_script(main)
