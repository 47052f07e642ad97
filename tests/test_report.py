"""The ladder: what is computed from times, the table, and a picture whose labels can be read."""

import itertools
import json
import random

import numpy as np
import pytest
from conftest import fails, write_texts
from matplotlib.text import Text

from utils.measuring.ladder import compared, markdown_table, measured_rung, text_table
from utils.measuring.picture import ladder_figure, save_figure


def rung(name: str, milliseconds: list, step: bool = True, accuracy: float | None = 0.9, **more) -> dict:
    logits = None if accuracy is None else np.eye(2)[[0] * 9 + [1]]
    made = measured_rung(name, logits, np.zeros(10, dtype=int), [np.array(turn) for turn in milliseconds], None)
    return made | {"step": step, "engine": "onnx", "parameters": 1000, "model_bytes": 2e6} | more


def test_comparison_by_hand():
    rungs = [
        rung("first", [[8.0] * 5, [12.0] * 5]),
        rung("linear", [[1.0] * 5, [1.0] * 5], step=False),
        rung("second", [[2.0] * 5, [3.0] * 5]),
        rung("large", [[100.0] * 5, [100.0] * 5], step=False, accuracy=None),
    ]
    compared(rungs, rungs[3], usd_per_hour=0.36)
    first, linear, second, large = rungs
    assert [each["accuracy"] for each in rungs] == [0.9, 0.9, 0.9, None]
    assert first["seconds"] == pytest.approx(0.1) and second["speedup"] == pytest.approx(4)
    assert second["speedup_range"] == pytest.approx([4, 4])
    # A step is over the step before, whatever stands between.
    assert (first["step_speedup"], linear["step_speedup"], large["step_speedup"]) == (None, None, None)
    assert second["step_speedup"] == pytest.approx(4)
    assert second["speedup_vs_baseline"] == pytest.approx(40)
    # 100 million queries of 2.5 ms are 69.4 hours.
    assert second["usd_per_100m"] == pytest.approx(100e6 * 2.5e-3 / 3600 * 0.36)
    shown = text_table(rungs, True)
    assert len({len(line) for line in shown.splitlines()[:2]}) == 1 and "40x" in shown
    cells = [line.strip("| ").split(" | ") for line in markdown_table(rungs, True).splitlines()]
    assert {len(line) for line in cells} == {12}


def test_several_instances_are_as_fast_as_the_clock_says():
    logits, true = np.eye(2)[[0] * 10], np.zeros(10, dtype=int)
    made = measured_rung("two", logits, true, [np.full(10, 3.0)] * 3, [0.02, 0.016, 0.03])
    assert made["ms_a_row"] == pytest.approx(2.0)
    assert made["ms_a_row_of_turns"] == pytest.approx([2.0, 1.6, 3.0])
    assert made["latency_ms"]["p50"] == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_overlap(seed, tmp_path):
    generator = random.Random(seed)
    rungs = []
    for i in range(9):
        # Crowded: half of them within a point of accuracy and a factor of 2.
        each = rung(f"+ a rung of number {i}", [[generator.uniform(1, 2) * (20 if i % 2 else 1)] * 10])
        rungs.append(each | {"accuracy": 0.87 + generator.uniform(0, 0.01), "step": i < 8})
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
        rung(f"+ step {i} of the ladder", [[ms] * 10]) | {"accuracy": accuracy}
        for i, (ms, accuracy) in enumerate(zip(times, accuracies, strict=True))
    ]
    axes = ladder_figure(rungs).axes[0]
    boxes = [Text.get_window_extent(label) for label in axes.texts]
    assert len(boxes) == 7
    corners = axes.transData.transform(list(zip(times, 100 * np.array(accuracies), strict=True)))
    for start, end in itertools.pairwise(corners):
        for part in np.linspace(0, 1, 200):
            assert not any(box.contains(*(start + part * (end - start))) for box in boxes)


def test_every_engine(trained):
    assert trained.quantize("--fp32", "--output_dir", str(trained.folder / "model"), source="teacher")[0] == 0
    options = []
    for name, engine, path in [
        ("padded", "pytorch_fixed", "teacher"), ("own length", "pytorch", "teacher"),
        ("graph", "onnx", "teacher.int8.onnx"), ("instances", "onnx_instances", "teacher.int8.onnx"),
        ("folder", "onnx", "model"), ("its instances", "onnx_instances", "model"),
        ("TF-IDF", "linear", "-"), ("BERT-base", "bert_base", "-"),
    ]:  # fmt: skip
        options += ["--rung", name, engine, str(trained.folder / path) if path != "-" else path]
    out = trained.folder / "ladder"
    code, stderr = trained.script("report", *trained.common(), *options, f"--output_dir={out}", "--num_threads=1")
    assert code == 0, stderr
    assert sorted(path.name for path in out.iterdir()) == ["ladder.json", "ladder.md", "ladder.png", "ladder.svg"]
    rungs = {each["name"]: each for each in json.loads((out / "ladder.json").read_text())["rungs"]}
    assert trained.evaluate("--output_json", str(trained.folder / "result.json"))[0] == 0
    expected = json.loads((trained.folder / "result.json").read_text())["accuracy"]
    assert rungs["padded"]["accuracy"] == rungs["own length"]["accuracy"] == expected
    assert rungs["graph"]["accuracy"] == rungs["instances"]["accuracy"]
    assert [len(rungs[name]["ms_a_row_of_turns"]) for name in ("graph", "instances")] == [1, 3]
    # fp32, so exact, and as large as the checkpoint.
    for name in ("folder", "its instances"):
        assert rungs[name]["accuracy"] == expected
        assert rungs[name]["model_bytes"] == pytest.approx(rungs["padded"]["model_bytes"], rel=0.2)
    # The label depends on single words.
    assert rungs["TF-IDF"]["accuracy"] == 1.0 and not rungs["TF-IDF"]["step"]
    assert rungs["BERT-base"]["accuracy"] is None and 85e6 < rungs["BERT-base"]["parameters"] < 111e6
    assert rungs["padded"]["speedup_vs_baseline"] > 10 and "vs BERT-base" in (out / "ladder.md").read_text()


def test_bad_rungs(trained):
    def report(*rung: str) -> tuple[int, str]:
        return trained.script("report", *trained.common(), "--rung", *rung, f"--output_dir={trained.folder / 'out'}")

    teacher = str(trained.folder / "teacher")
    fails(report("a", "tensorflow", teacher), "first rung")
    fails(report("a", "pytorch", teacher, "--rung", "b", "tensorflow", teacher), "unknown engine 'tensorflow'")
    fails(report("a", "linear", "-"), "first rung")
    fails(report("a", "pytorch", "nowhere"), "nowhere")
    fails(report("a", "pytorch", teacher, "--rung", "b", "onnx", "nowhere.onnx"), "nowhere.onnx")
    fails(report("a", "pytorch", teacher, "--rung", "b", "onnx", teacher), "model.onnx is not a file: write the graph")
    assert not (trained.folder / "out").exists()
    write_texts(trained.folder / "data", {"train": 30, "valid": 9, "test": 9})
    fails(report("a", "pytorch", teacher), "has changed", "preprocess.py")
