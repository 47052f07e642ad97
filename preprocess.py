"""Tokenize a data set once: data_dir/{train,valid,test}.txt -> data_dir/tokenized/, and data_dir/label.txt.

    python preprocess.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_model_name_or_path=./embeddings/bert-base-uncased

Each line of the text files is sentence<TAB>label or sentence_a<TAB>sentence_b<TAB>label. train.tsv, train.csv,
train.jsonl or train.parquet may take the place of train.txt, with columns of the names that --text_column and
--label_column give; the others likewise. Rows longer than the config's n_ctx tokens are truncated; nothing is padded. A
teacher and a student read one folder where they share a tokenizer; name the teacher with
--teacher_bert_model_name_or_path to have that checked here already. For a teacher with another one, fastformers.py
tokenizes by itself.
Where the config says "task": "multi_label", a row has any number of labels: joined by --label_separator, in a list of
JSON lines or Parquet, or in a column for each that holds 1 or 0 (--label_column=toxic,insult). With "task":
"regression" it has a number, or one in each of several columns.
unlabelled.txt, or a file with columns, may hold texts without labels, for fastformers.py --unlabelled. Its rows are
left out that are empty, come again, or are in train, valid or test; case and white space make no difference. Rows of
train and unlabelled may have soft labels, the probability of every label, for fastformers.py --soft_labels: in a column
(--soft_label_column), or in train.soft.jsonl and unlabelled.soft.jsonl, a line a row.
Several processes, on one machine or on several that share their files: `torchrun --nproc_per_node=2 preprocess.py ...`.
"""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np

from utils.arguments import add_column_options, add_text_options, positive_int, script_parser, text_columns
from utils.data.labels import Columns, label_columns
from utils.data.preprocessing import tokenize_data
from utils.data.soft_labels import SOFT_SPLITS, soft_label_files
from utils.models.checkpoint import check_same_tokenizer, load_hub_config, load_tokenizer
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL, load_config
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.files import check_output_folder

logger = logging.getLogger(__name__)

# Shares above which preprocess.py warns: of rows with one label, of rows that fill n_ctx, and of unknown tokens.
IMBALANCED, TRUNCATED, UNKNOWN = 0.8, 0.01, 0.5
FEW_ROWS = 10  # with a label; of fewer it can hardly be learned


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_text_options(parser)
    group.add_argument("--config", required=True, help="encoder family and n_ctx, a file of configs/")
    group.add_argument("--bert_model_name_or_path", required=True, help="the encoder whose tokenizer is used")
    group.add_argument(
        "--teacher_bert_model_name_or_path",
        help="an encoder whose tokenizer must do the same; without it, none is compared",
    )
    group = add_column_options(parser)
    group.add_argument(
        "--soft_label_column",
        help="column of JSON lines or Parquet with the probability of every label; without it, soft_label where it is "
        "there",
    )
    group = parser.add_argument_group("hardware")
    group.add_argument("--num_proc", type=positive_int, default=1, help="processes that tokenize")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    load_hub_config(args.bert_model_name_or_path, "--bert_model_name_or_path", config, allow_hub_name=True)
    tokenizer = load_tokenizer(args.bert_model_name_or_path, "--bert_model_name_or_path", allow_hub_name=True)
    if args.teacher_bert_model_name_or_path:
        teacher_tokenizer = load_tokenizer(
            args.teacher_bert_model_name_or_path, "--teacher_bert_model_name_or_path", allow_hub_name=True
        )
        check_same_tokenizer(tokenizer, teacher_tokenizer)
    data_dir = Path(args.data_dir)
    if data_dir.is_dir():
        check_output_folder(data_dir, "--data_dir")
    names = text_columns(args, config.task)
    if args.soft_label_column:
        names = with_soft_labels(names, args.soft_label_column.strip(), data_dir)
    label_counts, summary = tokenize_data(data_dir, tokenizer, config.n_ctx, progress, args.num_proc, names)
    for split, counts in summary.items():
        log_split(split, counts, config.n_ctx, args.config, args.bert_model_name_or_path)
    if summary:  # in the first process
        LOG_LABELS[config.task](label_counts, data_dir, summary["train"]["labels"])


def with_soft_labels(names: Columns, column: str, data_dir: Path) -> Columns:
    """The same columns, and that of soft labels.

    Raises:
        UserError: no file has it, or it is one of the others.
    """
    if column in (*names.texts, *label_columns(names)):
        raise UserError(f"--soft_label_column={column} is the column of a text or of the label: name another one")
    names = names._replace(soft_label=column)
    if not any(path.stem in SOFT_SPLITS for path in soft_label_files(data_dir, names).values()):
        raise UserError(f"--soft_label_column={column}: no file of {data_dir} has this column: correct its name")
    return names


