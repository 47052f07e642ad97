"""Which cascade does better on other rows: chosen by what was seen or by what is to be expected, of stages that answer
alone or together with those before them.

    python benchmarks/cascade_choice.py runs/sst2/models/student runs/sst2/models/teacher --data_dir=data/sst2

Valid is cut into halves at random. On one, a cascade is chosen for several speed-ups over the last model: by the share
of right answers, as cascade.py does, and as it does but of stages whose logits are not added up; on the other, it is
measured. The table has means over many cuts: the accuracy on the half that was chosen on, by which it was chosen, and
that on the other one.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from cascade import Weights, fitted_weights, measure_stages, open_models, probability_right, read_valid, stage_results
from utils.arguments import add_column_options, add_text_options, positive_int, script_parser, text_columns
from utils.measuring.thresholds import candidate, candidates, choose
from utils.measuring.timing import aligned_table
from utils.models.config import SINGLE_LABEL
from utils.predictor import Predictor
from utils.system.bars import progress_bar
from utils.system.cli import run_script

SPEEDUPS = [2.0, 3.0, 5.0]
SEEN, EXPECTED, ALONE = "right answers", "expected", "expected, each alone"


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("stages", metavar="MODEL_DIR", nargs="+", help="two or more model folders, fastest first")
    add_text_options(parser)
    add_column_options(parser)
    parser.add_argument("--num_cuts", type=positive_int, default=40, help="random cuts of valid into halves")
    return parser.parse_args()


def not_added_up(weights: Weights) -> Weights:
    """The temperatures that each model has alone, and no weight of those before it."""
    return {members: [weights[number,][0] for number in members] for members in weights}


def chosen_and_tried(
    models: list[Predictor], logits: list[np.ndarray], true: np.ndarray, milliseconds: np.ndarray, order: np.ndarray
) -> dict[tuple[float, str], tuple[float, float, float]]:
    """Of each speed-up and rule: the accuracy promised by one half of the rows, and accuracy and speed-up on the other.

    Each speed-up is over the last model alone.

    Args:
        order: the rows' numbers, int [rows], of which the first half is chosen on.
    """
    own, other = order[: len(true) // 2], order[len(true) // 2 :]
    own_logits, other_logits = [scores[own] for scores in logits], [scores[other] for scores in logits]
    together = fitted_weights(own_logits, true[own], SINGLE_LABEL)
    expected = probability_right(own_logits, true[own], SINGLE_LABEL)
    rules = {
        SEEN: (together, lambda answers: (answers == true[own]).astype(np.float64)),
        EXPECTED: (together, expected),
        ALONE: (not_added_up(together), expected),
    }
    last_ms, last_ms_of_rest = milliseconds[-1, own].mean(), milliseconds[-1, other].mean()
    found = {}
    for rule, (weights, right) in rules.items():
        measured = candidates(stage_results(models, own_logits, weights, milliseconds[:, own], right), true[own])
        rest = stage_results(
            models, other_logits, weights, milliseconds[:, other], lambda answers: np.zeros(len(other))
        )
        for speedup in SPEEDUPS:
            one = choose(measured, last_ms, target_speedup=speedup)
            tried = candidate(rest, true[other], one.members, one.thresholds)
            found[speedup, rule] = (one.expected, tried.accuracy, last_ms_of_rest / tried.mean_ms)
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
        for rule in (SEEN, ALONE):
            gains = 100 * (values[speedup, EXPECTED] - values[speedup, rule])[:, 1]
            better, worse = (gains > 0).sum(), (gains < 0).sum()
            counts = f"in {better} cuts more, in {worse} less"
            print(f"{speedup:g} times: {EXPECTED} gets {gains.mean():+.2f} points more than {rule}, {counts}")


if __name__ == "__main__":
    run_script(main)
