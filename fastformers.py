"""Distill one fine-tuned teacher, several, or the soft labels of the data, into a smaller student.

    python fastformers.py --teacher_bert_model_name_or_path=./bert-checkpoint-teacher --data_dir=data/sst2 \\
        --config=configs/config-bert-cls.json --bert_model_name_or_path=./embeddings/pytorch.uncased_L-4_H-512_A-8 \\
        --bert_output_dir=bert-checkpoint --save_path=pytorch-model.pt --lr=5e-5 --epoch=5 --batch_size=64

The student learns from the teacher's logits (--kd_loss) and, where asked, from the labels, the teacher's hidden states,
attention probabilities or relations between tokens. A good one to start from is some of the teacher's own layers
(`prune.py --keep_layers`). A teacher of another family or vocabulary teaches by its logits: the texts are tokenized for
it into data_dir/tokenized-..., once. The names of several follow one another, and so do the values of the other
--teacher options: `--teacher_bert_model_name_or_path runs/one runs/two`. The student's loss is then the mean of its
losses against each: with --kd_loss=soft_cross_entropy it learns the mean of their probabilities, with mse the mean of
their logits, in which a teacher with larger logits counts for more (Hinton et al. 2015 have both, as the arithmetic and
the geometric mean). The losses of hidden states, attention and relations are taken against the first one alone.
Where the config names another task than one label a text, the same losses are taken of each label or score: see
docs/tasks.md.
--augmented adds the rows that augment_data.py made, --unlabelled those of unlabelled.txt. --soft_labels learns from the
probabilities in the data, where rows have some, and needs no teacher. The best model on valid.txt (--measure) is kept.
The teachers' logits are kept beside their tokenized data, and computed once. Stopped or killed, the same command
continues where it was.
Several processes: `accelerate launch fastformers.py ...` or `torchrun --nproc_per_node=2 fastformers.py ...`.
"""

import argparse
import logging
from dataclasses import replace
from typing import Any

import utils.system.environment  # isort: skip  # noqa: F401

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from utils.arguments import (
    add_data_options,
    add_output_options,
    add_training_options,
    begin_training,
    fraction,
    label_list,
    layer_list,
    nonnegative_float,
    positive_float,
    script_parser,
    training_settings,
)
from utils.data.tables import Data, load_data, with_rows_of
from utils.data.teacher_rows import rows_to_read, teacher_folder
from utils.models.checkpoint import config_of_checkpoint, label_columns, labels_of, load_hub_config, load_tokenizer
from utils.models.classifier import fingerprint, freeze_embeddings, load_model, save_checkpoint, set_dropout
from utils.models.config import Config, load_config
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.errors import UserError
from utils.system.files import check_output_file, check_output_folder
from utils.training.distillation import (
    LossWeights,
    add_projection,
    distillation_losses,
    loss_against,
    paired_layers,
    without_projection,
)
from utils.training.loop import train
from utils.training.losses import KD_LOSSES
from utils.training.resume import discard
from utils.training.scalars import scalars_into
from utils.training.soft_targets import with_soft_labels
from utils.training.tasks import Task, task_of
from utils.training.teacher import Teacher, taught_logits

logger = logging.getLogger(__name__)

