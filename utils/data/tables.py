"""Tokenized tables, which `utils.data.preprocessing` writes -> batches of rows of about the same length."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerFast

from utils.data.labels import NO_LABEL, Columns
from utils.data.texts import AUGMENTED, NAMES, SPLITS, UNLABELLED, split_path
from utils.models.checkpoint import tokenizer_fingerprint
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.system.errors import UserError
from utils.system.files import file_hash

TOKENIZED = "tokenized"  # the folder of preprocess.py
SOFT_LABEL = "soft_label"  # the column of splits that have soft labels; null where a row has none


@dataclass(frozen=True)
class Data:
    """A tokenized data set: `labels` in the order of their ids, and one memory-mapped table a split.

    The splits are train, valid and test, and augmented and unlabelled where there are such rows. Of scores, `labels`
    are their names.
    """

    labels: list[str]
    splits: dict[str, datasets.Dataset]
    folder: Path  # that holds the tables
    fingerprint: str  # of texts, tokenizer and n_ctx
    hashes: dict[str, str]  # SHA-256 of every split's text file
    texts_a_row: int | None  # 1, or 2 for pairs; None where it was tokenized before this was written down
    # Of the splits that have some, see `utils.data.soft_labels`.
    soft_labels: dict[str, pa.ChunkedArray] = field(default_factory=dict)
    task: str = SINGLE_LABEL
    # Of scores: their mean and their standard deviation in train, each float32 [scores].
    scale: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def start(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What a last layer that is new gives at first, as mean and deviation, each float32 [outputs].

        Of scores it is `scale`, of any number of labels the log odds of each in train, which training would need an
        epoch to find. None elsewhere.
        """
        return _log_odds(row_labels(self.splits["train"])) if self.task == MULTI_LABEL else self.scale


def load_data(
    data_dir: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    n_ctx: int,
    folder_name: str = TOKENIZED,
    task: str = SINGLE_LABEL,
) -> Data:
    """Open the tokenized data set of a data folder.

    Raises:
        UserError: it is missing or damaged, or was made with another tokenizer or n_ctx, for another task, or of other
            texts.
    """
    data_dir = Path(data_dir)
    folder = data_dir / folder_name
    again = "run preprocess.py again"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        made_with = (meta["n_ctx"], meta["tokenizer"], meta.get("task", SINGLE_LABEL))
        # Only these names: they become paths.
        names = [*SPLITS, *(split for split in (AUGMENTED, UNLABELLED) if split in meta["texts"])]
        labels, hashes = meta["labels"], {split: meta["texts"][split] for split in names}
        splits = {split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in hashes}
        soft_labels = {
            split: table.data.column(SOFT_LABEL) for split, table in splits.items() if SOFT_LABEL in table.column_names
        }
        # Batches are read without them.
        splits |= {split: splits[split].remove_columns(SOFT_LABEL) for split in soft_labels}
        soft_files = {f"{split}.soft.jsonl": meta["soft_labels"][split] for split in soft_labels}
    except FileNotFoundError as error:
        raise UserError(
            f"{data_dir} holds no tokenized data set: run preprocess.py with this data_dir first"
        ) from error
    except Exception as error:  # whatever a damaged Arrow file provokes
        raise UserError(f"{folder} is damaged ({type(error).__name__}): {again}") from error
    if made_with[0] != n_ctx:
        raise UserError(f"{data_dir} was tokenized with n_ctx {made_with[0]} but the config says {n_ctx}: {again}")
    if made_with[1] != tokenizer_fingerprint(tokenizer):
        raise UserError(f"{data_dir} was tokenized with another tokenizer than this model's: {again} with this model's")
    if made_with[2] != task:
        raise UserError(
            f'{data_dir} was tokenized for the task {made_with[2]} but the config says {task}: write "task": '
            f'"{made_with[2]}" into the file of --config, or {again} with this one'
        )
    for split in hashes:
        path = split_path(data_dir, split)
        if path.exists() and file_hash(path) != hashes[split]:
            raise UserError(f"{path} has changed since it was tokenized: {again}")
    for name, (source, soft_hash, _) in soft_files.items():
        path = data_dir / name
        if source == name and path.exists() and file_hash(path) != soft_hash:
            raise UserError(f"{path} has changed since it was tokenized: {again}")
    fingerprint = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]
    scale = _mean_and_deviation(row_labels(splits["train"])) if task == REGRESSION else None
    return Data(labels, splits, folder, fingerprint, hashes, meta.get("texts_a_row"), soft_labels, task, scale)


