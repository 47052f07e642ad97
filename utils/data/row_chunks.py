"""Files of rows in chunks: the texts to label, and everything else that a row holds, to be passed on.

The rows of .csv, .tsv and plain text are lists of cells, those of .jsonl are lines, those of .parquet a record batch of
pyarrow.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.formats import NO_HEADER, TABLES, place, read_json_objects, read_parquet_batches, read_table, row_texts
from utils.data.texts_to_label import as_text, check_columns, has_columns, utf8_errors
from utils.predictor.lines import read_lines
from utils.predictor.tokens import Text
from utils.system.errors import UserError

# A chunk ends after so many rows, or, but for Parquet, so many characters.
CHUNK_ROWS, CHUNK_CHARACTERS = 1024, 2**24


class RowFile(NamedTuple):
    """A file of rows to label."""

    path: Path
    columns: tuple[str, ...]  # of the text, or of a pair's two texts
    texts_a_row: int | None  # as many as the model takes; None where that is not known
    labels: list[str]  # the model's, by which a file with labels is known
    added: tuple[str, ...]  # names of columns that will be added, and may not be there

    @property
    def form(self) -> str:
        """The ending that says how the file is read; .txt for plain text, whatever its ending."""
        return self.path.suffix.lower() if has_columns(self.path) else ".txt"


class Chunk(NamedTuple):
    """Some rows in their order."""

    texts: list[Text]
    rows: Any  # list of cells (list of str), list of lines (str), or record batch


def read_chunks(file: RowFile) -> Iterator[Chunk]:
    """Yield all rows of a file in chunks, which are the same whenever the same file is read.

    Raises:
        UserError: as `read_columns` and `read_lines`, or a column of a name to be added is there.
    """
    if file.form == ".txt":
        yield from _chunks(_plain_rows(file))
        return
    with utf8_errors(file.path):
        if file.form == ".parquet":
            yield from _parquet_chunks(file)
        else:
            yield from _chunks(_json_rows(file) if file.form == ".jsonl" else _table_rows(file))


def column_names(file: RowFile) -> list[str] | None:
    """The names of a file's columns; None for JSON lines, where every row has its own.

    Raises:
        UserError: as `read_chunks`.
    """
    if file.form != ".txt":
        check_columns(file.path, file.columns, file.texts_a_row)
    if file.form == ".jsonl":
        return None
    if file.form == ".parquet":
        return parquet_schema(file).names
    if file.form in TABLES:
        with utf8_errors(file.path):
            _, names = next(read_table(file.path, _flags(file)), NO_HEADER)
        if not names:
            raise UserError(f"{file.path} is empty: its first line must name the columns")
        return names
    first = next(_plain_rows(file), None)
    count = file.texts_a_row or (len(first[1]) if first else 1)
    return list(file.columns) if len(file.columns) == count else ["text_a", "text_b"][:count]


def parquet_schema(file: RowFile) -> Any:
    """The schema of a Parquet file, as pyarrow has it.

    Raises:
        UserError: as `read_chunks`.
    """
    next(read_parquet_batches(file.path, _flags(file)), None)  # says what is wrong with the file
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(file.path)


def _flags(file: RowFile) -> dict[str, str]:
    return dict.fromkeys(file.columns, "--text_column")


def _chunks(rows: Iterable[tuple[Text, Any]]) -> Iterator[Chunk]:
    texts: list[Text] = []
    chunk: list[Any] = []
    characters = 0
    for text, row in rows:
        texts.append(text)
        chunk.append(row)
        characters += len(row) if isinstance(row, str) else sum(map(len, row))
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield Chunk(texts, chunk)
            texts, chunk, characters = [], [], 0
    if chunk:
        yield Chunk(texts, chunk)


def _plain_rows(file: RowFile) -> Iterator[tuple[Text, list[str]]]:
    count = file.texts_a_row
    with open(file.path, "rb") as lines:
        texts = read_lines(lines, str(file.path), file.columns, file.texts_a_row, file.labels)
        for number, text in enumerate(texts, start=1):
            cells = [text] if isinstance(text, str) else list(text)
            count = count or len(cells)
            if len(cells) != count:
                raise UserError(
                    f"{place(file.path, number)} has {len(cells)} text(s), but those before {count}: write one a line, "
                    "or sentence_a<TAB>sentence_b"
                )
            yield text, cells


def _table_rows(file: RowFile) -> Iterator[tuple[Text, list[str]]]:
    flags = _flags(file)
    table = read_table(file.path, flags)
    number, names = next(table, NO_HEADER)
    _check_added(file, f"{file.path}, line {number}", names)
    columns = {name: names.index(name) for name in flags if names}
    for number, cells in table:
        values = {name: cells[column] for name, column in columns.items()}
        yield as_text(row_texts(file.path, number, values, flags)), cells


def _json_rows(file: RowFile) -> Iterator[tuple[Text, str]]:
    flags = _flags(file)
    for number, line, values in read_json_objects(file.path):
        _check_added(file, place(file.path, number), values)
        yield as_text(row_texts(file.path, number, values, flags)), line


def _parquet_chunks(file: RowFile) -> Iterator[Chunk]:
    flags = _flags(file)
    for batch, rows in read_parquet_batches(file.path, flags, all_columns=True, batch_size=CHUNK_ROWS):
        _check_added(file, str(file.path), batch.schema.names)
        yield Chunk([as_text(row_texts(file.path, number, values, flags)) for number, values in rows], batch)


def _check_added(file: RowFile, where: str, names: Iterable[str]) -> None:
    taken = [name for name in map(str.strip, names) if name in file.added]
    if taken:
        raise UserError(
            f"{where}: there is a column {taken[0]!r} already: give the added columns other names with --prefix, such "
            "as --prefix=predicted_"
        )
