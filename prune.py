"""Make a smaller model out of a trained one: fewer layers, attention heads, FFN neurons, hidden units, tokens.

    python prune.py --config=configs/config-bert-cls.json --data_dir=data/sst2 --bert_output_dir=bert-checkpoint \\
        --model_path=pytorch-model.pt --target_num_heads=8 --target_ffn_dim=1024 \\
        --bert_output_dir_pruned=bert-checkpoint-pruned --save_path_pruned=pytorch-model-pruned.pt

Heads and neurons are ranked by the gradient of the loss with respect to a mask on each, over rows of train.txt
(--importance), and the best ones are rewired into smaller dense layers: the same shape in every layer, or, with
--target_macs=0.6 or --target_latency=0.6, as uneven as it is best. A layer that keeps no head loses its attention, and
is left with its FFN. What is left is then fitted, without training, to the states of the whole model: --no-recover
leaves that out.
--iterations=3 gets to the targets in 3 steps, with an epoch of distillation from the whole model after each.

--keep_layers 1,3,5 (or --target_num_layers 3: the last layer of each of 3 equal blocks) makes a student out of any
encoder, also a pretrained one that has no classifier yet. --target_hidden_size narrows the whole encoder, which costs
much accuracy until it is distilled again. Accuracy on valid.txt is shown before and after.
"""

import argparse
import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import utils.system.environment  # isort: skip  # noqa: F401

import datasets
import torch
from accelerate import Accelerator
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
from utils.data.tables import Data, collate, lengths, load_data, shuffled_batches
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import fingerprint, load_model, save_checkpoint
from utils.models.config import load_config
from utils.models.families import head_size_of, layer_shapes
from utils.models.first_token import first_token_only
from utils.pruning.budget import head_macs, neuron_macs, spread
from utils.pruning.importance import (
    GRADIENT_SCORES,
    Importance,
    first_order,
    magnitudes,
    mask_gradients,
    most_important,
    normalized,
    random_scores,
    rearranged,
    width_gradients,
)
from utils.pruning.latency_budget import fit_latency
from utils.pruning.narrow import keep_layers, narrow_layer, narrow_width
from utils.pruning.recovery import recover
from utils.pruning.vocabulary import prune_embeddings, smaller_tokenizer, used_ids
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.errors import UserError
from utils.system.files import check_output_file, check_output_folder
from utils.training.loop import Settings, train
from utils.training.losses import logits_mse
from utils.training.resume import UnfinishedRun, discard
from utils.training.scoring import evaluate_logits, predict

logger = logging.getLogger(__name__)

IMPORTANCE_BATCH = 32
DISTILLATION_BATCH = 64


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """What is to remain; what no option names stays as it is."""
    group = parser.add_argument_group("targets (at least one; what none of them names stays as it is)")
    group.add_argument(
        "--target_num_heads", type=whole_number, help="attention heads to keep in every layer; 0 drops attention"
    )
    group.add_argument("--target_ffn_dim", type=positive_int, help="FFN neurons to keep in every layer")
    group.add_argument(
        "--target_macs", type=positive_fraction,
        help="share of all layers' multiply-adds to keep, spread unevenly: each layer keeps what matters",
    )  # fmt: skip
    group.add_argument(
        "--target_latency", type=positive_fraction,
        help="share of this model's latency to keep, in its int8 graph on this machine, likewise uneven",
    )  # fmt: skip
    group.add_argument(
        "--target_hidden_size", type=positive_int, help="hidden units to keep: whole heads' worth, such as 8 of 32"
    )
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--keep_layers", type=layer_list, help="layers to keep, counted from 0, such as 1,3,5")
    layers.add_argument(
        "--target_num_layers", type=positive_int, help="layers to keep, evenly spread, the last included"
    )
    group.add_argument(
        "--prune_vocabulary", action="store_true",
        help="drop the tokens that do not occur in the data set, but for special ones and single characters",
    )  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_checkpoint_options(add_data_options(parser))
    group = parser.add_argument_group("output")
    group.add_argument("--bert_output_dir_pruned", required=True, help="folder for the pruned checkpoint")
    group.add_argument("--save_path_pruned", help="file for its state dict (.pt); without it there is none")
    add_target_options(parser)
    group = parser.add_argument_group("which heads and neurons to keep")
    group.add_argument(
        "--importance", choices=[*GRADIENT_SCORES, "magnitude", "random"], default="fisher",
        help="what ranks heads and neurons: gradients of a mask (first_order: as published; fisher: squared, heads or "
        "neurons of a layer judged together), or the baselines",
    )  # fmt: skip
    group.add_argument(
        "--importance_target", choices=["labels", "logits"], default="labels",
        help="logits: the model's own predictions take the labels' place",
    )  # fmt: skip
    group.add_argument(
        "--normalize_importance", action="store_true", help="make each layer's scores sum to 1; without it, as they are"
    )
    group.add_argument("--importance_rows", type=positive_int, default=2048, help="rows of train.txt to rank on")
    group.add_argument(
        "--recover", action=argparse.BooleanOptionalAction, default=True,
        help="fit the output projections that are left to the whole model's states, on the same rows",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=42, help="seed of the choice of rows, and of distillation")
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--iterations", type=positive_int, default=1,
        help="steps to the targets; where more than 1, each is followed by an epoch of distillation",
    )  # fmt: skip
    group.add_argument("--lr", type=positive_float, default=1e-4, help="peak learning rate of that epoch")
    add_resume_options(parser)
    add_device_option(parser)
    return parser.parse_args()


