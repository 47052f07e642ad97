"""Make a smaller model out of a trained one: fewer layers, attention heads, FFN neurons, hidden units, tokens.

    python prune.py --config=configs/config-bert-cls.json --data_dir=data/sst2 --bert_output_dir=bert-checkpoint \\
        --model_path=pytorch-model.pt --target_num_heads=8 --target_ffn_dim=1024 \\
        --bert_output_dir_pruned=bert-checkpoint-pruned --save_path_pruned=pytorch-model-pruned.pt

Heads and neurons are ranked by the gradient of the loss with respect to a mask on each, over rows of train.txt
(--importance). The most important ones stay, in smaller dense layers: the same number in every layer, or, with
--target_macs=0.6 or --target_latency=0.6, more of them in the layers where they matter more. A layer may lose all of
its heads; then only its FFN is left. The output projections that are left are then fitted, without training, to the
states of the whole model; --no-recover leaves that out.
--iterations=3 reaches the targets in 3 steps, with an epoch of distillation from the whole model after each.

--keep_layers 1,3,5 (or --target_num_layers 3: the last layer of each of 3 equal blocks) makes a student out of any
encoder, also a pretrained one that has no classifier yet. --target_hidden_size narrows the whole encoder, which costs
much accuracy until it is distilled again. Accuracy on valid.txt is shown before and after.
"""

import argparse
import copy
import logging
from functools import partial

import utils.system.environment  # isort: skip  # noqa: F401

from accelerate.utils import set_seed
from transformers import PreTrainedModel

from utils.arguments import (
    add_checkpoint_options,
    add_data_options,
    add_device_option,
    add_resume_options,
    begin_training,
    layer_list,
    positive_float,
    positive_fraction,
    positive_int,
    script_parser,
    whole_number,
)
from utils.data.tables import Data, lengths, load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import fingerprint, load_model, save_checkpoint
from utils.models.config import load_config
from utils.models.families import first_position, head_size_of, layer_shapes, layer_uses
from utils.pruning.budget import fit_macs, next_size, uniform
from utils.pruning.importance import GRADIENT_SCORES
from utils.pruning.latency_budget import fit_latency
from utils.pruning.narrow import keep_layers
from utils.pruning.recipe import prune_in_steps, prune_layers, prune_width, rank, rank_width, sample_batches
from utils.pruning.recovery import recover
from utils.pruning.targets import check_sizes, layers_to_keep
from utils.pruning.vocabulary import prune_embeddings, smaller_tokenizer, used_ids
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.errors import UserError
from utils.system.files import check_output_file, check_output_folder
from utils.training.loop import Settings
from utils.training.metrics import main_measure
from utils.training.resume import discard
from utils.training.scoring import evaluate_logits, predict
from utils.training.tasks import task_of

logger = logging.getLogger(__name__)

