"""When each stage of a cascade is to answer: every combination of thresholds, what it gives and costs, and the choice.

A stage answers the rows whose answer has a probability above its threshold, the last one all that are left. What the
thresholds give is computed from what every stage says of every row, so that no stage runs more than once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from utils.system.errors import UserError

MOST_CANDIDATES = 2_500  # combinations of thresholds
MOST_THRESHOLDS = 100  # of a stage
RESAMPLES = 2_000  # of the bootstrap
NOISE = 1.05  # times the next stage's latency


class StageResults(NamedTuple):
    """What the stages of one cascade, fastest first, say of some rows: arrays [stages, rows]."""

    confidence: np.ndarray  # probability of the stage's answer, calibrated
    answers: np.ndarray  # label ids
    milliseconds: np.ndarray
    right: np.ndarray  # the probability that the answer is right; 0 where it is not known


# Of every cascade, and of every model alone: its stages' numbers, from 0, and what they say.
Results = Mapping[tuple[int, ...], StageResults]


@dataclass(frozen=True)
class Candidate:
    """Stages with thresholds, and what they give on valid. The names are the keys of frontier.json."""

    members: tuple[int, ...]  # the stages that take part, by their numbers from 0
    thresholds: tuple[float, ...]  # of each but the last of them
    shares: tuple[float, ...]  # of the rows that each answers
    accuracy: float
    expected: float  # the accuracy by what all stages together say of the rows, by which candidates are compared
    accuracy_range: tuple[float, float]  # of 95 % of the bootstrap's resamples
    difference: float  # accuracy less that of the last of all stages
    lowest_difference: float  # in 95 % of the resamples it is more
    disagreement: float | None  # share of unlabelled rows with another answer than the last stage's
    mean_ms: float
    p50_ms: float
    p99_ms: float

    @property
    def asked(self) -> float:
        """The share of the rows that the first stage passes on."""
        return 1 - self.shares[0]


def answering_stages(confidence: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The stage that answers each row, int [rows].

    Args:
        confidence: [stages, rows].
        thresholds: of all stages but the last.
    """
    sure = confidence > np.array([*thresholds, -1.0])[:, None]
    return sure.argmax(0)


def threshold_grid(confidence: np.ndarray) -> list[tuple[float, ...]]:
    """Combinations of thresholds for all stages but the last, at evenly spaced quantiles of their confidences.

    Each threshold is in the middle between two confidences of rows, so that rounding decides nothing; 0 and 1, to
    answer all and none, are among them.

    Args:
        confidence: [stages, rows].
    """
    num_stages = len(confidence)
    size = max(2, min(MOST_THRESHOLDS, int(MOST_CANDIDATES ** (1 / (num_stages - 1)))))
    grids = []
    for stage in confidence[:-1].astype(np.float64):
        values = np.unique(stage)
        middles = (values[1:] + values[:-1]) / 2
        # Each as often as there are rows below it: quantiles of rows, not of values.
        positions = np.searchsorted(np.sort(stage), middles)
        places = np.linspace(0, len(stage), size)[1:-1]
        inner = middles[np.unique(np.abs(positions[None] - places[:, None]).argmin(1))] if len(middles) else []
        grids.append([0.0, *inner, 1.0])
    return list(itertools.product(*grids))


def cascades(num_stages: int) -> list[tuple[int, ...]]:
    """The numbers of the stages of every cascade: some of the models, and the last."""
    *others, last = range(num_stages)
    return [(*some, last) for size in range(1, num_stages) for some in itertools.combinations(others, size)]


def candidates(results: Results, true: np.ndarray, unlabelled: Results | None = None) -> list[Candidate]:
    """What every combination of `threshold_grid` gives, of every cascade.

    The accuracy to be expected is what `right` says: rows where stages differ are few, and what was seen there, right
    or wrong, is much a matter of chance: the best of so many combinations would be the luckiest.

    The lowest difference is a bootstrap's over the rows with labels. Where more is known from unlabelled rows it is
    raised: no more accuracy is lost than answers are changed.

    Args:
        true: label ids, int [rows].
    """
    return [
        candidate(results, true, members, thresholds, unlabelled)
        for members in cascades(1 + max(max(members) for members in results))
        for thresholds in threshold_grid(results[members].confidence)
    ]


def single_models(results: Results, true: np.ndarray) -> list[Candidate]:
    """Every model alone."""
    return [candidate(results, true, members, ()) for members in sorted(results) if len(members) == 1]


def candidate(
    results: Results,
    true: np.ndarray,
    members: tuple[int, ...],
    thresholds: tuple[float, ...],
    unlabelled: Results | None = None,
) -> Candidate:
    """What one cascade, or a model alone, gives with these thresholds; the other arguments are as of `candidates`."""
    own, last = results[members], results[max(results)]  # (n - 1,), the last model alone
    stages, answers = _answers(own, thresholds)
    num_rows, is_right, last_is_right = len(true), answers == true, last.answers[0] == true
    milliseconds = own.milliseconds.cumsum(0)[stages, np.arange(num_rows)]
    gains, losses = int((is_right & ~last_is_right).sum()), int((last_is_right & ~is_right).sum())
    # Where the last model answers all, as it does alone, the difference is none by itself, not by these rows.
    is_last = all(threshold == 1 for threshold in thresholds) and np.array_equal(own.confidence[-1], last.confidence[0])
    lowest = 0.0 if is_last else lowest_difference(num_rows, gains, losses)
    disagreement = None
    if unlabelled is not None:
        other_answers = unlabelled[max(results)].answers[0]
        changed = int((_answers(unlabelled[members], thresholds)[1] != other_answers).sum())
        disagreement = changed / len(other_answers)
        lowest = max(lowest, lowest_difference(len(other_answers), 0, changed))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return Candidate(
        members=members,
        thresholds=thresholds,
        shares=tuple((np.bincount(stages, minlength=len(members)) / num_rows).tolist()),
        accuracy=float(is_right.mean()),
        expected=float(own.right[stages, np.arange(num_rows)].mean()),
        accuracy_range=accuracy_range(num_rows, int(is_right.sum())),
        difference=(gains - losses) / num_rows,
        lowest_difference=lowest,
        disagreement=disagreement,
        mean_ms=float(milliseconds.mean()),
        p50_ms=float(p50),
        p99_ms=float(p99),
    )


