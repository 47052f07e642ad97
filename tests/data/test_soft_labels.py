"""Soft labels: read from columns and files beside a split, checked, and tokenized with their rows."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import fails, make_tokenizer, snapshot
from data_files import write, write_rows

from utils.data.soft_labels import as_logits
from utils.data.tables import load_data

SOFT = [{"positive": 0.9, "negative": 0.1}, None, [0.3, 0.7]]
NAN = float("nan")


def by_label(value) -> dict | None:
    return dict(zip(["negative", "positive"], value, strict=True)) if isinstance(value, list) else value


def soft_rows(values: list, start: int = 0) -> list[dict]:
    rows = [{"text": f"a {'film ' * i}", "label": "positive" if i % 2 else "negative"} for i in range(start, start + 6)]
    return [row | ({} if value is None else {"soft_label": value}) for row, value in zip(rows, values * 2, strict=True)]


def tokenized(data) -> list:
    column = load_data(data, make_tokenizer(), 16).soft_labels["train"]
    return [None if row is None else pytest.approx(row, abs=1e-6) for row in column.to_pylist()]


@pytest.mark.parametrize("form", ["beside", ".jsonl", ".parquet", "other name"])
def test_every_form_gives_the_same_table(project, form):
    steps = project()
    (steps.data / "train.txt").unlink()
    rows, options = soft_rows(SOFT), []
    if form == "beside":
        write_rows(steps.data / "train.csv", [{k: row[k] for k in ("text", "label")} for row in rows])
        write(steps.data / "train.soft.jsonl", "".join(json.dumps(value) + "\n" for value in SOFT * 2))
    elif form == ".parquet":
        rows = [row | {"soft_label": by_label(row.get("soft_label"))} for row in rows]
        pa.parquet.write_table(pa.Table.from_pylist(rows), steps.data / "train.parquet")
    else:
        write_rows(steps.data / "train.jsonl", rows)
    if form == "other name":
        (steps.data / "train.jsonl").write_text((steps.data / "train.jsonl").read_text().replace("soft_label", "p"))
        options = ["--soft_label_column=p"]
    code, stderr = steps.preprocess(*options)
    assert code == 0, stderr
    assert "[train] : 4 rows have soft labels" in stderr
    assert [[0.1, 0.9], None, [0.3, 0.7]] * 2 == tokenized(steps.data)
    split = load_data(steps.data, make_tokenizer(), 16).splits["train"]
    assert split.column_names == ["input_ids", "token_type_ids", "label"], "batches are read without them"


def test_of_unlabelled_rows_those_that_are_used(project):
    steps = project()
    rows = [
        {"text": text, "soft_label": [p, 1 - p]}
        for text, p in zip("a a the plot a the".split(), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], strict=True)
    ]
    write_rows(steps.data / "unlabelled.jsonl", rows)
    (steps.data / "test.txt").write_text("the\tpositive\nthe\tnegative\n")
    assert steps.preprocess()[0] == 0
    column = load_data(steps.data, make_tokenizer(), 16).soft_labels["unlabelled"].to_pylist()
    np.testing.assert_allclose(column, [[0.1, 0.9], [0.4, 0.6]], atol=1e-6)


def test_logits_are_the_logarithms(tmp_path):
    column = pa.chunked_array([pa.array([[0.2, 0.8], None], pa.list_(pa.float32())), [[0.0, 1.0]], [None]])
    logits = as_logits(column, 2)
    assert np.isnan(logits[[1, 3]]).all() and logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], [math.log(0.2 / 0.8) / 2, math.log(0.8 / 0.2) / 2], rtol=1e-5)
    np.testing.assert_allclose(logits[2, 1] - logits[2, 0], math.log(1 / 1e-4), rtol=1e-5)


def test_rounded_probabilities_are_made_to_sum_to_one(project):
    steps = project()
    write(steps.data / "train.soft.jsonl", "[0.33, 0.66]\n" * 96)
    assert steps.preprocess()[0] == 0
    assert [[1 / 3, 2 / 3]] * 96 == tokenized(steps.data)


BAD = [
    ([0.1, 0.2, 0.7], ["3 probabilities", "2 labels (negative, positive)"]),
    ([1.0], ["1 probabilities"]),
    ([0.1, 0.2], ["sum to 0.3, not to 1"]),
    ([0.9, 0.9], ["sum to 1.8"]),
    ([NAN, 0.5], ["'negative' is nan"]),
    ([-1.5, 2.5], ["'negative' is -1.5", "softmax"]),
    ([0.5, math.inf], ["'positive' is inf"]),
    (["0.5", 0.5], ["'negative' is '0.5'"]),
    ([True, 0.5], ["'negative' is True"]),
    ([None, 1.0], ["'negative' is None"]),
    ({"negative": 1.0}, ["'positive' is missing"]),
    ({"negative": 0.1, "Positive": 0.9}, ["'Positive' is no label", "negative, positive"]),
    ({"negative": 0.1, "positive": 0.8, "mixed": 0.1}, ["'mixed' is no label"]),
    ("positive", ["neither an object", "nor a list"]),
    (0.9, ["neither an object"]),
]


@pytest.mark.parametrize(("value", "parts"), BAD)
@pytest.mark.parametrize("split", ["train", "unlabelled"])
def test_what_is_no_soft_label(project, split, value, parts):
    """In a column and in a file beside, with the line; nothing is written."""
    steps = project()
    write(steps.data / "unlabelled.txt", "a a a a a\na a a a a a\na a a a a a a")
    count = 96 if split == "train" else 3
    write(steps.data / f"{split}.soft.jsonl", "null\n" + json.dumps(value) + "\n" + "null\n" * (count - 2))
    before = snapshot(steps.folder)
    fails(steps.preprocess(), f"{split}.soft.jsonl, line 2: ", *parts)
    assert snapshot(steps.folder) == before
    (steps.data / f"{split}.soft.jsonl").unlink()
    (steps.data / f"{split}.txt").unlink()
    write_rows(steps.data / f"{split}.jsonl", soft_rows([[0.5, 0.5], value, None]))
    fails(steps.preprocess(), f"{split}.jsonl, line 2: ", *parts)


def test_parquet_names_the_row(project):
    steps = project()
    (steps.data / "train.txt").unlink()
    write_rows(steps.data / "train.parquet", soft_rows([[0.5, 0.5], [0.5, 0.7], [0.5, 0.5]]))
    fails(steps.preprocess(), "train.parquet, row 2", "sum to 1.2")


@pytest.mark.parametrize(("count", "parts"), [(95, ["95 lines", "96 rows"]), (97, ["line 97", "only 96 rows"])])
def test_a_line_for_each_row(project, count, parts):
    steps = project()
    write(steps.data / "train.soft.jsonl", "[0.5, 0.5]\n" * count)
    fails(steps.preprocess(), "train.soft.jsonl", *parts)
    assert not (steps.data / "tokenized").exists()


def test_files_that_do_not_go_together(project):
    steps = project()
    write(steps.data / "unlabelled.soft.jsonl", "null\n")
    fails(steps.preprocess(), "unlabelled.soft.jsonl", "no file of rows", "move it away")
    (steps.data / "unlabelled.soft.jsonl").unlink()
    fails(steps.preprocess("--soft_label_column=p"), "--soft_label_column=p", "no file of", "has this column")
    fails(steps.preprocess("--soft_label_column=text"), "--soft_label_column=text", "another")
    write(steps.data / "train.soft.jsonl", "{\n")
    fails(steps.preprocess(), "train.soft.jsonl, line 1: not valid JSON")
    write(steps.data / "train.soft.jsonl", '{"negative": 0.5, "negative": 0.5, "positive": 0.5}\n')
    fails(steps.preprocess(), "train.soft.jsonl, line 1", "'negative' is there twice")
    (steps.data / "train.txt").unlink()
    write_rows(steps.data / "train.jsonl", soft_rows(SOFT))
    fails(steps.preprocess(), "train.jsonl has soft labels in the column 'soft_label', and train.soft.jsonl")
    for name in ("train.jsonl", "train.soft.jsonl"):
        (steps.data / name).unlink()
    rows = [{"text": "a", "label": label, "soft_label": "[0.5, 0.5]"} for label in ("negative", "positive")]
    write_rows(steps.data / "train.csv", rows)
    fails(steps.preprocess(), "train.csv", "JSON lines, Parquet or train.soft.jsonl")


def test_a_changed_file_is_noticed(project):
    steps = project()
    write(steps.data / "train.soft.jsonl", "[0.5, 0.5]\n" * 96)
    assert steps.preprocess()[0] == 0
    write(steps.data / "train.soft.jsonl", "[0.6, 0.4]\n" * 96)
    fails(steps.train(), "train.soft.jsonl has changed", "preprocess.py")
    assert steps.preprocess()[0] == 0
    assert steps.train()[0] == 0
