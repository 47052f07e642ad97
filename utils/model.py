"""Classification models: loading, saving and cutting down, for the four families.

A checkpoint folder is a standard transformers one. Where pruning left a layer narrower than config.json's own keys can
say, `layer_shapes` in config.json lists (attention heads, FFN neurons) for every layer.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from utils.checkpoint import MEND, check_labels, labels_of, load_hub_config
from utils.cli import UserError, first_line
from utils.config import Config
from utils.families import FAMILIES, family_of, head_size_of, layer_shapes, layers_of, takes_token_types
from utils.files import atomic_file, atomic_files_into


def load_model(
    name_or_path: str,
    flag: str,
    config: Config,
    labels: list[str],
    state_path: str | None = None,
    attention: str = "sdpa",
    new_head: bool = False,
) -> PreTrainedModel:
    """Load a classification model in evaluation mode, pruned or not.

    Args:
        name_or_path: a checkpoint folder or a Hugging Face hub name; `flag` is the option that named it, for errors.
        labels: the data set's label strings in the order of their ids; the checkpoint's must be the same.
        state_path: a state dict (.pt) to load over the folder's own weights.
        attention: `eager` where attention probabilities are wanted, else `sdpa`.
        new_head: start a classifier for `labels` afresh where the checkpoint has none or one for other labels.

    Raises:
        UserError: the checkpoint is missing, damaged, of another family than `config`'s, or its labels differ.
    """
    hub_config = load_hub_config(name_or_path, flag, config)
    own_labels = labels_of(hub_config)
    if not new_head:
        check_labels(hub_config, labels, name_or_path, flag)
    hub_config.id2label, hub_config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    try:
        if getattr(hub_config, "layer_shapes", None):
            model = _load_pruned(Path(name_or_path), hub_config, attention, keep_head=own_labels == labels)
        else:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, config=hub_config, attn_implementation=attention, dtype=torch.float32,
                ignore_mismatched_sizes=new_head, output_loading_info=True,
            )  # fmt: skip
            if loading["missing_keys"] and not new_head:
                raise ValueError(f"no weights for {sorted(loading['missing_keys'])[0]}")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{flag}={name_or_path} cannot be loaded ({first_line(error)}): {MEND}") from error
    if state_path is not None:
        load_state(model, state_path)
    return model.eval()


def load_state(model: PreTrainedModel, path: str) -> None:
    """Load a state dict written by `save_checkpoint` into `model`, in place.

    Raises:
        UserError: the file is missing, is not a plain state dict, or does not fit.
    """
    try:
        # weights_only: a pickle that would run code is refused, not executed.
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): train a model first, or check the path") from error
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise UserError(
            f"{path} is not a state dict of this checkpoint ({first_line(error)}): "
            "pass the folder and the file that one command wrote together"
        ) from error


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path, state_path: str | Path | None
) -> None:
    """Write a complete checkpoint folder (config, safetensors, tokenizer) and, with `state_path`, the same as a .pt."""
    if model.config.model_type in FAMILIES:
        shapes = layer_shapes(model)
        whole = (model.config.num_attention_heads, _config_ffn_size(model.config))
        if set(shapes) != {whole}:
            model.config.layer_shapes = [list(shape) for shape in shapes]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_files_into(folder) as temporary:
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary, state_dict=dict(state))  # a copy: it may empty the one it gets
    if state_path is not None:
        with atomic_file(state_path) as temporary:
            torch.save(state, temporary)


def narrow_linear(linear: nn.Linear, kept: torch.Tensor, dim: int) -> nn.Linear:
    """A smaller Linear with only the rows (`dim` 0, outputs) or columns (`dim` 1, inputs) `kept` of `linear`."""
    weight = linear.weight.index_select(dim, kept)
    narrow = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    bias = linear.bias.index_select(0, kept) if dim == 0 else linear.bias
    with torch.no_grad():
        narrow.weight.copy_(weight)
        narrow.bias.copy_(bias)
    return narrow


def narrow_layer(model: PreTrainedModel, index: int, heads: torch.Tensor, neurons: torch.Tensor) -> None:
    """Keep only the attention heads and FFN neurons with these indices in one layer, in place.

    A family's self-attention infers its number of heads from the width of the query projection, so swapping the Linear
    layers is all it takes.
    """
    family, head_size, layer = family_of(model), head_size_of(model), layers_of(model)[index]
    columns = (heads[:, None] * head_size + torch.arange(head_size, device=heads.device)).flatten()
    for path, kept, dim in [
        (family.query, columns, 0),
        (family.key, columns, 0),
        (family.value, columns, 0),
        (family.attention_output, columns, 1),
        (family.ffn_input, neurons, 0),
        (family.ffn_output, neurons, 1),
    ]:
        layer.set_submodule(path, narrow_linear(layer.get_submodule(path), kept, dim))


def keep_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Keep only the encoder layers with these indices, in this order, in place."""
    layers = layers_of(model)
    model.set_submodule(family_of(model).layers, nn.ModuleList([layers[i] for i in kept]))
    model.config.num_hidden_layers = len(kept)


def model_inputs(model: PreTrainedModel, batch: dict) -> dict:
    """The entries of a batch that this model's forward takes, as tensors on its device."""
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_token_types(model) else [])
    return {name: torch.as_tensor(batch[name]).to(model.device, non_blocking=True) for name in names}


def _load_pruned(folder: Path, hub_config: PretrainedConfig, attention: str, keep_head: bool) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_config(hub_config, attn_implementation=attention)
    for index, (num_heads, num_neurons) in enumerate(hub_config.layer_shapes):
        narrow_layer(model, index, torch.arange(num_heads), torch.arange(num_neurons))
    state = load_file(folder / "model.safetensors")
    if not keep_head:
        output = family_of(model).head_output + "."
        state |= {name: value for name, value in model.state_dict().items() if name.startswith(output)}
    model.load_state_dict(state)
    return model


def _config_ffn_size(hub_config: PretrainedConfig) -> int:
    return hub_config.hidden_dim if hub_config.model_type == "distilbert" else hub_config.intermediate_size