def chosen_layers(args: argparse.Namespace, num_layers: int) -> list[int]:
    """The layers that --keep_layers or --target_num_layers keeps of `num_layers`.

    Raises:
        UserError: more layers than there are, or a list that is not ascending numbers of layers.
    """
    if args.target_num_layers:
        if args.target_num_layers > num_layers:
            raise UserError(f"--target_num_layers={args.target_num_layers} but the model has {num_layers}: lower it")
        return [(i + 1) * num_layers // args.target_num_layers - 1 for i in range(args.target_num_layers)]
    kept = args.keep_layers or list(range(num_layers))
    if kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= num_layers:
        shown = ",".join(map(str, kept))
        raise UserError(f"--keep_layers={shown}: give ascending numbers from 0 to {num_layers - 1}, each once")
    return kept


def check_args(args: argparse.Namespace) -> None:
    """Compare the options with one another.

    Raises:
        UserError: there is nothing to do, or two of them contradict each other.
    """
    shape = [args.target_num_heads, args.target_ffn_dim]
    others = [args.target_macs, args.target_latency, args.target_hidden_size, args.keep_layers, args.target_num_layers]
    if all(target is None for target in shape + others) and not args.prune_vocabulary:
        raise UserError(
            "nothing to prune: give --target_num_heads, --target_ffn_dim, --target_macs, --target_latency, "
            "--target_hidden_size, --keep_layers, --target_num_layers or --prune_vocabulary"
        )
    if args.target_macs and args.target_latency:
        raise UserError("--target_macs and --target_latency are two budgets for the same: give one of them")
    if (args.target_macs or args.target_latency) and shape != [None, None]:
        flag = "--target_macs" if args.target_macs else "--target_latency"
        raise UserError(f"{flag} chooses heads and neurons: leave out --target_num_heads and --target_ffn_dim")


def check_targets(args: argparse.Namespace, shapes: list[tuple[int, int]], model: PreTrainedModel) -> None:
    """Compare --target_num_heads and --target_ffn_dim with the smallest layer's shape, --target_hidden_size with the
    encoder's.

    Raises:
        UserError: a target is larger than the model, or no whole number of heads; names both numbers.
    """
    for flag, target, size, unit in [
        ("--target_num_heads", args.target_num_heads, min(heads for heads, _ in shapes), "attention heads a layer"),
        ("--target_ffn_dim", args.target_ffn_dim, min(neurons for _, neurons in shapes), "FFN neurons a layer"),
        ("--target_hidden_size", args.target_hidden_size, model.config.hidden_size, "hidden units"),
    ]:
        if target and target > size:
            raise UserError(f"{flag}={target} is larger than the model, which has {size} {unit}: lower it")
    head_size = head_size_of(model)
    if args.target_hidden_size and args.target_hidden_size == getattr(model.config, "embedding_size", None):
        raise UserError(
            f"--target_hidden_size={args.target_hidden_size} is the width of this model's embeddings, which "
            "transformers would then take for unprojected: choose another"
        )
    if args.target_hidden_size and args.target_hidden_size % head_size:
        raise UserError(
            f"--target_hidden_size={args.target_hidden_size} is not a multiple of {head_size}, the width of this "
            "model's attention heads: choose one"
        )


def batches_of(args: argparse.Namespace, model: PreTrainedModel, train: datasets.Dataset, name: str) -> Iterator[dict]:
    """The rows that importance is measured on, always the same; `name` labels the progress bar."""
    num_batches = math.ceil(args.importance_rows / IMPORTANCE_BATCH)
    chosen = shuffled_batches(lengths(train), IMPORTANCE_BATCH, args.seed)[:num_batches]
    for indices in progress_bar(chosen, desc=name, unit="batch", leave=False):
        yield collate(train, indices, model.config.pad_token_id)


def importance(
    args: argparse.Namespace, model: PreTrainedModel, gradients: tuple[Importance, Importance]
) -> tuple[Importance, Importance]:
    """Scores of every head and neuron by --importance; `gradients` are of `mask_gradients`, where it needs them."""
    if args.importance == "magnitude":
        heads, neurons = magnitudes(model)
    elif args.importance == "random":
        heads, neurons = random_scores(model, args.seed)
    else:
        heads, neurons = ([GRADIENT_SCORES[args.importance](layer) for layer in part] for part in gradients)
    return (normalized(heads), normalized(neurons)) if args.normalize_importance else (heads, neurons)


def planned_shapes(
    args: argparse.Namespace, model: PreTrainedModel, heads: Importance, neurons: Importance, data: Data, steps: int
) -> list[tuple[int, int]]:
    """(heads, neurons) to keep in every layer for the first of `steps` equal steps that are left to the target."""
    shapes = layer_shapes(model)
    if args.target_macs:
        hidden, length = model.config.hidden_size, float(lengths(data.splits["train"]).mean())
        costs = [head_macs(hidden, head_size_of(model), length)] * len(shapes), [neuron_macs(hidden)] * len(shapes)
        return spread(heads, neurons, *costs, args.target_macs ** (1 / args.iterations))
    if args.target_latency:
        share = args.target_latency ** (1 / args.iterations)
        return fit_latency(model, heads, neurons, share, data.splits["valid"])

    def between(size: int, target: int | None) -> int:
        return size if target is None else target + (size - target) * (steps - 1) // steps

    return [
        (between(num_heads, args.target_num_heads), between(num_neurons, args.target_ffn_dim))
        for num_heads, num_neurons in shapes
    ]


def cut_layers(args: argparse.Namespace, model: PreTrainedModel, data: Data, steps: int) -> None:
    """Keep the most important heads and neurons, in place, and fit what is left to what the whole model computed."""
    train = data.splits["train"]
    gradients: tuple[Importance, Importance] = [], []
    if args.importance in GRADIENT_SCORES:
        gradients = mask_gradients(model, batches_of(args, model, train, "importance"), args.importance_target)
    heads, neurons = importance(args, model, gradients)
    shapes = planned_shapes(args, model, heads, neurons, data, steps)
    whole = copy.deepcopy(model) if args.recover else None
    for index, counts in enumerate(shapes):
        if args.importance == "fisher":
            kept = [rearranged(part[index], count) for part, count in zip(gradients, counts, strict=True)]
        else:
            kept = [most_important(part[index], n) for part, n in zip((heads, neurons), counts, strict=True)]
        narrow_layer(model, index, *(indices.to(model.device) for indices in kept))
    if whole:
        recover(model, whole, batches_of(args, model, train, "recover"))


def cut_width(args: argparse.Namespace, model: PreTrainedModel, data: Data, steps: int) -> None:
    """Keep the most important hidden units of the encoder, in place, and fit what is left likewise."""
    train, head_size = data.splits["train"], head_size_of(model)
    more = model.config.hidden_size - args.target_hidden_size
    size = args.target_hidden_size + more * (steps - 1) // steps // head_size * head_size
    gradients = width_gradients(model, batches_of(args, model, train, "importance"), args.importance_target)
    score_units = GRADIENT_SCORES.get(args.importance, first_order)
    kept, head_kept = (most_important(score_units(part), size).to(model.device) for part in gradients)
    whole = copy.deepcopy(model) if args.recover else None
    narrow_width(model, kept, head_kept)
    if whole:
        recover(model, whole, batches_of(args, model, train, "recover"), hidden_kept=kept)


def distill(
    args: argparse.Namespace,
    model: PreTrainedModel,
    wanted: torch.Tensor,
    data: Data,
    accelerator: Accelerator,
    run: UnfinishedRun,
) -> None:
    """Train a pruned model for an epoch towards `wanted`, the whole one's logits of train.txt, in place."""

    def row_losses(student, inputs, batch, rows):
        with first_token_only(model):
            logits = student(**inputs).logits.float()
        return logits_mse(logits, wanted[torch.as_tensor(rows)].to(logits.device))

    settings = Settings(lr=args.lr, epochs=1, batch_size=DISTILLATION_BATCH, measure="accuracy", seed=args.seed)
    train(model, data, row_losses, settings, accelerator, save=lambda model: None, run=run)


def iterate(
    args: argparse.Namespace, model: PreTrainedModel, wanted: torch.Tensor, data: Data, accelerator: Accelerator
) -> UnfinishedRun:
    """Go to the targets in --iterations steps, each followed by distillation, in place; returns where that is kept.

    Raises:
        UserError: there is an unfinished run with other options.
    """
    contents = {"--data_dir": data.fingerprint, "--bert_output_dir": fingerprint(model), "--model_path": ""}
    run = begin_training(args, args.bert_output_dir_pruned, contents, accelerator)
    part = run.part
    if part:
        # Any heads and neurons do: their weights are read from the unfinished run.
        shape_like(model, part["hidden_size"], part["shapes"])
    for steps in range(part.get("steps", args.iterations), 0, -1):
        if steps != part.get("steps"):
            cut(args, model, data, steps)
        now = {"steps": steps, "hidden_size": model.config.hidden_size, "shapes": list(map(list, layer_shapes(model)))}
        distill(args, model, wanted, data, accelerator, replace(run, part=now))
    return run


def shape_like(model: PreTrainedModel, hidden_size: int, shapes: list[tuple[int, int]]) -> None:
    """Narrow a model, in place, to a hidden size and its layers to (heads, neurons), whichever they are."""
    if hidden_size < model.config.hidden_size:
        narrow_width(model, *[torch.arange(hidden_size, device=model.device)] * 2)
    for index, counts in enumerate(shapes):
        narrow_layer(model, index, *(torch.arange(count, device=model.device) for count in counts))


def cut(args: argparse.Namespace, model: PreTrainedModel, data: Data, steps: int) -> None:
    """Do the first of `steps` equal steps that are left to the targets, in place."""
    if any(target is not None for target in layer_targets(args)):
        cut_layers(args, model, data, steps)
    if args.target_hidden_size:
        cut_width(args, model, data, steps)


def layer_targets(args: argparse.Namespace) -> list[float | None]:
    """The options that say what remains of heads and neurons."""
    return [args.target_num_heads, args.target_ffn_dim, args.target_macs, args.target_latency]


def main() -> None:
    args = parse_args()
    check_args(args)
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    set_seed(args.seed)
    # Layers can be taken from an encoder without a classifier; ranking its heads by a classifier's loss cannot.
    model = load_model(
        args.bert_output_dir, "--bert_output_dir", config, data.labels, args.model_path,
        new_head=all(target is None for target in [*layer_targets(args), args.target_hidden_size]),
    )  # fmt: skip
    kept = chosen_layers(args, len(layer_shapes(model)))
    check_targets(args, [layer_shapes(model)[i] for i in kept], model)
    check_output_folder(args.bert_output_dir_pruned, "--bert_output_dir_pruned")
    if args.save_path_pruned:
        check_output_file(args.save_path_pruned, "--save_path_pruned")

    accelerator = make_accelerator(args.device, "fp32")
    model.to(accelerator.device)
    valid = data.splits["valid"]
    before = evaluate_logits(predict(model, valid, accelerator, "before"), valid)
    logger.info("[Before] : %s, valid accuracy %.4f", described(model), before.accuracy)
    if args.iterations > 1:
        wanted = predict(model, data.splits["train"], accelerator, "teacher")
    keep_layers(model, kept)
    if args.iterations > 1:
        run = iterate(args, model, wanted, data, accelerator)
    else:
        cut(args, model, data, steps=1)
    after = evaluate_logits(predict(model, valid, accelerator, "after"), valid)
    logger.info("[After] : %s, valid accuracy %.4f", described(model), after.accuracy)
    if args.prune_vocabulary:
        size = len(tokenizer)
        tokenizer, old_ids = smaller_tokenizer(tokenizer, used_ids(data.splits.values()))
        prune_embeddings(model, old_ids, tokenizer)
        again = "run preprocess.py with the pruned checkpoint before the next step"
        logger.info("[Vocabulary] : %d of %d tokens kept: %s", len(tokenizer), size, again)
    save_checkpoint(model, tokenizer, args.bert_output_dir_pruned, args.save_path_pruned)
    if args.iterations > 1:
        discard(run, accelerator)
    logger.info("[Saved] : %s", args.bert_output_dir_pruned)


def described(model: PreTrainedModel) -> str:
    """The model's shape in words."""
    return f"hidden size {model.config.hidden_size}, layers (heads, neurons) {layer_shapes(model)}"


if __name__ == "__main__":
    run_script(main)
