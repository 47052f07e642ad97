"""The sizes that prune.py's options ask for, compared with the model."""

from transformers import PreTrainedModel

from utils.models.families import head_size_of, last_of_blocks, shapes_in_order, unknown_option
from utils.system.errors import UserError


def layers_to_keep(num_layers: int, keep_layers: list[int] | None, target_num_layers: int | None) -> list[int]:
    """The layers that --keep_layers or --target_num_layers names of a model with `num_layers`; all without either.

    Raises:
        UserError: more layers than there are, or a list that is not ascending numbers of layers.
    """
    if target_num_layers:
        if target_num_layers > num_layers:
            raise UserError(f"--target_num_layers={target_num_layers} but the model has {num_layers}: lower it")
        return last_of_blocks(num_layers, target_num_layers)
    layers = keep_layers or list(range(num_layers))
    if layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
        shown = ",".join(map(str, layers))
        raise UserError(f"--keep_layers={shown}: give ascending numbers from 0 to {num_layers - 1}, each once")
    return layers


def check_sizes(
    model: PreTrainedModel, layers: list[int], num_heads: int | None, num_neurons: int | None, hidden_size: int | None
) -> None:
    """Compare --target_num_heads and --target_ffn_dim with the smallest of the layers that stay, --target_hidden_size
    with the encoder.

    Raises:
        UserError: a target is larger than the model, or no whole number of heads; names both numbers. Or the model
            has an option whose parts are not known.
    """
    if option := unknown_option(model):
        raise UserError(
            f"the checkpoint's config.json says {option}, and such an encoder of the family "
            f"{model.config.model_type!r} cannot be pruned: use another"
        )
    heads, neurons = zip(*(shapes_in_order(model)[i] for i in layers), strict=True)
    for flag, target, size, unit in [
        ("--target_num_heads", num_heads, min(heads), "attention heads a layer"),
        ("--target_ffn_dim", num_neurons, min(neurons), "FFN neurons a layer"),
        ("--target_hidden_size", hidden_size, model.config.hidden_size, "hidden units"),
    ]:
        if target and target > size:
            raise UserError(f"{flag}={target} is larger than the model, which has {size} {unit}: lower it")
    # ALBERT always projects.
    if hidden_size and model.config.model_type == "electra" and hidden_size == model.config.embedding_size:
        raise UserError(
            f"--target_hidden_size={hidden_size} is the width of this model's embeddings, which transformers would "
            "then take for unprojected: choose another"
        )
    head_size = head_size_of(model)
    if hidden_size and hidden_size % head_size:
        raise UserError(
            f"--target_hidden_size={hidden_size} is not a multiple of {head_size}, the width of this model's attention "
            "heads: choose one"
        )
