"""A cascade of reference models, written as cascade.py writes it."""

from pathlib import Path

from matplotlib.figure import Figure
from reference_model import LABELS, Reference

from utils.export.cascade_dir import write_cascade_dir
from utils.predictor import StageFolder, read_stages


def write_cascade(path: Path, references: list[Reference], temperatures: list[float], thresholds: list[float]) -> Path:
    """The cascade's folder; thresholds are of all stages but the last."""
    models = [read_stages(reference.folder)[0][0].model for reference in references]
    stages = [StageFolder(*each) for each in zip(models, temperatures, [*thresholds, 0.0], strict=True)]
    write_cascade_dir(path, stages, {"machine": {}, "rows": 1}, "", "", {}, Figure())
    return path


def expected(references: list[Reference], temperatures: list[float], thresholds: list[float], text) -> tuple:
    """The stage, label and probabilities that PyTorch's models of the same weights come to."""
    for stage, (reference, temperature, threshold) in enumerate(
        zip(references, temperatures, [*thresholds, 0.0], strict=True)
    ):
        powers = [share ** (1 / temperature) for share in reference.probabilities(text)]
        probabilities = [power / sum(powers) for power in powers]
        if stage == len(thresholds) or max(probabilities) > threshold:
            return stage, LABELS[probabilities.index(max(probabilities))], probabilities
    raise AssertionError
