"""Files of rows: the fields of plain text lines, and the cells of named columns from TSV, CSV, JSON lines and Parquet.

Every reader yields each row with its place in the file, and names that place in its errors.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.system.errors import UserError, first_line

# The wanted columns, and for each the command line option that names it.
Flags = Mapping[str, str]
# The line or row that something begins in, and what.
Numbered = Iterator[tuple[int, Any]]

LINE_FORM = "each line is sentence<TAB>label or sentence_a<TAB>sentence_b<TAB>label"
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072
PARQUET_BATCH, READ_BYTES = 65536, 2**20  # rows, and bytes of a column, that are read at a time
NO_HEADER: tuple[int, list[str]] = (0, [])  # of an empty file
TWICE = object()  # the value of a JSON object's key that is there twice
# What the files of a split are called elsewhere.
OTHER_NAMES = {"train": "train|training", "valid": "valid|validation|val|dev", "test": "test|testing|eval"}


def place(path: Path, number: int) -> str:
    """A row's place, for an error."""
    return f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"


def read_fields(path: Path) -> Numbered:
    """Yield the number and the trimmed fields, list of str, of each line of a text file."""
    for number, line in _lines(path, newline="\n"):
        yield number, [field.strip() for field in line.split("\t")]


def read_cells(path: Path, flags: Flags, to_text: Mapping[str, Callable[[Path, int, str, Any], str]] = {}) -> Numbered:
    """Yield each row's number and the trimmed texts, list of str, of its wanted cells.

    A cell is a text, a whole number (1.0 is 1) or a truth value (True or False, as pandas writes it to CSV).

    Args:
        path: its suffix, in any case, is one of READERS.
        flags: the wanted columns, in the order of the result.
        to_text: for columns whose cells may be something else, what makes a text of the path, the row's number, the
            column's name and the cell's value.

    Raises:
        UserError: the file is damaged, a wanted column is missing or there twice, or a cell is something else.
    """
    for number, values in READERS[path.suffix.lower()](path, flags):
        yield number, row_texts(path, number, values, flags, to_text)


def row_texts(
    path: Path, number: int, values: Mapping[str, Any], flags: Flags, to_text: Mapping[str, Callable] = {}
) -> list[str]:
    """The trimmed texts of a row's wanted cells, as `read_cells`."""
    texts = []
    for name, flag in flags.items():
        if name not in values:
            raise UserError(
                f"{place(path, number)}: no value for {name!r}, {_only(values)}: correct it, or give {flag}"
            )
        texts.append(to_text.get(name, cell_text)(path, number, name, values[name]).strip())
    return texts


def read_table(path: Path, flags: Flags) -> Numbered:
    """Yield the number and all cells, list of str, of the header and then of each row of a file of TABLES; rows have as
    many cells as the header.

    Args:
        flags: columns that must be there, once.

    Raises:
        UserError: as `read_cells`.
    """
    yield from TABLES[path.suffix.lower()](path, flags)


def has_column(path: Path, name: str) -> bool:
    """Tell whether the first row of a file of READERS has a column of this name."""
    try:
        _, values = next(READERS[path.suffix.lower()](path, {name: ""}))
    except (UserError, StopIteration):
        return False
    return name in values


def read_json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield the number, the text and the value of each line of a file of JSON values; of an object, a key that is there
    twice is TWICE.

    Raises:
        UserError: a line is not JSON.
    """
    for number, line in _lines(path, newline=None):
        try:
            yield number, line, json.loads(line, object_pairs_hook=_json_object)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
            raise UserError(f"{place(path, number)}: not valid JSON ({reason}): write one object a line") from error


def read_json_objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """As `read_json_lines`, of a file of objects.

    Raises:
        UserError: a line is not JSON, or no object.
    """
    for number, line, values in read_json_lines(path):
        if not isinstance(values, dict):
            raise UserError(f"{place(path, number)}: {kind_of(values)}, not a JSON object: write one object a line")
        yield number, line, values


def undecodable_line(path: Path) -> int:
    """The number of the first line that is not UTF-8; 0 if there is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def missing_file(path: Path) -> UserError:
    """The error of a split without a file; says which other file there may be meant for it."""
    folder, split = path.parent, path.stem
    if not folder.is_dir():
        return UserError(f"{path} cannot be read: {folder} is not a folder: check the path")
    suffixes = r"\.(txt|tsv|csv|json|jsonl|ndjson|parquet)(\.\w+)?"
    name = re.compile(rf"({OTHER_NAMES.get(split, split)})([-_.].*)?{suffixes}", re.IGNORECASE)
    similar = [match for match in map(name.fullmatch, sorted(entry.name for entry in folder.iterdir())) if match]
    if not similar:
        return UserError(
            f"{path} cannot be read (there is no such file): put the data set's files there, as .txt, .tsv, .csv, "
            ".jsonl or .parquet"
        )
    suffix, packed = similar[0][3].lower(), similar[0][4]
    if (folder / similar[0][0]).is_symlink() and not (folder / similar[0][0]).exists():
        return UserError(f"{folder / similar[0][0]} is a link to a file that is not there: fetch that file")
    target = f"{split}.{'jsonl' if suffix in ('json', 'ndjson') else suffix}"
    mend = f"call it {target}"
    if len(similar) > 1:
        mend = f"call one of them {target}, or put the rows of all into that"
    if packed:
        mend = f"unpack it, and {mend}"
    if suffix == "json":
        mend += "; it needs one JSON object a line"
    names = ", ".join(match[0] for match in similar[:3])
    return UserError(f"{path} cannot be read (there is no such file, but {names}): {mend}")


