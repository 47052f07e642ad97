"""Distill a fine-tuned teacher into a smaller student.

    python fastformers.py --teacher_config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --teacher_bert_model_name_or_path=./bert-checkpoint-teacher --teacher_model_path=pytorch-model-teacher.pt \\
        --config=configs/config-bert-cls.json --bert_model_name_or_path=./embeddings/pytorch.uncased_L-4_H-512_A-8 \\
        --bert_output_dir=bert-checkpoint --save_path=pytorch-model.pt --lr=5e-5 --epoch=5 --batch_size=64

The student learns from the teacher's logits (--kd_loss) and, where asked, from its hidden states and attention
probabilities. It must tokenize as its teacher does; a good one to start from is some of the teacher's own layers
(`prune.py --keep_layers`). The best epoch on valid.txt (--measure) is kept. The teacher's logits are kept beside the
tokenized data, and computed once. Stopped or killed, the same command continues where it was.
Several processes: `accelerate launch fastformers.py ...` or `torchrun --nproc_per_node=2 fastformers.py ...`.
"""

import argparse
import logging
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from utils.arguments import (
    add_data_options,
    add_training_options,
    deciding_flags,
    ratio,
    script_parser,
    training_settings,
)
from utils.checkpoint import check_same_tokenizer, load_tokenizer
from utils.cli import UserError, run
from utils.config import load_config
from utils.data import Data, load_data
from utils.devices import make_accelerator
from utils.families import layer_shapes
from utils.files import check_output_file, check_output_folder
from utils.labelling import teacher_logits
from utils.losses import KD_LOSSES, attention_loss, state_loss
from utils.model import load_model, model_inputs, save_checkpoint
from utils.resume import Unfinished, check_unfinished, fingerprint, forget, hardware, unfinished_path
from utils.scalars import scalars_into
from utils.scoring import score
from utils.training import train

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher_config", required=True, help="the teacher's file of configs/")
    group.add_argument("--teacher_bert_model_name_or_path", required=True, help="checkpoint folder of the teacher")
    group.add_argument("--teacher_model_path", required=True, help="state dict of the teacher (.pt)")
    group = parser.add_argument_group("student")
    group.add_argument("--bert_model_name_or_path", required=True, help="checkpoint the student starts from")
    group.add_argument("--bert_output_dir", required=True, help="folder for the best checkpoint")
    group.add_argument("--save_path", required=True, help="file for the best checkpoint's state dict (.pt)")
    group = parser.add_argument_group("losses (their weighted sum)")
    group.add_argument("--kd_loss", choices=sorted(KD_LOSSES), default="soft_cross_entropy", help="loss of the logits")
    group.add_argument("--state_loss_ratio", type=ratio, default=0.0, help="weight of the hidden-state loss (0: none)")
    group.add_argument("--state_loss", choices=["mse", "cosine"], default="mse", help="what that loss measures")
    group.add_argument("--att_loss_ratio", type=ratio, default=0.0, help="weight of the attention loss (0: none)")
    add_training_options(parser, epochs=5)
    return parser.parse_args()


def check_shapes(teacher: PreTrainedModel, student: PreTrainedModel, states: bool, attentions: bool) -> None:
    """Compare what the losses need to be equal.

    Raises:
        UserError: hidden sizes, numbers of heads or of layers do not go together; names both numbers.
    """
    theirs, ours = teacher.config.hidden_size, student.config.hidden_size
    if states and theirs != ours:
        raise UserError(
            f"--state_loss_ratio needs equal hidden sizes but the teacher has {theirs} and the student "
            f"{ours}: leave it out"
        )
    if not attentions:
        return
    teacher_heads = [heads for heads, _ in layer_shapes(teacher)]
    student_heads = [heads for heads, _ in layer_shapes(student)]
    if len(teacher_heads) % len(student_heads):
        raise UserError(
            f"--att_loss_ratio needs the teacher's layers to be a multiple of the student's but they have "
            f"{len(teacher_heads)} and {len(student_heads)}: leave it out, or choose another student"
        )
    block = len(teacher_heads) // len(student_heads)
    for theirs, ours in zip(teacher_heads[block - 1 :: block], student_heads, strict=True):
        if theirs != ours:
            raise UserError(
                f"--att_loss_ratio needs equal numbers of attention heads but the teacher has {theirs} and the student "
                f"{ours}: leave it out"
            )


