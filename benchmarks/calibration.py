"""How far the probabilities of models can be trusted: as they are, after a temperature, after the scale of quantize.py.

    python quantize.py --config=configs/config-bert-cls.json --data_dir=data/movie-reviews \\
        --bert_output_dir=runs/demo/student --output_dir=runs/calibration/student
    python -m benchmarks.calibration runs/calibration/student --data_dir=data/movie-reviews

The models are to be written without --calibrate, which make gives. Rows "test" are fitted on valid and measured on
test. Rows "both" measure valid and test: each tenth of them by what was fitted on the other nine, so that twice as many
rows count. The expected calibration error is to be compared with what exact probabilities would show on as many rows,
by chance; the mean negative log likelihood has no such floor. Ends with a line for each target, and writes
results/calibration.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cascade_measures import split_logits
from benchmarks.targets import at_most, print_targets, write_results
from utils.arguments import add_column_options, add_text_options, script_parser, text_columns
from utils.measuring.calibration import (
    calibration_error_by_chance,
    expected_calibration_error,
    fit_logit_scale,
    fit_temperature,
    log_likelihood,
    scaled_logits,
)
from utils.measuring.timing import aligned_table
from utils.predictor.model import Predictor
from utils.system.cli import run_script
from utils.system.errors import UserError

NUM_PARTS = 10
WAYS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "as they are": lambda logits, true: (1.0, 0.0),
    "temperature": lambda logits, true: (1 / fit_temperature(logits, true), 0.0),
    "scale": fit_logit_scale,
}


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("models", metavar="MODEL_DIR", nargs="+", help="model folders of quantize.py")
    add_text_options(parser)
    add_column_options(parser)
    return parser.parse_args()


def scaled_by_others(logits: np.ndarray, true: np.ndarray, fit: Callable) -> np.ndarray:
    """Logits [rows, labels], each tenth of the rows scaled by what `fit` finds on the other nine."""
    scaled = np.empty(logits.shape)
    for part in np.array_split(np.random.default_rng(0).permutation(len(true)), NUM_PARTS):
        others = np.setdiff1d(np.arange(len(true)), part)
        scaled[part] = scaled_logits(logits[part], fit(logits[others], true[others]))
    return scaled


def errors(logits: np.ndarray, true: np.ndarray) -> dict[str, float]:
    return {
        "calibration_error": expected_calibration_error(logits, true),
        "by_chance": calibration_error_by_chance(logits),
        "negative_log_likelihood": float(-log_likelihood(logits, true).mean()),
    }


def measure_model(folder: str, args: argparse.Namespace) -> list[dict]:
    """A model's errors by rows and way."""
    model = Predictor(folder)
    if "logit_scale" in json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["fastformers"]:
        raise UserError(f"{folder}: its logits are scaled already: give a folder of quantize.py without --calibrate")
    (valid, true_valid), (test, true_test) = (
        split_logits(model, args.data_dir, split, text_columns(args)) for split in ("valid", "test")
    )
    both, true = np.concatenate([valid, test]).astype(np.float64), np.concatenate([true_valid, true_test])
    scaled = [("both", way, scaled_by_others(both, true, fit), true) for way, fit in WAYS.items()]
    scaled += [
        ("test", way, scaled_logits(test.astype(np.float64), fit(valid, true_valid)), true_test)
        for way, fit in WAYS.items()
    ]
    return [
        {"model": Path(folder).name, "rows": rows, "way": way} | errors(logits, labels)
        for rows, way, logits, labels in scaled
    ]


def main() -> None:
    args = parse_args()
    found, targets = [], []
    for folder in args.models:
        of_model = measure_model(folder, args)
        found += of_model
        error = {each["way"]: each["calibration_error"] for each in of_model if each["rows"] == "both"}
        targets.append(
            at_most(f"{Path(folder).name}_calibration_error", error["scale"], max(error["as they are"] / 2, 0.02))
        )
    write_results(
        "calibration.json", {"settings": {"data_dir": args.data_dir, "models": args.models}, "found": found}, targets
    )
    cells = [[f"{value:.4f}" if isinstance(value, float) else value for value in each.values()] for each in found]
    print(aligned_table(["model", "rows", "way", "calibration error", "by chance", "-log likelihood"], cells))
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
