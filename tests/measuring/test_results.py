"""The numbers and the tables of evaluate.py, against counting by hand."""

import numpy as np
import pytest

from utils.measuring.results import (
    multi_label_result,
    regression_result,
    report_lines,
    result_lines,
    single_label_result,
)
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL

# Three rows of "bad", one of them taken for "good"; a row of "good"; no row of "so so", which nobody answers either.
TRUE = np.array([0, 0, 0, 2])
LOGITS = np.array([[2.0, 0.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
LABELS = ["bad", "so so", "good"]


def test_of_one_label_a_row():
    """A label that no row has counts as one of which nothing is right, and stays in the tables."""
    scores, tables = single_label_result(LOGITS, TRUE, LABELS)
    of_bad, of_good = 2 * 2 / (2 + 3), 2 * 1 / (2 + 1)
    assert scores["accuracy"] == 0.75 and scores["num_correct"] == 3
    assert scores["macro_f1"] == pytest.approx((of_bad + 0 + of_good) / 3)
    assert tables["confusion_matrix"] == [[2, 0, 1], [0, 0, 0], [0, 0, 1]]
    lines = str(tables["classification_report"]).splitlines()
    rows = {line.rsplit(maxsplit=4)[0].strip(): line.split()[-4:] for line in lines[2:5]}
    assert rows["bad"] == ["1.0000", "0.6667", "0.8000", "3"]
    assert rows["so so"] == ["0.0000", "0.0000", "0.0000", "0"]
    accuracy, macro_f1, _ = result_lines(SINGLE_LABEL, scores | {"num_examples": 4})
    report, matrix = report_lines(tables)
    assert accuracy == "[Accuracy] : 0.7500,     3/    4" and macro_f1 == "[Macro F1] : 0.4889"
    assert report == f"[Report] :\n{tables['classification_report']}"
    assert matrix.splitlines()[1:] == ["     2      0      1", "     0      0      0", "     0      0      1"]
    assert report_lines(scores) == []


def test_of_any_number_of_labels():
    true = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    logits = np.array([[2.0, -2.0, -2.0], [2.0, -2.0, -1.0], [-2.0, -2.0, -3.0]])
    scores, tables = multi_label_result(logits, true, LABELS, None)
    assert tables["thresholds"] == dict.fromkeys(LABELS, 0.5)
    assert scores["subset_accuracy"] == pytest.approx(2 / 3) and scores["micro_f1"] == pytest.approx(2 * 2 / (2 + 3))
    assert scores["macro_f1"] == pytest.approx(1 / 3)
    assert scores["brier"] == pytest.approx(np.mean((1 / (1 + np.exp(-logits)) - true) ** 2))
    assert "so so" in str(tables["classification_report"])
    assert result_lines(MULTI_LABEL, scores | tables)[0] == "[Macro F1] : 0.3333, thresholds at 0.5"
    # Above a quarter, the second row's last label is given as well.
    scores, tables = multi_label_result(logits, true, LABELS, np.array([0.5, 0.4, 0.25]))
    assert scores["subset_accuracy"] == 1 and tables["thresholds"] == {"bad": 0.5, "so so": 0.4, "good": 0.25}
    assert "at the labels' own, 0.250 to 0.500" in result_lines(MULTI_LABEL, scores | tables)[0]


def test_of_scores():
    predicted, true = np.array([[1.0, 5.0], [2.0, 7.0], [4.0, 6.0]]), np.array([[1.0, 4.0], [3.0, 6.0], [5.0, 5.0]])
    scores, tables = regression_result(predicted, true, ["price", "taste"], ["a", "a", "a"])
    own = tables["scores"]
    assert own["taste"] == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0, "mean_squared_error": 1.0, "mean_absolute_error": 1.0}
    )
    assert own["price"]["mean_squared_error"] == own["price"]["mean_absolute_error"] == pytest.approx(2 / 3)
    assert scores["mean_squared_error"] == pytest.approx(5 / 6) and "ndcg_at_10" not in scores
    lines = result_lines(REGRESSION, scores | tables)
    assert len(lines) == 3 and lines[1].endswith("(price)") and "mean squared error 1, " in lines[2]
    # Of one score there is no table, and pairs are ranked where they have a first text.
    scores, tables = regression_result(predicted[:, :1], true[:, :1], ["price"], ["a", "a", "a"])
    assert tables == {} and scores["num_queries"] == 1 and scores["mrr"] == 1.0
    assert result_lines(REGRESSION, scores)[1] == "[Ranking] : NDCG@10 1.0000, MRR 1.0000, of 1 first texts"
    assert "mrr" not in regression_result(predicted[:, :1], true[:, :1], ["price"], None)[0]
