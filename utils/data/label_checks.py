"""Checks of every row of a data set before it is tokenized, and what labels, or scores, its rows have."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.data.formats import place
from utils.data.labels import Columns, label_columns, scores, several_labels
from utils.data.texts import COLUMN_NAMES, NAMES, TextRow, numbered_rows, present_splits, read_rows, split_path
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.system.errors import UserError

LONG_LABEL = 60  # characters; a longer one may well be a text

# A split, its file, the row's number and the row.
PlacedRow = tuple[str, Path, int, TextRow]


def read_labels(data_dir: Path, names: Columns = NAMES) -> tuple[dict[str, int], dict[str, int]]:
    """Check every row of all files.

    Returns:
        The labels of train in the order of their ids, or the names of the scores, with their numbers of rows; and each
        split's number of rows.

    Raises:
        UserError: as `numbered_rows`, a first line that names columns where it should not, a label that train lacks or
            that is not one line, one label only, what is no label or score of the task, or pairs in one file but not
            all.
    """
    counts = dict.fromkeys(present_splits(data_dir), 0)
    rows = _placed_rows(data_dir, names, counts)
    if names.task == REGRESSION:
        return _check_scores(rows, names, split_path(data_dir, "train")), counts
    return _count_labels(rows, names, split_path(data_dir, "train")), counts


def _placed_rows(data_dir: Path, names: Columns, counts: dict[str, int]) -> Iterator[PlacedRow]:
    """All rows of the splits of `counts`, which gets their numbers; all have as many texts."""
    columns = 0
    for split in counts:
        path = split_path(data_dir, split)
        for number, row in numbered_rows(path, names):
            columns = columns or len(row[0])
            if len(row[0]) != columns:
                raise UserError(
                    f"{path} and {split_path(data_dir, 'train').name} differ in their number of columns: use pairs in "
                    "all files or in none"
                )
            counts[split] += 1
            yield split, path, number, row


def _count_labels(rows: Iterator[PlacedRow], names: Columns, train: Path) -> dict[str, int]:
    """The labels of train, sorted, with their numbers of rows."""
    label_counts: dict[str, int] = {}
    first_rows: dict[str, TextRow] = {}
    has_several = has_none = False
    for split, path, number, row in rows:
        first_row = first_rows.setdefault(split, row)
        if split != "train" and len(first_rows) == 2 and first_row is row:
            _check_first_row(train, first_rows["train"], label_counts)
        label = row[1]
        if names.task == MULTI_LABEL:
            own = several_labels(label, names, place(path, number))
            has_several, has_none = has_several or len(own) > 1, has_none or not own
        else:
            own = [label] if label else []
        for each in own:
            if split == "train":
                if each not in label_counts:
                    _check_one_line(path, number, each)
                label_counts[each] = label_counts.get(each, 0) + 1
            elif each not in label_counts:
                if number == 1:
                    _check_no_header(path, first_row)
                raise _unknown_label(path, number, each, train, label_counts, names)
    if len(label_counts) < 2:
        only = f"only the label {_shown(next(iter(label_counts)))}" if label_counts else "no label"
        raise UserError(f"{train} has {only}: a classifier needs two or more")
    if names.task == MULTI_LABEL:
        _check_several(label_counts, has_several or has_none, names, train)
    else:
        _check_single(label_counts, names, train)
    return {label: label_counts[label] for label in sorted(label_counts, key=_label_order)}


def _check_scores(rows: Iterator[PlacedRow], names: Columns, train: Path) -> dict[str, int]:
    """The names of the scores, with the number of train's rows."""
    columns, first = label_columns(names), None
    num_rows, differ = 0, set()
    for split, path, number, row in rows:
        if not row[1]:  # of an augmented row
            continue
        if number == 1:
            _check_no_header(path, row, is_certain=False)
        values = scores(row[1], names, place(path, number))
        first = first or values
        if len(values) != len(first):
            raise UserError(
                f"{place(path, number)}: {len(values)} scores, but {len(first)} before: give all rows as many"
            )
        if split == "train":
            num_rows += 1
            differ |= {i for i, value in enumerate(values) if value != first[i]}
    assert first, "numbered_rows refuses an empty file"
    if len(columns) != len(first):  # of a text file, which has no names for them
        columns = [f"score_{i}" for i in range(len(first))]
    same = [name for i, name in enumerate(columns) if i not in differ]
    if same:
        raise UserError(f"{train}: all rows have the same {same[0]!r}: there is nothing to learn: correct it")
    return dict.fromkeys(columns, num_rows)


