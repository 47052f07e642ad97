"""Make a smaller model out of a trained one: fewer layers, attention heads, FFN neurons.

    python prune.py --config=configs/config-bert-cls.json --data_dir=data/sst2 --bert_output_dir=bert-checkpoint \\
        --model_path=pytorch-model.pt --target_num_heads=8 --target_ffn_dim=1024 \\
        --bert_output_dir_pruned=bert-checkpoint-pruned --save_path_pruned=pytorch-model-pruned.pt

Heads and neurons are ranked by the gradient of the loss with respect to a mask on each, over rows of train.txt
(--importance); the best ones are rewired into smaller dense layers, the same shape in every layer, or, with
--target_macs=0.6, as uneven as it is best. --recover then fits what is left, without training, to the states of the
whole model.
--keep_layers 1,3,5 (or --target_num_layers 3: the last layer of each of 3 equal blocks) makes a student out of any
encoder, also a pretrained one that has no classifier yet. Accuracy on valid.txt is shown before and after.
"""

import argparse
import copy
import logging
import math
from collections.abc import Iterator

import datasets
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import PreTrainedModel

from utils.arguments import (
    add_checkpoint_options,
    add_data_options,
    add_device_option,
    fraction,
    layer_list,
    positive_int,
    script_parser,
)
from utils.budget import head_macs, neuron_macs, spread
from utils.checkpoint import load_tokenizer
from utils.cli import UserError, run
from utils.config import load_config
from utils.data import collate, lengths, load_data, shuffled_batches
from utils.families import head_size_of, layer_shapes
from utils.files import check_output_file, check_output_folder
from utils.importance import (
    GRADIENT_SCORES,
    Scores,
    magnitudes,
    mask_gradients,
    most_important,
    normalized,
    random_scores,
    rearranged,
)
from utils.model import keep_layers, load_model, narrow_layer, save_checkpoint
from utils.recovery import recover
from utils.training import make_accelerator, predict, score
from utils.vocabulary import prune_embeddings, smaller_tokenizer, used_ids

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
    group.add_argument(
        "--target_macs", type=fraction,
        help="share of all layers' multiply-adds to keep, spread unevenly: each layer keeps what matters",
    )  # fmt: skip
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--keep_layers", type=layer_list, help="layers to keep, counted from 0, such as 1,3,5")
    layers.add_argument(
        "--target_num_layers", type=positive_int, help="layers to keep, evenly spread, the last included"
    )
    group.add_argument(
        "--prune_vocabulary", action="store_true",
        help="drop the tokens that do not occur in the data set, but for special ones and single characters",
    )  # fmt: skip
    group = parser.add_argument_group("what to keep")
    group.add_argument(
        "--importance", choices=[*GRADIENT_SCORES, "magnitude", "random"], default="first_order",
        help="what ranks heads and neurons: gradients of a mask (fisher: squared, and heads or neurons of a layer "
        "judged together), or the baselines",
    )  # fmt: skip
    group.add_argument(
        "--importance_target", choices=["labels", "logits"], default="labels",
        help="logits: the model's own predictions take the labels' place",
    )  # fmt: skip
    group.add_argument("--normalize_importance", action="store_true", help="make every layer's scores sum to 1")
    group.add_argument("--importance_rows", type=positive_int, default=2048, help="rows of train.txt to rank on")
    group.add_argument(
        "--recover", action="store_true",
        help="fit the output projections that are left to the whole model's states, on the same rows",
    )  # fmt: skip
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


def check_args(args: argparse.Namespace) -> None:
    """Compare the options with one another.

    Raises:
        UserError: there is nothing to do, or two of them contradict each other.
    """
    targets = [args.target_num_heads, args.target_ffn_dim, args.target_macs, args.keep_layers, args.target_num_layers]
    if not any(targets) and not args.prune_vocabulary:
        raise UserError(
            "nothing to prune: give --target_num_heads, --target_ffn_dim, --target_macs, --keep_layers, "
            "--target_num_layers or --prune_vocabulary"
        )
    if args.target_macs and (args.target_num_heads or args.target_ffn_dim):
        raise UserError("--target_macs chooses heads and neurons: leave out --target_num_heads and --target_ffn_dim")


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


def importance(args: argparse.Namespace, model: PreTrainedModel, gradients: tuple | None) -> tuple[Scores, Scores]:
    """Scores of every head and neuron by --importance; `gradients` are of `mask_gradients`, where it needs them."""
    if args.importance == "magnitude":
        scores = magnitudes(model)
    elif args.importance == "random":
        scores = random_scores(model, args.seed)
    else:
        scores = tuple([GRADIENT_SCORES[args.importance](layer) for layer in part] for part in gradients)
    return tuple(normalized(part) for part in scores) if args.normalize_importance else scores


def planned_shapes(args: argparse.Namespace, model: PreTrainedModel, scores: tuple, length: float) -> list:
    """(heads, neurons) to keep in every layer: by --target_macs, or the same everywhere."""
    if args.target_macs:
        hidden, head_size = model.config.hidden_size, head_size_of(model)
        return spread(*scores, head_macs(hidden, head_size, length), neuron_macs(hidden), args.target_macs)
    return [
        (args.target_num_heads or num_heads, args.target_ffn_dim or num_neurons)
        for num_heads, num_neurons in layer_shapes(model)
    ]


def narrow(args: argparse.Namespace, model: PreTrainedModel, train: datasets.Dataset) -> None:
    """Keep the most important heads and neurons, in place, and fit what is left to what the whole model computed."""
    num_batches = math.ceil(args.importance_rows / IMPORTANCE_BATCH)
    chosen = shuffled_batches(lengths(train), IMPORTANCE_BATCH, args.seed)[:num_batches]

    def batches(name: str) -> Iterator[dict]:
        for indices in tqdm(chosen, desc=name, unit="batch", disable=None, leave=False):
            yield collate(train, indices, model.config.pad_token_id)

    gradients = None
    if args.importance in GRADIENT_SCORES:
        gradients = mask_gradients(model, batches("importance"), args.importance_target)
    scores = importance(args, model, gradients)
    shapes = planned_shapes(args, model, scores, float(lengths(train).mean()))
    whole = copy.deepcopy(model) if args.recover else None
    for index, counts in enumerate(shapes):
        if args.importance == "fisher":
            kept = [rearranged(part[index], count) for part, count in zip(gradients, counts, strict=True)]
        else:
            kept = [most_important(part[index], count) for part, count in zip(scores, counts, strict=True)]
        narrow_layer(model, index, *(indices.to(model.device) for indices in kept))
    if args.recover:
        recover(model, whole, lambda: batches("recover"))


def main() -> None:
    args = parse_args()
    check_args(args)
    narrows = bool(args.target_num_heads or args.target_ffn_dim or args.target_macs)
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
        narrow(args, model, data.splits["train"])
    after = score(predict(model, valid, accelerator, "after"), valid)
    logger.info("[After] : layers (heads, neurons) %s, valid accuracy %.4f", layer_shapes(model), after.accuracy)
    if args.prune_vocabulary:
        size = len(tokenizer)
        tokenizer, old_ids = smaller_tokenizer(tokenizer, used_ids(data.splits.values()))
        prune_embeddings(model, old_ids, tokenizer)
        again = "run preprocess.py with the pruned checkpoint before the next step"
        logger.info("[Vocabulary] : %d of %d tokens kept: %s", len(tokenizer), size, again)
    save_checkpoint(model, tokenizer, args.bert_output_dir_pruned, args.save_path_pruned)
    logger.info("[Saved] : %s", args.bert_output_dir_pruned)


if __name__ == "__main__":
    run(main)
