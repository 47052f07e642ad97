"""How good a model's answers are, by the task: the measures that choose a model, and the thresholds of labels.

Logits are float arrays [rows, outputs], labels as `utils.data.tables.row_labels` has them. Of each task's measures,
more is better.
"""

import numpy as np

from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.predictor.model import sigmoid

# scikit-learn and scipy are imported where they are used: they take a second, and one label a row needs neither.

# What --measure chooses by, the main one of a task first.
MEASURES = {
    SINGLE_LABEL: ("accuracy",),
    MULTI_LABEL: ("macro_f1", "micro_f1", "mean_average_precision", "subset_accuracy"),
    REGRESSION: ("pearson", "spearman"),
}
# What they are called where people read of them.
NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mean_average_precision": "mean average precision",
    "subset_accuracy": "subset accuracy",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
THRESHOLD = 0.5  # the probability above which a label is given


def main_measure(task: str) -> str:
    """The measure that a task goes by where none is named."""
    return MEASURES[task][0]


def measure(name: str, logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None) -> float:
    """A measure of `MEASURES`, from 0 to 1, correlations from -1.

    Args:
        thresholds: the probability above which each label is given, [labels]; `THRESHOLD` without.
    """
    if name == "accuracy":
        return float((logits.argmax(-1) == labels).mean())
    if name == "mean_average_precision":
        return mean_average_precision(logits, labels)
    if name in ("pearson", "spearman"):
        return correlation(name, logits, labels)
    given = given_labels(logits, thresholds)
    if name == "subset_accuracy":
        return float((given == (labels > 0.5)).all(-1).mean())
    from sklearn.metrics import f1_score

    return float(f1_score(labels > 0.5, given, average=name.removesuffix("_f1"), zero_division=0))


def given_labels(logits: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Which labels each row is given, bool [rows, labels]: those of a probability above their threshold."""
    return sigmoid(logits) > (THRESHOLD if thresholds is None else thresholds)


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over labels of the area under the precision-recall curve; of those that a row has."""
    from sklearn.metrics import average_precision_score

    occur = labels.any(0)
    return float(average_precision_score(labels[:, occur], logits[:, occur], average="macro")) if occur.any() else 0.0


def correlation(kind: str, predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson's or Spearman's correlation, of several scores the mean of theirs; 0 where all predictions are equal."""
    from scipy import stats

    function, values = (stats.pearsonr if kind == "pearson" else stats.spearmanr), []
    for ours, theirs in zip(predicted.T.astype(np.float64), true.T.astype(np.float64), strict=True):
        constant = len(set(ours.tolist())) < 2 or len(set(theirs.tolist())) < 2
        values.append(0.0 if constant else float(function(ours, theirs).statistic))
    return float(np.mean(values))


def tuned_thresholds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label the threshold of the best F1 on these rows, [labels]; `THRESHOLD` for one that no row has.

    It lies in the middle between the lowest probability above it and the highest below it.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds = []
    for own, true in zip(sigmoid(logits.astype(np.float64)).T, labels.T > 0.5, strict=True):
        if not true.any():
            thresholds.append(THRESHOLD)
            continue
        precision, recall, lowest = precision_recall_curve(true, own)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        least = lowest[f1[:-1].argmax()]
        below = own[own < least]
        thresholds.append(float(least + (below.max() if len(below) else 0)) / 2)
    return np.array(thresholds)


def ranking_measures(predicted: np.ndarray, true: np.ndarray, queries: list[str]) -> dict[str, float]:
    """NDCG@10 and MRR of pairs that are ranked by their scores [rows], those of each first text among one another.

    The gain of NDCG is the true score, less the lowest of all where that is below 0 (Jarvelin and Kekalainen 2002). The
    reciprocal rank is that of the first pair of the highest true score of its query. Queries whose pairs all have the
    same score are left out. Empty where fewer than half of the rows share their first text with another one.
    """
    from sklearn.metrics import ndcg_score

    groups: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        groups.setdefault(query, []).append(row)
    shared = [rows for rows in groups.values() if len(rows) > 1]
    if 2 * sum(map(len, shared)) < len(queries):
        return {}
    gains, ndcg, reciprocal = true - min(0.0, float(true.min())), [], []
    for rows in shared:
        own = gains[rows]
        if own.min() == own.max():
            continue
        ndcg.append(ndcg_score([own], [predicted[rows]], k=10))
        ranked = own[np.argsort(-predicted[rows], kind="stable")]
        reciprocal.append(1 / (1 + int((ranked == own.max()).argmax())))
    if not ndcg:
        return {}
    return {"ndcg_at_10": float(np.mean(ndcg)), "mrr": float(np.mean(reciprocal)), "num_queries": len(ndcg)}
