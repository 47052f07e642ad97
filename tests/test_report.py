"""The ladder: what is computed from times, the table, and a picture whose labels can be read."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import fails, write_texts
from matplotlib.text import Text

from utils.measuring.ladder import MeasuredRung, Measurement, compared, markdown_table, measured_rung, text_table
from utils.measuring.picture import ladder_figure, save_figure
from utils.measuring.rungs import OPENERS, Rung, words_repeat

SIZES = {"engine": "onnx", "parameters": 1000, "model_bytes": 2_000_000}


def rung(name: str, milliseconds: list, step: bool = True, accuracy: float | None = 0.9) -> MeasuredRung:
    logits = None if accuracy is None else np.eye(2)[[0] * 9 + [1]]
    measurement = Measurement(logits, [np.array(turn) for turn in milliseconds])
    measured = measured_rung(name, measurement, np.zeros(10, dtype=int), step=step, **SIZES)
    return measured if accuracy is None else replace(measured, accuracy=accuracy)


def test_comparison_by_hand():
    rungs = [
        rung("first", [[8.0] * 5, [12.0] * 5]),
        rung("linear", [[1.0] * 5, [1.0] * 5], step=False),
        rung("second", [[2.0] * 5, [3.0] * 5]),
        rung("large", [[100.0] * 5, [100.0] * 5], step=False, accuracy=None),
    ]
    rungs = compared(rungs, rungs[3], usd_per_hour=0.36)
    first, linear, second, large = rungs
    assert [each.accuracy for each in rungs] == [0.9, 0.9, 0.9, None]
    assert first.seconds == pytest.approx(0.1) and second.speedup == pytest.approx(4)
    assert second.speedup_range == pytest.approx([4, 4])
    # A step is over the step before, whatever stands between.
    assert (first.step_speedup, linear.step_speedup, large.step_speedup) == (None, None, None)
    assert second.step_speedup == pytest.approx(4)
    assert second.speedup_vs_baseline == pytest.approx(40)
    # 100 million queries of 2.5 ms are 69.4 hours.
    assert second.usd_per_100m == pytest.approx(100e6 * 2.5e-3 / 3600 * 0.36)
    shown = text_table(rungs, True, [])
    assert len({len(line) for line in shown.splitlines()[:2]}) == 1 and "40x" in shown
    cells = [
        line.strip("| ").split(" | ") for line in markdown_table(rungs, True, [("broken", "no | reason")]).splitlines()
    ]
    assert {len(line) for line in cells[:-1]} == {12}
    assert cells[-1][:2] == ["broken", r"failed: no \| reason"]


def test_several_instances_are_as_fast_as_the_clock_says():
    logits, true = np.eye(2)[[0] * 10], np.zeros(10, dtype=int)
    measurement = Measurement(logits, [np.full(10, 3.0)] * 3, [0.02, 0.016, 0.03])
    two = measured_rung("two", measurement, true, step=True, **SIZES)
    assert two.ms_a_row == pytest.approx(2.0)
    assert two.ms_a_row_of_turns == pytest.approx([2.0, 1.6, 3.0])
    assert two.latency_ms["p50"] == 3.0


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


def test_every_engine(trained):
    assert trained.quantize("--fp32", "--output_dir", str(trained.folder / "model"), source="teacher")[0] == 0
    options = []
    for name, engine, path in [
        ("padded", "pytorch_fixed", "teacher"),
        ("own length", "pytorch", "teacher"),
        ("graph", "onnx", "teacher.int8.onnx"),
        ("instances", "onnx_instances", "teacher.int8.onnx"),
        ("folder", "onnx", "model"),
        ("its instances", "onnx_instances", "model"),
        ("TF-IDF", "linear", "-"),
        ("BERT-base", "bert_base", "-"),
    ]:
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


KEYS = (
    "name accuracy num_correct num_examples latency_ms ms_a_row ms_a_row_of_turns parameters model_bytes engine step "
    "seconds speedup speedup_range step_speedup speedup_vs_baseline usd_per_100m"
)


def test_chinese_rows(trained):
    """Words that are whole clauses never repeat; their characters do, and tell the labels."""
    generator = random.Random(0)
    for split, count in (("train", 60), ("valid", 8), ("test", 24)):
        rows = []
        for i in range(count):
            letters = generator.sample("電影我你他今天昨晚看了覺得這部那個故事演員音樂", 9) + list(
                "喜愛" if i % 2 else "討厭"
            )
            generator.shuffle(letters)
            rows.append("".join(letters) + ("\tpositive\n" if i % 2 else "\tnegative\n"))
        (trained.data / f"{split}.txt").write_text("".join(rows), encoding="utf-8")
    assert trained.preprocess()[0] == 0
    options = ["--rung", "teacher", "pytorch", f"{trained.folder}/teacher", "--rung", "TF-IDF", "linear", "-"]
    code, stderr = trained.script("report", *trained.common(), *options, "--output_dir=ladder")
    assert code == 0, stderr
    result = json.loads((trained.folder / "ladder/ladder.json").read_text())
    assert [each["name"] for each in result["rungs"]] == ["teacher", "TF-IDF"] and "failed" not in result
    assert [list(each) for each in result["rungs"]] == [KEYS.split()] * 2
    assert result["rungs"][1]["accuracy"] == 1.0


def test_words_repeat():
    assert words_repeat(["the film is good", "the film is bad", "a good plot"])
    assert not words_repeat(["這部電影很好，我喜歡", "故事很差，演員也不好", "音樂好聽"])
    assert not words_repeat(["", "a"])


@pytest.mark.parametrize("when", ["opened", "run", "served"])
def test_a_rung_that_fails_leaves_the_others(trained, monkeypatch, when):
    def fail(*_):
        raise RuntimeError("no memory\nfor it")

    assert trained.quantize(source="teacher")[0] == 0
    teacher, graph = f"{trained.folder}/teacher", f"{trained.folder}/teacher.int8.onnx"
    engine, path = ("onnx_instances", graph) if when == "served" else ("bert_base", "-")
    if when == "opened":
        monkeypatch.setitem(OPENERS, engine, fail)
    elif when == "run":
        monkeypatch.setitem(OPENERS, engine, lambda *_: Rung(fail, lambda row: row, 1, 1))
    else:
        monkeypatch.setattr("utils.measuring.rungs.serve", fail)
    options = ["--rung", "base", "pytorch", teacher, "--rung", "bad", engine, path, "--rung", "last", "onnx", graph]
    result = trained.script("report", *trained.common(), *options, "--output_dir=ladder", "--num_threads=1")
    fails(result, "1 of 3 rungs failed (bad: RuntimeError: no memory)", "ladder has the others")
    ladder = json.loads((trained.folder / "ladder/ladder.json").read_text())
    assert [each["name"] for each in ladder["rungs"]] == ["base", "last"]
    assert [len(each["ms_a_row_of_turns"]) for each in ladder["rungs"]] == [1, 1]
    assert ladder["failed"] == [{"name": "bad", "reason": "RuntimeError: no memory"}]
    assert "| bad | failed: RuntimeError: no memory |" in (trained.folder / "ladder/ladder.md").read_text()


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
