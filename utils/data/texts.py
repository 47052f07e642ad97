"""The rows of a data set: one sentence or a pair, and a label, from files of several formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.data.formats import (
    LINE_FORM,
    READERS,
    Numbered,
    missing_file,
    place,
    read_cells,
    read_fields,
    undecodable_line,
)
from utils.data.labels import Columns, cell_reader, joined, label_columns
from utils.data.texts_to_label import as_text
from utils.models.config import MULTI_LABEL
from utils.predictor.tokens import Text
from utils.system.errors import UserError

SPLITS = ("train", "valid", "test")
AUGMENTED = "augmented"  # where augment_data.py made one
UNLABELLED = "unlabelled"  # where the user put one: see utils/data/unlabelled_rows.py
# What the columns of other people's files are called, in a first line that text files here have not.
COLUMN_NAMES = frozenset(
    "label labels class category target tag sentiment intent text texts sentence sentence1 sentence2 sentence_a "
    "sentence_b question question1 question2 premise hypothesis query review content message utterance".split()
)

Texts = tuple[str, ...]  # one sentence, or a pair
TextRow = tuple[Texts, str]  # and the label, or several joined in one text; an empty one where a row has none


NAMES = Columns()


def present_splits(data_dir: Path) -> list[str]:
    """The splits with labels of a data folder: the three, and that of augmented rows if there is one."""
    return [*SPLITS, AUGMENTED] if (data_dir / f"{AUGMENTED}.txt").exists() else [*SPLITS]


def split_path(data_dir: Path, split: str) -> Path:
    """The file of a split: SPLIT.txt, or what takes its place.

    Raises:
        UserError: there are two of them.
    """
    paths = [path for path in (data_dir / f"{split}{suffix}" for suffix in (".txt", *READERS)) if path.exists()]
    if len(paths) > 1:
        raise UserError(f"{data_dir} has both {paths[0].name} and {paths[1].name}: move one of them away")
    return paths[0] if paths else data_dir / f"{split}.txt"


def read_rows(path: Path, names: Columns = NAMES) -> Iterator[TextRow]:
    """Yield (texts, label) for each row of a file.

    Raises:
        UserError: as `numbered_rows`.
    """
    return (row for _, row in numbered_rows(path, names))


def labelled_texts(path: Path, names: Columns = NAMES) -> list[tuple[Text, str]]:
    """The text or the pair of each row, as a tokenizer takes them, and its label.

    Raises:
        UserError: as `numbered_rows`.
    """
    rows = read_rows(path, names)
    return [(as_text(parts), label) for parts, label in rows]


def numbered_rows(path: Path, names: Columns = NAMES) -> Iterator[tuple[int, TextRow]]:
    """Yield each row and the number of the line that it begins in, or of the row in a Parquet file.

    Only where rows have any number of labels may the label be empty, and in a file of augmented rows: of variants of
    texts that have none.

    Raises:
        UserError: the file is missing, empty or damaged, or a row is not UTF-8, lacks a column, has an empty label,
            another number of columns than the first one, or a cell that is no text. Names the line.
    """
    empty = True
    with readable(path):
        for number, (*texts, label) in _text_fields(path) if path.suffix == ".txt" else _text_cells(path, names):
            if not label and path.stem != AUGMENTED and names.task != MULTI_LABEL:
                raise UserError(f"{place(path, number)}: empty label: give every row one")
            empty = False
            yield number, (tuple(texts), label)
    if empty:
        raise UserError(f"{path} is empty: {LINE_FORM if path.suffix == '.txt' else 'it needs rows'}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of a file that the block cannot read what is wrong with it.

    Raises:
        UserError: it is missing, may not be read, or is not UTF-8.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    except UnicodeDecodeError as error:
        line = undecodable_line(path)
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}): save the file as UTF-8") from error


def _text_cells(path: Path, names: Columns) -> Numbered:
    columns = label_columns(names)
    flags = dict.fromkeys(names.texts, "--text_column") | dict.fromkeys(columns, "--label_column")
    for number, cells in read_cells(path, flags, dict.fromkeys(columns, cell_reader(names))):
        yield number, [*cells[: len(names.texts)], joined(cells[len(names.texts) :], names)]


def _text_fields(path: Path) -> Numbered:
    columns = None
    for number, fields in read_fields(path):
        columns = columns or len(fields)
        if len(fields) == 1:
            raise UserError(f"{place(path, number)}: no tab: {LINE_FORM}")
        if len(fields) != columns or columns > 3:
            raise UserError(f"{place(path, number)}: {len(fields)} columns: {LINE_FORM}, the same in every line")
        yield number, fields
