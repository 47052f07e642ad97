"""The rows of a data set: one sentence or a pair, and a label, from files of several formats, and checks of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
from utils.predictor import Text
from utils.system.errors import UserError

SPLITS = ("train", "valid", "test")
AUGMENTED = "augmented"  # where augment_data.py made one
UNLABELLED = "unlabelled"  # where the user put one: see utils/data/unlabelled_rows.py
LONG_LABEL = 60  # characters; a longer one may well be a text
# What the columns of other people's files are called, in a first line that text files here have not.
COLUMN_NAMES = frozenset(
    "label labels class category target tag sentiment intent text texts sentence sentence1 sentence2 sentence_a "
    "sentence_b question question1 question2 premise hypothesis query review content message utterance".split()
)

Texts = tuple[str, ...]  # one sentence, or a pair
TextRow = tuple[Texts, str]  # and the label; an empty one where a row has none


class Columns(NamedTuple):
    """Names of the columns of TSV, CSV, JSON lines and Parquet files."""

    texts: tuple[str, ...] = ("text",)  # one, or two for pairs
    label: str = "label"
    soft_label: str = "soft_label"  # of JSON lines and Parquet only, where there is one


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
    return [(parts[0] if len(parts) == 1 else (parts[0], parts[1]), label) for parts, label in rows]


def numbered_rows(path: Path, names: Columns = NAMES) -> Iterator[tuple[int, TextRow]]:
    """Yield each row and the number of the line that it begins in, or of the row in a Parquet file.

    Only in a file of augmented rows may labels be empty: of variants of texts that have none.

    Raises:
        UserError: the file is missing, empty or damaged, or a row is not UTF-8, lacks a column, has an empty label,
            another number of columns than the first one, or a cell that is no text. Names the line.
    """
    flags = dict.fromkeys(names.texts, "--text_column") | {names.label: "--label_column"}
    empty = True
    with readable(path):
        for number, (*texts, label) in _text_fields(path) if path.suffix == ".txt" else read_cells(path, flags):
            if not label and path.stem != AUGMENTED:
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


def read_labels(data_dir: Path, names: Columns = NAMES) -> tuple[dict[str, int], dict[str, int]]:
    """Check every row of all files.

    Returns:
        The labels of train in the order of their ids, with their numbers of rows; and each split's number of rows.

    Raises:
        UserError: as `numbered_rows`, a first line that names columns where it should not, a label that train lacks or
            that is not one line, one label only, or pairs in one file but not all.
    """
    counts = dict.fromkeys(present_splits(data_dir), 0)
    label_counts: dict[str, int] = {}
    train, columns = split_path(data_dir, "train"), 0
    for split in counts:
        path = split_path(data_dir, split)
        first_row: TextRow | None = None
        for number, (texts, label) in numbered_rows(path, names):
            first_row = first_row or (texts, label)
            columns = columns or len(texts)
            if len(texts) != columns:
                raise UserError(
                    f"{path} and {train.name} differ in their number of columns: use pairs in all files or in none"
                )
            if split == "train":
                if label not in label_counts:
                    _check_one_line(path, number, label)
                label_counts[label] = label_counts.get(label, 0) + 1
            elif label and label not in label_counts:
                if number == 1:
                    _check_no_header(path, first_row)
                raise _unknown_label(path, number, label, train, label_counts, names)
            counts[split] += 1
        if split == "train" and first_row and label_counts[first_row[1]] == 1:
            _check_no_header(path, first_row)
    if len(label_counts) < 2:
        raise UserError(
            f"{train} has only the label {_shown(next(iter(label_counts)))}: a classifier needs two or more"
        )
    return {label: label_counts[label] for label in sorted(label_counts, key=_label_order)}, counts


def _text_fields(path: Path) -> Numbered:
    columns = None
    for number, fields in read_fields(path):
        columns = columns or len(fields)
        if len(fields) == 1:
            raise UserError(f"{place(path, number)}: no tab: {LINE_FORM}")
        if len(fields) != columns or columns > 3:
            raise UserError(f"{place(path, number)}: {len(fields)} columns: {LINE_FORM}, the same in every line")
        yield number, fields


def _check_no_header(path: Path, row: TextRow) -> None:
    """Check the first row of a text file, whose label no other row has.

    Raises:
        UserError: it seems to name columns.
    """
    texts, label = row
    is_name = [cell.lower() in COLUMN_NAMES for cell in (*texts, label)]
    if path.suffix == ".txt" and (is_name[-1] or all(is_name[:-1])):
        cells = ", ".join(map(repr, (*texts, label)))
        raise UserError(
            f"{path}, line 1 seems to name the columns ({cells}): remove it, or call the file {path.stem}.tsv; if it "
            "is a row, give its label to another row too"
        )


def _check_one_line(path: Path, number: int, label: str) -> None:
    # label.txt has one a line, and augmented.txt has it after a tab.
    if "\t" in label or len(label.splitlines()) > 1:
        raise UserError(
            f"{place(path, number)}: the label {_shown(label)} holds a tab or the end of a line: write it without"
        )


def _unknown_label(
    path: Path, number: int, label: str, train: Path, label_counts: dict[str, int], names: Columns
) -> UserError:
    unknown = f"{place(path, number)}: label {_shown(label)} is not in {train.name}"
    own_counts = Counter(row_label for _, row_label in read_rows(path, names))
    if own_counts.keys() == {label} and (label == "-1" or own_counts[label] > 1):
        return UserError(
            f"{unknown}, and all rows have it: this file seems to have no labels: take labelled rows for it, such as a "
            f"part of {train.name}"
        )
    if len(label) > LONG_LABEL or len(label_counts) > max(100, sum(label_counts.values()) / 2):
        guess = "is the label last in each line?" if path.suffix == ".txt" else f"is {names.label!r} its column?"
        return UserError(f"{unknown}, and looks like a text: {guess}")
    return UserError(f"{place(path, number)}: label {_shown(label)} is not in {train.name}: correct it, or add rows")


def _shown(label: str) -> str:
    return repr(label) if len(label) <= LONG_LABEL else f"{label[:LONG_LABEL]!r}..."


def _label_order(label: str) -> tuple:
    # 2 before 10 where labels are numbers.
    return (0, int(label), label) if label.isdecimal() and len(label) < 20 else (1, 0, label)
