"""Command-line options that several scripts share, and checks of their values."""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from utils.system.cli import LIBRARIES
from utils.system.errors import UserError

if TYPE_CHECKING:  # predict.py does without PyTorch and pyarrow
    from accelerate import Accelerator

    from utils.data.texts import Columns
    from utils.system.journal import Cached
    from utils.training.loop import Settings
    from utils.training.resume import UnfinishedRun


# Of every script.


def script_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser whose help shows the script's docstring as written, and every default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            return action.help if action.default in (None, False) else super()._get_help_string(action)

    parser = argparse.ArgumentParser(description=docstring, formatter_class=Formatter, allow_abbrev=False)
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action=_LogLevel, const=logging.WARNING, help="say nothing but warnings")
    how_much.add_argument("--verbose", action=_LogLevel, const=logging.DEBUG, help="say what the libraries say too")
    return parser


class _LogLevel(argparse.Action):
    """Sets how much is logged, as soon as it is read; it leaves no trace in the namespace."""

    def __init__(self, option_strings, dest, const, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        logging.getLogger().setLevel(self.const)
        if self.const == logging.DEBUG:
            for name in LIBRARIES:
                logging.getLogger(name).setLevel(logging.INFO)


# Of scripts that read texts: preprocess.py, augment_data.py, report.py, predict.py.


def add_text_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--data_dir of a data set that need not be tokenized; returns its group, for what else a script reads."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--data_dir", required=True, help="folder with train, valid and test, as .txt, .tsv, .csv, .jsonl or .parquet"
    )
    return group


def add_column_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--text_column and --label_column; returns their group, for what else a script reads."""
    group = parser.add_argument_group("columns of TSV, CSV, JSON lines and Parquet files")
    group.add_argument("--text_column", default="text", help="column of the sentence; of a pair, two, such as q1,q2")
    group.add_argument(
        "--label_column",
        default="label",
        help="column of the label; of the tasks multi_label and regression also several, such as toxic,insult",
    )
    group.add_argument(
        "--label_separator",
        default="|",
        help="what joins the labels of a row, or its scores, in one text, for the task multi_label",
    )
    return group


def text_columns(args: argparse.Namespace, task: str = "single_label") -> Columns:
    """The columns that the options of `add_column_options` name.

    Raises:
        UserError: as `column_names`, or the label has the name of a text, or of its columns one has no name or that of
            another, or holds the separator, or there is none.
    """
    from utils.data.labels import Columns, label_columns

    names = Columns(column_names(args.text_column), args.label_column.strip(), task=task)
    separator = args.label_separator.strip()
    if not separator or "\t" in separator or len(separator.splitlines()) > 1:
        raise UserError(
            f"--label_separator={args.label_separator!r}: give a character, or several, other than white space"
        )
    names, columns = names._replace(separator=separator), label_columns(names)
    given = f"--label_column={names.label}"
    if any(column in names.texts for column in columns):
        raise UserError(f"--text_column={args.text_column} and {given} name a column twice: name others")
    if not all(columns) or len(set(columns)) < len(columns):
        raise UserError(f"{given} has an empty name, or one twice: name each column once, with commas between")
    if len(columns) > 1 and any(separator in column for column in columns):
        raise UserError(f"{given} and --label_separator={separator}: a label may not hold it: give another separator")
    return names


def column_names(text_column: str) -> tuple[str, ...]:
    """The names in --text_column: one, or two of a pair.

    Raises:
        UserError: more than two, an empty name, or the same twice.
    """
    names = tuple(name.strip() for name in text_column.split(","))
    if len(names) > 2 or not all(names):
        raise UserError(f"--text_column={text_column}: name one column, or two of a pair with a comma between")
    if len(set(names)) < len(names):
        raise UserError(f"--text_column={text_column} names a column twice: name two columns")
    return names


# Of scripts that read tokenized texts, and a classifier: train.py, fastformers.py, prune.py, quantize.py, evaluate.py.


def add_data_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--config and --data_dir; returns their group, for what else a script reads."""
    group = parser.add_argument_group("input")
    group.add_argument("--config", required=True, help="encoder family and n_ctx, a file of configs/")
    group.add_argument("--data_dir", required=True, help="data folder that preprocess.py has tokenized")
    return group


def add_checkpoint_options(group: argparse._ArgumentGroup) -> None:
    """--bert_output_dir and --model_path: a trained classifier to work on."""
    group.add_argument("--bert_output_dir", required=True, help="checkpoint folder: tokenizer, labels, weights")
    group.add_argument("--model_path", help="its state dict (.pt); without it the folder's own weights are used")


