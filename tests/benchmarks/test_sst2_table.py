"""The tables of docs/results.md: between its marks, means over seeds, the ladder, and targets that count seeds."""

import json
import shutil

import pytest
from conftest import ROOT

from benchmarks import sst2_table

PAGE = "before\n<!-- ladder -->\n<!-- /ladder -->\n<!-- accuracy -->\nold\n<!-- /accuracy -->\nafter\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    rows = tmp_path / "results/sst2/accuracy"
    rows.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text(PAGE)
    shutil.copy(ROOT / "results/sst2/ladder.json", tmp_path / "results/sst2")
    monkeypatch.setattr(sst2_table, "ROOT", tmp_path)
    monkeypatch.setattr(sst2_table, "ROWS", rows)
    return tmp_path


def add(root, row: str, seeds: dict[int, float]) -> None:
    for seed, accuracy in seeds.items():
        for split, value in (("valid", 0.5), ("test", accuracy)):
            path = root / f"results/sst2/accuracy/{row}-{seed}.{split}.json"
            path.write_text(json.dumps({"accuracy": value}))


def test_table_and_targets(root, capsys):
    add(root, "teacher", {42: 0.91, 43: 0.92, 44: 0.93})
    add(root, "states", {42: 0.95})
    add(root, "layers-0.2.4", {42: 0.8})
    sst2_table.main()
    text = (root / "docs/results.md").read_text()
    assert text.startswith("before\n<!-- ladder -->\n") and text.endswith("<!-- /accuracy -->\nafter\n")
    assert "old" not in text
    ladder, accuracy = text.split("<!-- /ladder -->")
    int8 = json.loads((root / "results/sst2/ladder.json").read_text())["rungs"][2]
    shown = f"{int8['accuracy']:.4f} | {int8['seconds']:.2f} | {int8['speedup']:.1f}x |"
    assert f"\n| + fused graph, int8 | {shown}" in ladder and ladder.count("\n| ") == 15
    assert accuracy.startswith("\n<!-- accuracy -->\n")
    name = "teacher: 6 layers, taught by the larger one, with augmented rows"
    assert f"| {name} | - | 0.5000 ± 0.0000 | 0.9200 ± 0.0100 | 3 |" in text
    assert "| layers 0, 2, 4 | 0.5000 | 0.8000 |" in text and "variants of sentences" not in text
    shown = capsys.readouterr().out
    assert "target: teacher_accuracy_of_3_seeds measured 0.92 needs 0.9116 ok" in shown
    # One seed is not three.
    assert "target: states_accuracy_of_1_seeds measured 0.95 needs 0.905 short" in shown
    sst2_table.main()
    assert (root / "docs/results.md").read_text() == text


@pytest.mark.parametrize("row", ["augmented-then-labels", "augmented-then-larger"])
def test_augmented_rows_are_compared_with_their_teacher_and_with_all(root, capsys, row):
    add(root, "teacher", {42: 0.93, 43: 0.94, 44: 0.95})
    add(root, row, {42: 0.92, 43: 0.95, 44: 0.94})
    sst2_table.main()
    shown = capsys.readouterr().out
    assert f"target: {row}_accuracy_of_3_seeds measured 0.9367 needs 0.9149 ok" in shown
    assert f"target: {row}_as_good_as_their_teacher_of_3_seeds measured 0.9367 needs 0.93 ok" in shown
    assert f"target: {row}_as_good_as_mean_teacher_of_3_seeds measured 0.9367 needs 0.94 short" in shown


def test_the_page_is_of_the_results_that_are_there():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for table in (sst2_table.ladder_table(sst2_table.read_rungs()), sst2_table.markdown(sst2_table.read_scores())):
        assert table in page


def test_few_labels_are_compared_with_all(root, capsys):
    add(root, "mse", {42: 0.91, 43: 0.92, 44: 0.93})
    add(root, "few-texts", {42: 0.90, 43: 0.92, 44: 0.92})
    add(root, "texts-2", {42: 0.90, 43: 0.91, 44: 0.91})
    sst2_table.main()
    shown = capsys.readouterr().out
    assert "target: few-texts_within_a_point_of_all_labels_of_3_seeds measured 0.9133 needs 0.91 ok" in shown
    assert "target: texts-2_accuracy_of_3_seeds measured 0.9067 needs 0.908 short" in shown
