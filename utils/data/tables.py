"""Data sets: rows of `utils.data.texts` -> tokenized Arrow tables -> batches of rows of about the same length.

preprocess.py writes, beside a data folder's files, label.txt (one label a line, in the order of their ids) and
tokenized/, which the other scripts read. `utils.data.teacher_rows` writes further folders like tokenized/.
"""

import filecmp
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from utils.data.soft_labels import SoftLabel, read_soft_labels, soft_label_files
from utils.data.texts import (
    AUGMENTED,
    NAMES,
    SPLITS,
    UNLABELLED,
    Columns,
    TextRow,
    read_labels,
    read_rows,
    split_path,
)
from utils.data.tokenization import prepare_tokenizer, tokenize
from utils.data.unlabelled_rows import UnlabelledRows, choose_rows, has_unlabelled, used_texts
from utils.models.checkpoint import tokenizer_fingerprint
from utils.system.errors import UserError
from utils.system.files import atomic_file, write_json
from utils.system.launcher import atomic_folder_of_all, join_processes, together
from utils.system.pool import chunks, map_in_processes

TOKENIZED = "tokenized"  # the folder of preprocess.py
CHUNK = 10_000  # rows tokenized at a time
NO_LABEL = -1  # the label id of a row without a label
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.int8()), "label": pa.int32()})
SOFT_LABEL = "soft_label"  # the column of splits that have soft labels; null where a row has none
SOFT_SCHEMA = SCHEMA.append(pa.field(SOFT_LABEL, pa.list_(pa.float32())))
Row = tuple[TextRow, SoftLabel]


@dataclass(frozen=True)
class Data:
    """A tokenized data set: `labels` in the order of their ids, and one memory-mapped table a split.

    The splits are train, valid and test, and augmented and unlabelled where there are such rows.
    """

    labels: list[str]
    splits: dict[str, datasets.Dataset]
    folder: Path  # that holds the tables
    fingerprint: str  # of texts, tokenizer and n_ctx
    hashes: dict[str, str]  # SHA-256 of every split's text file
    texts_a_row: int | None  # 1, or 2 for pairs; None where it was tokenized before this was written down
    # Of the splits that have some, see `utils.data.soft_labels`.
    soft_labels: dict[str, pa.ChunkedArray] = field(default_factory=dict)


def tokenize_data(
    data_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    n_ctx: int,
    progress,
    num_proc: int = 1,
    names: Columns = NAMES,
    folder_name: str = TOKENIZED,
    other_mask: tuple[str, str] | None = None,
) -> tuple[dict[str, int], dict]:
    """Tokenize the files into data_dir/tokenized, without padding, and write data_dir/label.txt.

    Where a launcher started several processes, each tokenizes its share of the chunks, and the first one puts them
    together.

    Args:
        n_ctx: longest row in tokens, special tokens included; longer ones are truncated (the longer sentence of a pair
            first).
        num_proc: processes that each of those makes to tokenize; one uses all cores for a part of the work.
        progress: called as `progress(rows, total, split)`; returns an iterator over the same rows (a tqdm bar).
        folder_name: another name than `tokenized`; label.txt is then left as it is.
        other_mask: the mask token that stands in augmented rows, and the one that takes its place.

    Returns:
        The labels with their numbers of rows in train; and for each split its number of rows, mean and longest length
        in tokens, how many rows have n_ctx tokens, which most of them were cut to, the share of unknown tokens among
        all but the special ones, how many rows have soft labels and, of the unlabelled rows, which are not in the
        table; empty but in the first process.

    Raises:
        UserError: as `read_labels`, `choose_rows` and `read_soft_labels`, or the folder is something else, or another
            process failed.
    """
    label_counts, counts = read_labels(data_dir, names)
    labels, splits = list(label_counts), list(counts)
    unlabelled = choose_rows(data_dir, names, labels) if has_unlabelled(data_dir) else None
    if unlabelled:
        splits.append(UNLABELLED)
        counts[UNLABELLED] = int(unlabelled.is_used.sum())
    # Those who need other tokens need the texts alone.
    soft_files = soft_label_files(data_dir, names) if folder_name == TOKENIZED else {}
    target = data_dir / folder_name
    if target.exists() and not (target / "meta.json").exists():
        raise UserError(f"{target} is not a data set of this project: move it away")
    summary: dict[str, dict] = {}
    state = join_processes()
    with atomic_folder_of_all(target, state) as folder:
        for split in splits:
            schema = SOFT_SCHEMA if split in soft_files else SCHEMA
            tokenize_chunk = partial(_tokenized_chunk, tokenizer.backend_tokenizer, labels, n_ctx, schema)
            shards = [folder / f"{split}.{i}.arrow" for i in range(state.num_processes)]
            with together(state):
                rows = _split_rows(data_dir, split, names, labels, counts[split], unlabelled, soft_files.get(split))
                if other_mask and split == AUGMENTED:
                    rows = _with_mask(rows, *other_mask)
                shown = progress(rows, counts[split], split)
                own = itertools.islice(chunks(shown, CHUNK), state.process_index, None, state.num_processes)
                _write_batches(shards[state.process_index], schema, map_in_processes(tokenize_chunk, own, num_proc))
            if state.is_main_process:
                _merge(shards, folder / f"{split}.arrow", schema)
                summary[split] = _summary(folder / f"{split}.arrow", tokenizer, n_ctx)
        if state.is_main_process:
            write_json(folder / "meta.json", _meta(data_dir, labels, n_ctx, tokenizer, names, splits, soft_files))
            _copy_teachers_logits(target, folder, splits)
            if folder_name == TOKENIZED:
                with atomic_file(data_dir / "label.txt") as temporary:
                    temporary.write_text("".join(label + "\n" for label in labels), encoding="utf-8")
    if unlabelled and summary:
        summary[UNLABELLED] |= {"dropped": unlabelled.dropped, "ignored_label": unlabelled.ignored_label}
    return label_counts, summary