def progress(rows: Iterable, total: int, split: str) -> Iterator:
    """The same rows, with a bar."""
    return iter(progress_bar(rows, total=total, desc=f"tokenize {split}", unit="row"))


def log_split(split: str, counts: dict, n_ctx: int, config: str, encoder: str) -> None:
    """Say how long a split's rows are, and what is wrong with many; `counts` is one of `tokenize_data`."""
    rows, full = counts["rows"], counts["full"]
    logger.info(
        "[%s] : %d rows, %.1f tokens on average, longest %d", split, rows, counts["mean_length"], counts["longest"]
    )
    if "dropped" in counts:
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
        logger.info("[%s] : rows that were left out: %s", split, dropped)
    if counts.get("ignored_label"):
        logger.warning(
            "[%s] : its labels, %s, are ignored: put rows with labels into train to learn from them",
            split,
            counts["ignored_label"],
        )
    if counts["soft_labels"]:
        logger.info("[%s] : %d rows have soft labels", split, counts["soft_labels"])
    if full > TRUNCATED * rows:
        logger.warning(
            "[%s] : %d rows, %.1f %%, fill all %d tokens and were probably cut: raise n_ctx in %s if what is lost "
            "matters",
            split,
            full,
            100 * full / rows,
            n_ctx,
            config,
        )
    if counts["unknown"] > UNKNOWN:
        logger.warning(
            "[%s] : %.1f %% of the tokens are unknown to the tokenizer of %s, which cannot tell such words apart: use "
            "an encoder for the language of these texts",
            split,
            100 * counts["unknown"],
            encoder,
        )


def log_labels(label_counts: dict[str, int], data_dir: Path, labels: None) -> None:
    """Say which labels there are, and where nearly all rows have the same one."""
    most = max(label_counts, key=label_counts.__getitem__)
    share = label_counts[most] / sum(label_counts.values())
    if share > IMBALANCED:
        logger.warning(
            "[Labels] : %.1f %% of train is %s, and so is the accuracy of always saying that: go by the macro F1 of "
            "evaluate.py",
            100 * share,
            most,
        )
    shown = ", ".join(itertools.islice(label_counts, 8)) + (", ..." if len(label_counts) > 8 else "")
    logger.info("[Labels] : %d (%s), written to %s", len(label_counts), shown, data_dir / "label.txt")


def log_several_labels(label_counts: dict[str, int], data_dir: Path, labels: np.ndarray) -> None:
    """Say which labels there are, how many a row has, and which are in few rows; `labels` [rows, labels] are 1 or 0."""
    log_labels(dict.fromkeys(label_counts, 1), data_dir, None)
    counts = labels.sum(1)
    logger.info(
        "[Labels] : of %d rows of train %d have several, %d one and %d none",
        len(counts),
        int((counts > 1).sum()),
        int((counts == 1).sum()),
        int((counts == 0).sum()),
    )
    by_count = sorted(label_counts, key=lambda label: -label_counts[label])
    numbers = [f"{label} {label_counts[label]}" for label in by_count]
    shown = numbers if len(numbers) <= 16 else [*numbers[:8], "...", *numbers[-7:]]
    logger.info("[Labels] : rows with each: %s", ", ".join(shown))
    most = label_counts[by_count[0]] / len(counts)
    if most > IMBALANCED:
        logger.warning("[Labels] : %.1f %% of the rows of train have %s", 100 * most, by_count[0])
    few = [number for number, label in zip(numbers, by_count, strict=True) if label_counts[label] < FEW_ROWS]
    if few:
        logger.warning(
            "[Labels] : fewer than %d rows of train have %s: too few to learn them from", FEW_ROWS, ", ".join(few[:8])
        )


def log_scores(names: dict[str, int], data_dir: Path, scores: np.ndarray) -> None:
    """Say in which range the scores [rows, scores] are, and where nearly all rows have the same."""
    for name, values in zip(names, scores.T.astype(np.float64), strict=True):
        logger.info(
            "[Scores] : %r of train is from %.6g to %.6g, mean %.6g, standard deviation %.6g",
            name,
            values.min(),
            values.max(),
            values.mean(),
            values.std(),
        )
        different, counts = np.unique(values, return_counts=True)
        if counts.max() > IMBALANCED * len(values):
            share = 100 * counts.max() / len(values)
            logger.warning(
                "[Scores] : %.1f %% of train have the same %r, %.6g", share, name, different[counts.argmax()]
            )
    logger.info("[Labels] : %d (%s), written to %s", len(names), ", ".join(names), data_dir / "label.txt")


LOG_LABELS: dict[str, Callable[[dict[str, int], Path, Any], None]] = {
    SINGLE_LABEL: log_labels,
    MULTI_LABEL: log_several_labels,
    REGRESSION: log_scores,
}


if __name__ == "__main__":
    run_script(main)