def add_device_option(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--device; returns its group, for what else a script says of the hardware."""
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="auto takes a GPU where there is one; choose among several with CUDA_VISIBLE_DEVICES",
    )
    return group


# Of scripts that train: train.py, fastformers.py, and prune.py in part.


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What a training writes: --bert_output_dir, --save_path and --log_dir."""
    group = parser.add_argument_group("output")
    group.add_argument("--bert_output_dir", required=True, help="folder for the best checkpoint")
    group.add_argument("--save_path", required=True, help="file for the best checkpoint's state dict (.pt)")
    group.add_argument("--log_dir", help="folder for TensorBoard's event files; without it there are none")


def add_training_options(parser: argparse.ArgumentParser, lr: float, epochs: int, distillation: bool = False) -> None:
    """Hyperparameters and hardware of the training loop, and how it can be continued."""
    from utils.training.metrics import MEASURES

    losses = ["loss"] + ["kd_loss"] * distillation

    group = parser.add_argument_group("training")
    group.add_argument(
        "--lr",
        type=positive_float,
        default=lr,
        help="peak learning rate; for encoders of MiniLM's size, and 2e-5 to 5e-5 for those of BERT-base's",
    )
    group.add_argument("--epoch", type=positive_int, default=epochs, help="passes over train.txt")
    group.add_argument("--batch_size", type=positive_int, default=32, help="rows a step, over all processes together")
    group.add_argument(
        "--accumulation_steps",
        type=positive_int,
        default=1,
        help="parts in which a step's rows are computed, one after the other, where memory is short",
    )
    group.add_argument("--warmup_ratio", type=fraction, default=0.1, help="share of the steps in which --lr is reached")
    group.add_argument("--weight_decay", type=nonnegative_float, default=0.01, help="of weight matrices, AdamW's")
    group.add_argument(
        "--freeze_embeddings",
        action="store_true",
        help="train all but the embeddings: a step takes less time and memory",
    )
    group.add_argument("--max_grad_norm", type=positive_float, default=1.0, help="longer gradients are clipped to it")
    group.add_argument(
        "--measure",
        choices=[*losses, *(name for names in MEASURES.values() for name in names)],
        help="what picks the best model on valid.txt: loss, "
        + "kd_loss (--kd_loss against the teacher's logits there), " * distillation
        + "or one of the task (default: accuracy; of multi_label macro_f1, of regression pearson)",
    )
    group.add_argument(
        "--eval_steps",
        type=positive_int,
        help="steps after which it is scored too; without it, at each epoch's end only",
    )
    group.add_argument(
        "--patience",
        type=positive_int,
        help="scores in a row without a better one after which training stops; without it, after all epochs",
    )
    group.add_argument("--seed", type=int, default=42, help="seed of the classifier's start, row order and dropout")
    add_resume_options(parser)
    group = add_device_option(parser)
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="autocast; auto takes bf16 where the hardware has it, else fp32",
    )


def training_settings(args: argparse.Namespace, task: str) -> Settings:
    """The hyperparameters among the options of `add_training_options`; puts the task's main measure into them.

    Raises:
        UserError: --measure is of another task.
    """
    from utils.training.loop import Settings
    from utils.training.metrics import MEASURES, main_measure
    from utils.training.scoring import LOSSES

    args.measure = args.measure or main_measure(task)
    if args.measure not in (*LOSSES, *MEASURES[task]):
        raise UserError(
            f"--measure={args.measure} is not one of the task {task}: give loss or {', '.join(MEASURES[task])}"
        )
    return Settings(
        lr=args.lr,
        epochs=args.epoch,
        batch_size=args.batch_size,
        measure=args.measure,
        seed=args.seed,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        accumulation_steps=args.accumulation_steps,
        eval_steps=args.eval_steps,
        patience=args.patience,
    )


# Of scripts that can be continued.


def add_resume_options(parser: argparse.ArgumentParser, training: bool = True) -> None:
    """--resume and --overwrite and, for a training, --save_steps."""
    group = parser.add_argument_group("continuing a run that was stopped or killed")
    if training:
        group.add_argument("--save_steps", type=positive_int, default=200, help="steps that a killed run loses at most")
    group.add_argument(
        "--resume",
        choices=["auto", "always"],
        default="auto",
        help="auto continues an unfinished run of the same command if there is one; always fails if there is none",
    )
    add_overwrite_option(group)


def add_overwrite_option(group: argparse._ArgumentGroup) -> None:
    """--overwrite."""
    group.add_argument(
        "--overwrite", action="store_true", help="start again; without it, an unfinished run is continued"
    )


def deciding_flags(args: argparse.Namespace, unlike: Mapping[str, object]) -> dict[str, object]:
    """The options that decide a run's result, by flag.

    Args:
        unlike: what takes the place of an option's own value, by flag: for a path, what it holds.
    """
    indifferent = (
        "config",
        "teacher_config",
        "bert_output_dir",
        "log_dir",
        "save_steps",
        "resume",
        "overwrite",
        "num_proc",
    )
    given = {f"--{name}": value for name, value in vars(args).items() if name not in indifferent}
    # The others last: a change of one of the former, such as --seed, may be what changed them.
    return {flag: value for flag, value in given.items() if flag not in unlike} | dict(unlike)


def begin_training(
    args: argparse.Namespace, output: str, contents: dict[str, str], accelerator: Accelerator
) -> UnfinishedRun:
    """The unfinished run of the same command beside the folder `output`, or a new one; by `add_resume_options`.

    Args:
        contents: as `unlike` of `deciding_flags`.

    Raises:
        UserError: as `utils.training.resume.begin_run`.
    """
    from utils.training.resume import begin_run, hardware

    flags = deciding_flags(args, contents | hardware(accelerator))
    return begin_run(output, flags, accelerator, args.save_steps, args.resume, args.overwrite)


def begin_journal(args: argparse.Namespace, output: str, contents: dict[str, object]) -> Cached:
    """As `begin_training`, for a run whose finished parts are kept in a journal.

    Raises:
        UserError: as `utils.system.journal.cached_in`.
    """
    from utils.system.journal import cached_in, unfinished_path

    return cached_in(unfinished_path(output), deciding_flags(args, contents), args.resume, args.overwrite)


# Values.


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def positive_fraction(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 1")
    return value


def nonnegative_float(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number of at least 0")
    return value


def label_list(text: str) -> list[str]:
    """An argparse type: comma-separated labels, such as negative,positive; one that holds a comma in double quotes."""
    return [label.strip() for label in next(csv.reader([text], skipinitialspace=True), [])]


def layer_list(text: str) -> list[int]:
    """An argparse type: comma-separated layer numbers, such as 1,3,5."""
    return [int(part) for part in text.split(",")]