def load_data(
    data_dir: str | Path, tokenizer: PreTrainedTokenizerFast, n_ctx: int, folder_name: str = TOKENIZED
) -> Data:
    """Open the tokenized data set of a data folder.

    Raises:
        UserError: it is missing or damaged, or was made with another tokenizer, n_ctx or other texts.
    """
    data_dir = Path(data_dir)
    folder = data_dir / folder_name
    again = "run preprocess.py again"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        made_with = (meta["n_ctx"], meta["tokenizer"])
        # Only these names: they become paths.
        names = [*SPLITS, *(split for split in (AUGMENTED, UNLABELLED) if split in meta["texts"])]
        labels, hashes = meta["labels"], {split: meta["texts"][split] for split in names}
        splits = {split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in hashes}
        soft_labels = {split: table.data.column(SOFT_LABEL) for split, table in splits.items() if _is_soft(table)}
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
    for split in hashes:
        path = split_path(data_dir, split)
        if path.exists() and file_hash(path) != hashes[split]:
            raise UserError(f"{path} has changed since it was tokenized: {again}")
    for name, (source, soft_hash, _) in soft_files.items():
        path = data_dir / name
        if source == name and path.exists() and file_hash(path) != soft_hash:
            raise UserError(f"{path} has changed since it was tokenized: {again}")
    fingerprint = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]
    return Data(labels, splits, folder, fingerprint, hashes, meta.get("texts_a_row"), soft_labels)


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


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lengths(split: datasets.Dataset) -> np.ndarray:
    """Length in tokens of every row, int array [rows]."""
    column = split.data.column("input_ids")
    return pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)


def row_labels(split: datasets.Dataset) -> np.ndarray:
    """Label id of every row, int array [rows]."""
    return np.asarray(split.with_format("numpy")["label"])


def collate(
    split: datasets.Dataset, indices: np.ndarray, pad_token_id: int, length: int | None = None
) -> dict[str, np.ndarray]:
    """Rows `indices` as int64 arrays [rows, longest]: input_ids, attention_mask, token_type_ids; and labels [rows].

    Padded on the right to the longest of these rows, or to `length` tokens.
    """
    rows = split[[int(i) for i in indices]]
    width = length or max(len(ids) for ids in rows["input_ids"])
    batch = {
        "input_ids": np.full((len(indices), width), pad_token_id, dtype=np.int64),
        "attention_mask": np.zeros((len(indices), width), dtype=np.int64),
        "token_type_ids": np.zeros((len(indices), width), dtype=np.int64),
        "labels": np.asarray(rows["label"], dtype=np.int64),
    }
    for i, (ids, types) in enumerate(zip(rows["input_ids"], rows["token_type_ids"], strict=True)):
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["token_type_ids"][i, : len(ids)] = types
    return batch


def evenly_spaced(count: int, size: int) -> np.ndarray:
    """Up to `count` different indices from 0 to `size` - 1, the first and the last among them, int [indices].

    Of rows sorted by length they are rows of all lengths.
    """
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(int))


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


def _split_rows(
    data_dir: Path,
    split: str,
    names: Columns,
    labels: list[str],
    num_rows: int,
    unlabelled: UnlabelledRows | None,
    soft_file: Path | None,
) -> Iterator[Row]:
    """The rows of a split as they are tokenized; `num_rows` of them, where it is another one than unlabelled."""
    soft_labels: Iterator[SoftLabel] = itertools.repeat(None)
    if split == UNLABELLED:
        assert unlabelled
        rows: Iterator[TextRow] = ((texts, "") for texts in used_texts(unlabelled, names))
        if soft_file:
            of_all = read_soft_labels(soft_file, names, labels, len(unlabelled.is_used))
            soft_labels = itertools.compress(of_all, unlabelled.is_used.tobytes())
    else:
        rows = read_rows(split_path(data_dir, split), names)
        if soft_file:
            soft_labels = read_soft_labels(soft_file, names, labels, num_rows)
    # Not so strict for what is endless; the other way round, files of the wrong length would not be read to their end.
    return zip(rows, soft_labels, strict=False) if soft_file is None else _zip_to_the_end(rows, soft_labels)


