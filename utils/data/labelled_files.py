"""Writes chunks of rows, as `utils.data.row_chunks` reads them, with columns added, as CSV, TSV, JSON lines or Parquet.

Where the form stays the same, so do the rows: the values of CSV and TSV as text, those of JSON lines and Parquet with
their types.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.data.row_chunks import RowFile, column_names, parquet_schema
from utils.system.errors import UserError

FORMS = (".csv", ".tsv", ".jsonl", ".parquet")
# A row group of Parquet ends after so many rows or bytes.
GROUP_ROWS, GROUP_BYTES = 2**16, 2**26
QUOTE = '"'

# Writes a chunk's rows with the added columns, by name: lists of as many values.
Append = Callable[[Any, Mapping[str, Sequence[Any]]], None]


def check_form(file: RowFile, output: Path) -> None:
    """Check that the rows of a file can be written in the form that the ending of `output` says.

    Raises:
        UserError: they cannot.
    """
    form = output.suffix.lower()
    if form not in FORMS:
        raise UserError(f"--output {output}: name a file that ends in .csv, .tsv, .jsonl or .parquet")
    names = column_names(file)
    if names is None:
        if form != ".jsonl":
            raise UserError(
                f"--output {output}: rows of JSON lines may each have other columns: name a file that ends in .jsonl"
            )
        return
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None and form in (".jsonl", ".parquet"):
        raise UserError(f"{file.path}: {names.count(twice)} columns are called {twice!r}: rename or remove one")
    if file.form == ".parquet" and form != ".parquet":
        for field in parquet_schema(file):
            if "binary" in str(field.type):  # in a list or a struct as well
                raise UserError(
                    f"--output {output}: column {field.name!r} holds bytes ({field.type}), which {form} cannot hold: "
                    "name a file that ends in .parquet"
                )
    if form == ".parquet":
        _pyarrow(output)


def check_rows(rows: Any, output: Path) -> None:
    """Check that a chunk's rows can be written in the form that the ending of `output` says.

    Raises:
        UserError: it is TSV, and a cell holds a tab or the end of a line.
    """
    if output.suffix.lower() == ".tsv":
        for cell in itertools.chain.from_iterable(_cells(rows)):
            if "\t" in cell or "\n" in cell or "\r" in cell:
                raise UserError(
                    f"--output {output}: {cell[:80]!r} holds a tab or a line end, which .tsv cannot hold: name a file "
                    "that ends in .csv"
                )


@contextmanager
def open_output(path: Path, form: str, file: RowFile, types: Mapping[str, type]) -> Iterator[Append]:
    """Yield a function that appends rows to a new file at `path`, which is whole when the block has ended.

    Args:
        form: one of FORMS.
        types: of the added columns, by name: str, int, float or bool.
    """
    names = column_names(file) or []
    if form == ".parquet":
        with _open_parquet(path, file, names, types) as append:
            yield append
        return
    with open(path, "w", encoding="utf-8", newline="") as text:
        if form == ".jsonl":
            yield lambda rows, added: text.writelines(_json_lines(rows, names, added))
        else:
            to_lines = _csv_lines if form == ".csv" else _tsv_lines
            text.writelines(to_lines([[*names, *types]]))
            yield lambda rows, added: text.writelines(to_lines(_with_cells(rows, added)))


def _with_cells(rows: Any, added: Mapping[str, Sequence[Any]]) -> Iterator[list[str]]:
    columns = [[f"{value:.6f}" if isinstance(value, float) else str(value) for value in added[name]] for name in added]
    for cells, more in zip(_cells(rows), zip(*columns, strict=True), strict=True):
        yield [*cells, *more]


def _cells(rows: Any) -> Iterator[Sequence[str]]:
    """The cells of rows as text."""
    if isinstance(rows, list):
        return iter(rows)
    return zip(*map(_column_texts, rows.columns), strict=True)


def _column_texts(column: Any) -> list[str]:
    texts = []
    for value in _python_values(column):
        if isinstance(value, dict | list):
            value = json.dumps(value, ensure_ascii=False, default=str)
        texts.append("" if value is None else str(value))
    return texts


def _python_values(column: Any) -> list[Any]:
    """The values of a pyarrow column; times as text, as Python's own have no nanoseconds."""
    import pyarrow as pa

    return (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()


def _csv_lines(rows: Any) -> Iterator[str]:
    class Lines(list):
        write = list.append

    lines = Lines()
    # With CRLF as its line ends, csv puts cells that hold either of them between quotes.
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return (line[:-2] + "\n" for line in lines)


def _tsv_lines(rows: Any) -> Iterator[str]:
    for cells in rows:
        # Such a cell would be taken for one between quotes: see `utils.data.formats`.
        quoted = [f'"{cell.replace(QUOTE, 2 * QUOTE)}"' if _looks_quoted(cell) else cell for cell in cells]
        yield "\t".join(quoted) + "\n"


def _looks_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == QUOTE and 2 * QUOTE in cell[1:-1]


def _json_lines(rows: Any, names: list[str], added: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    if not isinstance(rows, list):
        cells: Any = zip(*map(_python_values, rows.columns), strict=True)
    else:
        cells = rows
    for row, more in zip(cells, zip(*added.values(), strict=True), strict=True):
        further = json.dumps(dict(zip(added, more, strict=True)), ensure_ascii=False)
        if isinstance(row, str):  # a JSON object, which stays as it is
            yield f"{row.strip()[:-1].rstrip()}, {further[1:]}\n"
        else:
            own = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str)
            yield f"{own[:-1]}, {further[1:]}\n"


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:  # not among predict.py's requirements
        raise UserError(f"{path}: writing Parquet needs the package pyarrow: pip install pyarrow") from error
    return pyarrow


@contextmanager
def _open_parquet(path: Path, file: RowFile, names: list[str], types: Mapping[str, type]) -> Iterator[Append]:
    pa = _pyarrow(path)
    arrow_types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = parquet_schema(file) if file.form == ".parquet" else pa.schema([(name, pa.string()) for name in names])
    own_schema = schema
    for name, kind in types.items():
        schema = schema.append(pa.field(name, arrow_types[kind]))
    waiting: list[Any] = []

    with pa.parquet.ParquetWriter(path, schema) as writer:

        def write() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=2**31 - 1)
                waiting.clear()

        def append(rows: Any, added: Mapping[str, Sequence[Any]]) -> None:
            if isinstance(rows, list):
                columns = map(list, zip(*rows, strict=True))
                rows = pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=own_schema)
            more = [pa.array(values, arrow_types[types[name]]) for name, values in added.items()]
            waiting.append(pa.record_batch([*rows.columns, *more], schema=schema))
            if (
                sum(len(batch) for batch in waiting) >= GROUP_ROWS
                or sum(batch.nbytes for batch in waiting) >= GROUP_BYTES
            ):
                write()

        yield append
        write()
