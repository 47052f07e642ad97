"""Texts of a file, a line each."""

import codecs
import contextlib
import json
from collections.abc import Collection, Iterator
from typing import BinaryIO

from .errors import UserError
from .tokens import Text

HEADER_NAMES = {"text", "sentence", "label"}
UTF8 = "save the text as UTF-8"


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
        if len(texts) > (texts_a_row or 2) and texts[-1] in labels:
            raise UserError(
                f"{place}: {texts[-1]!r} after the tab is one of the model's labels, so this looks like a labelled "
                "file: give the texts alone"
            )
        if texts_a_row and len(texts) != texts_a_row:
            count = "no tab" if len(texts) == 1 else "a tab" if len(texts) == 2 else f"{len(texts)} columns"
            takes = "the model takes one text a line: write the line without tabs"
            takes = takes if texts_a_row == 1 else "the model takes two texts a line: write sentence_a<TAB>sentence_b"
            raise UserError(f"{place} has {count}: {takes}")
        if len(texts) > 2:
            raise UserError(f"{place}: {len(texts)} columns: each line is sentence or sentence_a<TAB>sentence_b")
        yield (texts[0], texts[1]) if len(texts) == 2 else texts[0]


def _check_first_line(line: str, place: str, columns: tuple[str, ...], is_last: bool) -> None:
    """Find a file of another kind than plain lines, which would be labelled without a word."""
    if "\0" in line:
        raise UserError(f"{place}: holds NUL characters, as UTF-16 does: {UTF8}")
    if "\r" in line and is_last:
        raise UserError(f"{place}: the only line, as lines end in CR alone: save the text with LF or CRLF")
    with contextlib.suppress(json.JSONDecodeError):
        if line.startswith("{") and isinstance(json.loads(line), dict):
            raise UserError(f"{place} is a JSON object: put such lines into a file that ends in .jsonl, and name it")
    for separator, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        is_header = len(cells) > 1 and HEADER_NAMES.union(columns).intersection(cells)
        if is_header and not any(" " in cell for cell in cells):
            raise UserError(
                f"{place}: {line[:80]!r} looks like the names of columns: put such rows into a file that ends in "
                f"{suffix}, and name it"
            )
