"""A picture whose labels can be read."""

import itertools
import random

import numpy as np
import pytest
from matplotlib.text import Text
from rung_of_times import rung

from utils.measuring.picture import ladder_figure, save_figure


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_overlap(seed, tmp_path):
    generator = random.Random(seed)
    rungs = []
    for i in range(9):
        # Crowded: half of them within a point of accuracy and a factor of 2.
        latencies = [[generator.uniform(1, 2) * (20 if i % 2 else 1)] * 10]
        rungs.append(rung(f"+ a rung of number {i}", latencies, i < 8, 0.87 + generator.uniform(0, 0.01)))
    figure = ladder_figure(rungs)
    labels = [text for text in figure.axes[0].texts if text.get_text().startswith("+")]
    assert len(labels) == 9
    boxes = [Text.get_window_extent(label) for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    inside = figure.axes[0].get_window_extent()
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes)
    save_figure(figure, tmp_path, "ladder")
    assert (tmp_path / "ladder.png").read_bytes()[:4] == b"\x89PNG" and b"<svg" in (
        tmp_path / "ladder.svg"
    ).read_bytes()


def test_labels_keep_off_the_line():
    """Of a ladder as they are: down the accuracy, to the left."""
    accuracies = [0.899, 0.899, 0.898, 0.9006, 0.9006, 0.892, 0.884]
    times = [30, 15, 8, 1.45, 1.06, 0.53, 0.17]
    rungs = [
        rung(f"+ step {i} of the ladder", [[ms] * 10], accuracy=accuracy)
        for i, (ms, accuracy) in enumerate(zip(times, accuracies, strict=True))
    ]
    axes = ladder_figure(rungs).axes[0]
    boxes = [Text.get_window_extent(label) for label in axes.texts]
    assert len(boxes) == 7
    corners = axes.transData.transform(list(zip(times, 100 * np.array(accuracies), strict=True)))
    for start, end in itertools.pairwise(corners):
        for part in np.linspace(0, 1, 200):
            assert not any(box.contains(*(start + part * (end - start))) for box in boxes)
