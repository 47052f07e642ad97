"""Distill a fine-tuned teacher into a smaller student.

    python fastformers.py --teacher_config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --teacher_bert_model_name_or_path=./bert-checkpoint-teacher --teacher_model_path=pytorch-model-teacher.pt \\
        --config=configs/config-bert-cls.json --bert_model_name_or_path=./embeddings/pytorch.uncased_L-4_H-512_A-8 \\
        --bert_output_dir=bert-checkpoint --save_path=pytorch-model.pt --lr=5e-5 --epoch=5 --batch_size=64

The student learns from the teacher's logits (--kd_loss) and, where asked, from the labels, the teacher's hidden states,
attention probabilities or relations between tokens. A good one to start from is some of the teacher's own layers
(`prune.py --keep_layers`). A teacher of another family or vocabulary reads the same rows from a folder of its own
(--teacher_data_dir) and teaches by its logits. --augmented adds the rows that augment_data.py made, --unlabelled
those of unlabelled.txt. --soft_labels learns from the probabilities in the data and needs no teacher. The best model on
valid.txt (--measure) is kept. The teacher's logits are kept beside its tokenized data, and computed once.
Stopped or killed, the same command continues where it was.
Several processes: `accelerate launch fastformers.py ...` or `torchrun --nproc_per_node=2 fastformers.py ...`.
"""

