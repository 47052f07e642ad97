"""The rows of a data set in the tokens of a teacher: the student's own, or tokenized anew into a folder beside them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerFast

from utils.data.formats import missing_file
from utils.data.preprocessing import tokenize_data
from utils.data.tables import TOKENIZED, Data, check_same_rows, columns_of, lengths, load_data
from utils.data.texts import split_path
from utils.models.checkpoint import tokenizer_fingerprint
from utils.system.bars import progress_bar
from utils.system.errors import UserError
from utils.system.files import check_output_folder

logger = logging.getLogger(__name__)


def rows_to_read(
    data: Data,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    n_ctx: int,
    splits: list[str],
    data_dir: str | None = None,
) -> Data | None:
    """The rows that a teacher reads: the student's or those of a folder; None where `rows_of_teacher` is to make them.

    Args:
        n_ctx: longest row in the teacher's tokens.
        splits: those that it is asked for.
        data_dir: that folder, which preprocess.py tokenized for it.

    Raises:
        UserError: the folder does not hold the same rows, or as `check_rows_of_teacher`.
    """
    if data_dir:
        rows = load_data(data_dir, teacher, n_ctx, task=data.task)
        # Of unlabelled rows those are left out that are in test.
        check_same_rows(data, rows, splits + ["test"] * ("unlabelled" in splits))
        return rows
    if _reads_same_tokens(data, student, teacher, n_ctx, splits):
        return data
    check_rows_of_teacher(data, student, teacher, n_ctx)
    return None


def _reads_same_tokens(
    data: Data, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, n_ctx: int, splits: list[str]
) -> bool:
    """Whether a teacher can read the student's rows of these splits: their tokens are its own, `n_ctx` at most."""
    return tokenizer_fingerprint(student) == tokenizer_fingerprint(teacher) and all(
        lengths(data.splits[split]).max() <= n_ctx for split in splits
    )


def teacher_folder(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, n_ctx: int) -> str:
    """The name of the folder, beside tokenized/, that holds the rows in a teacher's tokens: one for each tokenizer."""
    made_with = json.dumps([tokenizer_fingerprint(teacher), n_ctx, _masks(student, teacher)])
    return f"{TOKENIZED}-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}"


def check_rows_of_teacher(
    data: Data, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, n_ctx: int
) -> None:
    """Check, before anything is written, that `rows_of_teacher` finds its folder, or can read the texts and write it.

    Raises:
        UserError: a text file is not there, or its columns are not known, or the data folder cannot be written to.
    """
    data_dir = data.folder.parent
    if _load(data, teacher, n_ctx, teacher_folder(student, teacher, n_ctx)):
        return
    for path in (split_path(data_dir, split) for split in data.hashes):
        if not path.exists():
            raise missing_file(path)
    columns_of(data)
    check_output_folder(data_dir, "--data_dir")


def rows_of_teacher(data: Data, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, n_ctx: int) -> Data:
    """All rows of `data` in a teacher's tokens: from the folder of `teacher_folder`, made first where need be.

    The texts are read as preprocess.py read them, and tokenized as it does, by all processes that a launcher started.
    In augmented rows the student's mask token becomes the teacher's.

    Args:
        n_ctx: longest row in the teacher's tokens.

    Raises:
        UserError: as `columns_of` and `tokenize_data`, or the texts changed meanwhile.
    """
    data_dir, name = data.folder.parent, teacher_folder(student, teacher, n_ctx)
    rows = _load(data, teacher, n_ctx, name)
    if all(gather_object([rows is not None])):  # one process might have looked while another run was writing
        assert rows is not None
        return rows
    logger.info("[Teacher] : tokenizing the texts for it, into %s", data_dir / name)
    tokenize_data(
        data_dir,
        teacher,
        n_ctx,
        _progress,
        names=columns_of(data),
        folder_name=name,
        other_mask=_masks(student, teacher),
    )
    rows = _load(data, teacher, n_ctx, name)
    if rows is None:
        raise UserError(f"{data_dir} holds other rows than when it was tokenized: run preprocess.py again")
    return rows


def _load(data: Data, teacher: PreTrainedTokenizerFast, n_ctx: int, name: str) -> Data | None:
    """The folder's data, unless it is missing, damaged, or of other texts or columns."""
    try:
        rows = load_data(data.folder.parent, teacher, n_ctx, name, data.task)
        # But that of soft labels.
        same_columns = columns_of(rows)._replace(soft_label="") == columns_of(data)._replace(soft_label="")
    except UserError:
        return None
    same = same_columns and all(
        rows.hashes.get(split) == digest and len(rows.splits[split]) == len(data.splits[split])
        for split, digest in data.hashes.items()
    )
    return rows if same else None


def _masks(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> tuple[str, str] | None:
    """The student's mask token, and what a teacher reads instead of it; None where nothing is to be changed."""
    other = teacher.mask_token or teacher.unk_token or ""
    return (student.mask_token, other) if student.mask_token and student.mask_token != other else None


def _progress(rows: Iterable, total: int, split: str) -> Iterator:
    return iter(progress_bar(rows, total=total, desc=f"tokenize {split} for the teacher", unit="row"))