def _check_first_row(path: Path, row: TextRow, label_counts: dict[str, int]) -> None:
    if label_counts.get(row[1]) == 1:
        _check_no_header(path, row)


def _check_no_header(path: Path, row: TextRow, is_certain: bool = True) -> None:
    """Check the first row of a text file, whose label no other row has.

    Raises:
        UserError: it seems to name columns.
    """
    texts, label = row
    is_name = [cell.lower() in COLUMN_NAMES for cell in (*texts, label)]
    if path.suffix == ".txt" and (is_name[-1] or (is_certain and all(is_name[:-1]))):
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


def _check_single(label_counts: dict[str, int], names: Columns, train: Path) -> None:
    """Check that no label is others, joined."""
    for label in label_counts:
        parts = [part.strip() for part in label.split(names.separator)] if names.separator in label else []
        if parts and all(part in label_counts for part in parts):
            raise UserError(
                f"{train}: the label {_shown(label)} is others, joined by {names.separator!r}: where rows have several "
                'labels, write "task": "multi_label" into the file of --config; where it is one label, give another '
                "--label_separator"
            )


def _check_several(label_counts: dict[str, int], is_several: bool, names: Columns, train: Path) -> None:
    """Check that labels look like some of which a row has any number, and that each column is 1 somewhere."""
    columns = label_columns(names)
    missing = [name for name in columns if name not in label_counts] if len(columns) > 1 else []
    if missing:
        raise UserError(f"{train}: {missing[0]!r} is 0 in every row: leave it out of --label_column, or add rows")
    if is_several:
        return
    if all(_is_number(label) for label in label_counts) and not all(label.isdecimal() for label in label_counts):
        raise UserError(
            f'{train}: the labels are numbers, such as {_shown(min(label_counts))}: write "task": "regression" into '
            "the file of --config"
        )
    raise UserError(
        f"{train}: every row has exactly one label, such as {_shown(next(iter(label_counts)))}: if labels are joined "
        f"by something else than {names.separator!r}, give that as --label_separator; if one a row is right, leave "
        '"task" out of the file of --config'
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
    if names.task == SINGLE_LABEL:
        parts = [part.strip() for part in label.split(names.separator)]
        if len(parts) > 1 and all(part in label_counts for part in parts):
            return UserError(
                f'{unknown}, but {_shown(parts[0])} is: where rows have several labels, write "task": "multi_label" '
                "into the file of --config"
            )
        if _is_number(label) and not label.isdecimal() and all(map(_is_number, label_counts)):
            return UserError(
                f'{unknown}, and all labels are numbers: for scores, write "task": "regression" into the file of '
                "--config"
            )
    if len(label) > LONG_LABEL or len(label_counts) > max(100, sum(label_counts.values()) / 2):
        guess = "is the label last in each line?" if path.suffix == ".txt" else f"is {names.label!r} its column?"
        return UserError(f"{unknown}, and looks like a text: {guess}")
    return UserError(f"{place(path, number)}: label {_shown(label)} is not in {train.name}: correct it, or add rows")


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _shown(label: str) -> str:
    return repr(label) if len(label) <= LONG_LABEL else f"{label[:LONG_LABEL]!r}..."


def _label_order(label: str) -> tuple:
    # 2 before 10 where labels are numbers.
    return (0, int(label), label) if label.isdecimal() and len(label) < 20 else (1, 0, label)