DISTILLATION_BATCH = 64


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """The sizes to keep; what no option names stays as it is."""
    group = parser.add_argument_group("targets (at least one; what none of them names stays as it is)")
    group.add_argument(
        "--target_num_heads", type=whole_number, help="attention heads to keep in every layer; 0 drops attention"
    )
    group.add_argument("--target_ffn_dim", type=positive_int, help="FFN neurons to keep in every layer")
    group.add_argument(
        "--target_macs",
        type=positive_fraction,
        help="fraction of all layers' multiply-adds to keep; layers that matter more keep more",
    )
    group.add_argument(
        "--target_latency",
        type=positive_fraction,
        help="fraction of this model's latency to keep, that of its int8 graph on this machine; layers likewise differ",
    )
    group.add_argument(
        "--target_hidden_size", type=positive_int, help="hidden units to keep: a multiple of the width of a head"
    )
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--keep_layers", type=layer_list, help="layers to keep, counted from 0, such as 1,3,5")
    layers.add_argument(
        "--target_num_layers", type=positive_int, help="layers to keep, evenly spread, the last included"
    )
    group.add_argument(
        "--prune_vocabulary",
        action="store_true",
        help="drop the tokens that do not occur in the data set, but for special ones and single characters",
    )


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_checkpoint_options(add_data_options(parser))
    group = parser.add_argument_group("output")
    group.add_argument("--bert_output_dir_pruned", required=True, help="folder for the pruned checkpoint")
    group.add_argument("--save_path_pruned", help="file for its state dict (.pt); without it there is none")
    add_target_options(parser)
    group = parser.add_argument_group("which heads and neurons to keep")
    group.add_argument(
        "--importance",
        choices=[*GRADIENT_SCORES, "magnitude", "random"],
        default="fisher",
        help="what ranks heads and neurons: gradients of a mask (first_order: as published; fisher: squared, heads or "
        "neurons of a layer judged together), or the baselines",
    )
    group.add_argument(
        "--importance_target",
        choices=["labels", "logits"],
        default="labels",
        help="logits: the model's own predictions take the labels' place (of scores: their own gradient does)",
    )
    group.add_argument(
        "--normalize_importance", action="store_true", help="make each layer's scores sum to 1; without it, as they are"
    )
    group.add_argument("--importance_rows", type=positive_int, default=2048, help="rows of train.txt to rank on")
    group.add_argument(
        "--recover",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit the output projections that are left to the whole model's states, on the same rows",
    )
    group.add_argument("--seed", type=int, default=42, help="seed of the choice of rows, and of distillation")
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--iterations",
        type=positive_int,
        default=1,
        help="steps to the targets; where more than 1, each is followed by an epoch of distillation",
    )
    group.add_argument("--lr", type=positive_float, default=1e-4, help="peak learning rate of that epoch")
    add_resume_options(parser)
    add_device_option(parser)
    return parser.parse_args()


def has_layer_target(args: argparse.Namespace) -> bool:
    """Whether an option says how many heads or neurons to keep."""
    targets = [args.target_num_heads, args.target_ffn_dim, args.target_macs, args.target_latency]
    return any(target is not None for target in targets)


def check_args(args: argparse.Namespace) -> None:
    """Compare the options with one another.

    Raises:
        UserError: there is nothing to do, or two of them contradict each other.
    """
    others = [args.target_hidden_size, args.keep_layers, args.target_num_layers]
    if not has_layer_target(args) and all(target is None for target in others) and not args.prune_vocabulary:
        raise UserError(
            "nothing to prune: give --target_num_heads, --target_ffn_dim, --target_macs, --target_latency, "
            "--target_hidden_size, --keep_layers, --target_num_layers or --prune_vocabulary"
        )
    if args.target_macs and args.target_latency:
        raise UserError("--target_macs and --target_latency both choose heads and neurons: give one of them")
    sizes = [args.target_num_heads, args.target_ffn_dim]
    if (args.target_macs or args.target_latency) and sizes != [None, None]:
        flag = "--target_macs" if args.target_macs else "--target_latency"
        raise UserError(f"{flag} chooses heads and neurons: leave out --target_num_heads and --target_ffn_dim")


def prune_once(args: argparse.Namespace, model: PreTrainedModel, data: Data, steps_left: int) -> None:
    """Take the first of `steps_left` equal steps to the targets, in place: rank, choose shapes, prune, recover."""
    train = data.splits["train"]
    batches = partial(sample_batches, train, args.importance_rows, model.config.pad_token_id, args.seed)
    scoring, task = (args.importance, args.importance_target), task_of(data)
    if has_layer_target(args):
        ranking = rank(model, batches("importance"), *scoring, args.normalize_importance, args.seed, task)
        if args.target_macs:
            fraction, mean_length = args.target_macs ** (1 / args.iterations), float(lengths(train).mean())
            shapes = fit_macs(model, ranking.heads, ranking.neurons, fraction, mean_length)
        elif args.target_latency:
            fraction = args.target_latency ** (1 / args.iterations)
            shapes = fit_latency(model, ranking.heads, ranking.neurons, fraction, data.splits["valid"])
        else:
            shapes = uniform(layer_shapes(model), args.target_num_heads, args.target_ffn_dim, steps_left)
        whole = copy.deepcopy(model)
        prune_layers(model, shapes, ranking)
        if args.recover:
            recover(model, whole, batches("recover"))
    if args.target_hidden_size:
        size = next_size(model.config.hidden_size, args.target_hidden_size, steps_left, head_size_of(model))
        unit_scores = rank_width(model, batches("importance"), *scoring, task)
        whole = copy.deepcopy(model)
        hidden_units = prune_width(model, size, *unit_scores)
        if args.recover:
            recover(model, whole, batches("recover"), hidden_units)


