"""Make more rows for a student to learn from: data_dir/train.txt -> data_dir/augmented.txt.

    python augment_data.py --data_dir=data/sst2 --bert_model_name_or_path=./embeddings/bert-base-uncased --n_iter=20
    python preprocess.py ...
    python fastformers.py ... --augmented

Each row of train.txt is varied --n_iter times: words are masked (--mask_ratio) or replaced by one of the nearest
neighbours among the encoder's own word embeddings (--replace_ratio), and at times only some words in a row are kept
(--ngram_ratio), after Tang et al. 2019 (arXiv 1903.12136) and TinyBERT (arXiv 1909.10351). Words are what spaces
separate; in scripts without spaces, such as Chinese, each character. No row comes twice, and none is in train.txt,
valid.txt or test.txt. The label is its source's; fastformers.py goes by what the teacher says instead. --unlabelled
varies the rows of unlabelled.txt as well; their variants have no label.
Stopped or killed, the same command continues where it was. Run preprocess.py again afterwards.
"""

import argparse
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import utils.system.environment  # isort: skip  # noqa: F401

from utils.arguments import (
    add_column_options,
    add_resume_options,
    add_text_options,
    begin_journal,
    fraction,
    positive_int,
    script_parser,
    text_columns,
)
from utils.data.augmentation import Ratios, nearest_words, new_rows, variants, write_rows
from utils.data.label_checks import read_labels
from utils.data.texts import AUGMENTED, SPLITS, UNLABELLED, TextRow, Texts, read_rows, split_path
from utils.data.unlabelled_rows import choose_rows, has_unlabelled, used_texts
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_word_embeddings
from utils.models.config import SINGLE_LABEL, load_config
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.files import check_output_folder, file_hash
from utils.system.journal import unfinished_path

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_text_options(parser)
    group.add_argument("--bert_model_name_or_path", required=True, help="the encoder whose word embeddings are used")
    group.add_argument("--config", help="file of configs/ that says the task; without it, rows have one label")
    add_column_options(parser)
    group.add_argument(
        "--unlabelled", action="store_true", help="vary unlabelled.txt's rows too; without it, those of train.txt"
    )
    group = parser.add_argument_group("variants")
    group.add_argument("--n_iter", type=positive_int, default=20, help="variants of each row, those twice left out")
    group.add_argument("--mask_ratio", type=fraction, default=0.1, help="share of the words that are masked")
    group.add_argument("--replace_ratio", type=fraction, default=0.3, help="share of the words that are replaced")
    group.add_argument("--ngram_ratio", type=fraction, default=0.25, help="share of the variants with some words only")
    group.add_argument("--num_neighbours", type=positive_int, default=15, help="words that one may be replaced by")
    group.add_argument("--seed", type=int, default=42, help="of all choices; the result does not depend on --num_proc")
    add_resume_options(parser, training=False)
    group = parser.add_argument_group("hardware")
    group.add_argument("--num_proc", type=positive_int, default=1, help="processes that make variants")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    encoder, data_dir = args.bert_model_name_or_path, Path(args.data_dir)
    tokenizer = load_tokenizer(encoder, "--bert_model_name_or_path", allow_hub_name=True)
    if args.mask_ratio and tokenizer.mask_token is None:
        raise UserError("--mask_ratio: this tokenizer has no mask token: give --mask_ratio=0")
    if data_dir.is_dir():
        check_output_folder(data_dir, "--data_dir")
    names = text_columns(args, load_config(args.config).task if args.config else SINGLE_LABEL)
    label_counts, counts = read_labels(data_dir, names)
    splits, num_rows = [*SPLITS], counts["train"]
    unlabelled = None
    if args.unlabelled:
        if not has_unlabelled(data_dir):
            raise UserError(f"--unlabelled: {data_dir} has no unlabelled.txt: put texts there, or leave the option out")
        unlabelled = choose_rows(data_dir, names, list(label_counts))
        splits, num_rows = [*splits, UNLABELLED], num_rows + int(unlabelled.is_used.sum())
    embeddings = load_word_embeddings(encoder, "--bert_model_name_or_path", allow_hub_name=True)
    neighbours = nearest_words(embeddings, tokenizer, args.num_neighbours)

    def unlabelled_texts() -> Iterable[Texts]:
        return used_texts(unlabelled, names) if unlabelled else ()

    def rows() -> Iterable[TextRow]:
        without_labels = ((texts, "") for texts in unlabelled_texts())
        of_train = read_rows(split_path(data_dir, "train"), names)
        return progress_bar(itertools.chain(of_train, without_labels), total=num_rows, unit="row")

    known = (texts for split in SPLITS for texts, _ in read_rows(split_path(data_dir, split), names))
    target = data_dir / f"{AUGMENTED}.txt"
    contents: dict[str, object] = {
        "--data_dir": [file_hash(split_path(data_dir, split))[:16] for split in splits],
        "--bert_model_name_or_path": hash_of(neighbours),
    }
    cached = begin_journal(args, str(target), contents)
    ratios = Ratios(args.mask_ratio, args.replace_ratio, args.ngram_ratio)
    varied = variants(
        cached,
        rows,
        num_rows,
        neighbours,
        tokenizer.mask_token,
        ratios,
        args.n_iter,
        args.seed,
        args.num_proc,
    )
    count = write_rows(target, new_rows(varied, itertools.chain(known, unlabelled_texts())))
    unfinished_path(target).unlink()
    if not count:
        raise UserError(f"no row could be varied: raise --n_iter, --replace_ratio or --mask_ratio ({data_dir})")
    logger.info("[Augmented] : %d rows of %d, written to %s: run preprocess.py", count, num_rows, target)


def hash_of(neighbours: dict[str, list[str]]) -> str:
    """The same for the same neighbours, in whatever order their words are."""
    return hashlib.sha256(json.dumps(neighbours, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    run_script(main)
