"""A cascade of reference models, written as cascade.py writes it."""

import math
from pathlib import Path

from matplotlib.figure import Figure
from reference_model import LABELS, Reference

from utils.export.cascade_dir import write_cascade_dir
from utils.predictor.folder import StageFolder, read_stages


def write_cascade(
    path: Path,
    references: list[Reference],
    temperatures: list[float],
    thresholds: list[float],
    weights: list[float] | None = None,
) -> Path:
    """The cascade's folder; thresholds are of all stages but the last, weights of all but the first."""
    models = [read_stages(reference.folder)[0][0].model for reference in references]
    weights = weights or [0.0] * len(thresholds)
    stages = [
        StageFolder(*each) for each in zip(models, temperatures, [*thresholds, 0.0], [0.0, *weights], strict=True)
    ]
    write_cascade_dir(path, stages, {"machine": {}, "rows": 1}, "", "", {}, Figure())
    return path


def expected(
    references: list[Reference], temperatures: list[float], thresholds: list[float], weights: list[float], text
) -> tuple[int, str, list[float]]:
    """The stage, label and probabilities that PyTorch's models of the same weights come to."""
    logits = [0.0] * len(LABELS)
    for stage, (reference, temperature, threshold, weight) in enumerate(
        zip(references, temperatures, [*thresholds, 0.0], [0.0, *weights], strict=True)
    ):
        own = [math.log(share) / temperature for share in reference.probabilities(text)]
        logits = [one + weight * before for one, before in zip(own, logits, strict=True)]
        powers = [math.exp(one) for one in logits]
        probabilities = [power / sum(powers) for power in powers]
        if stage == len(thresholds) or max(probabilities) > threshold:
            return stage, LABELS[probabilities.index(max(probabilities))], probabilities
    raise AssertionError
