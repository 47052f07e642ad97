"""Temperature, scale, calibration error and Brier score, against values by hand and a plain search."""

import numpy as np
import pytest

from utils.measuring.calibration import (
    brier_score,
    calibration_error_by_chance,
    cascade_logits,
    cascade_weights,
    expected_calibration_error,
    fit_logit_scale,
    fit_temperature,
    pooled_probabilities,
    scaled_logits,
)
from utils.predictor.model import softmax


def drawn(
    temperature: float, num_labels: int = 3, count: int = 20_000, of_margin: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with their probabilities after a temperature, and a scale that grows with the margin."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (count, num_labels))
    ordered = np.sort(logits, axis=1)
    scale = 1 / temperature + of_margin * (ordered[:, -1:] - ordered[:, -2:-1])
    shares = softmax(logits * scale).cumsum(1)
    return logits, (generator.random((count, 1)) > shares).sum(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    logits, true = drawn(temperature)
    assert fit_temperature(logits, true) == pytest.approx(temperature, rel=0.05)
    after = expected_calibration_error(logits / fit_temperature(logits, true), true)
    assert after < 0.015
    if temperature != 1:
        assert expected_calibration_error(logits, true) > 4 * after


def test_the_temperature_is_the_best_of_a_search():
    logits, true = drawn(1.7, 2, 300)
    temperatures = np.geomspace(0.1, 10, 2001)
    losses = [-np.log(softmax(logits / each)[np.arange(300), true]).mean() for each in temperatures]
    assert fit_temperature(logits, true) == pytest.approx(temperatures[np.argmin(losses)], rel=0.005)


def test_where_all_is_right_the_temperature_stays_finite():
    logits = np.eye(2)[[0, 1, 0, 1]].astype(np.float32)
    assert 0.01 < fit_temperature(logits, np.array([0, 1, 0, 1])) < 1
    assert 1 < fit_temperature(logits, np.array([1, 0, 1, 0])) < 100


@pytest.mark.parametrize("num_labels", [2, 5])
def test_the_scale_is_found_again(num_labels):
    """One temperature cannot mend what grows with the margin."""
    logits, true = drawn(2.0, num_labels, of_margin=0.1)
    scale = fit_logit_scale(logits, true)
    assert scale == pytest.approx((0.5, 0.1), rel=0.15)
    scaled, divided = scaled_logits(logits, scale), logits / fit_temperature(logits, true)
    assert expected_calibration_error(scaled, true) < 0.01 < 0.015 < expected_calibration_error(divided, true)
    np.testing.assert_array_equal(np.argsort(scaled, axis=1), np.argsort(logits, axis=1))


def test_small_margins_are_not_made_nothing_of():
    """Where logits should grow with the margin alone."""
    logits, true = drawn(1e9, 2, of_margin=0.3)
    constant, of_margin = fit_logit_scale(logits, true)
    assert constant == pytest.approx(0.5 / fit_temperature(logits, true)) and of_margin > 0


def test_where_one_temperature_suffices_the_scale_is_constant():
    """Of most samples; by chance a few seem to need more."""
    logits, true = drawn(1.7, 2)
    parts = [slice(start, start + 500) for start in range(0, 20_000, 500)]
    scales = [fit_logit_scale(logits[part], true[part]) for part in parts]
    constant = [
        scale == (1 / fit_temperature(logits[part], true[part]), 0.0) for scale, part in zip(scales, parts, strict=True)
    ]
    assert 30 < sum(constant) < 40


def test_a_scale_that_would_shrink_with_the_margin_is_constant():
    """It could change answers."""
    logits, true = drawn(1.0, 3, of_margin=-0.08)
    constant, of_margin = fit_logit_scale(logits, true)
    assert constant > 0 and of_margin == 0


def test_where_all_is_right_or_wrong_the_scale_stays_finite():
    logits = np.eye(2)[[0, 1, 0, 1]].astype(np.float32)
    for true in (np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0])):
        constant, of_margin = fit_logit_scale(logits, true)
        assert 0.01 < constant < 100 and 0 <= of_margin < 100


def loss(probabilities: np.ndarray, true: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(true)), true]).mean())


def test_two_models_together_know_more_than_each():
    """Against a search of both weights."""
    logits, true = drawn(1.0, 3, 400)
    noise = np.random.default_rng(1).normal(0, 2, (2, *logits.shape))
    both = logits + noise
    searched = [
        loss(softmax(first * both[0] + second * both[1]), true)
        for first in np.linspace(0, 1.5, 61)
        for second in np.linspace(0, 1.5, 61)
    ]
    found = loss(pooled_probabilities(both, true), true)
    assert min(searched) - 5e-4 < found < min(searched) + 1e-6
    assert found < min(loss(softmax(one / fit_temperature(one, true)), true) for one in both) - 0.02


