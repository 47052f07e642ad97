"""Measures by hand, thresholds, and ranking."""

import numpy as np
import pytest

from utils.predictor.model import sigmoid
from utils.training.metrics import (
    given_labels,
    measure,
    ranking_measures,
    tuned_thresholds,
)

LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
LOGITS = np.array([[2, -1, -9], [1, -0.5, -9], [-1, 3, -9], [0.5, -3, -9]], np.float32)


def test_f1_and_subset_accuracy():
    # Label 0: rows 0, 1 right, row 3 too many; label 1: row 2 right, row 1 missed; label 2: nowhere.
    assert measure("macro_f1", LOGITS, LABELS) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert measure("micro_f1", LOGITS, LABELS) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert measure("subset_accuracy", LOGITS, LABELS) == pytest.approx(2 / 4)
    assert measure("mean_average_precision", LOGITS, LABELS) == pytest.approx(1.0)
    assert measure("macro_f1", LOGITS, LABELS, np.array([0.7, 0.3, 0.5])) == pytest.approx(2 / 3)


def test_sigmoid_of_large_logits():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_tuned_thresholds_give_the_best_f1():
    thresholds = tuned_thresholds(LOGITS, LABELS)
    probabilities = sigmoid(LOGITS.astype(np.float64))
    assert thresholds[0] == pytest.approx((probabilities[3, 0] + probabilities[1, 0]) / 2)
    assert thresholds[1] == pytest.approx((probabilities[0, 1] + probabilities[1, 1]) / 2)
    assert thresholds[2] == 0.5  # no row has it
    assert np.array_equal(given_labels(LOGITS, thresholds), LABELS > 0)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 3))
    labels = (logits + generator.normal(size=(200, 3)) > 1).astype(np.float32)
    tuned = measure("macro_f1", logits, labels, tuned_thresholds(logits, labels))
    for threshold in np.linspace(0.01, 0.99, 50):
        assert measure("macro_f1", logits, labels, np.full(3, threshold)) <= tuned + 1e-12


def f1_of(given: np.ndarray, true: np.ndarray) -> float:
    return 2 * (given & true).sum() / max(1, given.sum() + true.sum())


def test_every_labels_threshold_is_its_best():
    """Against every cut between two probabilities, with a label that no row has between two others."""
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(40, 4))
    true = logits + generator.normal(size=(40, 4)) > [0, 9, 0.5, -0.5]
    true[:, 1], true[:, 3] = False, True  # of the last one the best cut is below all
    true[:, 2] = logits[:, 2] == logits[:, 2].max()  # and here just below the highest
    thresholds = tuned_thresholds(logits, true.astype(np.float32))
    for i in (0, 2, 3):
        own = sigmoid(logits[:, i])
        best = max(f1_of(own >= cut, true[:, i]) for cut in own)
        assert f1_of(own > thresholds[i], true[:, i]) == pytest.approx(best) and best > 0.6
    assert thresholds[1] == 0.5 and thresholds[3] == pytest.approx(sigmoid(logits[:, 3]).min() / 2)


def test_mean_average_precision_by_hand():
    """Of each label as much, however many rows have it; of none there is nothing to find."""
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    logits = np.array([[4, 1, 0], [3, 4, 0], [2, 3, 0], [1, 2, 0]], np.float32)
    by_hand = (1 / 1 + 2 / 2 + 3 / 4) / 3, 1 / 4
    assert measure("mean_average_precision", logits, labels) == pytest.approx(np.mean(by_hand))
    assert measure("mean_average_precision", logits, np.zeros_like(labels)) == 0.0


def test_correlations():
    true = np.array([[1.0, 5], [2, 4], [3, 3], [10, 2]])
    predicted = true.copy()
    predicted[:, 0] = [1, 2, 3, 4]
    by_hand = np.corrcoef(predicted[:, 0], true[:, 0])[0, 1]
    assert measure("pearson", predicted, true) == pytest.approx((by_hand + 1) / 2)
    assert measure("spearman", predicted, true) == pytest.approx(1.0)
    assert measure("pearson", np.ones((4, 2)), true) == 0.0


def test_ranking_by_hand():
    queries = ["a", "b", "a", "b", "a", "c"]
    true = np.array([3.0, 0, 0, 1, 1, 9])
    predicted = np.array([0.2, 0.9, 0.5, 0.1, 0.1, 0.0])
    result = ranking_measures(predicted, true, queries)
    # a: by prediction the gains are 0, 3, 1; ideally 3, 1, 0. b: 0, 1; ideally 1, 0.
    a = (3 / np.log2(3) + 1 / np.log2(4)) / (3 + 1 / np.log2(3))
    b = (1 / np.log2(3)) / 1
    assert result["ndcg_at_10"] == pytest.approx((a + b) / 2)
    assert result["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2) and result["num_queries"] == 2
    assert ranking_measures(predicted, true, list("abcdef")) == {}
    assert ranking_measures(np.arange(4.0), np.array([-1.0, 1, -1, 1]), list("xxyy"))["mrr"] == 1.0
    assert ranking_measures(np.arange(4.0), np.ones(4), list("xxyy")) == {}


def test_ranking_of_many_passages_by_hand():
    """Ten of each query count; the first of equal scores comes first; queries of one score alone say nothing."""
    many = np.arange(12.0)  # the better, the later it is ranked
    queries = ["same"] * 2 + ["many"] * 12 + ["tie"] * 3
    true = np.array([1.0, 1.0, *many, 0.0, 2.0, 2.0])
    predicted = np.array([1.0, 2.0, *-many, 5.0, 5.0, 5.0])
    discounts = 1 / np.log2(np.arange(10) + 2)
    of_many = (many[:10] * discounts).sum() / (many[::-1][:10] * discounts).sum()
    of_tie = 4 / 3 * discounts[:3].sum() / (2 * discounts[:2].sum())  # equal scores share their gains
    result = ranking_measures(predicted, true, queries)
    assert result["num_queries"] == 2 and result["ndcg_at_10"] == pytest.approx((of_many + of_tie) / 2)
    assert result["mrr"] == pytest.approx((1 / 12 + 1 / 2) / 2)


def test_gains_are_at_least_zero():
    """What is below 0 is lifted by the lowest; other scores stay as they are."""
    discounts = 1 / np.log2(np.arange(2) + 2)
    for true, gains in (([-3.0, 1.0], [0.0, 4.0]), ([0.5, 2.0], [0.5, 2.0])):
        by_hand = (np.array(gains) * discounts).sum() / (np.array(gains[::-1]) * discounts).sum()
        result = ranking_measures(np.array([1.0, 0.0]), np.array(true), ["a", "a"])
        assert result["ndcg_at_10"] == pytest.approx(by_hand)


def test_half_of_the_rows_must_share_their_query():
    predicted, true = np.arange(5.0), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert ranking_measures(predicted[:4], true[:4], ["a", "a", "b", "c"])["num_queries"] == 1
    assert ranking_measures(predicted, true, ["a", "a", "b", "c", "d"]) == {}
