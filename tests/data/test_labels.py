"""Several labels a row and scores: read from every format, and refused where they are none."""

import json

import numpy as np
import pytest
from conftest import fails, make_tokenizer
from data_files import write, write_rows
from task_data import CONFIG, MULTI, SCORES, write_task

from utils.data.label_checks import read_labels
from utils.data.labels import Columns
from utils.data.tables import collate, hide_labels, load_data, row_labels
from utils.system.errors import UserError

SPLITS = ("train", "valid", "test")
LABELS = [["b"], ["a", "c"], [], ["c"]]
TEXTS = ["good film", "bad", "a plot", "the cast"]
COLUMNS = "--label_column=a,b,c"


def rows(form: str) -> list[dict]:
    if form == "columns":
        return [
            {"text": text} | {name: int(name in own) for name in "abc"} for text, own in zip(TEXTS, LABELS, strict=True)
        ]
    own = LABELS if form == "list" else [";".join(labels) for labels in LABELS]
    return [{"text": text, "label": label} for text, label in zip(TEXTS, own, strict=True)]


def table_of(steps, task: str, split: str = "train"):
    return load_data(steps.data, make_tokenizer(), 16, task=task).splits[split]


@pytest.mark.parametrize(
    ("suffix", "form"),
    [(".txt", "joined"), (".csv", "joined"), (".tsv", "joined"), (".jsonl", "joined"), (".jsonl", "list"),
     (".parquet", "list"), (".csv", "columns"), (".jsonl", "columns"), (".parquet", "columns")],
)  # fmt: skip
def test_every_form_of_several_labels_gives_the_same_table(project, suffix, form):
    steps = write_task(project(), MULTI)
    for split in SPLITS:
        (steps.data / f"{split}.jsonl").unlink()
        if suffix == ".txt":
            lines = [f"{row['text']}\t{row['label']}\n" for row in rows(form)]
            write(steps.data / f"{split}.txt", "".join(lines))
        else:
            write_rows(steps.data / f"{split}{suffix}", rows(form))
    code, stderr = steps.preprocess("--label_separator=;", *[COLUMNS] * (form == "columns"))
    assert code == 0 and "of 4 rows of train 1 have several, 2 one and 1 none" in stderr
    assert (steps.data / "label.txt").read_text() == "a\nb\nc\n"
    expected = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]], np.float32)
    data = load_data(steps.data, make_tokenizer(), 16, task=MULTI)
    assert data.scale is None and data.start[0] == pytest.approx(np.log([2 / 4, 2 / 4, 3 / 3]))
    assert np.array_equal(data.start[1], [1, 1, 1])
    assert np.array_equal(row_labels(table_of(steps, MULTI)), expected)
    labels = collate(table_of(steps, MULTI), np.array([2, 1]), 0)["labels"]
    assert labels.dtype == np.float32 and np.array_equal(labels, expected[[2, 1]])


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_every_form_of_scores_gives_the_same_table(project, suffix):
    steps, scores = write_task(project(), SCORES), [2.5, -1, 1e-3, 3.0]
    for split in SPLITS:
        (steps.data / f"{split}.jsonl").unlink()
        pairs = list(zip(TEXTS, scores, strict=True))
        if suffix == ".txt":
            write(steps.data / f"{split}.txt", "".join(f"{text}\t{value}\n" for text, value in pairs))
        else:
            write_rows(
                steps.data / f"{split}{suffix}", [{"text": text, "label": float(value)} for text, value in pairs]
            )
    code, stderr = steps.preprocess()
    assert code == 0 and "from -1 to 3, mean 1.12525" in stderr
    assert np.allclose(row_labels(table_of(steps, SCORES))[:, 0], scores)
    data = load_data(steps.data, make_tokenizer(), 16, task=SCORES)
    mean, deviation = data.scale
    assert data.start is data.scale
    assert mean == pytest.approx([np.mean(scores)]) and deviation == pytest.approx([np.std(scores)])


