"""Accuracy against latency: a point for every rung of a ladder, a line for the cascades of some models."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from utils.measuring.ladder import MeasuredRung
from utils.system.files import atomic_file
from utils.training.metrics import NAMES

# Where a label may be, in points from its point, nearest first: above, below, and to the sides.
OFFSETS = [(side, 14 * step * way) for step in range(1, 8) for side in (0, 14, -14) for way in (1, -1)]


def ladder_figure(rungs: Sequence[MeasuredRung]) -> Figure:
    """The rungs of a ladder that have a score: milliseconds a row on a log axis, better to the upper left.

    On a white ground, so that it can be read on a light and a dark page.
    """
    figure = Figure(figsize=(9, 6), facecolor="white")
    axes = figure.add_subplot()
    scored = [rung for rung in rungs if rung.score is not None]
    points = [(rung.name, rung.ms_a_row, 100 * (rung.score or 0)) for rung in scored]
    line = [(x, y) for (_, x, y), rung in zip(points, scored, strict=True) if rung.step]
    others = [(x, y) for (_, x, y), rung in zip(points, scored, strict=True) if not rung.step]
    axes.plot([x for x, _ in line], [y for _, y in line], color="#9aa5b1", zorder=1)
    for positions, color in ((line, "#0b63b0"), (others, "#b3541e")):
        axes.scatter([x for x, _ in positions], [y for _, y in positions], color=color, s=45, zorder=2)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a row of the test set, log scale")
    axes.set_ylabel(f"{NAMES[rungs[0].measure]} on the test set, %")
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.25, y=0.25)
    place_labels(figure, axes, points, line)
    return figure


def frontier_figure(
    models: list[tuple[str, float, float]],
    cascades: list[tuple[float, float]],
    chosen: tuple[float, float],
    accuracy: str = "accuracy",
) -> Figure:
    """Models alone as points, cascades as a line: mean milliseconds a row on a log axis, better to the upper left.

    Args:
        models: name, milliseconds and accuracy in percent of each.
        cascades: milliseconds and accuracy of each, fastest first.
        chosen: those of the one that was chosen.
        accuracy: what it is called.
    """
    figure = Figure(figsize=(9, 6), facecolor="white")
    axes = figure.add_subplot()
    axes.plot(*zip(*cascades, strict=True), color="#9aa5b1", marker=".", zorder=1)
    axes.scatter([x for _, x, _ in models], [y for _, _, y in models], color="#b3541e", s=45, zorder=2)
    axes.scatter([chosen[0]], [chosen[1]], color="#0b63b0", s=45, zorder=3)
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.set_xlabel("mean milliseconds a row of valid, log scale")
    axes.set_ylabel(f"{accuracy} on valid, %")
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.25, y=0.25)
    place_labels(figure, axes, [*models, ("the cascade", *chosen)], cascades)
    return figure


def place_labels(
    figure: Figure, axes: Axes, points: list[tuple[str, float, float]], line: list[tuple[float, float]]
) -> list[Annotation]:
    """Label each point (name, x, y) at the first place around it where the text meets nothing and stays inside.

    Args:
        line: the points (x, y) of a drawn line that no text is to meet.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, inside = canvas.get_renderer(), axes.get_window_extent()
    corners = [axes.transData.transform(corner) for corner in line]
    on_line = [Bbox([at - 1, at + 1]) for start, end in pairwise(corners) for at in _along(start, end, 60)]
    taken = []
    for _, x, y in points:
        left, bottom = axes.transData.transform((x, y))
        taken.append(Bbox.from_bounds(left - 5, bottom - 5, 10, 10))
    labels: list[Annotation] = []
    texts: list[Bbox] = []
    for name, x, y in points:
        places = [_label(axes, renderer, name, x, y, offset) for offset in OFFSETS]
        point = axes.transData.transform((x, y))
        # In a crowd on the ladder's line, or with a line across another label, rather than on a label.
        virtues = [
            (
                inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) and not box.count_overlaps(taken),
                not any(dot.count_overlaps(texts) for dot in _leader(point, box)),
                not box.count_overlaps(on_line),
            )
            for _, box in places
        ]
        best = virtues.index(max(virtues))
        for i, (label, _) in enumerate(places):
            if i != best:
                label.remove()
        label, box = places[best]
        # Other labels keep off this one's line to its point, too.
        taken += [box, *_leader(point, box)]
        texts.append(box)
        labels.append(label)
    return labels


def _leader(point: np.ndarray, box: Bbox) -> list[Bbox]:
    """The line from a point to its label's text, as dots."""
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    return [Bbox([at - 1, at + 1]) for at in _along(point, middle, 12)]


def _label(axes: Axes, renderer, name: str, x: float, y: float, offset: tuple[int, int]) -> tuple[Annotation, Bbox]:
    """A label at an offset from its point, and the box of its text, without its line to the point."""
    label = axes.annotate(
        name,
        (x, y),
        offset,
        textcoords="offset points",
        fontsize=9,
        color="#1f2933",
        va="center",
        ha="center" if not offset[0] else "left" if offset[0] > 0 else "right",
        arrowprops={"arrowstyle": "-", "color": "#9aa5b1", "linewidth": 0.8},
    )
    label.update_positions(renderer)
    return label, Text.get_window_extent(label, renderer).padded(1)


def _along(start: np.ndarray, end: np.ndarray, count: int) -> list[np.ndarray]:
    return [start + share * (end - start) for share in np.linspace(0, 1, count)]


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.svg into a folder, atomically."""
    for kind in ("png", "svg"):
        with atomic_file(folder / f"{name}.{kind}") as temporary:
            # The same picture is the same file: SVG would hold the date, and ids drawn at random.
            metadata = {"Date": None} if kind == "svg" else None
            with matplotlib.rc_context({"svg.hashsalt": "ladder"}):
                figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
