"""The thresholds of a cascade, against every combination tried one by one on small arrays."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from utils.measuring.thresholds import (
    Results,
    StageResults,
    answering_stages,
    candidates,
    cascades,
    check_order,
    choose,
    frontier,
    single_models,
    threshold_grid,
)
from utils.system.errors import UserError


def drawn(num_stages: int, num_rows: int, seed: int = 0, num_labels: int = 3) -> tuple[StageResults, np.ndarray]:
    """Stages of which later ones are slower and more often right, and all more often where they are sure."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, num_labels, num_rows)
    confidence = generator.uniform(1 / num_labels, 1, (num_stages, num_rows))
    right = generator.random((num_stages, num_rows)) < confidence ** (1 / (1 + np.arange(num_stages)))[:, None]
    answers = np.where(right, true, (true + 1) % num_labels)
    milliseconds = generator.uniform(1, 2, (num_stages, num_rows)) * 4.0 ** np.arange(num_stages)[:, None]
    return StageResults(confidence, answers, milliseconds, (answers == true).astype(float)), true


def of_all(results: StageResults) -> Results:
    """The same of every cascade and every model alone, of stages that say in each what they say alone."""
    num_stages = len(results.answers)
    members = [*cascades(num_stages), *((number,) for number in range(num_stages))]
    return {own: StageResults(*(array[list(own)] for array in results)) for own in members}


