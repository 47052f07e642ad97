"""What a row is to be answered with, by its task: one label, any number of labels, or scores; from cells to numbers.

A row's label is one text in every format: labels or scores are joined in it by the separator, none is an empty text.
Lists in JSON lines and Parquet, and several columns, are brought into this form.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.formats import cell_text, kind_of, place
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.system.errors import UserError

SEPARATOR = "|"
NO_LABEL = -1  # the label id of a row without a label; of other tasks such a row has NaN for every output
YES, NO = frozenset({"1", "true"}), frozenset({"0", "false"})
LARGEST_SCORE = 1e30  # what float32 holds, squared errors of them apart

CellReader = Callable[[Path, int, str, Any], str]


class Columns(NamedTuple):
    """Names of the columns of TSV, CSV, JSON lines and Parquet files, and what the labels in them are."""

    texts: tuple[str, ...] = ("text",)  # one, or two for pairs
    label: str = "label"  # of several labels or scores also several columns, with commas between
    soft_label: str = "soft_label"  # of JSON lines and Parquet only, where there is one
    task: str = SINGLE_LABEL
    separator: str = SEPARATOR  # between the labels of a row


def label_columns(names: Columns) -> list[str]:
    """The columns of the label."""
    return [names.label] if names.task == SINGLE_LABEL else [name.strip() for name in names.label.split(",")]


def cell_reader(names: Columns) -> CellReader:
    """How a cell of the label's column, or of one of them, becomes text.

    Raises:
        UserError: when called, the cell is none of the task's.
    """
    if names.task == REGRESSION:
        return _score_cell
    if names.task == MULTI_LABEL:
        several = len(label_columns(names)) > 1
        return _yes_or_no if several else partial(_labels_cell, separator=names.separator)
    return _label_cell


def joined(cells: list[str], names: Columns) -> str:
    """A row's label as one text, from the texts of its columns."""
    if len(cells) == 1:
        return cells[0]
    if names.task == REGRESSION:
        return names.separator.join(cells)
    return names.separator.join(name for name, cell in zip(label_columns(names), cells, strict=True) if cell == "1")


def several_labels(label: str, names: Columns, where: str) -> list[str]:
    """The labels that are joined in one text.

    Args:
        where: the row's place, for errors.

    Raises:
        UserError: one of them is empty.
    """
    labels = [part.strip() for part in label.split(names.separator)] if label else []
    if not all(labels):
        raise UserError(
            f"{where}: {label!r} has an empty label beside a {names.separator!r}: remove that, or give another "
            "--label_separator"
        )
    return labels


def scores(label: str, names: Columns, where: str) -> list[float]:
    """The scores that are joined in one text.

    Args:
        where: the row's place, for errors.

    Raises:
        UserError: one is no finite number.
    """
    values = []
    for part in label.split(names.separator):
        try:
            value = float(part)
        except ValueError:
            raise UserError(
                f"{where}: {part!r} is no number, as the task regression needs one: correct it, name another column "
                '(--label_column) or, for labels, leave "task" out of the file of --config'
            ) from None
        if not abs(value) <= LARGEST_SCORE:  # NaN is in no range
            raise UserError(f"{where}: the score is {part.strip()}: give a finite number, or leave the row out")
        values.append(value)
    return values


def encoded_labels(rows: list[str], labels: list[str], names: Columns, has_empty: bool) -> list:
    """What a table holds for the labels of rows: a label's id, or a number for every output.

    Of several labels that is 1 or 0 for each of `labels`; of scores, they.

    Args:
        rows: each one's label as one text.
        labels: in the order of their ids.
        has_empty: whether an empty text says that the row has no label to learn from; else it says that none applies.
    """
    ids = {label: i for i, label in enumerate(labels)}
    if names.task == SINGLE_LABEL:
        ids[""] = NO_LABEL
        return [ids[label] for label in rows]
    encoded = []
    for label in rows:
        if has_empty and not label:
            encoded.append([math.nan] * len(labels))
        elif names.task == REGRESSION:
            encoded.append(scores(label, names, ""))
        else:
            own = {ids[name] for name in several_labels(label, names, "")}
            encoded.append([float(i in own) for i in range(len(labels))])
    return encoded


def _label_cell(path: Path, number: int, name: str, value: Any) -> str:
    """The one label of a cell."""
    task = {list: MULTI_LABEL, float: REGRESSION}.get(type(value))
    if task is None or (isinstance(value, float) and value.is_integer()):
        return cell_text(path, number, name, value)
    raise UserError(
        f"{place(path, number)}: {name!r} is {kind_of(value)}, not one label, a text or a whole number: write it so, "
        f'or "task": "{task}" into the file of --config'
    )


def _labels_cell(path: Path, number: int, name: str, value: Any, separator: str) -> str:
    """The labels of a cell: a text that joins them, or a list of texts or whole numbers."""
    if not isinstance(value, list):
        if value is None:
            raise UserError(f"{place(path, number)}: {name!r} is null: write [] where a row has no label")
        if isinstance(value, float) and not value.is_integer():
            raise UserError(
                f"{place(path, number)}: {name!r} is the number {value}, not a list of labels: correct it or, for "
                'scores, write "task": "regression" into the file of --config'
            )
        return cell_text(path, number, name, value)
    labels = [cell_text(path, number, name, item).strip() for item in value]
    for label in labels:
        if separator in label or not label:
            raise UserError(
                f"{place(path, number)}: the label {label!r} holds {separator!r}, by which labels are joined: give "
                "another --label_separator"
                if label
                else f"{place(path, number)}: {name!r} has an empty label: leave it out"
            )
    return separator.join(labels)


def _yes_or_no(path: Path, number: int, name: str, value: Any) -> str:
    text = cell_text(path, number, name, value).strip().lower()
    if text not in YES | NO:
        raise UserError(
            f"{place(path, number)}: {name!r} is {text!r}: where --label_column names several columns each holds 1 or "
            "0, or true or false"
        )
    return "1" if text in YES else "0"


def _score_cell(path: Path, number: int, name: str, value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise UserError(
            f"{place(path, number)}: {name!r} is {kind_of(value)}, not a number: correct it, or leave the row out"
        )
    return cell_text(path, number, name, value)
