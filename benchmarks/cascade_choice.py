"""Which thresholds of a cascade do better on other rows: the best by what was seen, or by what is to be expected.

    python benchmarks/cascade_choice.py runs/sst2/models/student runs/sst2/models/teacher --data_dir=data/sst2

Valid is cut into halves at random. On one, thresholds are chosen for several speed-ups over the last model, once by the
share of right answers and once as cascade.py does; on the other, they are measured. The table has means over many cuts:
the accuracy on the half that was chosen on, by which they were chosen, and that on the other one.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from cascade import fitted_temperatures, measure_stages, open_models, probability_right, read_valid, stage_results
from utils.arguments import add_column_options, add_text_options, positive_int, script_parser, text_columns
from utils.measuring.thresholds import StageResults, candidate, candidates, choose
from utils.measuring.timing import aligned_table
from utils.models.config import SINGLE_LABEL
from utils.predictor import Predictor
from utils.system.bars import progress_bar
from utils.system.cli import run_script

SPEEDUPS = [2.0, 3.0, 5.0, 8.0]


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("stages", metavar="MODEL_DIR", nargs="+", help="two or more model folders, fastest first")
    add_text_options(parser)
    add_column_options(parser)
    parser.add_argument("--num_cuts", type=positive_int, default=40, help="random cuts of valid into halves")
    return parser.parse_args()


def of_rows(results: StageResults, rows: np.ndarray) -> StageResults:
    return StageResults(*(array[:, rows] for array in results))


def seen(results: StageResults, true: np.ndarray) -> np.ndarray:
    """1 for each right answer, 0 for each wrong one: float [stages, rows]."""
    return (results.answers == true).astype(np.float64)


def chosen_and_tried(
    models: list[Predictor], logits: list[np.ndarray], true: np.ndarray, milliseconds: np.ndarray, order: np.ndarray
) -> dict[tuple[float, str], tuple[float, float, float]]:
    """Of each speed-up and rule: the accuracy promised by one half of the rows, and accuracy and speed-up on the other.

    Args:
        order: the rows' numbers, int [rows], of which the first half is chosen on.
    """
    own, other = order[: len(true) // 2], order[len(true) // 2 :]
    own_logits = [scores[own] for scores in logits]
    temperatures = fitted_temperatures(own_logits, true[own], SINGLE_LABEL)
    results = stage_results(models, logits, temperatures, milliseconds)
    half, rest = of_rows(results, own), of_rows(results, other)
    rules = {
        "seen": seen(half, true[own]),
        "expected": probability_right(half, own_logits, true[own], SINGLE_LABEL),
    }
    found = {}
    for rule, right in rules.items():
        measured = candidates(half, true[own], right)
        for speedup in SPEEDUPS:
            one = choose(measured, half.milliseconds[-1].mean(), target_speedup=speedup)
            tried = candidate(rest, true[other], seen(rest, true[other]), one.members, one.thresholds)
            found[speedup, rule] = (one.expected, tried.accuracy, rest.milliseconds[-1].mean() / tried.mean_ms)
    return found


def main() -> None:
    args = parse_args()
    _, models = open_models(args.stages, 1)
    texts, true = read_valid(Path(args.data_dir), text_columns(args, SINGLE_LABEL), models[0].labels)
    logits, milliseconds = measure_stages(models, texts)
    generator = np.random.default_rng(0)
    cuts = [
        chosen_and_tried(models, logits, true, milliseconds, generator.permutation(len(true)))
        for _ in progress_bar(range(args.num_cuts), desc="cuts", unit="cut")
    ]
    values = {key: np.array([cut[key] for cut in cuts]) for key in sorted(cuts[0])}
    table = []
    for (speedup, rule), of_cuts in values.items():
        promised, accuracy, speed = of_cuts.mean(0)
        table.append([f"{speedup:g}", rule, f"{promised:.4f}", f"{accuracy:.4f}", f"{speed:.2f}"])
    print(aligned_table(["speed-up", "chosen by", "accuracy promised", "on the other half", "speed-up there"], table))
    for speedup in SPEEDUPS:
        gains = 100 * (values[speedup, "expected"] - values[speedup, "seen"])[:, 1]
        better, worse = (gains > 0).sum(), (gains < 0).sum()
        print(
            f"{speedup:g} times: expected gets {gains.mean():+.2f} points more, in {better} cuts more, in {worse} less"
        )


if __name__ == "__main__":
    run_script(main)