def test_a_model_that_is_wrong_has_no_say():
    logits, true = drawn(1.0, 3, 400)
    pooled = pooled_probabilities(np.array([logits, -logits + 0.1]), true)
    np.testing.assert_allclose(pooled, softmax(logits / fit_temperature(logits, true)), atol=0.01)


def test_models_that_are_always_right_are_believed():
    logits = np.eye(2)[[0, 1, 0, 1]]
    pooled = pooled_probabilities(np.array([logits, 3 * logits]), np.array([0, 1, 0, 1]))
    assert np.isfinite(pooled).all() and (pooled[np.arange(4), [0, 1, 0, 1]] > 0.99).all()


def test_weights_of_a_cascade():
    """Stage by stage the best pair, against a search; a third that says what the second does gets nothing of these."""
    logits, true = drawn(1.0, 3, 400)
    noise = np.random.default_rng(1).normal(0, 2, (2, *logits.shape))
    stages = [*(logits + noise), logits + noise[1]]
    weights = cascade_weights(stages, true)
    combined = cascade_logits(stages, weights)
    assert weights[0] == (fit_temperature(stages[0], true), 0.0) and len(weights) == 3
    np.testing.assert_allclose(combined[0], stages[0] / weights[0][0])
    np.testing.assert_allclose(combined[1], stages[1] / weights[1][0] + weights[1][1] * combined[0])
    np.testing.assert_allclose(combined[2], stages[2] / weights[2][0] + weights[2][1] * combined[1])
    searched = [
        loss(softmax(of_before * combined[0] + own * stages[1]), true)
        for of_before in np.linspace(0, 2, 61)
        for own in np.linspace(0, 1.5, 61)
    ]
    losses = [loss(softmax(one), true) for one in combined]
    assert min(searched) - 5e-4 < losses[1] < min(searched) + 1e-6
    assert losses[1] < min(losses[0], loss(softmax(stages[1] / fit_temperature(stages[1], true)), true)) - 0.02
    assert losses[2] == pytest.approx(losses[1], abs=5e-4)


def test_stages_before_count_only_where_they_are_worth_it():
    """Not those that know the last one's logits but for noise. A last one that is wrong has a temperature, too."""
    logits, true = drawn(1.0, 3, 400)
    noisy = logits + np.random.default_rng(1).normal(0, 2, logits.shape)
    assert cascade_weights([noisy, logits], true)[1] == (fit_temperature(logits, true), 0.0)
    temperature, of_before = cascade_weights([logits, 9 * np.eye(3)[(true + 1) % 3]], true)[1]
    assert temperature == pytest.approx(np.exp(4)) and of_before == pytest.approx(1.0, abs=0.1)


def test_errors_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.62, 0.38]])
    logits, true = np.log(probabilities), np.array([0, 1, 1, 0])
    # Two rows of 0.9, of which one is right; 0.6, in the bin up to 0.6; 0.62.
    assert expected_calibration_error(logits, true) == pytest.approx((2 * 0.4 + 0.4 + 0.38) / 4)
    assert expected_calibration_error(logits, true, num_bins=1) == pytest.approx(abs(0.75 - 0.755))
    assert brier_score(logits, true) == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.16 + 2 * 0.1444) / 4)


def test_what_chance_makes_of_exact_probabilities():
    """Less of more rows, and as much as of rows whose labels are drawn with these probabilities."""
    few, many = drawn(1.0, 2, 500), drawn(1.0, 2, 20_000)
    assert calibration_error_by_chance(many[0]) < 0.01 < calibration_error_by_chance(few[0]) < 0.05
    errors = [
        expected_calibration_error(*[part[start : start + 500] for part in many]) for start in range(0, 20_000, 500)
    ]
    assert calibration_error_by_chance(few[0]) == pytest.approx(np.mean(errors), rel=0.2)


def test_sure_and_unsure_to_the_utmost():
    logits = np.array([[1000.0, 0.0], [0.0, 0.0]])
    assert expected_calibration_error(logits, np.array([0, 0])) == pytest.approx(0.25)
    assert brier_score(logits, np.array([1, 0])) == pytest.approx((2 + 0.5) / 2)
