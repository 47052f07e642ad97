"""Cutting a model down, in place: layers, attention heads, FFN neurons, hidden size.

Which of them to cut is chosen elsewhere (importance.py, budget.py); here what is chosen is done.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.families import family_of, head_size_of, layers_of
from utils.models.modeling_pruned import drop_attention, resize_linear


def narrow_linear(linear: nn.Linear, kept: torch.Tensor, dim: int) -> None:
    """Keep only the rows (`dim` 0, outputs) or columns (`dim` 1, inputs) `kept` of a Linear's weight, in place."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    resize_linear(linear, weight.index_select(dim, kept), bias.index_select(0, kept) if dim == 0 else bias)


def narrow_layer(model: PreTrainedModel, index: int, heads: torch.Tensor, neurons: torch.Tensor) -> None:
    """Keep only the attention heads and FFN neurons with these indices in one layer, in place.

    A family's self-attention infers its number of heads from the width of the query projection, so narrower
    Linear layers are all it takes; where no head is left, the self-attention itself goes.
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
        narrow_linear(layer.get_submodule(path), kept, dim)
    if not len(heads):
        drop_attention(layer, family.self_attention)


def narrow_width(model: PreTrainedModel, kept: torch.Tensor, head_kept: torch.Tensor) -> None:
    """Keep only these of the encoder's hidden units, and of the classifier's, in place.

    Args:
        kept: indices of hidden units, the same in the embeddings and every layer; as many as whole attention heads of
            the model's head size are wide, since transformers derives the one from the other.
        head_kept: as many indices of the units between the classifier's two layers.
    """
    family, head_size = family_of(model), head_size_of(model)
    embeddings = model.get_submodule(family.embeddings)
    has_project = family.embeddings_project in dict(model.named_modules())
    if has_project:
        narrow_linear(model.get_submodule(family.embeddings_project), kept, 0)
    else:
        for table in (module for module in embeddings.children() if isinstance(module, nn.Embedding)):
            table.weight = nn.Parameter(table.weight.detach()[:, kept].clone())
            table.embedding_dim = len(kept)
        _narrow_norm(embeddings.LayerNorm, kept)
    for layer in layers_of(model):
        for path in (family.query, family.key, family.value, family.ffn_input):
            narrow_linear(layer.get_submodule(path), kept, 1)
        for path in (family.attention_output, family.ffn_output):
            narrow_linear(layer.get_submodule(path), kept, 0)
        for path in (family.attention_norm, family.ffn_norm):
            _narrow_norm(layer.get_submodule(path), kept)
    narrow_linear(model.get_submodule(family.head_dense), kept, 1)
    narrow_linear(model.get_submodule(family.head_dense), head_kept, 0)
    narrow_linear(model.get_submodule(family.head_output), head_kept, 1)
    model.config.hidden_size = len(kept)
    model.config.num_attention_heads = len(kept) // head_size
    if not has_project and hasattr(model.config, "embedding_size"):
        model.config.embedding_size = len(kept)


def keep_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Keep only the encoder layers with these indices, in this order, in place."""
    layers = layers_of(model)
    model.set_submodule(family_of(model).layers, nn.ModuleList([layers[i] for i in kept]))
    model.config.num_hidden_layers = len(kept)


def _narrow_norm(norm: nn.LayerNorm, kept: torch.Tensor) -> None:
    norm.weight, norm.bias = nn.Parameter(norm.weight.detach()[kept]), nn.Parameter(norm.bias.detach()[kept])
    norm.normalized_shape = (len(kept),)