def columns_of(data: Data) -> Columns:
    """The columns that preprocess.py read; the usual ones where it did not write that down.

    Raises:
        UserError: it did not, and the files have columns with names.
    """
    data_dir = data.folder.parent
    columns = json.loads((data.folder / "meta.json").read_text(encoding="utf-8")).get("columns")
    if columns:
        return Columns(**columns | {"texts": tuple(columns["texts"])})
    for path in (split_path(data_dir, split) for split in data.hashes):
        if path.suffix != ".txt":
            raise UserError(
                f"{data.folder} does not say which columns of {path.name} hold the texts and labels, as an older "
                "version wrote it: run preprocess.py again"
            )
    return NAMES


def check_same_rows(data: Data, other: Data, splits: list[str]) -> None:
    """Check that two folders hold the same texts and labels, however tokenized.

    Raises:
        UserError: they do not; names the folders and the file.
    """
    ours, theirs = data.folder.parent, other.folder.parent
    for split in splits:
        if data.hashes[split] != other.hashes.get(split):
            name = split_path(ours, split).name
            raise UserError(
                f"{theirs} must hold the same {name} as {ours}: copy it there, then run preprocess.py with "
                f"--data_dir={theirs}"
            )


def with_rows_of(data: Data, splits: list[str]) -> Data:
    """The same data with the rows of other splits behind those of train."""
    if not splits:
        return data
    train = datasets.concatenate_datasets([data.splits["train"], *(data.splits[split] for split in splits)])
    return replace(data, splits=data.splits | {"train": train})


def lengths(split: datasets.Dataset) -> np.ndarray:
    """Length in tokens of every row, int array [rows]."""
    column = split.data.column("input_ids")
    return pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)


def row_labels(split: datasets.Dataset) -> np.ndarray:
    """Label id of every row, int array [rows].

    Of any number of labels 1 or 0 for each, of scores these: float32 [rows, labels or scores].
    """
    return np.asarray(split.with_format("numpy")["label"])


def hide_labels(labels: np.ndarray, is_hidden: np.ndarray) -> np.ndarray:
    """Labels of `row_labels`, those of some rows replaced by what says that a row has none; `is_hidden` is [rows]."""
    if labels.ndim == 1:
        return np.where(is_hidden, NO_LABEL, labels)
    return np.where(is_hidden[:, None], np.float32(np.nan), labels)


def _mean_and_deviation(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = labels.astype(np.float64)
    return exact.mean(0).astype(np.float32), exact.std(0).astype(np.float32)


def _log_odds(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each label's share of the rows that have labels, and a deviation of 1."""
    has_labels = ~np.isnan(labels[:, 0])
    count, total = labels[has_labels].sum(0, dtype=np.float64), has_labels.sum()
    odds = (count + 1) / (total - count + 1)  # as if two more rows had and had not the label: no odds of 0
    return np.log(odds).astype(np.float32), np.ones(len(odds), dtype=np.float32)


def collate(
    split: datasets.Dataset, indices: np.ndarray, pad_token_id: int, length: int | None = None
) -> dict[str, np.ndarray]:
    """Rows `indices` as int64 arrays [rows, longest]: input_ids, attention_mask, token_type_ids; and labels, as
    `row_labels` has them.

    Padded on the right to the longest of these rows, or to `length` tokens.
    """
    rows = split[[int(i) for i in indices]]
    width = length or max(len(ids) for ids in rows["input_ids"])
    batch = {
        "input_ids": np.full((len(indices), width), pad_token_id, dtype=np.int64),
        "attention_mask": np.zeros((len(indices), width), dtype=np.int64),
        "token_type_ids": np.zeros((len(indices), width), dtype=np.int64),
        "labels": np.asarray(rows["label"], dtype=np.float32 if isinstance(rows["label"][0], list) else np.int64),
    }
    for i, (ids, types) in enumerate(zip(rows["input_ids"], rows["token_type_ids"], strict=True)):
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["token_type_ids"][i, : len(ids)] = types
    return batch


def single_rows(split: datasets.Dataset, pad_token_id: int) -> Callable[[int], dict]:
    """For `utils.measuring.timing.timed_in_turns`: each row as a batch of its own, at its own length."""
    return lambda row: collate(split, np.array([row]), pad_token_id)


def batches_by_length(row_lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices in batches of rows of nearly equal length, longest first: for evaluation."""
    order = np.argsort(-row_lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def shuffled_batches(row_lengths: np.ndarray, batch_size: int, seed: int) -> list[np.ndarray]:
    """Row indices in shuffled batches of rows of similar length: for one epoch of training.

    Shuffles all rows, sorts by length within pools of 50 batches, cuts those into batches and shuffles the batches, so
    that a batch holds little padding and yet other rows each epoch.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(row_lengths))
    pool = 50 * batch_size
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    order = np.concatenate([rows[np.argsort(-row_lengths[rows], kind="stable")] for rows in pools])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]
