"""The last layer for the first token alone: the rest of that layer never reaches the classifier."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
    """Within it, `model` computes queries, attention output and FFN of its last layer for the first token only.

    Logits and gradients stay the same, and a sixth of a 6-layer model's work, a third of a 3-layer one's, is not done.
    Not for losses that look at the last layer's states of all tokens. A model of an unknown family stays as it is, and
    so does one whose classifier reads the states of all tokens.
    """
    known = in_table(model.config) and not unknown_option(model)
    with _shortened(model) if known and reads_first_token(model) else nullcontext():
        yield


@contextmanager
def _shortened(model: PreTrainedModel) -> Iterator[None]:
    family, uses, head_size = family_of(model), layer_uses(model), head_size_of(model)
    layer, num_uses, calls = uses[-1], uses.count(uses[-1]), 0
    attention = layer.get_submodule(family.self_attention)
    query, key, value = (layer.get_submodule(path) for path in (family.query, family.key, family.value))
    dropout = getattr(attention, "attention_dropout", getattr(attention, "dropout", nn.Dropout(0.0)))
    attend_all = attention.forward
    of_all_tokens: list[torch.Tensor] = []

    def keep_first(module: nn.Module, arguments: tuple) -> tuple | None:
        nonlocal calls
        calls += 1
        if calls % num_uses:  # an earlier use of ALBERT's one layer
            return None
        of_all_tokens[:] = arguments[:1]
        return (arguments[0][:, :1], *arguments[1:])

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, head_size)).transpose(1, 2)

    def attend(
        first: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **named: object,
    ) -> tuple:
        if not of_all_tokens:
            return attend_all(first, attention_mask, **named)
        states = of_all_tokens.pop()
        mask = None if attention_mask is None else attention_mask[..., :1, :]
        if position_bias is not None:  # MPNet's
            bias = position_bias[:, attention.heads] if hasattr(attention, "heads") else position_bias
            mask = bias[..., :1, :] if mask is None else bias[..., :1, :] + mask
        context = F.scaled_dot_product_attention(
            heads(query(first)), heads(key(states)), heads(value(states)),
            attn_mask=mask,
            dropout_p=dropout.p if attention.training else 0.0,
        ).transpose(1, 2).flatten(2)  # fmt: skip
        return after_context(attention, context, first), None

    def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first_half, second_half = states.float().chunk(2, -1)
        turned = torch.cat([-second_half, first_half], -1)
        return (states.float() * cos + turned * sin).to(states.dtype)

    def attend_rotated(
        first: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> tuple:
        """ModernBERT's: `first` is normalized, the other states are not yet."""
        states = layer.get_submodule(family.attention_norm)(of_all_tokens.pop())
        weight, bias, width = query.weight, query.bias, query.out_features // 3
        queries = F.linear(first, weight[:width], None if bias is None else bias[:width])
        keys_values = F.linear(states, weight[width:], None if bias is None else bias[width:])
        keys, values = (heads(part) for part in keys_values.chunk(2, -1))
        cos, sin = (part[:, None] for part in position_embeddings)
        context = F.scaled_dot_product_attention(
            rotated(heads(queries), cos[:, :, :1], sin[:, :, :1]), rotated(keys, cos, sin), values,
            attn_mask=None if attention_mask is None else attention_mask[..., :1, :],
            dropout_p=attention.attention_dropout if attention.training else 0.0,
        ).transpose(1, 2).flatten(2)  # fmt: skip
        return attention.out_drop(attention.Wo(context)), None

    def attend_by_distance(
        first: torch.Tensor,
        attention_mask: torch.Tensor,
        *_: object,
        relative_pos: torch.Tensor,
        rel_embeddings: torch.Tensor,
        **__: object,
    ) -> tuple:
        """DeBERTa's: the terms of content and position are a bias on the scores."""
        states, kinds = of_all_tokens.pop(), set(attention.pos_att_type) & {"c2p", "p2c"}
        queries, keys = heads(query(first)), heads(key(states))
        relative, half = attention.pos_dropout(rel_embeddings), len(rel_embeddings) // 2
        rows = relative[(relative_pos[0, 0] + half).clamp(0, 2 * half - 1)][None]  # of the first token's distances
        scale = (head_size * (1 + len(kinds))) ** -0.5
        bias = torch.zeros_like(queries[..., :1])
        if "c2p" in kinds:
            bias = bias + queries @ heads(key(rows)).transpose(-1, -2) * scale
        if "p2c" in kinds:
            bias = bias + (keys * heads(query(rows))).sum(-1)[:, :, None] * scale
        bias = bias.masked_fill(~attention_mask[..., :1, :].bool(), torch.finfo(bias.dtype).min)
        dropout = attention.dropout.p if attention.training else 0.0
        context = F.scaled_dot_product_attention(
            queries, keys, heads(value(states)), attn_mask=bias.to(queries.dtype), dropout_p=dropout, scale=scale
        )
        return context.transpose(1, 2).flatten(2), None

    hook = layer.register_forward_pre_hook(keep_first)
    if layer_shapes(model)[-1][0]:  # what stands in for an attention without heads takes any number of tokens
        by_distance = family.relative_embeddings is not None
        attention.forward = attend_by_distance if by_distance else attend_rotated if family.pre_norm else attend
    try:
        yield
    finally:
        hook.remove()
        attention.__dict__.pop("forward", None)
