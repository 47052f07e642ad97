"""What evaluate.py says of a model's answers on a split, by the task: the numbers, and the lines that show them.

Logits are float arrays [rows, outputs], labels as `utils.data.tables.row_labels` has them.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from utils.measuring.calibration import brier_score, calibration_error_by_chance, expected_calibration_error
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.predictor.model import sigmoid
from utils.training.metrics import (
    MEASURES,
    THRESHOLD,
    correlation,
    given_labels,
    measure,
    ranking_measures,
)

Result = dict[str, object]


def single_label_result(logits: np.ndarray, true: np.ndarray, labels: list[str]) -> tuple[Result, Result]:
    """Accuracy and macro F1, and how far probabilities can be trusted; and the tables, label by label."""
    predicted, ids = logits.argmax(-1), list(range(len(labels)))
    scores: Result = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, labels=ids, average="macro", zero_division=0)),
        "calibration_error": expected_calibration_error(logits, true),
        "calibration_error_by_chance": calibration_error_by_chance(logits),
        "brier": brier_score(logits, true),
        "num_correct": int((true == predicted).sum()),
    }
    report = classification_report(true, predicted, labels=ids, target_names=labels, digits=4, zero_division=0)
    return scores, {
        "classification_report": report,
        "confusion_matrix": confusion_matrix(true, predicted, labels=ids).tolist(),
    }


def multi_label_result(
    logits: np.ndarray, true: np.ndarray, labels: list[str], thresholds: np.ndarray | None
) -> tuple[Result, Result]:
    """F1 over labels and over decisions, subset accuracy, mean average precision; and the table, label by label."""
    given = given_labels(logits, thresholds)
    scores: Result = {name: measure(name, logits, true, thresholds) for name in MEASURES[MULTI_LABEL]}
    scores["brier"] = float(((sigmoid(logits.astype(np.float64)) - true) ** 2).mean())
    report = classification_report(true > 0.5, given, target_names=labels, digits=4, zero_division=0)
    used = np.full(len(labels), THRESHOLD) if thresholds is None else thresholds
    return scores, {
        "classification_report": report,
        "thresholds": dict(zip(labels, used.tolist(), strict=True)),
    }


def regression_result(
    predicted: np.ndarray, true: np.ndarray, names: list[str], queries: list[str] | None
) -> tuple[Result, Result]:
    """Correlations and errors, of several scores their means and each one's own; of pairs, how well they are ranked.

    Args:
        queries: the first text of each pair; None where rows are single texts.
    """
    scores = _score_errors(predicted, true)
    if queries is not None and len(names) == 1:
        scores |= ranking_measures(predicted[:, 0], true[:, 0], queries)
    if len(names) == 1:
        return scores, {}
    return scores, {"scores": {name: _score_errors(predicted[:, [i]], true[:, [i]]) for i, name in enumerate(names)}}


def result_lines(task: str, result: Result) -> list[str]:
    """The lines of a result that say how good the answers are."""
    return LINES[task](result)


def report_lines(result: Result) -> list[str]:
    """The tables of a result, label by label."""
    lines = []
    if "classification_report" in result:
        lines.append(f"[Report] :\n{result['classification_report']}")
    if "confusion_matrix" in result:
        rows = "\n".join(" ".join(f"{count:6d}" for count in row) for row in result["confusion_matrix"])  # type: ignore
        lines.append(f"[Confusion matrix] : rows true, columns predicted, both in the order of label.txt\n{rows}")
    return lines


def _score_errors(predicted: np.ndarray, true: np.ndarray) -> Result:
    errors = predicted.astype(np.float64) - true
    return {
        "pearson": correlation("pearson", predicted, true),
        "spearman": correlation("spearman", predicted, true),
        "mean_squared_error": float((errors**2).mean()),
        "mean_absolute_error": float(np.abs(errors).mean()),
    }


def _single_label_lines(result: Result) -> list[str]:
    return [
        f"[Accuracy] : {result['accuracy']:.4f}, {result['num_correct']:5d}/{result['num_examples']:5d}",
        f"[Macro F1] : {result['macro_f1']:.4f}",
        f"[Calibration] : expected calibration error {result['calibration_error']:.4f} "
        f"({result['calibration_error_by_chance']:.4f} by chance), Brier score {result['brier']:.4f}",
    ]


def _multi_label_lines(result: Result) -> list[str]:
    used = set(result["thresholds"].values())  # type: ignore
    where = f"at {THRESHOLD}" if used == {THRESHOLD} else f"at the labels' own, {min(used):.3f} to {max(used):.3f}"
    return [
        f"[Macro F1] : {result['macro_f1']:.4f}, thresholds {where}",
        f"[Micro F1] : {result['micro_f1']:.4f}",
        f"[Subset accuracy] : {result['subset_accuracy']:.4f}",
        f"[Mean average precision] : {result['mean_average_precision']:.4f}",
    ]


def _regression_lines(result: Result) -> list[str]:
    def line(scores: Result, of: str) -> str:
        return (
            f"[Pearson] : {scores['pearson']:.4f}, Spearman {scores['spearman']:.4f}, mean squared error "
            f"{scores['mean_squared_error']:.6g}, mean absolute error {scores['mean_absolute_error']:.6g}{of}"
        )

    lines = [line(result, "")]
    lines += [line(own, f" ({name})") for name, own in result.get("scores", {}).items()]  # type: ignore
    if "ndcg_at_10" in result:
        lines.append(
            f"[Ranking] : NDCG@10 {result['ndcg_at_10']:.4f}, MRR {result['mrr']:.4f}, of {result['num_queries']} "
            "first texts"
        )
    return lines


LINES: dict[str, Callable[[Result], list[str]]] = {
    SINGLE_LABEL: _single_label_lines,
    MULTI_LABEL: _multi_label_lines,
    REGRESSION: _regression_lines,
}