def _zip_to_the_end(rows: Iterator[TextRow], soft_labels: Iterator[SoftLabel]) -> Iterator[Row]:
    for soft_label in soft_labels:
        yield next(rows), soft_label


def _meta(
    data_dir: Path,
    labels: list[str],
    n_ctx: int,
    tokenizer: PreTrainedTokenizerFast,
    names: Columns,
    splits: list[str],
    soft_files: dict[str, Path],
) -> dict:
    """What `load_data` checks, meta.json."""
    meta = {
        "labels": labels,
        "n_ctx": n_ctx,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "texts_a_row": _texts_a_row(data_dir, names),
        "texts": {split: file_hash(split_path(data_dir, split)) for split in splits},
        "columns": names._asdict(),
    }
    if soft_files:
        meta["soft_labels"] = {
            split: [path.name, file_hash(path), names.soft_label] for split, path in soft_files.items()
        }
    return meta


def _texts_a_row(data_dir: Path, names: Columns) -> int:
    return len(next(read_rows(split_path(data_dir, "train"), names))[0])


def _is_soft(table: datasets.Dataset) -> bool:
    return SOFT_LABEL in table.column_names


def _tokenized_chunk(
    backend: Tokenizer, labels: list[str], n_ctx: int, schema: pa.Schema, rows: list[Row]
) -> pa.RecordBatch:
    label_ids = {label: i for i, label in enumerate(labels)} | {"": NO_LABEL}
    texts = [texts if len(texts) == 2 else texts[0] for (texts, _), _ in rows]
    encoded = tokenize(prepare_tokenizer(backend), texts, n_ctx)
    columns: list[list] = [[ids for ids, _ in encoded], [types for _, types in encoded]]
    columns.append([label_ids[label] for (_, label), _ in rows])
    if SOFT_LABEL in schema.names:
        columns.append([soft_label for _, soft_label in rows])
    return pa.record_batch(columns, schema=schema)


def _with_mask(rows: Iterable[Row], mask: str, other_mask: str) -> Iterator[Row]:
    for (texts, label), soft_label in rows:
        yield (tuple(text.replace(mask, other_mask) for text in texts), label), soft_label


def _write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _merge(shards: list[Path], target: Path, schema: pa.Schema) -> None:
    """Put the processes' shards together, a chunk of each in turn, as the chunks were dealt out; removes them."""
    if len(shards) == 1:
        shards[0].rename(target)
        return
    _write_batches(target, schema, _batches_in_turns(shards))
    for shard in shards:
        shard.unlink()


def _batches_in_turns(shards: list[Path]) -> Iterator[pa.RecordBatch]:
    with ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(path))) for path in shards]
        readers = [stack.enter_context(pa.ipc.open_stream(file)) for file in files]
        for reader in itertools.cycle(readers):
            try:
                yield reader.read_next_batch()
            except StopIteration:  # all of the others are at their end as well
                return


def _copy_teachers_logits(old: Path, new: Path, splits: list[str]) -> None:
    """Take along what `utils.training.teacher` keeps beside the splits that have not changed."""
    for split in splits:
        paths, table = list(old.glob(f"teacher-*-{split}-*.safetensors")), f"{split}.arrow"
        if paths and (old / table).exists() and filecmp.cmp(old / table, new / table, shallow=False):
            for path in paths:
                shutil.copy2(path, new)


def _summary(path: Path, tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> dict[str, float]:
    split = datasets.Dataset.from_file(str(path))
    widths, words, unknown = lengths(split), 0, 0
    special = pa.array([i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id], pa.int32())
    for chunk in split.data.column("input_ids").chunks:
        ids = chunk.flatten()
        words += len(ids) - (pa.compute.sum(pa.compute.is_in(ids, special)).as_py() or 0)
        if tokenizer.unk_token_id is not None:
            unknown += pa.compute.sum(pa.compute.equal(ids, tokenizer.unk_token_id)).as_py() or 0
    return {
        "rows": len(widths),
        "mean_length": float(widths.mean()),
        "longest": int(widths.max()),
        "full": int((widths == n_ctx).sum()),
        "unknown": unknown / max(1, words),
        "soft_labels": len(split) - split.data.column(SOFT_LABEL).null_count if _is_soft(split) else 0,
    }