def _lines(path: Path, newline: str | None) -> Numbered:
    """The lines of a UTF-8 file without their ends, without a byte order mark and blank lines at the end."""
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1))
        yield from _without_blank_end(lines, lambda line: not line.strip(" "))


def _without_blank_end(rows: Iterable[tuple[int, Any]], is_blank: Callable[[Any], bool]) -> Numbered:
    blank = []
    for number, row in rows:
        if is_blank(row):
            blank.append((number, row))
            continue
        yield from blank
        blank.clear()
        yield number, row


def _read_table_by_name(path: Path, flags: Flags) -> Numbered:
    """Yield the wanted cells by the name of their columns, dict of str to str."""
    rows = read_table(path, flags)
    _, names = next(rows, NO_HEADER)
    columns = {name: names.index(name) for name in flags if names}
    for number, cells in rows:
        yield number, {name: cells[column] for name, column in columns.items()}


def _csv_table(path: Path, flags: Flags) -> Numbered:
    csv.field_size_limit(LONGEST_CELL)
    _check_separator(path, ",")
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from _under_header(path, _csv_records(path, csv.reader(file, strict=True)), flags)


def _csv_records(path: Path, reader: Any) -> Numbered:
    """The cells of all records but blank lines."""
    while True:
        number = reader.line_num + 1  # a record may have several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: not valid CSV ({error}): put texts with commas or quotes between quotes, and "
                "double the quotes in them"
            ) from error
        if cells is None:
            return
        if cells:
            yield number, cells


def _tsv_table(path: Path, flags: Flags) -> Numbered:
    _check_separator(path, "\t")
    yield from _under_header(path, _tsv_records(path), flags)


def _tsv_records(path: Path) -> Numbered:
    """The cells of all lines. A quote is part of the text, as in GLUE's files, unless a cell is quoted as in CSV."""
    all_quoted = False
    for number, line in _lines(path, newline="\n"):
        cells = line.split("\t")
        if '"' in line:
            quoted = [_is_quoted(cell) for cell in cells]
            all_quoted = all(quoted) if number == 1 else all_quoted
            for i, cell in enumerate(cells):
                # "good" may be a text with its quotes, "a ""good"" film" is not.
                if quoted[i] and (all_quoted or '""' in cell[1:-1]):
                    cells[i] = cell[1:-1].replace('""', '"')
        yield number, cells


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _check_separator(path: Path, separator: str) -> None:
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline()
    other = next((other for other in ";\t|," if other in header), None)
    if other and separator not in header:
        suffix = {",": ".csv", "\t": ".tsv"}.get(other)
        mend = f"call it {path.stem}{suffix}" if suffix else f"save it with {separator!r}"
        raise UserError(f"{path}, line 1: the columns are separated by {other!r}, not by {separator!r}: {mend}")


def _under_header(path: Path, records: Numbered, flags: Flags) -> Numbered:
    """Yield the first record, which names the columns, and then the others, each with as many cells."""
    number, header = next(records, (0, []))
    if not number:
        return
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    _check_names(path, f"{path}, line {number}", names, flags)
    yield number, names
    for number, cells in _without_blank_end(records, lambda cells: not any(map(str.strip, cells))):
        if len(cells) != len(names) and (len(cells) < len(names) or any(map(str.strip, cells[len(names) :]))):
            mend = "are quotes missing around a text?" if path.suffix == ".csv" else "is there a tab in a text?"
            raise UserError(f"{place(path, number)}: {len(cells)} cells, but {len(names)} columns in line 1: {mend}")
        yield number, cells[: len(names)]


