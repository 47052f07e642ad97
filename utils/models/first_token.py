"""The last layer for the first token alone: the rest of that layer never reaches the classifier."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from utils.models.families import (
    family_of,
    head_size_of,
    in_table,
    layer_shapes,
    layer_uses,
    reads_first_token,
    unknown_option,
)
from utils.models.modeling_pruned import after_context


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `model` computes its last layer for the first token only.

    Logits and gradients stay the same, and a sixth of a 6-layer model's work, a third of a 3-layer one's, is not done.
    Not for losses that look at the last layer's states of all tokens. A model of an unknown family stays as it is, and
    so does one whose classifier reads the states of all tokens.
    """
    known = in_table(model.config) and not unknown_option(model)
    with _shortened(model) if known and reads_first_token(model) else nullcontext():
        yield


class _Parts(NamedTuple):
    """What attention of the last layer is computed with."""

    attention: Any
    norm: nn.Module  # in front of the attention, where the family has it there
    query: Any  # Linear layers
    key: Any
    value: Any
    head_size: int

    def heads(self, projected: torch.Tensor) -> torch.Tensor:
        """[batch, length, heads x head size] to [batch, heads, length, head size]."""
        return projected.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def of_heads(self, linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """A Linear's weight [heads, head size, in] and its bias [heads, head size]."""
        return linear.weight.unflatten(0, (-1, self.head_size)), linear.bias.unflatten(0, (-1, self.head_size))


@contextmanager
def _shortened(model: PreTrainedModel) -> Iterator[None]:
    family, uses = family_of(model), layer_uses(model)
    layer, num_uses, calls = uses[-1], uses.count(uses[-1]), 0
    paths = (family.self_attention, family.attention_norm, family.query, family.key, family.value)
    attention, norm, query, key, value = (layer.get_submodule(path) for path in paths)
    parts = _Parts(attention, norm, query, key, value, head_size_of(model))
    attend_all = attention.forward
    by_distance = family.relative_embeddings is not None
    attend = _attend_by_distance if by_distance else _attend_rotated if family.pre_norm else _attend
    of_all_tokens: list[torch.Tensor] = []

    def take_first(module: nn.Module, arguments: tuple) -> tuple | None:
        nonlocal calls
        calls += 1
        if calls % num_uses:  # an earlier use of ALBERT's one layer
            return None
        of_all_tokens[:] = arguments[:1]
        return (arguments[0][:, :1], *arguments[1:])

    def forward(first: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if not of_all_tokens:
            return attend_all(first, *arguments, **named)
        return attend(parts, of_all_tokens.pop(), first, *arguments, **named)

    hook = layer.register_forward_pre_hook(take_first)
    if layer_shapes(model)[-1][0]:  # what stands in for an attention without heads takes any number of tokens
        attention.forward = forward
    try:
        yield
    finally:
        hook.remove()
        attention.__dict__.pop("forward", None)


def _attend(
    parts: _Parts,
    states: torch.Tensor,
    first: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple:
    """Attention of the first token's states [batch, 1, hidden] to all states [batch, length, hidden].

    No other token's key or value is computed: as in `utils.export.fused`, their projections are taken to the first
    token's queries and context.
    """
    attention = parts.attention
    dropout = getattr(attention, "attention_dropout", getattr(attention, "dropout", nn.Dropout(0.0)))
    queries = parts.heads(parts.query(first))[:, :, 0]  # [batch, heads, head size]
    key, key_bias = parts.of_heads(parts.key)
    scores = torch.einsum("bhd,hdm->bhm", queries, key) @ states.transpose(1, 2)  # [batch, heads, length]
    scores = parts.head_size**-0.5 * (scores + (queries * key_bias).sum(-1, keepdim=True))
    if position_bias is not None:  # MPNet's
        bias = position_bias[:, attention.heads] if hasattr(attention, "heads") else position_bias
        scores = scores + bias[..., 0, :]
    if attention_mask is not None:
        mask = attention_mask[..., 0, :]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = F.dropout(scores.softmax(-1, dtype=torch.float32), dropout.p, attention.training).to(states.dtype)
    value, value_bias = parts.of_heads(parts.value)
    context = torch.einsum("bhm,hdm->bhd", shares @ states, value) + shares.sum(-1, keepdim=True) * value_bias
    return after_context(attention, context.flatten(1)[:, None], first), None


def _attend_rotated(
    parts: _Parts,
    states: torch.Tensor,
    first: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **_: object,
) -> tuple:
    """As `_attend`, for ModernBERT: `first` is normalized, the other states are not yet."""
    attention, states = parts.attention, parts.norm(states)
    weight, bias, width = parts.query.weight, parts.query.bias, parts.query.out_features // 3
    queries = F.linear(first, weight[:width], None if bias is None else bias[:width])
    keys_values = F.linear(states, weight[width:], None if bias is None else bias[width:])
    keys, values = (parts.heads(part) for part in keys_values.chunk(2, -1))
    cos, sin = (part[:, None] for part in position_embeddings)
    context = F.scaled_dot_product_attention(
        _rotated(parts.heads(queries), cos[:, :, :1], sin[:, :, :1]),
        _rotated(keys, cos, sin),
        values,
        attn_mask=None if attention_mask is None else attention_mask[..., :1, :],
        dropout_p=attention.attention_dropout if attention.training else 0.0,
    )
    return attention.out_drop(attention.Wo(context.transpose(1, 2).flatten(2))), None


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) of states [batch, heads, length, head size]."""
    first_half, second_half = states.float().chunk(2, -1)
    turned = torch.cat([-second_half, first_half], -1)
    return (states.float() * cos + turned * sin).to(states.dtype)


def _attend_by_distance(
    parts: _Parts,
    states: torch.Tensor,
    first: torch.Tensor,
    attention_mask: torch.Tensor,
    *_: object,
    relative_pos: torch.Tensor,
    rel_embeddings: torch.Tensor,
    **__: object,
) -> tuple:
    """As `_attend`, for DeBERTa: the terms of content and position are a bias on the scores."""
    attention, heads = parts.attention, parts.heads
    kinds = set(attention.pos_att_type) & {"c2p", "p2c"}
    queries, keys = heads(parts.query(first)), heads(parts.key(states))
    relative, half = attention.pos_dropout(rel_embeddings), len(rel_embeddings) // 2
    rows = relative[(relative_pos[0, 0] + half).clamp(0, 2 * half - 1)][None]  # of the first token's distances
    scale = (parts.head_size * (1 + len(kinds))) ** -0.5
    bias = torch.zeros_like(queries[..., :1])
    if "c2p" in kinds:
        bias = bias + queries @ heads(parts.key(rows)).transpose(-1, -2) * scale
    if "p2c" in kinds:
        bias = bias + (keys * heads(parts.query(rows))).sum(-1)[:, :, None] * scale
    bias = bias.masked_fill(~attention_mask[..., :1, :].bool(), torch.finfo(bias.dtype).min)
    context = F.scaled_dot_product_attention(
        queries,
        keys,
        heads(parts.value(states)),
        attn_mask=bias.to(queries.dtype),
        dropout_p=attention.dropout.p if attention.training else 0.0,
        scale=scale,
    )
    return context.transpose(1, 2).flatten(2), None
