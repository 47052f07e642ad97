"""DeBERTa v2 and v3 as a fused graph: attention with terms of content to position and of position to content.

A score is (query_i key_j + query_i position_key(i - j) + key_j position_query(i - j)) / scale (He et al. 2021, arXiv
2006.03654, equation 4). The projections of the relative embeddings do not depend on the input: they are constants of
each layer. The second and third term go into onnxruntime's MultiHeadAttention as a bias on the scores. They are
computed for the distances that tokens of a row can have, 2 * length of them, and then moved so that distances become
tokens: where each token has a row of 2 * length values, the same values read as rows of 2 * length - 1 begin one value
further left in each.
"""

from typing import NamedTuple

import numpy as np
import torch
from onnx import TensorProto
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from utils.export.graph import ACTIVATIONS, HIDDEN_ACTIVATIONS, MICROSOFT, WORDS, Graph, NotFusable
from utils.models.families import family_of, head_size_of, layers_of, takes_token_types, unknown_option


class _Shared(NamedTuple):
    """What layers share: names of tensors, but for the last."""

    mask: str  # int32 [batch, sequence]; empty where there is none
    key_distances: str  # rows of the relative embeddings for key minus query = -length to length - 1, [2 * length]
    query_distances: str  # the same for query minus key
    first_distances: str  # the same for query 0 and every key, [length]
    reread: list[str]  # which of a head's values are read again: start, end, axis
    shape: str  # in which they are read: [batch, heads, length, 2 * length - 1], as Reshape wants it
    columns: list[str]  # of these, the columns that belong to tokens: start, end, axis
    relative: torch.Tensor  # relative embeddings, as layers get them, [rows, hidden]


def write_deberta(graph: Graph, model: PreTrainedModel, masked: bool) -> None:
    """Write a DeBERTa classifier's nodes, from `input_ids` to `logits`; see `utils.export.fused.build_graph`.

    Raises:
        NotFusable: the model has a part that the fused operators cannot compute exactly.
    """
    _check_supported(model)
    family, config = family_of(model), model.config
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32) if masked else ""
    length = graph.node("Shape", ["input_ids"], "length", start=1, end=2)
    x = _embeddings(graph, model, length)
    shared = _shared(graph, model, mask, length)
    operator, domain = ACTIVATIONS[config.hidden_act]
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        name, output = f"layer.{index}", layer.attention.output
        attend = _first_row_attention if index == len(layers) - 1 else _attention
        if output.dense.in_features:
            context, x = attend(graph, x, layer.attention.self, shared, head_size_of(model), f"{name}.attention")
            x = graph.skip_norm(context, output.dense, x, output.LayerNorm, f"{name}.attention_norm")
        else:  # no head was kept
            x = graph.first_row(x, name) if attend is _first_row_attention else x
            bias = graph.weight(-output.dense.bias, f"{name}.no_attention")
            x = graph.sum_norm(x, bias, output.LayerNorm, f"{name}.attention_norm")
        ffn_input, ffn_output = layer.intermediate.dense, layer.output
        hidden = graph.linear(x, ffn_input.weight, ffn_input.bias, f"{name}.ffn_input")
        hidden = graph.node(operator, [hidden], f"{name}.activation", domain)
        x = graph.skip_norm(hidden, ffn_output.dense, x, ffn_output.LayerNorm, f"{name}.ffn_norm")
    x = graph.node("Squeeze", [x, graph.weight(np.array([1]), "head.axis")], "head.row")
    dense, output = model.get_submodule(family.head_dense), model.get_submodule(family.head_output)
    x = graph.linear(x, dense.weight, dense.bias, "head.dense")
    operator, domain = ACTIVATIONS[config.pooler_hidden_act]
    x = graph.node(operator, [x], "head.activation", domain)
    graph.linear(x, output.weight, output.bias, "logits")


def _check_supported(model: PreTrainedModel) -> None:
    if option := unknown_option(model):
        raise NotFusable(f"the model's config.json says {option}, which cannot be written as a fused graph")
    for key, possible in [("hidden_act", HIDDEN_ACTIVATIONS), ("pooler_hidden_act", tuple(ACTIVATIONS))]:
        if getattr(model.config, key) not in possible:
            raise NotFusable(
                f"the model's {key} is {getattr(model.config, key)!r} but only {', '.join(possible)} can be written as "
                "a fused graph"
            )


