"""The files of a data set: rows of one sentence or a pair, and a label, from text, CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from utils.system.errors import UserError, first_line

SPLITS = ("train", "valid", "test")
AUGMENTED = "augmented"  # where augment_data.py made one
LINE_FORM = "each line is sentence<TAB>label or sentence_a<TAB>sentence_b<TAB>label"

TextRow = tuple[tuple[str, ...], str]  # one sentence or a pair, and the label


class Columns(NamedTuple):
    """Names of the columns of CSV, JSON lines and Parquet files."""

    texts: tuple[str, ...] = ("text",)  # one, or two for pairs
    label: str = "label"


NAMES = Columns()


def present_splits(data_dir: Path) -> list[str]:
    """The splits of a data folder: the three, and that of augmented rows if there is one."""
    return [*SPLITS, AUGMENTED] if (data_dir / f"{AUGMENTED}.txt").exists() else [*SPLITS]


def split_path(data_dir: Path, split: str) -> Path:
    """The file of a split: SPLIT.txt, or what takes its place.

    Raises:
        UserError: there are two of them.
    """
    found = [path for path in (data_dir / f"{split}{suffix}" for suffix in (".txt", *READERS)) if path.exists()]
    if len(found) > 1:
        raise UserError(f"{data_dir} has both {found[0].name} and {found[1].name}: move one of them away")
    return found[0] if found else data_dir / f"{split}.txt"


def read_rows(path: Path, names: Columns = NAMES) -> Iterator[TextRow]:
    """Yield (texts, label) for each row of a file.

    Raises:
        UserError: the file is missing or empty, or a row is not UTF-8, lacks a column, has an empty label or another
            number of columns than the first one. Names the line.
    """
    empty = True
    try:
        if path.suffix in READERS:
            for number, values in READERS[path.suffix](path, names):
                empty = False
                yield _row(path, number, values, names)
        else:
            for row in _read_lines(path):
                empty = False
                yield row
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): put the data set's text files there, as .txt, .csv, .jsonl or "
            ".parquet"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}): save the file as UTF-8") from error
    if empty:
        raise UserError(f"{path} is empty: {LINE_FORM if path.suffix == '.txt' else 'it needs rows'}")


def read_labels(data_dir: Path, names: Columns = NAMES) -> tuple[dict[str, int], dict[str, int]]:
    """Check every row of all files.

    Returns:
        The labels of train in the order of their ids, with their numbers of rows; and each split's number of rows.

    Raises:
        UserError: as `read_rows`, a label that train lacks, one label only, or pairs in one file but not all.
    """
    counts: dict[str, int] = {}
    columns: dict[str, int] = {}
    seen: dict[str, int] = {}
    for split in present_splits(data_dir):
        path = split_path(data_dir, split)
        counts[split] = 0
        for counts[split], (texts, label) in enumerate(read_rows(path, names), start=1):
            if split != "train" and label not in seen:
                raise UserError(
                    f"{path}, line {counts[split]}: label {label!r} is not in train.txt: correct it, or add rows"
                )
            if columns.setdefault("texts", len(texts)) != len(texts):
                raise UserError(
                    f"{path} and train.txt differ in their number of columns: use pairs in all files or in none"
                )
            if split == "train":
                seen[label] = seen.get(label, 0) + 1
    if len(seen) < 2:
        raise UserError(
            f"{split_path(data_dir, 'train')} has only the label {next(iter(seen))!r}: a classifier needs two or more"
        )
    return {label: seen[label] for label in sorted(seen, key=_label_order)}, counts


def _read_lines(path: Path) -> Iterator[TextRow]:
    columns = None
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason}): save the file as UTF-8") from error
            *texts, label = (field.strip() for field in line.split("\t"))
            if not texts:
                raise UserError(f"{path}, line {number}: no tab: {LINE_FORM}")
            if not label:
                raise UserError(f"{path}, line {number}: empty label: {LINE_FORM}")
            columns = columns or len(texts)
            if len(texts) != columns or columns > 2:
                raise UserError(f"{path}, line {number}: {len(texts) + 1} columns: {LINE_FORM}, the same in every line")
            yield tuple(texts), label


def _read_csv(path: Path, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                yield reader.line_num, values
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}): correct it") from error


def _read_jsonl(path: Path, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error}): one object a line") from error
            if not isinstance(values, dict):
                raise UserError(f"{path}, line {number}: not a JSON object: one a line")
            yield number, values


def _read_parquet(path: Path, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pa.parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"{path} is no Parquet file ({first_line(error)}): make it again") from error
    with file:
        kept = [name for name in (*names.texts, names.label) if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(columns=kept):
            for values in batch.to_pylist():
                number += 1
                yield number, values


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _row(path: Path, number: int, values: dict[str, Any], names: Columns) -> TextRow:
    for name, flag in (*((name, "--text_column") for name in names.texts), (names.label, "--label_column")):
        if values.get(name) is None:
            has = ", ".join(str(key) for key in values)
            raise UserError(f"{path}, line {number}: no value for {name!r}, only for {has}: correct it, or give {flag}")
    label = str(values[names.label]).strip()
    if not label:
        raise UserError(f"{path}, line {number}: empty label: correct it")
    return tuple(str(values[name]).strip() for name in names.texts), label


def _label_order(label: str) -> tuple:
    # 2 before 10 where labels are numbers.
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
