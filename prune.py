"""Make a smaller model out of a trained one: fewer layers, attention heads, FFN neurons.

    python prune.py --config=configs/config-bert-cls.json --data_dir=data/sst2 --bert_output_dir=bert-checkpoint \\
        --model_path=pytorch-model.pt --target_num_heads=8 --target_ffn_dim=1024 \\
        --bert_output_dir_pruned=bert-checkpoint-pruned --save_path_pruned=pytorch-model-pruned.pt

Heads and neurons are ranked within each layer by the gradient of the loss with respect to a mask on each, accumulated
over rows of train.txt; the best ones are rewired into smaller dense layers, the same shape in every layer.
--keep_layers 1,3,5 (or --target_num_layers 3: the last layer of each of 3 equal blocks) makes a student out of any
encoder, also a pretrained one that has no classifier yet. Accuracy on valid.txt is shown before and after.
"""

import argparse
import logging
import math

from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import PreTrainedModel

from utils.arguments import (
    add_checkpoint_options,
    add_data_options,
    add_device_option,
    layer_list,
    positive_int,
    script_parser,
)
from utils.checkpoint import load_tokenizer
from utils.cli import UserError, run
from utils.config import load_config
from utils.data import collate, lengths, load_data, shuffled_batches
from utils.families import layer_shapes
from utils.files import check_output_file, check_output_folder
from utils.importance import gradient_importance, most_important
from utils.model import keep_layers, load_model, narrow_layer, save_checkpoint
from utils.training import make_accelerator, predict, score

logger = logging.getLogger(__name__)

IMPORTANCE_BATCH = 32


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    add_checkpoint_options(parser)
    parser.add_argument("--bert_output_dir_pruned", required=True, help="folder for the pruned checkpoint")
    parser.add_argument("--save_path_pruned", help="file for the pruned checkpoint's state dict (.pt)")
    group = parser.add_argument_group("targets (at least one)")
    group.add_argument("--target_num_heads", type=positive_int, help="attention heads to keep in every layer")
    group.add_argument("--target_ffn_dim", type=positive_int, help="FFN neurons to keep in every layer")
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--keep_layers", type=layer_list, help="layers to keep, counted from 0, such as 1,3,5")
    layers.add_argument(
        "--target_num_layers", type=positive_int, help="layers to keep, evenly spread, the last included"
    )
    parser.add_argument("--importance_rows", type=positive_int, default=2048, help="rows of train.txt to rank on")
    parser.add_argument("--seed", type=int, default=42, help="seed of the choice of those rows")
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


def check_targets(args: argparse.Namespace, shapes: list[tuple[int, int]]) -> None:
    """Compare --target_num_heads and --target_ffn_dim with the smallest layer's shape.

    Raises:
        UserError: a target is larger than the model; names both numbers.
    """
    for flag, target, size, unit in [
        ("--target_num_heads", args.target_num_heads, min(heads for heads, _ in shapes), "attention heads"),
        ("--target_ffn_dim", args.target_ffn_dim, min(neurons for _, neurons in shapes), "FFN neurons"),
    ]:
        if target and target > size:
            raise UserError(f"{flag}={target} is larger than the model, which has {size} {unit} a layer: lower it")


def prune_heads_and_neurons(
    model: PreTrainedModel, batches: list[dict], target_num_heads: int | None, target_ffn_dim: int | None
) -> None:
    """Keep the most important heads and neurons of every layer, in place; `None` keeps them all."""
    heads, neurons = gradient_importance(model, batches)
    for index, (head_importance, neuron_importance) in enumerate(zip(heads, neurons, strict=True)):
        narrow_layer(
            model,
            index,
            most_important(head_importance, target_num_heads or len(head_importance)),
            most_important(neuron_importance, target_ffn_dim or len(neuron_importance)),
        )


def main() -> None:
    args = parse_args()
    narrows = bool(args.target_num_heads or args.target_ffn_dim)
    cuts_layers = bool(args.keep_layers or args.target_num_layers)
    if not narrows and not cuts_layers:
        raise UserError(
            "nothing to prune: give --target_num_heads, --target_ffn_dim, --keep_layers or --target_num_layers"
        )
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    set_seed(args.seed)
    # Layers can be taken from an encoder without a classifier; ranking its heads by a classifier's loss cannot.
    model = load_model(
        args.bert_output_dir, "--bert_output_dir", config, data.labels, args.model_path, new_head=not narrows
    )
    kept = chosen_layers(args, len(layer_shapes(model)))
    check_targets(args, [layer_shapes(model)[i] for i in kept])
    check_output_folder(args.bert_output_dir_pruned, "--bert_output_dir_pruned")
    if args.save_path_pruned:
        check_output_file(args.save_path_pruned, "--save_path_pruned")

    accelerator = make_accelerator(args.device, "fp32")
    model.to(accelerator.device)
    valid = data.splits["valid"]
    before = score(predict(model, valid, accelerator, "before"), valid)
    logger.info("[Before] : layers (heads, neurons) %s, valid accuracy %.4f", layer_shapes(model), before.accuracy)
    keep_layers(model, kept)
    if narrows:
        train = data.splits["train"]
        num_batches = math.ceil(args.importance_rows / IMPORTANCE_BATCH)
        batches = shuffled_batches(lengths(train), IMPORTANCE_BATCH, args.seed)[:num_batches]
        rows = tqdm(batches, desc="importance", unit="batch", disable=None)
        ranked_on = (collate(train, indices, model.config.pad_token_id) for indices in rows)
        prune_heads_and_neurons(model, ranked_on, args.target_num_heads, args.target_ffn_dim)
    after = score(predict(model, valid, accelerator, "after"), valid)
    logger.info("[After] : layers (heads, neurons) %s, valid accuracy %.4f", layer_shapes(model), after.accuracy)
    save_checkpoint(model, tokenizer, args.bert_output_dir_pruned, args.save_path_pruned)
    logger.info("[Saved] : %s", args.bert_output_dir_pruned)


if __name__ == "__main__":
    run(main)