def test_several_scores_a_row(project):
    steps = write_task(project(), SCORES)
    for split in SPLITS:
        (steps.data / f"{split}.jsonl").unlink()
        write(steps.data / f"{split}.csv", "text,one,two\ngood,1,20\nbad,2.5,-3\n")
    assert steps.preprocess("--label_column=one,two")[0] == 0
    assert (steps.data / "label.txt").read_text() == "one\ntwo\n"
    assert row_labels(table_of(steps, SCORES)).tolist() == [[1, 20], [2.5, -3]]


def test_rows_without_a_label_to_learn_from(project):
    """Unlabelled rows are none of any label, and none without labels."""
    for task in (MULTI, SCORES):
        steps = write_task(project(), task)
        write(steps.data / "unlabelled.txt", "a very fine ending\n")
        assert steps.preprocess()[0] == 0
        assert np.isnan(row_labels(table_of(steps, task, "unlabelled"))).all()
        assert not np.isnan(row_labels(table_of(steps, task))).any()
    hidden = hide_labels(np.array([[1.0, 0], [0, 1]], np.float32), np.array([True, False]))
    assert np.isnan(hidden[0]).all() and hidden[1].tolist() == [0, 1]
    assert hide_labels(np.array([1, 0]), np.array([True, False])).tolist() == [-1, 0]


def test_what_is_rare_or_nearly_all_is_said(project):
    steps = write_task(project(), MULTI, {"train": 96, "valid": 9, "test": 9})
    with open(steps.data / "train.jsonl", "a") as file:
        for i in range(600):
            file.write(
                json.dumps({"text": f"a film {'very ' * (i % 5)}", "label": ["good", *["rare"] * (i < 3)]}) + "\n"
            )
    code, stderr = steps.preprocess()
    assert code == 0 and "% of the rows of train have good" in stderr
    assert "fewer than 10 rows of train have rare 3" in stderr


REFUSED = {
    "a label that train lacks": (MULTI, "valid", ["x", "good"], ["line 1: label 'x' is not in train.jsonl"]),
    "the separator in a label": (MULTI, "train", ["x|y"], ["line 1: the label 'x|y' holds '|'", "--label_separator"]),
    "an empty label": (MULTI, "train", ["x", ""], ["line 1: 'label' has an empty label"]),
    "an empty joined label": (MULTI, "train", "x||y", ["line 1: 'x||y' has an empty label", "--label_separator"]),
    "null": (MULTI, "train", None, ["line 1: 'label' is null: write []"]),
    "numbers": (MULTI, "all", "2.5", ["the labels are numbers", '"task": "regression"']),
    "a number": (MULTI, "test", 2.5, ["line 1: 'label' is the number 2.5", '"task": "regression"']),
    "one label each": (MULTI, "all", "one", ["every row has exactly one label", "--label_separator", '"task" out']),
    "text": (SCORES, "valid", "good", ["line 1: 'good' is no number", '"task" out of the file of --config']),
    "NaN": (SCORES, "train", float("nan"), ["line 1: the score is nan: give a finite number"]),
    "infinity": (SCORES, "test", float("-inf"), ["line 1: the score is -inf: give a finite number"]),
    "a list of scores": (SCORES, "train", [1.0], ["line 1: 'label' is a list, not a number"]),
    "no score": (SCORES, "train", "", ["line 1: empty label"]),
    "the same score": (SCORES, "all", 3, ["all rows have the same 'label'", "nothing to learn"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_none_of_the_task(project, kind):
    task, split, label, parts = REFUSED[kind]
    steps = write_task(project(), task)
    for name in SPLITS if split == "all" else [split]:
        path = steps.data / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        values = [f"{label}{i % 2}" if kind in ("numbers", "one label each") else label for i in range(len(lines))]
        changed = [json.loads(line) | {"label": value} for line, value in zip(lines, values, strict=True)]
        keep = [json.loads(line) for line in lines[1:]]
        rows = changed if split == "all" else [changed[0], *keep]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fails(steps.preprocess(), *parts)
    assert not (steps.data / "tokenized").exists()


def test_columns_of_several_labels_that_are_none(project):
    steps = write_task(project(), MULTI)
    for split in SPLITS:
        (steps.data / f"{split}.jsonl").unlink()
        write(steps.data / f"{split}.csv", "text,a,b\ngood,1,0\nbad,0,2\n")
    fails(steps.preprocess("--label_column=a,b"), "train.csv, line 3: 'b' is '2'", "1 or 0")
    for split in SPLITS:
        write(steps.data / f"{split}.csv", "text,a,b,c\ngood,1,0,0\nbad,true,1,0\nfine,0,0,0\n")
    fails(steps.preprocess("--label_column=a,b,c"), "'c' is 0 in every row", "leave it out of --label_column")
    fails(steps.preprocess("--label_column=a,a"), "--label_column=a,a", "one twice")
    fails(steps.preprocess("--label_column=a,text"), "name a column twice")
    fails(steps.preprocess("--label_column=a,b", "--label_separator=b"), "give another separator")
    fails(steps.preprocess("--label_separator= "), "other than white space")


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([{"text": "good", "label": ["a", "b"]}], "'label' is a list, not one label"),
        (
            [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}, {"text": "so", "label": "a|b"}],
            "--label_sep",
        ),
    ],
)
def test_several_labels_where_there_is_to_be_one(tmp_path, rows, part):
    for split in SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", rows)
    with pytest.raises(UserError, match=part) as error:
        read_labels(tmp_path)
    assert '"task": "multi_label"' in str(error.value)


