"""Texts to label: a column, or two of a pair, of a CSV, TSV, JSON lines or Parquet file."""

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.data.formats import READERS, read_cells, undecodable_line
from utils.predictor.lines import UTF8
from utils.predictor.tokens import Text
from utils.system.errors import UserError


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
        takes = "the model takes one text a row: give --text_column=COLUMN"
        takes = takes if texts_a_row == 1 else "the model takes two texts a row: give --text_column=COLUMN_A,COLUMN_B"
        raise UserError(f"{path}: {takes}")
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


def as_text(cells: Sequence[str]) -> Text:
    """The text of a row, or its pair of texts."""
    return cells[0] if len(cells) == 1 else (cells[0], cells[1])
