"""Text files -> tokenized Arrow tables.

preprocess.py writes, beside a data folder's files, label.txt (one label a line, in the order of their ids) and
tokenized/, which the other scripts read. `utils.data.teacher_rows` writes further folders like tokenized/.
"""

import filecmp
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from accelerate import PartialState
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from utils.data.label_checks import read_labels
from utils.data.labels import Columns, encoded_labels
from utils.data.soft_labels import SoftLabel, read_soft_labels, soft_label_files
from utils.data.tables import SOFT_LABEL, TOKENIZED, lengths, row_labels
from utils.data.texts import AUGMENTED, NAMES, UNLABELLED, TextRow, read_rows, split_path
from utils.data.unlabelled_rows import UnlabelledRows, choose_rows, has_unlabelled, used_texts
from utils.models.checkpoint import tokenizer_fingerprint
from utils.models.config import SINGLE_LABEL
from utils.predictor.tokens import prepare_tokenizer, tokenize
from utils.system.errors import UserError
from utils.system.files import atomic_file, file_hash, write_json
from utils.system.launcher import atomic_folder_of_all, join_processes, together
from utils.system.pool import chunks, map_in_processes

CHUNK = 10_000  # rows tokenized at a time
NUMBERS = pa.list_(pa.float32())  # one for each label, or score
Row = tuple[TextRow, SoftLabel]


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
        folder_name: another name than `tokenized`; label.txt is then left as it is, and soft labels are left out.
        other_mask: the mask token that stands in augmented rows, and the one that takes its place.

    Returns:
        The labels with their numbers of rows in train; and for each split its number of rows, mean and longest length
        in tokens, how many rows have n_ctx tokens, which most of them were cut to, the share of unknown tokens among
        all but the special ones, of train where a row has not just one label the numbers of `row_labels`, how many
        rows have soft labels and, of the unlabelled rows, which are not in the table; empty but in the first process.

    Raises:
        UserError: as `read_labels`, `choose_rows` and `read_soft_labels`, or the folder is something else, or another
            process failed.
    """
    label_counts, counts = read_labels(data_dir, names)
    labels = list(label_counts)
    unlabelled = choose_rows(data_dir, names, labels) if has_unlabelled(data_dir) else None
    if unlabelled:
        counts[UNLABELLED] = int(unlabelled.is_used.sum())
    soft_files = soft_label_files(data_dir, names) if folder_name == TOKENIZED else {}
    target = data_dir / folder_name
    if target.exists() and not (target / "meta.json").exists():
        raise UserError(f"{target} is not a data set of this project: move it away")
    summary: dict[str, dict] = {}
    state = join_processes()
    with atomic_folder_of_all(target, state) as folder:
        for split in counts:
            rows = _split_rows(data_dir, split, names, labels, counts[split], unlabelled, soft_files.get(split))
            if other_mask and split == AUGMENTED:
                rows = _with_mask(rows, *other_mask)
            table, schema = folder / f"{split}.arrow", _schema(names.task, split in soft_files)
            has_empty = split in (AUGMENTED, UNLABELLED)
            tokenize_chunk = partial(
                _tokenized_chunk, tokenizer.backend_tokenizer, labels, names, has_empty, n_ctx, schema
            )
            _write_table(table, schema, progress(rows, counts[split], split), tokenize_chunk, num_proc, state)
            if state.is_main_process:
                summary[split] = _summary(table, tokenizer, n_ctx)
        if state.is_main_process:
            write_json(folder / "meta.json", _meta(data_dir, labels, n_ctx, tokenizer, names, list(counts), soft_files))
            _copy_teachers_logits(target, folder, list(counts))
            if folder_name == TOKENIZED:
                with atomic_file(data_dir / "label.txt") as temporary:
                    temporary.write_text("".join(label + "\n" for label in labels), encoding="utf-8")
    if unlabelled and summary:
        summary[UNLABELLED] |= {"dropped": unlabelled.dropped, "ignored_label": unlabelled.ignored_label}
    return label_counts, summary


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
        "columns": {"texts": names.texts, "label": names.label, "soft_label": names.soft_label},
    }
    if names.task != SINGLE_LABEL:
        meta |= {"task": names.task, "columns": names._asdict()}
    if soft_files:
        meta["soft_labels"] = {
            split: [path.name, file_hash(path), names.soft_label] for split, path in soft_files.items()
        }
    return meta


def _texts_a_row(data_dir: Path, names: Columns) -> int:
    return len(next(read_rows(split_path(data_dir, "train"), names))[0])


def _schema(task: str, has_soft_labels: bool) -> pa.Schema:
    label = pa.int32() if task == SINGLE_LABEL else NUMBERS
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.int8()), "label": label})
    return schema.append(pa.field(SOFT_LABEL, NUMBERS)) if has_soft_labels else schema


def _tokenized_chunk(
    backend: Tokenizer,
    labels: list[str],
    names: Columns,
    has_empty: bool,
    n_ctx: int,
    schema: pa.Schema,
    rows: list[Row],
) -> pa.RecordBatch:
    texts = [texts if len(texts) == 2 else texts[0] for (texts, _), _ in rows]
    encoded = tokenize(prepare_tokenizer(backend), texts, n_ctx)
    columns: list[list] = [[ids for ids, _ in encoded], [types for _, types in encoded]]
    columns.append(encoded_labels([label for (_, label), _ in rows], labels, names, has_empty))
    if SOFT_LABEL in schema.names:
        columns.append([soft_label for _, soft_label in rows])
    return pa.record_batch(columns, schema=schema)


def _with_mask(rows: Iterable[Row], mask: str, other_mask: str) -> Iterator[Row]:
    for (texts, label), soft_label in rows:
        yield (tuple(text.replace(mask, other_mask) for text in texts), label), soft_label


def _write_table(
    path: Path,
    schema: pa.Schema,
    rows: Iterable[Row],
    tokenize_chunk: Callable[[list[Row]], pa.RecordBatch],
    num_proc: int,
    state: PartialState,
) -> None:
    """Write a table of rows, of which each process of the launcher tokenizes its share of the chunks."""
    shards = [path.with_suffix(f".{i}.arrow") for i in range(state.num_processes)]
    with together(state):
        own = itertools.islice(chunks(rows, CHUNK), state.process_index, None, state.num_processes)
        _write_batches(shards[state.process_index], schema, map_in_processes(tokenize_chunk, own, num_proc))
    if state.is_main_process:
        _merge(shards, path, schema)


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


def _summary(path: Path, tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> dict[str, Any]:
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
        "labels": row_labels(split) if path.stem == "train" and np.ndim(split[0]["label"]) else None,
        "soft_labels": len(split) - split.data.column(SOFT_LABEL).null_count if SOFT_LABEL in split.column_names else 0,
    }
