"""Texts to label: plain lines, or a column of a CSV, TSV, JSON lines or Parquet file; one or two of them a row."""

import codecs
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.data.formats import READERS, read_cells, undecodable_line
from utils.data.tokenization import Text
from utils.system.errors import UserError

HEADER_NAMES = {"text", "sentence", "label"}
UTF8 = "save the text as UTF-8"


def has_columns(path: str | Path) -> bool:
    """Tell by its ending whether a file is read by `read_columns`."""
    return Path(path).suffix.lower() in READERS


def read_columns(path: str | Path, columns: tuple[str, ...], texts_a_row: int | None = None) -> Iterator[Text]:
    """Yield the text or the pair of each row of a file with named columns, as preprocess.py reads them.

    Args:
        columns: names of one column, or of two for pairs.
        texts_a_row: 1 or 2, as many as the model takes; None where that is not known.

    Raises:
        UserError: as `read_cells`, or the model takes more or fewer texts a row than there are columns.
    """
    path = Path(path)
    check_columns(path, columns, texts_a_row)
    with utf8_errors(path):
        for _, cells in read_cells(path, dict.fromkeys(columns, "--text_column")):
            yield as_text(cells)


def check_columns(path: Path, columns: tuple[str, ...], texts_a_row: int | None) -> None:
    """Check that the model takes as many texts a row as there are columns, and that a file with columns is not empty.

    Raises:
        UserError: neither is so.
    """
    if texts_a_row and len(columns) != texts_a_row:
        form = "COLUMN" if texts_a_row == 1 else "COLUMN_A,COLUMN_B"
        raise UserError(f"{path}: {_takes(texts_a_row)} a row: give --text_column={form}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: it needs rows, and of .csv and .tsv the first one names the columns")


@contextmanager
def utf8_errors(path: Path) -> Iterator[None]:
    """Within the block, a text of `path` that is not UTF-8 is the user's mistake.

    Raises:
        UserError: there is one; names its line.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        reason = "but UTF-16" if is_utf16 else f"({error.reason})"
        raise UserError(f"{path}, line {undecodable_line(path)}: not UTF-8 {reason}: {UTF8}") from error


def as_text(cells: list[str]) -> Text:
    """The text of a row, or its pair of texts."""
    return cells[0] if len(cells) == 1 else (cells[0], cells[1])


def read_lines(
    file: BinaryIO,
    path: str,
    columns: tuple[str, ...] = ("text",),
    texts_a_row: int | None = None,
    labels: Collection[str] = (),
) -> Iterator[Text]:
    """Yield the text of each line, or the pair with a tab between, trimmed as preprocess.py trims them.

    Args:
        path: how errors name the file.
        columns: names by which the header of a file with columns is known.
        texts_a_row: 1 or 2, as many as the model takes; None where that is not known.
        labels: the model's, by which a file with labels is known.

    Raises:
        UserError: a line is not UTF-8 or holds more or fewer texts than the model takes, or the file has labels or
            columns. Names `path` and the line.
    """
    if path.lower().endswith(".json"):
        raise UserError(f"{path}: write one JSON object a line, into a file that ends in .jsonl")
    for number, raw in enumerate(file, start=1):
        place = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            is_utf16 = number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            reason = "but UTF-16" if is_utf16 else f"({error.reason})"
            raise UserError(f"{place}: not UTF-8 {reason}: {UTF8}") from error
        if number == 1:
            _check_first_line(line, place, columns, is_last=not raw.endswith(b"\n"))
        texts = tuple(field.strip() for field in line.split("\t"))
        labelled = len(texts) > 1 and texts[-1] in labels
        if labelled and len(texts) > (texts_a_row or 2):
            raise UserError(
                f"{place}: {texts[-1]!r} after the tab is one of the model's labels, so this looks like a labelled "
                "file: give the texts alone"
            )
        if texts_a_row and len(texts) != texts_a_row:
            count = "no tab" if len(texts) == 1 else "a tab" if len(texts) == 2 else f"{len(texts)} columns"
            form = "write the line without tabs" if texts_a_row == 1 else "write sentence_a<TAB>sentence_b"
            raise UserError(f"{place} has {count}: {_takes(texts_a_row)} a line: {form}")
        if len(texts) > 2:
            raise UserError(f"{place}: {len(texts)} columns: each line is sentence or sentence_a<TAB>sentence_b")
        yield (texts[0], texts[1]) if len(texts) == 2 else texts[0]


def _check_first_line(line: str, place: str, columns: tuple[str, ...], is_last: bool) -> None:
    """Find a file of another kind than plain lines, which would be labelled without a word.

    Raises:
        UserError: it is one.
    """
    if "\0" in line:
        raise UserError(f"{place}: holds NUL characters, as UTF-16 does: {UTF8}")
    if "\r" in line and is_last:
        raise UserError(f"{place}: the only line, as lines end in CR alone: save the text with LF or CRLF")
    if line.startswith("{") and _is_json_object(line):
        raise UserError(f"{place} is a JSON object: put such lines into a file that ends in .jsonl, and name it")
    for separator, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        if (
            len(cells) > 1
            and HEADER_NAMES.union(columns).intersection(cells)
            and not any(" " in cell for cell in cells)
        ):
            raise UserError(
                f"{place}: {line[:80]!r} looks like the names of columns: put such rows into a file that ends in "
                f"{suffix}, and name it"
            )


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _takes(texts_a_row: int) -> str:
    return "the model takes one text" if texts_a_row == 1 else "the model takes two texts"
