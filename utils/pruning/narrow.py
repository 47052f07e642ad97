"""Cut a model down, in place, to given layers, attention heads, FFN neurons and hidden units.

importance.py and budget.py choose them; nothing is chosen here.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.families import family_of, head_size_of, layers_of, projections
from utils.models.modeling_pruned import count_heads, number_heads, resize_linear


def narrow_linear(linear: nn.Linear, indices: torch.Tensor, dim: int) -> None:
    """Keep only some rows (`dim` 0, outputs) or columns (`dim` 1, inputs) of a Linear's weight, in place.

    Args:
        indices: of these rows or columns, in their new order, on the device of the weight.
    """
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    if bias is not None and dim == 0:
        bias = bias.index_select(0, indices)
    resize_linear(linear, weight.index_select(dim, indices), bias)


def narrow_layer(model: PreTrainedModel, index: int, heads: torch.Tensor, neurons: torch.Tensor) -> None:
    """Keep only some attention heads and FFN neurons of one layer, in place.

    transformers' self-attention infers its number of heads from the width of the query projection, so narrower Linear
    layers are enough; where no head is left, the self-attention is removed.

    Args:
        index: the layer's number, from 0.
        heads, neurons: indices of those to keep, int64 [heads] and [neurons], on the model's device; there may be no
            head.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
        IndexError: the layer has fewer heads or neurons than an index says.
    """
    family, head_size, layer = family_of(model), head_size_of(model), layers_of(model)[index]
    _number_heads(model)
    columns = (heads[:, None] * head_size + torch.arange(head_size, device=heads.device)).flatten()
    rows = [(path, columns) for path in projections(family)] + [(family.ffn_input, neurons)]
    for path, indices in rows:
        linear, blocks = layer.get_submodule(path), family.packed.get(path, 1)
        size = linear.out_features // blocks
        narrow_linear(linear, torch.cat([indices + block * size for block in range(blocks)]), 0)
    narrow_linear(layer.get_submodule(family.attention_output), columns, 1)
    narrow_linear(layer.get_submodule(family.ffn_output), neurons, 1)
    attention = layer.get_submodule(family.self_attention)
    if hasattr(attention, "heads"):
        attention.heads = attention.heads[heads]
    count_heads(layer, family.self_attention, len(heads))


def narrow_width(model: PreTrainedModel, hidden_units: torch.Tensor, classifier_units: torch.Tensor) -> None:
    """Keep only some of the encoder's hidden units, and of the classifier's, in place.

    Args:
        hidden_units: indices of those to keep, int64 [hidden units], the same in the embeddings and in every layer; a
            multiple of the head size, since transformers computes the head size from the hidden size.
        classifier_units: as many indices of the units between the classifier's two layers.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
        IndexError: the model has fewer units than an index says.
    """
    family, head_size = family_of(model), head_size_of(model)
    _number_heads(model)
    embeddings = model.get_submodule(family.embeddings)
    has_project = family.embeddings_project in dict(model.named_modules())
    if has_project:
        narrow_linear(model.get_submodule(family.embeddings_project), hidden_units, 0)
    else:
        for table in (module for module in embeddings.children() if isinstance(module, nn.Embedding)):
            table.weight = nn.Parameter(table.weight.detach()[:, hidden_units].clone())
            table.embedding_dim = len(hidden_units)
        _narrow_norm(embeddings.get_submodule(family.embeddings_norm), hidden_units)
    for layer in layers_of(model):
        for path in [*projections(family), family.ffn_input]:
            narrow_linear(layer.get_submodule(path), hidden_units, 1)
        for path in (family.attention_output, family.ffn_output):
            narrow_linear(layer.get_submodule(path), hidden_units, 0)
        for path in (family.attention_norm, family.ffn_norm):
            _narrow_norm(layer.get_submodule(path), hidden_units)
    if family.relative_embeddings:
        relative = model.get_submodule(family.relative_embeddings)
        relative.weight = nn.Parameter(relative.weight.detach()[:, hidden_units].clone())
        relative.embedding_dim = len(hidden_units)
    if family.relative_norm in dict(model.named_modules()):
        _narrow_norm(model.get_submodule(family.relative_norm), hidden_units)
    if family.final_norm:
        _narrow_norm(model.get_submodule(family.final_norm), hidden_units)
    narrow_linear(model.get_submodule(family.head_dense), hidden_units, 1)
    narrow_linear(model.get_submodule(family.head_dense), classifier_units, 0)
    if family.head_norm:
        _narrow_norm(model.get_submodule(family.head_norm), classifier_units)
    narrow_linear(model.get_submodule(family.head_output), classifier_units, 1)
    model.config.hidden_size = len(hidden_units)
    model.config.num_attention_heads = len(hidden_units) // head_size
    for key in ("embedding_size", "pooler_hidden_size"):
        if not has_project and hasattr(model.config, key):
            setattr(model.config, key, len(hidden_units))


def shape_like(model: PreTrainedModel, shapes: list[tuple[int, int]], hidden_size: int | None = None) -> None:
    """Give the layers these numbers of (heads, neurons), and the encoder this hidden size, in place.

    The first ones stay: for what does not depend on which, such as latency, or where weights are loaded afterwards.
    """
    if hidden_size is not None and hidden_size < model.config.hidden_size:
        units = torch.arange(hidden_size, device=model.device)
        narrow_width(model, units, units)
    for index, counts in enumerate(shapes):
        narrow_layer(model, index, *(torch.arange(count, device=model.device) for count in counts))


def keep_layers(model: PreTrainedModel, indices: list[int]) -> None:
    """Keep only the encoder layers with these indices, in this order, in place; of ALBERT's one, as many uses.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    layers, family = layers_of(model), family_of(model)
    if not family.shared_layer:
        model.set_submodule(family.layers, nn.ModuleList([layers[i] for i in indices]))
    model.config.num_hidden_layers = len(indices)
    if hasattr(model.config, "layer_types"):  # ModernBERT's local and global ones
        model.config.layer_types = [model.config.layer_types[i] for i in indices]


def _number_heads(model: PreTrainedModel) -> None:
    """Let each layer know its columns of the position bias, where the family has one."""
    family = family_of(model)
    if family.position_bias:
        number_heads(model, model.get_submodule(family.position_bias), family.layers, family.self_attention)


def _narrow_norm(norm: nn.Module, indices: torch.Tensor) -> None:
    if isinstance(norm, nn.Identity):  # ModernBERT's first one
        return
    assert isinstance(norm, nn.LayerNorm)
    norm.weight = nn.Parameter(norm.weight.detach()[indices])
    if norm.bias is not None:
        norm.bias = nn.Parameter(norm.bias.detach()[indices])
    norm.normalized_shape = (len(indices),)