def distillation_losses(
    args: argparse.Namespace, teacher: PreTrainedModel, data: Data, accelerator: Accelerator
) -> Callable:
    """The `row_losses` that training minimizes."""
    kd_loss = KD_LOSSES[args.kd_loss]
    wanted_logits = teacher_logits(teacher, data, "train", accelerator)
    states, attentions = args.state_loss_ratio > 0, args.att_loss_ratio > 0

    def row_losses(student, inputs, batch, rows):
        wanted = dict(output_hidden_states=states, output_attentions=attentions)
        ours = student(**inputs, **wanted)
        losses = kd_loss(ours.logits.float(), wanted_logits[torch.as_tensor(rows)].to(ours.logits.device))
        if not states and not attentions:
            return losses
        with torch.no_grad():
            theirs = teacher(**model_inputs(teacher, batch), **wanted)
        mask = inputs["attention_mask"]
        if states:
            our_states, their_states = ([out.hidden_states[0], out.hidden_states[-1]] for out in (ours, theirs))
            losses = losses + args.state_loss_ratio * state_loss(our_states, their_states, mask, args.state_loss)
        if attentions:
            losses = losses + args.att_loss_ratio * attention_loss(ours.attentions, theirs.attentions, mask)
        return losses

    return row_losses


def main() -> None:
    args = parse_args()
    teacher_config, config = load_config(args.teacher_config), load_config(args.config)
    teacher_flag, flag = "--teacher_bert_model_name_or_path", "--bert_model_name_or_path"
    tokenizer = load_tokenizer(args.bert_model_name_or_path, flag)
    check_same_tokenizer(tokenizer, load_tokenizer(args.teacher_bert_model_name_or_path, teacher_flag))
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    attention = "eager" if args.att_loss_ratio > 0 else "sdpa"  # sdpa is faster but keeps no probabilities
    teacher = load_model(
        args.teacher_bert_model_name_or_path,
        teacher_flag,
        teacher_config,
        data.labels,
        args.teacher_model_path,
        attention,
    )
    set_seed(args.seed)  # before a new classifier draws its weights
    student = load_model(args.bert_model_name_or_path, flag, config, data.labels, attention=attention, new_head=True)
    check_shapes(teacher, student, args.state_loss_ratio > 0, args.att_loss_ratio > 0)
    check_output_folder(args.bert_output_dir, "--bert_output_dir")
    check_output_file(args.save_path, "--save_path")

    accelerator = make_accelerator(args.device, args.precision)
    teacher.to(accelerator.device)
    contents = {flag: fingerprint(student), teacher_flag: fingerprint(teacher), "--data_dir": data.fingerprint}
    flags = deciding_flags(args, contents | hardware(accelerator) | {"--teacher_model_path": ""})
    unfinished = Unfinished(unfinished_path(args.bert_output_dir), args.save_steps, flags)
    check_unfinished(unfinished, accelerator, args.resume, args.overwrite)
    target = score(teacher_logits(teacher, data, "valid", accelerator), data.splits["valid"])
    logger.info("[Teacher] : valid loss %.4f, valid accuracy %.4f", target.loss, target.accuracy)
    best = train(
        student, data, distillation_losses(args, teacher, data, accelerator), training_settings(args), accelerator,
        save=lambda model: save_checkpoint(model, tokenizer, args.bert_output_dir, args.save_path),
        unfinished=unfinished, write_scalars=scalars_into(args.log_dir),
    )  # fmt: skip
    forget(unfinished, accelerator)
    logger.info("[Best] : valid loss %.4f, valid accuracy %.4f: %s", best.loss, best.accuracy, args.bert_output_dir)


if __name__ == "__main__":
    run(main)
