"""Texts to label, from plain lines, CSV, TSV, JSON lines or Parquet: one or two of them a row."""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.data.tokenization import Text
from utils.system.errors import UserError, first_line

FIELD_LIMIT = 2**31 - 1  # characters of one CSV cell; Python's own limit is 131072
HEADER_NAMES = {"text", "sentence", "label"}
UTF8 = "save the text as UTF-8"

Rows = Iterator[tuple[str, dict[str, Any]]]  # "line 3", and the values by column


def read_texts(
    file: BinaryIO, path: str, columns: tuple[str, ...], texts_a_row: int | None = None, labels: Collection[str] = ()
) -> Iterator[Text]:
    """Yield the text or the pair of each row, trimmed as preprocess.py trims them.

    The ending of `path` says what the file is: .csv, .tsv, .jsonl and .parquet have columns; anything else is lines of
    one text, or of two with a tab between.

    Args:
        columns: names of one column, or of two for pairs, of a file that has columns.
        texts_a_row: 1 or 2, as many as the model takes; None where that is not known.
        labels: the model's, by which a file with labels is known.

    Raises:
        UserError: a row is not UTF-8 or lacks a text, holds more or fewer of them than the model takes, or the file is
            another than its ending says. Names `path` and the line.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        raise UserError(f"{path}: write one JSON object a line, into a file that ends in .jsonl")
    if suffix not in READERS:
        yield from _read_lines(file, path, columns, texts_a_row, labels)
        return
    if texts_a_row and len(columns) != texts_a_row:
        form = "COLUMN" if texts_a_row == 1 else "COLUMN_A,COLUMN_B"
        raise UserError(f"{path}: {_takes(texts_a_row)} a row: give --text_column={form}")
    try:
        for place, values in READERS[suffix](file, path, columns):
            texts = tuple(_cell(values, name, f"{path}, {place}") for name in columns)
            yield texts[0] if len(texts) == 1 else (texts[0], texts[1])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}): {UTF8}") from error


def _read_lines(
    file: BinaryIO, path: str, columns: tuple[str, ...], texts_a_row: int | None, labels: Collection[str]
) -> Iterator[Text]:
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


def _read_csv(file: BinaryIO, path: str, columns: tuple[str, ...], separator: str = ",") -> Rows:
    csv.field_size_limit(FIELD_LIMIT)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    # TSV files have no quotes: a quotation mark is one of the text's.
    quoting: Any = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path, columns)
        number = reader.line_num + 1
        for cells in reader:
            if any(cells[len(header) :]):
                raise UserError(
                    f"{path}, line {number}: {len(cells)} cells under {len(header)} columns: are quotes missing around "
                    "a text that holds the separator?"
                )
            if cells:  # not of an empty line
                yield f"line {number}", dict(zip(header, cells, strict=False))
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {number}: not valid CSV ({error}): correct it") from error


def _read_tsv(file: BinaryIO, path: str, columns: tuple[str, ...]) -> Rows:
    return _read_csv(file, path, columns, "\t")


def _check_header(header: list[str], path: str, columns: tuple[str, ...]) -> None:
    for name in columns:
        if header.count(name) > 1:
            raise UserError(f"{path}: {header.count(name)} columns are called {name!r}: rename all but one")
        if name not in header:
            raise UserError(
                f"{path}: no column {name!r}, only {', '.join(header)}: name the text's with --text_column, and "
                "separate columns by commas in .csv, by tabs in .tsv"
            )


def _read_jsonl(file: BinaryIO, path: str, columns: tuple[str, ...]) -> Rows:
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not line:
                continue
            values = json.loads(line, object_pairs_hook=lambda pairs: _unique(pairs, columns))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason}): {UTF8}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON ({first_line(error)}): one object a line"
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {number}: not a JSON object: one a line")
        yield f"line {number}", values


def _unique(pairs: list[tuple[str, Any]], columns: tuple[str, ...]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in columns:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs twice")
    return dict(pairs)


def _read_parquet(file: BinaryIO, path: str, columns: tuple[str, ...]) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    try:
        with ParquetFile(file) as table:
            _check_header(table.schema_arrow.names, path, columns)
            numbers = itertools.count(1)
            for batch in table.iter_batches(columns=list(columns)):
                for values in batch.to_pylist():
                    yield f"row {next(numbers)}", values
    except ArrowException as error:
        raise UserError(f"{path} is no Parquet file ({first_line(error)}): make it again") from error


READERS: dict[str, Callable[[BinaryIO, str, tuple[str, ...]], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _cell(values: dict[str, Any], name: str, place: str) -> str:
    """The text of a column; whole numbers count as their digits.

    Raises:
        UserError: there is none, or it is no text.
    """
    value = values.get(name)
    if value is None:
        missing = "is null" if name in values else f"is missing: there is only {', '.join(map(str, values))}"
        raise UserError(f"{place}: {name!r} {missing}: correct it, or give --text_column")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise UserError(f"{place}: {name!r} is a {type(value).__name__}, not a text: correct it")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {name!r} holds the lone surrogate {text[error.start]!r}, which is no character: correct it"
        ) from error
    return text