def _embeddings(graph: Graph, model: PreTrainedModel, length: str) -> str:
    """Sum of word and, where the model has them, position and token type embeddings, normalized."""
    embeddings = model.get_submodule(family_of(model).embeddings)
    x = graph.node("Gather", [graph.weight(embeddings.word_embeddings.weight, WORDS), "input_ids"], "word")
    types = embeddings.token_type_embeddings
    if embeddings.position_embeddings is not None:
        start, axis = (graph.weight(np.array([i]), f"position.{name}") for i, name in ((0, "start"), (1, "axis")))
        table = graph.weight(-embeddings.position_embeddings.weight[None], "position.weight")
        position = graph.node("Slice", [table, start, length, axis], "position")
        x = graph.node("Sub", [x, position], "word_and_position")
    if takes_token_types(model):
        rows = graph.node("Gather", [graph.weight(-types.weight, "token_type.weight"), "token_type_ids"], "token_type")
        x = graph.node("Sub", [x, rows], "word_and_type")
    elif types is not None:  # one type for every token
        x = graph.node("Sub", [x, graph.weight(-types.weight[0], "token_type")], "word_and_type")
    return graph.norm(x, embeddings.LayerNorm, "embeddings")


def _shared(graph: Graph, model: PreTrainedModel, mask: str, length: str) -> _Shared:
    """Which rows of the relative embeddings belong to the distances that tokens of rows of this length have."""
    encoder, longest = model.base_model.encoder, model.config.max_position_embeddings
    middle = encoder.rel_embeddings.num_embeddings // 2
    distances = torch.arange(-longest, longest)

    def rows(query_minus_key: torch.Tensor, name: str) -> str:
        if encoder.position_buckets > 0:
            query_minus_key = make_log_bucket_position(
                query_minus_key, encoder.position_buckets, encoder.max_relative_positions
            )
        return graph.weight((query_minus_key.long() + middle).clamp(0, 2 * middle - 1), f"distances.{name}")

    numbers = {i: graph.weight(np.array([i]), f"distances.{i}") for i in (0, 1, 2, 3)}
    zero = graph.weight(np.array([longest]), "distances.zero")  # where distance 0 is in the tables
    start = graph.node("Sub", [zero, length], "distances.start")
    end = graph.node("Add", [zero, length], "distances.end")
    by_key, by_query = rows(-distances, "by_key"), rows(distances, "by_query")
    double = graph.node("Add", [length, length], "distances.double")
    width = graph.node("Sub", [double, numbers[1]], "distances.width")
    last = graph.node("Add", [length, graph.node("Mul", [length, width], "distances.size")], "distances.last")
    same = graph.weight(np.array([0, 0]), "distances.same")
    return _Shared(
        mask=mask,
        key_distances=graph.node("Slice", [by_key, start, end, numbers[0]], "distances.key"),
        query_distances=graph.node("Slice", [by_query, start, end, numbers[0]], "distances.query"),
        first_distances=graph.node("Slice", [by_key, zero, end, numbers[0]], "distances.first"),
        reread=[length, last, numbers[2]],
        shape=graph.node("Concat", [same, length, width], "distances.shape", axis=0),
        columns=[numbers[0], length, numbers[3]],
        relative=encoder.get_rel_embedding().detach(),
    )


def _attention(
    graph: Graph, x: str, attention: nn.Module, shared: _Shared, head_size: int, name: str
) -> tuple[str, str]:
    """Self-attention of every row; returns the context and the rows, both [batch, sequence, ...]."""
    projections = [attention.query_proj, attention.key_proj, attention.value_proj]
    weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
    queries = graph.node(
        "Split", [graph.linear(x, weight, bias, f"{name}.projected")], f"{name}.query", outputs=3, axis=2
    )
    keys, values = f"{queries}.1", f"{queries}.2"
    terms = []
    if "c2p" in attention.pos_att_type:
        table = _table(graph, attention, attention.key_proj, shared.relative, head_size, f"{name}.position_key")
        terms.append(_term(graph, queries, table, shared.key_distances, shared, head_size, f"{name}.c2p"))
    if "p2c" in attention.pos_att_type:
        table = _table(graph, attention, attention.query_proj, shared.relative, head_size, f"{name}.position_query")
        term = _term(graph, keys, table, shared.query_distances, shared, head_size, f"{name}.p2c")
        terms.append(graph.node("Transpose", [term], f"{name}.p2c.by_query", perm=[0, 1, 3, 2]))
    bias_name = graph.node("Add", terms, f"{name}.bias") if len(terms) == 2 else "".join(terms)
    return _attend(graph, [queries, keys, values], attention, shared.mask, bias_name, head_size, name), x