FLAG, TEACHER_FLAG = "--bert_model_name_or_path", "--teacher_bert_model_name_or_path"


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_data_options(parser)
    group.add_argument(
        "--augmented", action="store_true", help="learn from augment_data.py's rows too; without it, from train.txt's"
    )
    group.add_argument(
        "--unlabelled", action="store_true", help="learn from unlabelled.txt's rows too, which have no label"
    )
    group.add_argument(
        "--soft_labels",
        action="store_true",
        help="learn from the data's soft labels, where rows have some, in the place of a teacher's logits; the teacher "
        "may then be left out",
    )
    add_teacher_options(parser)
    group = parser.add_argument_group("student")
    group.add_argument("--bert_model_name_or_path", required=True, help="checkpoint the student starts from")
    group.add_argument(
        "--dropout", type=fraction, help="dropout of the student while it learns (default: its config's)"
    )
    add_output_options(parser)
    group = parser.add_argument_group("losses (their weighted sum)")
    group.add_argument(
        "--kd_loss",
        choices=sorted(KD_LOSSES),
        help="loss of the logits (default: soft_cross_entropy, of multi_label for each label; of regression mse)",
    )
    group.add_argument("--temperature", type=positive_float, default=1.0, help="of soft_cross_entropy")
    group.add_argument(
        "--label_ratio", type=nonnegative_float, default=0.0, help="weight of the loss of the labels (0: none)"
    )
    group.add_argument(
        "--state_loss_ratio", type=nonnegative_float, default=0.0, help="weight of the hidden-state loss (0: none)"
    )
    group.add_argument("--state_loss", choices=["mse", "cosine"], default="mse", help="what that loss measures")
    group.add_argument(
        "--state_layers", choices=["ends", "all"], default="ends", help="of embeddings and last layer, or of all layers"
    )
    group.add_argument(
        "--att_loss_ratio", type=nonnegative_float, default=0.0, help="weight of the attention loss (0: none)"
    )
    group.add_argument(
        "--relation_loss_ratio",
        type=nonnegative_float,
        default=0.0,
        help="weight of MiniLMv2's loss of the last layer's relations, for any numbers of heads (0: none)",
    )
    group.add_argument(
        "--teacher_layers",
        type=layer_list,
        help="the teacher's layer that each of the student's learns from, such as 1,3,5; without it, each block's last",
    )
    add_training_options(parser, lr=2e-4, epochs=5, distillation=True)
    return parser.parse_args()


def add_teacher_options(parser: argparse.ArgumentParser) -> None:
    """The options of the teachers: each takes a value for every one of them, in the same order."""
    group = parser.add_argument_group("teacher (of several, a value for each, in the same order)")
    group.add_argument(
        TEACHER_FLAG,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="its checkpoint folder, such as runs/teacher; needed without --soft_labels",
    )
    group.add_argument(
        "--teacher_model_path", nargs="+", metavar="FILE", help="its state dict (.pt); without it the folder's weights"
    )
    group.add_argument(
        "--teacher_labels",
        nargs="+",
        type=label_list,
        metavar="LABELS",
        help="the data set's label for each of its outputs, in its own order (id2label of its config.json): 0,1 for a "
        "teacher that says NEGATIVE,POSITIVE where the data say 0 and 1; without it, its labels must be the data set's",
    )
    group.add_argument(
        "--teacher_config",
        nargs="+",
        metavar="CONFIG",
        help="its file of configs/; without it, its family, and --config's n_ctx if it has so many positions",
    )
    group.add_argument(
        "--teacher_data_dir",
        nargs="+",
        metavar="DATA_DIR",
        help="folder with the same rows that preprocess.py tokenized for it; without it that is done here",
    )


def check_something_teaches(args: argparse.Namespace) -> None:
    """Check that a teacher is given, or soft labels in its place.

    Raises:
        UserError: there is neither, or an option needs a teacher.
    """
    if args.teacher_bert_model_name_or_path:
        return
    if not args.soft_labels:
        raise UserError(
            f"there is nothing to learn from: give a teacher ({TEACHER_FLAG}), or --soft_labels where the data has some"
        )
    options = ["teacher_model_path", "teacher_labels", "teacher_config", "teacher_data_dir", "teacher_layers"]
    options += ["state_loss_ratio", "att_loss_ratio", "relation_loss_ratio"]
    given = [f"--{option}" for option in options if getattr(args, option)]
    if args.measure == "kd_loss":
        given.append("--measure=kd_loss")
    if given:
        raise UserError(f"{given[0]} needs a teacher: name it with {TEACHER_FLAG}, or leave the option out")


def splits_to_learn_from(args: argparse.Namespace, data: Data) -> list[str]:
    """The splits whose rows are learned from, train first.

    Raises:
        UserError: one is not there, or none has soft labels where they are asked for.
    """
    if args.augmented and "augmented" not in data.splits:
        raise UserError(f"--augmented: {args.data_dir} has no augmented rows: run augment_data.py, then preprocess.py")
    if args.unlabelled and "unlabelled" not in data.splits:
        raise UserError(
            f"--unlabelled: {args.data_dir} has no unlabelled rows: put texts into its unlabelled.txt, then run "
            "preprocess.py"
        )
    splits = ["train"] + ["augmented"] * args.augmented + ["unlabelled"] * args.unlabelled
    columns = [data.soft_labels[split] for split in splits if split in data.soft_labels]
    if args.soft_labels and all(column.null_count == len(column) for column in columns):
        raise UserError(
            f"--soft_labels: the rows of {', '.join(splits)} in {args.data_dir} have none: put them into "
            "train.soft.jsonl or a column soft_label, then run preprocess.py"
        )
    return splits


