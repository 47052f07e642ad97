"""The file `unlabelled` of a data folder: a text or a pair a row, without labels; and which of its rows are used.

Rows that come again, or that are in train, valid or test, are left out. Texts are the same if they differ in case and
white space alone. They are compared by 8 bytes of a hash, so that memory holds no texts: 10 million rows take 80 MB for
their hashes, and 400 MB more while these are sorted.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from utils.data.formats import READERS, has_column, place, read_cells, read_fields
from utils.data.texts import (
    COLUMN_NAMES,
    UNLABELLED,
    Columns,
    Texts,
    read_rows,
    readable,
    split_path,
)
from utils.system.errors import UserError


@dataclass(frozen=True)
class UnlabelledRows:
    """Which rows of the file are used, and what the others are."""

    path: Path
    texts_a_row: int  # 1 or 2, as many as train has
    is_used: np.ndarray  # bool [rows]
    dropped: dict[str, int]  # numbers of rows by the reason why they are not used
    ignored_label: str  # what holds the labels that the file has; empty where it has none


def has_unlabelled(data_dir: Path) -> bool:
    """Tell whether a data folder has a file of unlabelled rows."""
    return split_path(data_dir, UNLABELLED).exists()


def choose_rows(data_dir: Path, names: Columns, labels: list[str]) -> UnlabelledRows:
    """Read data_dir's file of unlabelled rows, and choose those that are new.

    Raises:
        UserError: as `numbered_texts`, or no row is new.
    """
    path = split_path(data_dir, UNLABELLED)
    texts_a_row = len(next(read_rows(split_path(data_dir, "train"), names))[0])
    hashes = np.frombuffer(
        array("Q", (_hash(texts) for texts in _all_texts(path, names, texts_a_row, labels))), np.uint64
    )
    is_used, dropped = np.ones(len(hashes), bool), {}
    for reason, is_dropped in (
        ("empty", lambda: hashes == _hash(("",) * texts_a_row)),
        ("in valid or test", lambda: _are_among(hashes, _hashes_of(data_dir, ["valid", "test"], names))),
        ("in train", lambda: _are_among(hashes, _hashes_of(data_dir, ["train"], names))),
        ("there before", lambda: _came_before(hashes)),
    ):
        before = int(is_used.sum())
        is_used &= ~is_dropped()
        dropped[reason] = before - int(is_used.sum())
    if not is_used.any():
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise UserError(f"{path} has no row that is new ({counts}): put other texts there, or move the file away")
    return UnlabelledRows(path, texts_a_row, is_used, dropped, _label_column(path, names, texts_a_row))


def used_texts(rows: UnlabelledRows, names: Columns) -> Iterator[Texts]:
    """Yield the texts of the rows that are used."""
    return compress(_all_texts(rows.path, names, rows.texts_a_row, None), rows.is_used.tobytes())


def _all_texts(path: Path, names: Columns, texts_a_row: int, labels: list[str] | None) -> Iterator[Texts]:
    return (texts for _, texts in numbered_texts(path, names, texts_a_row, labels))


def numbered_texts(
    path: Path, names: Columns, texts_a_row: int, labels: list[str] | None
) -> Iterator[tuple[int, Texts]]:
    """Yield the number of each row, as `utils.data.texts.numbered_rows` has it, and its texts.

    Args:
        texts_a_row: 1 or 2, as many as train has.
        labels: train's. A text file whose first line has one of them behind its texts has labels, which are left out;
            None where that was found out before.

    Raises:
        UserError: the file is missing, empty or damaged, or a row has more or fewer texts than train has. Names the
            line.
    """
    if path.suffix.lower() in READERS and len(names.texts) != texts_a_row:
        raise UserError(f"{path}: train has {_count(texts_a_row)} a row: name as many columns with --text_column")
    flags = dict.fromkeys(names.texts, "--text_column")
    empty = True
    with readable(path):
        for number, texts in _lines(path, texts_a_row, labels) if path.suffix == ".txt" else read_cells(path, flags):
            empty = False
            yield number, tuple(texts)
    if empty:
        raise UserError(f"{path} is empty: put texts there, one or a pair a row, or move the file away")


def _lines(path: Path, texts_a_row: int, labels: list[str] | None) -> Iterator[tuple[int, list[str]]]:
    columns = texts_a_row
    for number, fields in read_fields(path):
        if number == 1:
            if all(field.lower() in COLUMN_NAMES for field in fields):
                raise UserError(
                    f"{place(path, 1)} seems to name the columns ({', '.join(map(repr, fields))}): remove it, or call "
                    f"the file {path.stem}.tsv"
                )
            if len(fields) == texts_a_row + 1 and (labels is None or fields[-1] in labels):
                columns += 1
        if len(fields) != columns and any(fields):
            raise UserError(
                f"{place(path, number)} has {_count(len(fields))}, but train has {_count(texts_a_row)} a row: write "
                f"{'a text' if texts_a_row == 1 else 'text_a<TAB>text_b'} a line, without a label"
            )
        yield number, fields[:texts_a_row] if any(fields) else [""] * texts_a_row


def _label_column(path: Path, names: Columns, texts_a_row: int) -> str:
    if path.suffix == ".txt":
        _, fields = next(read_fields(path))
        return "the last column" if len(fields) > texts_a_row else ""
    return f"the column {names.label!r}" if has_column(path, names.label) else ""


def _hashes_of(data_dir: Path, splits: list[str], names: Columns) -> np.ndarray:
    rows = (_hash(texts) for split in splits for texts, _ in read_rows(split_path(data_dir, split), names))
    return np.sort(np.frombuffer(array("Q", rows), np.uint64))


def _hash(texts: Texts) -> int:
    same = "\t".join(" ".join(text.split()) for text in texts).casefold()
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "little")


def _are_among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the hashes are among the others, which are sorted; bool [hashes]."""
    return others[np.minimum(np.searchsorted(others, hashes), len(others) - 1)] == hashes


def _came_before(hashes: np.ndarray) -> np.ndarray:
    """Which of the hashes an earlier one is equal to; bool [hashes]."""
    came_before = np.ones(len(hashes), bool)
    came_before[np.unique(hashes, return_index=True)[1]] = False
    return came_before


def _count(texts: int) -> str:
    return "one text" if texts == 1 else f"{texts} texts"