def main() -> None:
    args = parse_args()
    check_args(args)
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    data = load_data(args.data_dir, tokenizer, config.n_ctx, task=config.task)
    task, valid = task_of(data), data.splits["valid"]
    set_seed(args.seed)
    # An encoder without a classifier will do where no loss ranks its parts.
    new_head = not (has_layer_target(args) or args.target_hidden_size)
    model = load_model(
        args.bert_output_dir,
        "--bert_output_dir",
        config,
        data.labels,
        args.model_path,
        new_head=new_head,
        start=data.start,
    )
    layers = layers_to_keep(len(layer_uses(model)), args.keep_layers, args.target_num_layers)
    check_sizes(model, layers, args.target_num_heads, args.target_ffn_dim, args.target_hidden_size)
    check_output_folder(args.bert_output_dir_pruned, "--bert_output_dir_pruned")
    if args.save_path_pruned:
        check_output_file(args.save_path_pruned, "--save_path_pruned")

    accelerator = make_accelerator(args.device, "fp32")
    model.to(accelerator.device)
    before = evaluate_logits(predict(model, valid, accelerator, "before"), valid, task)
    logger.info("[Before] : %s, %s", shape_in_words(model), before.score_in_words())
    if args.iterations > 1:
        teacher_logits = predict(model, data.splits["train"], accelerator, "teacher")
        keep_layers(model, layers)
        contents = {"--data_dir": data.fingerprint, "--bert_output_dir": fingerprint(model), "--model_path": ""}
        run = begin_training(args, args.bert_output_dir_pruned, contents, accelerator)
        settings = Settings(
            lr=args.lr, epochs=1, batch_size=DISTILLATION_BATCH, measure=main_measure(task.name), seed=args.seed
        )
        step = partial(prune_once, args, model, data)
        prune_in_steps(model, args.iterations, step, teacher_logits, data, settings, accelerator, run)
    else:
        keep_layers(model, layers)
        prune_once(args, model, data, steps_left=1)
    after = evaluate_logits(predict(model, valid, accelerator, "after"), valid, task)
    logger.info("[After] : %s, %s", shape_in_words(model), after.score_in_words())

    if args.prune_vocabulary:
        size = len(tokenizer)
        tokenizer, old_ids = smaller_tokenizer(tokenizer, used_ids(data.splits.values(), first_position(model.config)))
        prune_embeddings(model, old_ids, tokenizer)
        again = "run preprocess.py with the pruned checkpoint before the next step"
        logger.info("[Vocabulary] : %d of %d tokens kept: %s", len(tokenizer), size, again)
    save_checkpoint(model, tokenizer, args.bert_output_dir_pruned, args.save_path_pruned)
    if args.iterations > 1:
        discard(run, accelerator)
    logger.info("[Saved] : %s", args.bert_output_dir_pruned)


def shape_in_words(model: PreTrainedModel) -> str:
    shapes, uses = layer_shapes(model), len(layer_uses(model))
    used = f", used {uses} times" if uses > len(shapes) else ""
    return f"hidden size {model.config.hidden_size}, layers (heads, neurons) {shapes}{used}"


if __name__ == "__main__":
    run_script(main)