def test_a_label_that_looks_joined_may_be_one(tmp_path):
    """By another --label_separator."""
    for split in SPLITS:
        write(tmp_path / f"{split}.txt", "good\ta\nbad\tb\nso\ta|b\n")
    assert list(read_labels(tmp_path, Columns(separator=";"))[0]) == ["a", "a|b", "b"]


def test_unknown_labels_that_hint_at_another_task(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.txt", "good\ta\nbad\tb\n")
    write(tmp_path / "valid.txt", "good\ta\nbad\ta|b\n")
    with pytest.raises(UserError, match='valid.txt, line 2: label .*"task": "multi_label"'):
        read_labels(tmp_path)
    for split in SPLITS:
        write(tmp_path / f"{split}.txt", "good\t1.5\nbad\t2\n")
    write(tmp_path / "valid.txt", "good\t1.5\nbad\t2.25\n")
    with pytest.raises(UserError, match='valid.txt, line 2: label .*"task": "regression"'):
        read_labels(tmp_path)


def test_a_task_that_the_tokens_were_not_made_for(project):
    steps = write_task(project(), MULTI)
    assert steps.preprocess()[0] == 0
    (steps.folder / "config.json").write_text(json.dumps(CONFIG))
    fails(steps.train(), "tokenized for the task multi_label but the config says single_label", '"task": "multi_label"')
    (steps.folder / "config.json").write_text(json.dumps(CONFIG | {"task": "several"}))
    fails(steps.preprocess(), "unknown task 'several'", "single_label, multi_label, regression")


def test_several_scores_of_a_text_file(project):
    steps = write_task(project(), SCORES)
    for split in SPLITS:
        (steps.data / f"{split}.jsonl").unlink()
        write(steps.data / f"{split}.txt", "good\t1|20\nbad\t2.5|-3\n")
    assert steps.preprocess()[0] == 0
    assert (steps.data / "label.txt").read_text() == "score_0\nscore_1\n"
    assert row_labels(table_of(steps, SCORES)).tolist() == [[1, 20], [2.5, -3]]
    write(steps.data / "valid.txt", "good\t1\n")
    fails(steps.preprocess(), "valid.txt, line 1: 1 scores, but 2 before")