import argparse
import logging

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
    layer_list,
    nonnegative_float,
    positive_float,
    script_parser,
    training_settings,
)
from utils.data.tables import Data, check_same_rows, load_data, with_rows_of
from utils.models.checkpoint import check_same_tokenizer, load_tokenizer
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
    paired_layers,
    without_projection,
)
from utils.training.loop import train
from utils.training.losses import KD_LOSSES
from utils.training.resume import discard
from utils.training.scalars import scalars_into
from utils.training.scoring import evaluate_logits
from utils.training.soft_targets import with_soft_labels
from utils.training.teacher import teacher_logits

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
    group = parser.add_argument_group("teacher (all three, or none with --soft_labels)")
    group.add_argument("--teacher_config", help="the teacher's file of configs/")
    group.add_argument("--teacher_bert_model_name_or_path", help="checkpoint folder of the teacher")
    group.add_argument("--teacher_model_path", help="state dict of the teacher (.pt)")
    group.add_argument(
        "--teacher_data_dir", help="the same rows tokenized for the teacher, where it has another tokenizer"
    )
    group = parser.add_argument_group("student")
    group.add_argument("--bert_model_name_or_path", required=True, help="checkpoint the student starts from")
    group.add_argument(
        "--dropout", type=fraction, help="dropout of the student while it learns (default: its config's)"
    )
    add_output_options(parser)
    group = parser.add_argument_group("losses (their weighted sum)")
    group.add_argument("--kd_loss", choices=sorted(KD_LOSSES), default="soft_cross_entropy", help="loss of the logits")
    group.add_argument("--temperature", type=positive_float, default=1.0, help="of soft_cross_entropy")
    group.add_argument(
        "--label_ratio", type=nonnegative_float, default=0.0, help="weight of the labels' cross-entropy (0: none)"
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
    add_training_options(parser, lr=2e-4, epochs=5)
    return parser.parse_args()


def has_teacher(args: argparse.Namespace) -> bool:
    """Tell whether a teacher is given.

    Raises:
        UserError: only a part of it is, or there is none where one is needed.
    """
    flags = {
        "--teacher_config": args.teacher_config,
        TEACHER_FLAG: args.teacher_bert_model_name_or_path,
        "--teacher_model_path": args.teacher_model_path,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if not missing:
        return True
    if len(missing) < len(flags) or args.teacher_data_dir:
        raise UserError(f"a teacher needs {', '.join(missing)}, too: give that, or no teacher, and --soft_labels")
    if not args.soft_labels:
        raise UserError(
            f"there is nothing to learn from: give a teacher ({', '.join(missing)}), or --soft_labels where the data "
            "has some"
        )
    if args.state_loss_ratio or args.att_loss_ratio or args.relation_loss_ratio:
        raise UserError(
            "--state_loss_ratio, --att_loss_ratio and --relation_loss_ratio compare with a teacher: give one, or leave "
            "them out"
        )
    return False


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
    if args.soft_labels and not any(split in data.soft_labels for split in splits):
        raise UserError(
            f"--soft_labels: the rows of {', '.join(splits)} in {args.data_dir} have none: put them into "
            "train.soft.jsonl or a column soft_label, then run preprocess.py"
        )
    return splits


def rows_of_teacher(
    args: argparse.Namespace, n_ctx: int, data: Data, tokenizer: PreTrainedTokenizerFast, splits: list[str]
) -> Data:
    """The rows as the teacher reads them: the student's own, or those of --teacher_data_dir.

    Raises:
        UserError: the teacher's tokenizer is not the student's, or the folder does not hold the same rows, or a loss
            compares tokens.
    """
    teacher_tokenizer = load_tokenizer(args.teacher_bert_model_name_or_path, TEACHER_FLAG, allow_hub_name=True)
    if not args.teacher_data_dir:
        check_same_tokenizer(tokenizer, teacher_tokenizer)
        return data
    if args.state_loss_ratio or args.att_loss_ratio or args.relation_loss_ratio:
        raise UserError(
            "--state_loss_ratio, --att_loss_ratio and --relation_loss_ratio compare token by token, but with "
            "--teacher_data_dir the teacher has tokens of its own: leave them out"
        )
    teacher_data = load_data(args.teacher_data_dir, teacher_tokenizer, n_ctx)
    # Of unlabelled rows those are left out that are in test.
    check_same_rows(data, teacher_data, [*splits, "valid"] + ["test"] * args.unlabelled)
    return teacher_data


def load_models(
    args: argparse.Namespace, teacher_config: Config | None, config: Config, labels: list[str]
) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """The teacher, where there is one, and the student as it starts.

    Raises:
        UserError: as `load_model`.
    """
    attention = "eager" if args.att_loss_ratio > 0 else None  # others are faster but keep no probabilities
    teacher = teacher_config and load_model(
        args.teacher_bert_model_name_or_path,
        TEACHER_FLAG,
        teacher_config,
        labels,
        args.teacher_model_path,
        attention,
        allow_hub_name=True,
    )
    set_seed(args.seed)  # before a new classifier draws its weights
    student = load_model(
        args.bert_model_name_or_path, FLAG, config, labels, attention=attention, new_head=True, allow_hub_name=True
    )
    if args.dropout is not None:
        set_dropout(student, args.dropout)
    if args.freeze_embeddings:
        freeze_embeddings(student)
    return teacher, student


def loss_weights(args: argparse.Namespace) -> LossWeights:
    """What the options of the losses say."""
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
    args: argparse.Namespace, data: Data, splits: list[str], from_teacher: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The teacher's logits for every row of the splits, or the soft labels' in their place; and which rows have some.

    Raises:
        UserError: no row has anything to learn from.
    """
    if not args.soft_labels:
        assert from_teacher is not None
        return from_teacher, None
    logits, has_logits = with_soft_labels(data, splits, from_teacher)
    has_label = torch.arange(len(logits)) < (len(data.splits["train"]) if args.label_ratio else 0)
    if not (has_logits | has_label).all():
        count = int((~(has_logits | has_label)).sum())
        logger.warning(
            "%d of %d rows have neither a soft label nor a label that counts, and teach nothing: give a teacher for "
            "them, or --label_ratio where they have labels", count, len(logits),
        )  # fmt: skip
    return logits, has_logits


def main() -> None:
    args = parse_args()
    teacher_config = load_config(args.teacher_config) if has_teacher(args) else None
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_model_name_or_path, FLAG, allow_hub_name=True)
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    splits = splits_to_learn_from(args, data)
    teacher_data = rows_of_teacher(args, teacher_config.n_ctx, data, tokenizer, splits) if teacher_config else data
    teacher, student = load_models(args, teacher_config, config, data.labels)
    weights = loss_weights(args)
    layers = paired_layers(teacher, student, weights, args.teacher_layers) if teacher else []
    if teacher:
        add_projection(teacher, student, weights)
    check_output_folder(args.bert_output_dir, "--bert_output_dir")
    check_output_file(args.save_path, "--save_path")

    accelerator = make_accelerator(args.device, args.precision)
    contents = {FLAG: fingerprint(student), "--data_dir": data.fingerprint}
    if teacher:
        teacher.to(accelerator.device)
        contents |= {TEACHER_FLAG: fingerprint(teacher), "--teacher_data_dir": teacher_data.fingerprint}
        contents |= {"--teacher_model_path": ""}
    run = begin_training(args, args.bert_output_dir, contents, accelerator)
    from_teacher = None
    if teacher:
        target = evaluate_logits(teacher_logits(teacher, teacher_data, "valid", accelerator), data.splits["valid"])
        logger.info("[Teacher] : valid loss %.4f, valid accuracy %.4f", target.loss, target.accuracy)
        from_teacher = torch.cat([teacher_logits(teacher, teacher_data, split, accelerator) for split in splits])
    train_logits, has_logits = logits_to_learn(args, data, splits, from_teacher)
    num_labelled = len(data.splits["train"])
    data = with_rows_of(data, splits[1:])

    def save(model: PreTrainedModel) -> None:
        with without_projection(model):
            save_checkpoint(model, tokenizer, args.bert_output_dir, args.save_path)

    row_losses = distillation_losses(teacher, student, train_logits, num_labelled, weights, layers, has_logits)
    best = train(student, data, row_losses, training_settings(args), accelerator, save, run, scalars_into(args.log_dir))
    discard(run, accelerator)
    logger.info("[Best] : valid loss %.4f, valid accuracy %.4f: %s", best.loss, best.accuracy, args.bert_output_dir)


if __name__ == "__main__":
    run_script(main)