def _check_names(path: Path, header: str, names: list[str], flags: Flags) -> None:
    """Check that each wanted column is there once; `header` says where the names are."""
    for name, flag in flags.items():
        if name not in names:
            more = "; rows without labels are of no use here" if flag == "--label_column" else ""
            if path.suffix == ".tsv" and not any(name in names for name in flags):
                more = f", or call the file {path.stem}.txt if its first line is a row"
            raise UserError(f"{header} names no column {name!r}, {_only(names)}: give its name with {flag}{more}")
        if names.count(name) > 1:
            raise UserError(f"{header}: {names.count(name)} columns are called {name!r}: rename or remove one")


def _only(names: Iterable[str]) -> str:
    shown = [repr(name) if len(name) <= 40 else f"{name[:40]!r}..." for name in names]
    return f"only {', '.join(shown[:10])}" + (", ..." if len(shown) > 10 else "")


def _read_jsonl(path: Path, flags: Flags) -> Numbered:
    for number, _, values in read_json_objects(path):
        yield number, values


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        name = key.strip()
        values[name] = TWICE if name in values else value
    return values


def _read_parquet(path: Path, flags: Flags) -> Numbered:
    for _, rows in read_parquet_batches(path, flags):
        yield from rows


def read_parquet_batches(
    path: Path, flags: Flags, all_columns: bool = False, batch_size: int = PARQUET_BATCH
) -> Iterator[tuple[Any, list[tuple[int, dict[str, Any]]]]]:
    """Yield each record batch of a Parquet file, and of each of its rows the number and the wanted values by name.

    Args:
        all_columns: read into the batches what is not wanted, too.
        batch_size: rows of a batch, at most.

    Raises:
        UserError: pyarrow is missing, the file is damaged, or a wanted column is missing or there twice.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:  # not among predict.py's requirements
        raise UserError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    number = 0
    try:
        # Without a buffer's size, a whole column of a row group is in memory at once.
        with pa.parquet.ParquetFile(path, buffer_size=READ_BYTES) as file:
            names = {name.strip(): name for name in file.schema_arrow.names}
            _check_names(path, str(path), [name.strip() for name in file.schema_arrow.names], flags)
            columns = {name: names[name] for name in flags}
            classes = {name: _class_names(file.schema_arrow.metadata, columns[name]) for name in flags}
            for batch in file.iter_batches(batch_size, columns=None if all_columns else list(columns.values())):
                values = batch.select(list(columns.values())).to_pylist()
                yield (
                    batch,
                    [
                        (number + i, {name: _named(row[column], classes[name]) for name, column in columns.items()})
                        for i, row in enumerate(values, start=1)
                    ],
                )
                number += len(values)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: text that is not UTF-8 after row {number}: make the file again") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} is no Parquet file, or damaged ({first_line(error)}): make it again") from error


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str]:
    """The names of a column's classes in the order of their ids, where Hugging Face's datasets wrote the file."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _named(value: Any, names: list[str]) -> Any:
    return names[value] if type(value) is int and 0 <= value < len(names) else value


def cell_text(path: Path, number: int, name: str, value: Any) -> str:
    """A cell's value as text.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, str):
        if not value.isascii() and (character := _lone_surrogate(value)):
            raise UserError(
                f"{place(path, number)}: {name!r} holds {character!r}, half of a character (a lone surrogate): "
                "correct it, or write the file again"
            )
        return value
    if value is TWICE:
        raise UserError(f"{place(path, number)}: {name!r} is there twice: remove one")
    raise UserError(
        f"{place(path, number)}: {name!r} is {kind_of(value)}, not text or a whole number: write it as text, or leave "
        "the row out"
    )


def _lone_surrogate(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def kind_of(value: Any) -> str:
    """What a value of JSON or Parquet is, for an error."""
    kinds = {list: "a list", dict: "an object", bytes: "bytes", type(None): "null", str: "text"}
    return kinds.get(type(value)) or f"{value} ({type(value).__name__})"


TABLES = {".tsv": _tsv_table, ".csv": _csv_table}
READERS = {
    ".tsv": _read_table_by_name,
    ".csv": _read_table_by_name,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