def _first_row_attention(
    graph: Graph, x: str, attention: nn.Module, shared: _Shared, head_size: int, name: str
) -> tuple[str, str]:
    """Attention of the first row to all rows; returns the context and the row, both [batch, 1, ...]."""
    query, key, value = attention.query_proj, attention.key_proj, attention.value_proj
    row = graph.first_row(x, name)
    queries = graph.linear(row, query.weight, query.bias, f"{name}.query")
    weight, bias = torch.cat([key.weight, value.weight]), torch.cat([key.bias, value.bias])
    keys = graph.node("Split", [graph.linear(x, weight, bias, f"{name}.key_value")], f"{name}.key", outputs=2, axis=2)
    terms = []
    for kind, projection, states in [("c2p", key, queries), ("p2c", query, keys)]:
        if kind in attention.pos_att_type:
            table = _table(graph, attention, projection, shared.relative, head_size, f"{name}.{kind}.table")
            rows = graph.node("Gather", [table, shared.first_distances], f"{name}.{kind}.rows", axis=1)
            by_head = _heads(graph, states, head_size, f"{name}.{kind}")
            products = graph.node("Mul", [by_head, rows], f"{name}.{kind}")
            axis = graph.weight(np.array([3]), f"{name}.{kind}.axis")
            terms.append(graph.node("ReduceSum", [products, axis], f"{name}.{kind}.column"))
    if terms:
        column = graph.node("Add", terms, f"{name}.columns") if len(terms) == 2 else terms[0]
        terms = [graph.node("Transpose", [column], f"{name}.bias", perm=[0, 1, 3, 2])]
    return _attend(graph, [queries, keys, f"{keys}.1"], attention, shared.mask, "".join(terms), head_size, name), row


def _scale(attention: nn.Module, head_size: int) -> float:
    """What every score is multiplied by: the more terms, the smaller."""
    return (head_size * (1 + len({"c2p", "p2c"} & set(attention.pos_att_type)))) ** -0.5


def _attend(
    graph: Graph, parts: list[str], attention: nn.Module, mask: str, bias: str, head_size: int, name: str
) -> str:
    """The context of queries, keys and values, with a bias on the scaled scores."""
    inputs = [*parts, "", mask, bias]
    while not inputs[-1]:
        inputs.pop()
    num_heads = attention.query_proj.out_features // head_size
    scale = _scale(attention, head_size)
    return graph.node("MultiHeadAttention", inputs, name, MICROSOFT, num_heads=num_heads, scale=scale)


def _table(
    graph: Graph, attention: nn.Module, projection: nn.Linear, relative: torch.Tensor, head_size: int, name: str
) -> str:
    """The projected relative embeddings, scaled, [heads, rows, head size]."""
    with torch.no_grad():
        rows = projection(relative) * _scale(attention, head_size)
    return graph.weight(rows.unflatten(-1, (-1, head_size)).transpose(0, 1), name)


def _heads(graph: Graph, states: str, head_size: int, name: str) -> str:
    """[batch, length, heads * head size] as [batch, heads, length, head size]."""
    shape = graph.weight(np.array([0, 0, -1, head_size]), f"{name}.heads.shape")
    split = graph.node("Reshape", [states, shape], f"{name}.heads.split")
    return graph.node("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])


def _term(graph: Graph, states: str, table: str, distances: str, shared: _Shared, head_size: int, name: str) -> str:
    """Products of each token's state with the relative embeddings of its distances, [batch, heads, length, length]."""
    rows = graph.node("Gather", [table, distances], f"{name}.rows", axis=1)
    columns = graph.node("Transpose", [rows], f"{name}.columns", perm=[0, 2, 1])
    products = graph.node("MatMul", [_heads(graph, states, head_size, name), columns], f"{name}.by_distance")
    flat = graph.node("Reshape", [products, graph.weight(np.array([0, 0, -1]), f"{name}.flat.shape")], f"{name}.flat")
    again = graph.node("Slice", [flat, *shared.reread], f"{name}.reread")
    again = graph.node("Reshape", [again, shared.shape], f"{name}.by_token")
    return graph.node("Slice", [again, *shared.columns], name)