def _answers(results: StageResults, thresholds: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which stage answers each row, and the answers, both int [rows]."""
    stages = answering_stages(results.confidence, thresholds)
    return stages, results.answers[stages, np.arange(len(stages))]


def choose(
    measured: list[Candidate],
    last_ms: float,
    *,
    max_accuracy_drop: float | None = None,
    max_asked: float | None = None,
    target_speedup: float | None = None,
    max_slowdown: float | None = None,
) -> Candidate:
    """The thresholds to take, by one of four aims.

    Args:
        last_ms: mean milliseconds of the last stage alone.
        max_accuracy_drop: take the fastest whose lowest difference from the last stage is no more below it.
        max_asked: take the most accurate, as is to be expected, that pass on at most this share of the rows.
        target_speedup: likewise of those that are so many times as fast as the last stage.
        max_slowdown: likewise of those that take at most so many times as long as the first stage alone.

    Raises:
        UserError: no thresholds are so fast, or none is so surely as accurate.
    """
    if max_accuracy_drop is not None:
        safe = [one for one in measured if one.lowest_difference >= -max_accuracy_drop]
        if not safe:
            least = -max(one.lowest_difference for one in measured)
            raise UserError(
                f"--max_accuracy_drop={max_accuracy_drop:g}: valid has so few rows that every cascade may lose "
                f"{least:.4f} or more by chance: give more, or another aim"
            )
        return min(safe, key=lambda one: (one.mean_ms, -one.accuracy))
    first_ms = min(one.mean_ms for one in measured)  # where the first stage answers all
    if max_asked is not None:
        fitting = [one for one in measured if one.asked <= max_asked + 1e-9]
    elif max_slowdown is not None:
        fitting = [one for one in measured if one.mean_ms <= max_slowdown * first_ms]
        if not fitting:
            raise UserError(
                f"--max_slowdown={max_slowdown:g}: no cascade is faster than its first stage alone: give 1 or more"
            )
    else:
        assert target_speedup is not None
        fitting = [one for one in measured if one.mean_ms * target_speedup <= last_ms]
        if not fitting:
            raise UserError(
                f"--target_speedup={target_speedup:g}: the first stage alone is {last_ms / first_ms:.2f} times as fast "
                "as the last: give less, or a faster first stage"
            )
    return max(fitting, key=lambda one: (one.expected, -one.mean_ms))


def frontier(measured: list[Candidate]) -> list[Candidate]:
    """The candidates than which none is as accurate, as is to be expected, and faster; fastest first."""
    best: list[Candidate] = []
    for one in sorted(measured, key=lambda one: (one.mean_ms, -one.expected)):
        if not best or one.expected > best[-1].expected:
            best.append(one)
    return best


def check_order(names: list[str], singles: list[Candidate]) -> list[str]:
    """Check that each stage is faster, or else more accurate, than the next; returns warnings of those that are slower.

    Slower by the median, by more than 5 %, which is noise.

    Raises:
        UserError: a stage is slower and less accurate than the next.
    """
    warnings = []
    for i, (one, following) in enumerate(itertools.pairwise(singles)):
        if one.p50_ms <= NOISE * following.p50_ms:
            continue
        numbers = [f"{names[j]} ({singles[j].accuracy:.4f}, {singles[j].p50_ms:.3f} ms)" for j in (i, i + 1)]
        if one.accuracy < following.accuracy:
            raise UserError(f"{numbers[0]} is slower and less accurate than {numbers[1]} on valid: leave it out")
        warnings.append(f"{numbers[0]} is slower than {numbers[1]}: give the fastest first")
    return warnings


@cache
def lowest_difference(num_rows: int, gains: int, losses: int) -> float:
    """The 5th percentile of the mean over rows of which some count 1 (`gains`), some -1, the others 0, by a bootstrap.

    Resamples are drawn by the numbers of rows of each kind, as a mean depends on no more. One loss more than was seen
    is assumed: a resample of rows without any would prove that there are none.
    """
    losses_or_more = min(losses + 1, num_rows - gains)
    shares = np.array([gains, losses_or_more, num_rows - gains - losses_or_more]) / num_rows
    drawn = np.random.default_rng(0).multinomial(num_rows, shares, RESAMPLES)
    return float(np.quantile(drawn[:, 0] - drawn[:, 1], 0.05) / num_rows)


@cache
def accuracy_range(num_rows: int, num_correct: int) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of the accuracy, by a bootstrap."""
    drawn = np.random.default_rng(0).binomial(num_rows, num_correct / num_rows, RESAMPLES)
    low, high = np.quantile(drawn / num_rows, [0.025, 0.975])
    return float(low), float(high)