def teacher_options(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The values of each teacher's options, None for those left out.

    Raises:
        UserError: an option has more or fewer values than there are teachers.
    """
    names = args.teacher_bert_model_name_or_path
    options = [{"name": name} for name in names]
    for option in ("model_path", "labels", "config", "data_dir"):
        values = getattr(args, f"teacher_{option}") or [None] * len(names)
        if len(values) != len(names):
            raise UserError(
                f"--teacher_{option} has {len(values)} value{'s' * (len(values) > 1)} but {TEACHER_FLAG} {len(names)}: "
                "give one for each teacher, in the same order, or leave it out"
            )
        for each, value in zip(options, values, strict=True):
            each[option] = value
    return options


def load_teachers(
    args: argparse.Namespace, n_ctx: int, data: Data, tokenizer: PreTrainedTokenizerFast, splits: list[str]
) -> list[Teacher]:
    """The teachers, with the rows that each reads.

    Args:
        n_ctx, tokenizer: the student's.
        splits: those that they are asked for.

    Raises:
        UserError: as `load_model`, `label_columns` and `rows_to_read`, or a loss compares token by token but the first
            teacher's tokens are others.
    """
    teachers: list[Teacher] = []
    for options in teacher_options(args):
        name = options["name"]
        if options["config"]:
            config = replace(load_config(options["config"]), task=data.task)
        else:
            config = config_of_checkpoint(name, TEACHER_FLAG, n_ctx, data.task, allow_hub_name=True)
        own_tokenizer = load_tokenizer(name, TEACHER_FLAG, allow_hub_name=True)
        rows = rows_to_read(data, tokenizer, own_tokenizer, config.n_ctx, splits, options["data_dir"])
        compares_tokens = args.state_loss_ratio or args.att_loss_ratio or args.relation_loss_ratio
        if compares_tokens and not teachers and rows is not data:
            raise UserError(
                "--state_loss_ratio, --att_loss_ratio and --relation_loss_ratio compare token by token with the first "
                f"teacher, but {TEACHER_FLAG}={name} has tokens of its own, by its tokenizer or --teacher_data_dir: "
                "leave them out, or name one with the student's tokens first"
            )
        # Others than "eager" are faster but keep no attention probabilities.
        attention = "eager" if args.att_loss_ratio and not teachers else None
        hub_config = load_hub_config(name, TEACHER_FLAG, config, allow_hub_name=True)
        model = load_model(
            name, TEACHER_FLAG, config, labels_of(hub_config), options["model_path"], attention, allow_hub_name=True
        )
        columns = label_columns(hub_config, data.labels, options["labels"], name, TEACHER_FLAG, "--teacher_labels")
        teachers.append(Teacher(name, model, own_tokenizer, config.n_ctx, columns, rows))
    return teachers


def load_student(args: argparse.Namespace, config: Config, data: Data) -> PreTrainedModel:
    """The student as it starts.

    Raises:
        UserError: as `load_model`.
    """
    attention = "eager" if args.att_loss_ratio > 0 else None
    set_seed(args.seed)  # before a new classifier draws its weights
    student = load_model(
        args.bert_model_name_or_path,
        FLAG,
        config,
        data.labels,
        attention=attention,
        new_head=True,
        allow_hub_name=True,
        start=data.start,
    )
    if args.dropout is not None:
        set_dropout(student, args.dropout)
    if args.freeze_embeddings:
        freeze_embeddings(student)
    return student


def contents_of_teachers(teachers: list[Teacher], data: Data, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """What the paths of the teachers' options hold, by flag: the weights, and the rows."""
    rows = [
        teacher.rows.fingerprint
        if teacher.rows
        else f"{data.fingerprint} in {teacher_folder(tokenizer, teacher.tokenizer, teacher.n_ctx)}"
        for teacher in teachers
    ]
    weights = [fingerprint(teacher.model) for teacher in teachers]
    return {TEACHER_FLAG: ", ".join(weights), "--teacher_data_dir": ", ".join(rows), "--teacher_model_path": ""}


def loss_weights(args: argparse.Namespace, task: Task) -> LossWeights:
    """What the options of the losses say; puts the task's own loss of the logits where none is named.

    Raises:
        UserError: the task has no such loss of the logits.
    """
    args.kd_loss = args.kd_loss or next(iter(task.kd_losses))
    if args.kd_loss not in task.kd_losses:
        raise UserError(f"--kd_loss={args.kd_loss} is none of the task {task.name}: give {', '.join(task.kd_losses)}")
    return LossWeights(
        kd_loss=args.kd_loss,
        temperature=args.temperature,
        label_ratio=args.label_ratio,
        state_loss_ratio=args.state_loss_ratio,
        state_loss=args.state_loss,
        state_layers=args.state_layers,
        att_loss_ratio=args.att_loss_ratio,
        relation_loss_ratio=args.relation_loss_ratio,
    )


def logits_to_learn(
    args: argparse.Namespace, data: Data, splits: list[str], from_teachers: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The teachers' logits of every row of the splits, or the soft labels' in their place; and which rows have some,
    None where all have. Warns of rows from which nothing is learned."""
    if not args.soft_labels:
        assert from_teachers is not None
        return from_teachers, None
    logits, has_logits = with_soft_labels(data, splits, from_teachers)
    has_label = torch.arange(len(logits)) < (len(data.splits["train"]) if args.label_ratio else 0)
    useless = int((~(has_logits | has_label)).sum())
    if useless:
        logger.warning(
            "%d of %d rows have neither a soft label nor a label that counts, and teach nothing: give a teacher for "
            "them, or --label_ratio where they have labels",
            useless,
            len(logits),
        )
    return logits, has_logits


def main() -> None:
    args = parse_args()
    check_something_teaches(args)
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_model_name_or_path, FLAG, allow_hub_name=True)
    data = load_data(args.data_dir, tokenizer, config.n_ctx, task=config.task)
    task, settings = task_of(data), training_settings(args, config.task)
    weights = loss_weights(args, task)
    splits = splits_to_learn_from(args, data)
    teachers = load_teachers(args, config.n_ctx, data, tokenizer, ["valid", *splits])
    student = load_student(args, config, data)
    first = teachers[0].model if teachers else None
    layers = paired_layers(first, student, weights, args.teacher_layers) if first else []
    if first:
        add_projection(first, student, weights)
    check_output_folder(args.bert_output_dir, "--bert_output_dir")
    check_output_file(args.save_path, "--save_path")

    accelerator = make_accelerator(args.device, args.precision)
    contents = {FLAG: fingerprint(student), "--data_dir": data.fingerprint}
    contents |= contents_of_teachers(teachers, data, tokenizer)
    run = begin_training(args, args.bert_output_dir, contents, accelerator)
    token_teacher = first if layers else None  # the others are freed once their logits are known
    del first
    from_teachers = valid_loss = None
    if teachers:
        taught = taught_logits(teachers, data, tokenizer, splits, args.kd_loss, args.temperature, accelerator)
        from_teachers = torch.cat([taught[split] for split in splits])
        if args.measure == "kd_loss":
            valid_loss = loss_against(taught["valid"], weights, task)
    train_logits, has_logits = logits_to_learn(args, data, splits, from_teachers)
    num_labelled = len(data.splits["train"])
    data = with_rows_of(data, splits[1:])

    def save(model: PreTrainedModel) -> None:
        with without_projection(model):
            save_checkpoint(model, tokenizer, args.bert_output_dir, args.save_path)

    row_losses = distillation_losses(
        token_teacher, student, train_logits, num_labelled, weights, layers, has_logits, task
    )
    best = train(student, data, row_losses, settings, accelerator, save, run, scalars_into(args.log_dir), valid_loss)
    discard(run, accelerator)
    logger.info("[Best] : %s: %s", best, args.bert_output_dir)


if __name__ == "__main__":
    run_script(main)
