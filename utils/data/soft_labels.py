"""Soft labels: the probability of every label, as a teacher outside of this project gave it, in the data itself.

They are in a column of JSON lines or Parquet, or in SPLIT.soft.jsonl beside the split's file, one JSON value a row in
the same order. A row's value is an object with the probability of every label, or a list in the order of label.txt;
null where the row has none. Where rows have any number of labels, each has a probability of its own, and they need not
sum to 1. Of scores they are what the teacher gave, a plain number where there is one.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from utils.data.formats import READERS, TWICE, has_column, place, read_json_lines
from utils.data.labels import LARGEST_SCORE, Columns
from utils.data.texts import AUGMENTED, UNLABELLED, readable, split_path
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.system.errors import UserError

SOFT_SPLITS = ("train", AUGMENTED, UNLABELLED)  # those that a student learns from
SUM_TOLERANCE = 0.02  # of the sum of a row's probabilities, which may have been rounded
SMALLEST = 1e-4  # what smaller probabilities count as, as the logarithm of 0 is infinite

SoftLabel = list[float] | None


def soft_label_files(data_dir: Path, names: Columns) -> dict[str, Path]:
    """The file that holds the soft labels of each split that has some: that beside the split's, or the split's own.

    Raises:
        UserError: a split has them in both, or in a column of CSV or TSV.
    """
    files = {}
    for split in SOFT_SPLITS:
        path, beside = split_path(data_dir, split), data_dir / f"{split}.soft.jsonl"
        in_column = path.exists() and _may_have_column(path, names.soft_label)
        if in_column and path.suffix.lower() in (".csv", ".tsv"):
            raise UserError(
                f"{path} has a column {names.soft_label!r}, but soft labels are read from JSON lines, Parquet or "
                f"{beside.name} only: put them there, or rename the column"
            )
        if in_column and beside.exists():
            raise UserError(
                f"{path} has soft labels in the column {names.soft_label!r}, and {beside.name} has others: move one of "
                "them away"
            )
        if beside.exists() and not path.exists():
            raise UserError(f"{beside}: there is no file of rows for it, such as {split}.jsonl: move it away")
        if in_column or beside.exists():
            files[split] = beside if beside.exists() else path
    return files


def read_soft_labels(path: Path, names: Columns, labels: list[str], num_rows: int) -> Iterator[SoftLabel]:
    """Yield the probabilities of every row's labels in the order of their ids; None where a row has none.

    Args:
        path: of `soft_label_files`.
        labels: in the order of their ids.
        num_rows: of the split.

    Raises:
        UserError: a value is not a probability of every label, or there is not one value a row. Names the line.
    """
    count = 0
    with readable(path):
        for number, value in _values(path, names.soft_label):
            count += 1
            if count > num_rows:
                raise UserError(
                    f"{place(path, number)}: there are only {num_rows} rows to have soft labels: give one line a row, "
                    "in the same order"
                )
            yield _probabilities(value, labels, names.task, place(path, number))
    if count < num_rows:
        raise UserError(
            f"{path} has {count} lines, but there are {num_rows} rows: give one line a row, in the same order, and "
            "null where a row has none"
        )


def as_logits(column: pa.ChunkedArray, num_labels: int, task: str = SINGLE_LABEL) -> np.ndarray:
    """Logits whose probabilities those of a tokenized column are, fp32 [rows, labels]; NaN where a row has none.

    Of one label a row they have mean 0. Scores stay as they are.
    """
    logits = np.full((len(column), num_labels), np.nan, np.float32)
    has_some = ~np.asarray(column.is_null().to_numpy(zero_copy_only=False), bool)
    values = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, num_labels)
    if task == REGRESSION:
        logits[has_some] = values
        return logits
    logs = np.log(np.maximum(values, SMALLEST))
    if task == MULTI_LABEL:
        logits[has_some] = logs - np.log(np.maximum(1 - values, SMALLEST))
    else:
        logits[has_some] = logs - logs.mean(1, keepdims=True)
    return logits


def _may_have_column(path: Path, name: str) -> bool:
    """Tell whether a row may have the column; of JSON lines, each of which has its own, whether the name occurs."""
    if path.suffix.lower() != ".jsonl":
        return path.suffix.lower() in READERS and has_column(path, name)
    spellings = {json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode()}
    with readable(path), open(path, "rb") as file:
        return any(spelling in line for line in file for spelling in spellings)


def _values(path: Path, name: str) -> Iterable[tuple[int, Any]]:
    if path.name.endswith(".soft.jsonl"):
        return ((number, value) for number, _, value in read_json_lines(path))
    return ((number, values.get(name)) for number, values in READERS[path.suffix.lower()](path, {name: ""}))


def _probabilities(value: Any, labels: list[str], task: str, where: str) -> SoftLabel:
    if value is None:
        return None
    if isinstance(value, dict):
        value = _in_order(value, labels, where)
    if task == REGRESSION:
        return _soft_scores(value, labels, where)
    if not isinstance(value, list):
        raise UserError(
            f"{where}: the soft label is neither an object, {{label: probability}}, nor a list of probabilities: write "
            "one of them, or null where the row has none"
        )
    if len(value) != len(labels):
        raise UserError(
            f"{where}: {len(value)} probabilities, but there are {len(labels)} labels ({_some(labels)}): give one for "
            "each, in this order"
        )
    for label, probability in zip(labels, value, strict=True):
        is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
        largest = 1 + SUM_TOLERANCE * (task == SINGLE_LABEL)
        if not is_number or not 0 <= probability <= largest:  # NaN is in no range
            shown = "there twice" if probability is TWICE else str(probability) if is_number else repr(probability)
            raise UserError(
                f"{where}: the probability of {label!r} is {shown}: give a number from 0 to 1; of logits, their "
                f"{'sigmoid' if task == MULTI_LABEL else 'softmax'}"
            )
    if task == MULTI_LABEL:
        return [float(probability) for probability in value]
    total = math.fsum(value)
    if abs(total - 1) > SUM_TOLERANCE:
        raise UserError(
            f"{where}: the probabilities sum to {total:.4g}, not to 1: give those of all labels; of logits, their "
            "softmax"
        )
    return [probability / total for probability in value]


def _soft_scores(value: Any, labels: list[str], where: str) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if len(values) != len(labels):
        raise UserError(f"{where}: {len(values)} scores, but there are {len(labels)} ({_some(labels)}): give these")
    for score in values:
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not abs(score) <= LARGEST_SCORE:  # NaN is in no range
            shown = score if is_number else repr(score)
            raise UserError(f"{where}: the soft label is {shown}: give a finite number, or null where the row has none")
    return [float(score) for score in values]


def _in_order(value: dict[str, Any], labels: list[str], where: str) -> list[Any]:
    by_label = {str(name).strip(): probability for name, probability in value.items()}
    unknown = [name for name in by_label if name not in labels]
    missing = [label for label in labels if label not in by_label]
    if unknown or missing:
        wrong = f"{unknown[0]!r} is no label" if unknown else f"the label {missing[0]!r} is missing"
        raise UserError(f"{where}: {wrong} in the soft label: give the probability of each of {_some(labels)}")
    return [by_label[label] for label in labels]


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