def by_rows(results: StageResults, true: np.ndarray, thresholds: tuple[float, ...]) -> tuple[list[int], float, float]:
    """The stage of each row, the accuracy and the mean milliseconds: row after row, stage after stage."""
    stages, right, milliseconds = [], 0, 0.0
    for row in range(len(true)):
        for stage in range(len(results.confidence)):
            milliseconds += results.milliseconds[stage][row]
            if stage == len(thresholds) or results.confidence[stage][row] > thresholds[stage]:
                stages.append(stage)
                right += results.answers[stage][row] == true[row]
                break
    return stages, right / len(true), milliseconds / len(true)


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_what_thresholds_give(num_stages):
    results, true = drawn(num_stages, 40)
    measured = candidates(of_all(results), true)
    assert len({(one.members, one.thresholds) for one in measured}) == len(measured) > 100 * (num_stages > 2)
    assert {one.members for one in measured} == set(cascades(num_stages)) and len(cascades(4)) == 7
    for one in measured[:: len(measured) // 40 + 1]:
        own = StageResults(*(array[list(one.members)] for array in results))
        stages, accuracy, mean_ms = by_rows(own, true, one.thresholds)
        assert answering_stages(own.confidence, one.thresholds).tolist() == stages
        assert one.accuracy == pytest.approx(accuracy) and one.mean_ms == pytest.approx(mean_ms)
        assert one.shares == pytest.approx(np.bincount(stages, minlength=len(one.members)) / 40)
        assert one.asked == pytest.approx(np.mean(np.array(stages) > 0))
        assert one.difference == pytest.approx(accuracy - (results.answers[-1] == true).mean())
        assert one.lowest_difference <= one.difference and one.p50_ms <= one.p99_ms


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_choices_are_the_best_of_all_that_there_are(num_stages, seed):
    """Of thresholds between any two confidences, where rows are so few that all of them are tried."""
    results, true = drawn(num_stages, 12, seed)
    last_ms = results.milliseconds[-1].mean()
    tried = []
    for members in cascades(num_stages):
        own, every = StageResults(*(array[list(members)] for array in results)), []
        for stage in own.confidence[:-1]:
            values = np.sort(stage)
            every.append([0.0, *((values[1:] + values[:-1]) / 2), 1.0])
        tried += [by_rows(own, true, thresholds) for thresholds in itertools.product(*every)]
    measured = candidates(of_all(results), true)
    assert len(measured) == len(tried)

    for limit in (0.0, 0.2, 0.5, 1.0):
        one = choose(measured, last_ms, max_asked=limit)
        best = max(accuracy for stages, accuracy, _ in tried if np.mean(np.array(stages) > 0) <= limit + 1e-9)
        assert one.asked <= limit + 1e-9 and one.accuracy == pytest.approx(best)
    for speedup in (1.0, 1.5, 2.0):
        one = choose(measured, last_ms, target_speedup=speedup)
        best = max(accuracy for _, accuracy, mean_ms in tried if mean_ms * speedup <= last_ms)
        assert one.mean_ms * speedup <= last_ms and one.accuracy == pytest.approx(best)
    first_ms = results.milliseconds[0].mean()
    for slowdown in (1.0, 1.5, 2.0):
        one = choose(measured, last_ms, max_slowdown=slowdown)
        best = max(accuracy for _, accuracy, mean_ms in tried if mean_ms <= slowdown * first_ms + 1e-9)
        assert one.mean_ms <= slowdown * first_ms + 1e-9 and one.accuracy == pytest.approx(best)
    line = frontier(measured)
    for one in line:
        assert not any(accuracy > one.accuracy + 1e-9 and mean_ms < one.mean_ms for _, accuracy, mean_ms in tried)
    assert line[-1].accuracy == pytest.approx(max(accuracy for _, accuracy, _ in tried))
    assert [one.mean_ms for one in line] == sorted(one.mean_ms for one in line)


def test_the_fastest_whose_lower_bound_is_high_enough():
    results, true = drawn(2, 400)
    measured, last = candidates(of_all(results), true), (results.answers[-1] == true).mean()
    for drop in (0.0, 0.02, 0.05, 1.0):
        one = choose(measured, results.milliseconds[-1].mean(), max_accuracy_drop=drop)
        faster = [other for other in measured if other.mean_ms < one.mean_ms]
        assert one.lowest_difference >= -drop and all(other.lowest_difference < -drop for other in faster)
    # By resampling the rows themselves.
    generator = np.random.default_rng(7)
    one = choose(measured, results.milliseconds[-1].mean(), max_accuracy_drop=0.03)
    stages = answering_stages(results.confidence, one.thresholds)
    right = (results.answers[stages, np.arange(400)] == true).astype(int) - (results.answers[-1] == true)
    drawn_means = right[generator.integers(0, 400, (4000, 400))].mean(1)
    assert one.lowest_difference == pytest.approx(np.quantile(drawn_means, 0.05), abs=0.006)
    assert one.accuracy - last == pytest.approx(right.mean()) and one.lowest_difference < right.mean()


def test_the_last_stage_with_others_is_not_the_last_model():
    """Where it says other things together with those before it, what it loses is not known of few rows."""
    results, true = drawn(2, 20)
    every = of_all(results)
    every[0, 1] = every[0, 1]._replace(confidence=0.9 * every[0, 1].confidence)
    (one,) = [one for one in candidates(every, true) if one.thresholds == (1.0,)]
    assert one.difference == 0 and one.lowest_difference == pytest.approx(-0.15)
    with pytest.raises(UserError, match=r"^--max_accuracy_drop=0.1: valid has so few rows .* may lose 0\.1500 or more"):
        choose([one], one.mean_ms, max_accuracy_drop=0.1)
    assert choose([one], one.mean_ms, max_accuracy_drop=0.16) == one


def test_few_rows_prove_little():
    """Stages that say the same of 20 rows may differ on 3 of 20 others."""
    results, true = drawn(2, 20)
    results = results._replace(answers=np.array([true, true]))
    for one in candidates(of_all(results), true):
        assert one.difference == 0
        assert one.lowest_difference == (0 if one.thresholds == (1.0,) else pytest.approx(-0.15))


def test_unlabelled_rows_raise_the_bound():
    """Where they hardly ever change an answer, hardly any accuracy can be lost."""
    results, true = drawn(2, 30)
    many, _ = drawn(2, 3000, 1)
    many = many._replace(answers=np.zeros_like(many.answers))
    many.answers[0, many.confidence[0] < 0.6] = 1
    few = {one.thresholds: one for one in candidates(of_all(results), true)}
    for one in candidates(of_all(results), true, of_all(many)):
        changed = np.mean((many.confidence[0] > one.thresholds[0]) & (many.confidence[0] < 0.6))
        assert one.disagreement == pytest.approx(changed)
        assert one.lowest_difference >= few[one.thresholds].lowest_difference
        assert one.lowest_difference >= -changed - 0.03
        if changed == 0:
            assert one.lowest_difference > -0.002


def test_grid_of_many_rows_and_of_equal_ones():
    results, true = drawn(3, 5000)
    grid = threshold_grid(results.confidence)
    assert 2000 < len(grid) <= 2500 and (0.0, 0.0) in grid and (1.0, 1.0) in grid
    # A fiftieth of the rows between two thresholds.
    first = sorted({thresholds[0] for thresholds in grid})
    counts = np.histogram(results.confidence[0], first)[0]
    assert counts.min() > 50 and counts.max() < 150
    equal = results._replace(confidence=np.ones((3, 5000)))
    assert threshold_grid(equal.confidence) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    stages = {one.thresholds: one.shares for one in candidates(of_all(equal), true) if len(one.members) == 3}
    assert stages[1.0, 1.0] == (0, 0, 1) and stages[0.0, 1.0] == (1, 0, 0) and stages[1.0, 0.0] == (0, 1, 0)


def test_single_models():
    results, true = drawn(3, 50)
    for number, one in enumerate(single_models(of_all(results), true)):
        assert one.accuracy == pytest.approx((results.answers[number] == true).mean())
        assert one.mean_ms == pytest.approx(results.milliseconds[number].mean())
        assert (one.members, one.thresholds, one.shares) == ((number,), (), (1.0,))
        assert one.difference == pytest.approx(one.accuracy - (results.answers[-1] == true).mean())


def test_of_equal_candidates_one_is_on_the_frontier():
    """The more accurate of those that take the same time, and the faster of those that are as accurate."""
    results, true = drawn(2, 50)
    one = candidates(of_all(results), true)[0]
    worse, later = (
        replace(one, accuracy=one.accuracy - 0.1, expected=one.expected - 0.1),
        replace(one, mean_ms=one.mean_ms + 1),
    )
    assert frontier([worse, later, one]) == frontier([one, later, worse]) == [one]
    safe = [replace(each, lowest_difference=0.0) for each in (worse, one)]
    assert choose(safe, one.mean_ms, max_accuracy_drop=0.0) == safe[1]
    assert choose([one], target_speedup=2.0, last_ms=2 * one.mean_ms) == one


def test_a_stage_that_does_not_help_is_left_out():
    """Here the second, which knows no more than the first."""
    results, true = drawn(3, 300)
    for array in (results.answers, results.confidence, results.right):
        array[1] = array[0]
    for aim in ({"max_accuracy_drop": 0.05}, {"max_asked": 0.3}, {"target_speedup": 2.0}):
        assert choose(candidates(of_all(results), true), results.milliseconds[-1].mean(), **aim).members == (0, 2)


def test_the_accuracy_to_be_expected_decides():
    """Not what was seen, where the two differ."""
    results, true = drawn(3, 300)
    right = np.random.default_rng(1).uniform(0.3, 1, results.answers.shape)
    measured, last_ms = candidates(of_all(results._replace(right=right)), true), results.milliseconds[-1].mean()
    for one in measured[::100]:
        stages = answering_stages(results.confidence[list(one.members)], one.thresholds)
        assert one.expected == pytest.approx(right[np.array(one.members)[stages], np.arange(300)].mean())
    fitting = [one for one in measured if one.asked <= 0.4]
    one = choose(measured, last_ms, max_asked=0.4)
    assert one.expected == max(other.expected for other in fitting) > fitting[0].expected
    assert one.accuracy < max(other.accuracy for other in fitting)
    fast = [other for other in measured if other.mean_ms * 1.5 <= last_ms]
    assert choose(measured, last_ms, target_speedup=1.5).expected == max(other.expected for other in fast)
    assert [other.expected for other in frontier(measured)] == sorted({other.expected for other in frontier(measured)})


def test_order():
    results, true = drawn(3, 200)
    names = ["small", "medium", "large"]
    assert check_order(names, single_models(of_all(results), true)) == []
    slow = results._replace(milliseconds=results.milliseconds[[1, 0, 2]])
    with pytest.raises(UserError, match=r"^small \(0\.\d{4}, \d\.\d{3} ms\) is slower and less accurate than medium"):
        check_order(names, single_models(of_all(slow), true))
    # The second of three, before the last.
    slow_second = results._replace(milliseconds=results.milliseconds[[0, 2, 1]])
    with pytest.raises(UserError, match=r"^medium \(0\.\d{4}, \d+\.\d{3} ms\) is slower and less accurate than large"):
        check_order(names, single_models(of_all(slow_second), true))
    as_good = slow_second._replace(answers=results.answers[[0, 2, 2]])
    assert len(check_order(names, single_models(of_all(as_good), true))) == 1
    better = slow._replace(answers=results.answers[[1, 0, 2]])
    (warning,) = check_order(names, single_models(of_all(better), true))
    assert "small" in warning and "fastest first" in warning


def test_a_speed_that_no_cascade_has():
    results, true = drawn(2, 50)
    last_ms = results.milliseconds[-1].mean()
    most = last_ms / results.milliseconds[0].mean()
    with pytest.raises(UserError, match=rf"--target_speedup=90: .* {most:.2f} times as fast"):
        choose(candidates(of_all(results), true), last_ms, target_speedup=90)
    with pytest.raises(UserError, match=r"--max_slowdown=0.9: no cascade is faster than its first stage alone"):
        choose(candidates(of_all(results), true), last_ms, max_slowdown=0.9)
