"""Texts to label: a column, or two of a pair, of a CSV, TSV, JSON lines or Parquet file."""

from collections.abc import Iterator
from pathlib import Path

from utils.data.formats import READERS, read_cells, undecodable_line
from utils.predictor import UTF8, Text
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
    if texts_a_row and len(columns) != texts_a_row:
        takes = "the model takes one text a row: give --text_column=COLUMN"
        takes = takes if texts_a_row == 1 else "the model takes two texts a row: give --text_column=COLUMN_A,COLUMN_B"
        raise UserError(f"{path}: {takes}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: it needs rows, and of .csv and .tsv the first one names the columns")
    try:
        for _, cells in read_cells(path, dict.fromkeys(columns, "--text_column")):
            yield cells[0] if len(cells) == 1 else (cells[0], cells[1])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {undecodable_line(path)}: not UTF-8 ({error.reason}): {UTF8}") from error
