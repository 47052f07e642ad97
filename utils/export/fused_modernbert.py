"""ModernBERT as a fused graph: norms before attention and FFN, rotated queries and keys, gated FFNs, local attention.

onnxruntime's RotaryEmbedding rotates queries and keys between their projection and MultiHeadAttention, which takes the
local layers' window as a bias on the scores: it depends on distances alone, so it is made once, not in every layer.
"""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto
from torch import nn
from transformers import PreTrainedModel

from utils.export.graph import ACTIVATIONS, FAR, HIDDEN_ACTIVATIONS, MICROSOFT, WORDS, Graph, NotFusable
from utils.models.families import family_of, head_size_of, layers_of, reads_first_token


class _Shared(NamedTuple):
    """Names of the tensors that layers share."""

    mask: str  # int32 [batch, sequence]; empty where there is none
    rotations: dict[str, list[str]]  # first position, cosines and sines, by the kind of layer
    windows: dict[str, str]  # bias of the scores [1, 1, sequence, sequence], by the kind of layer; empty for all tokens


def write_modernbert(graph: Graph, model: PreTrainedModel, masked: bool) -> None:
    """Write a ModernBERT classifier's nodes, from `input_ids` to `logits`; see `utils.export.fused.build_graph`.

    Raises:
        NotFusable: the model has a part that the fused operators cannot compute exactly.
    """
    _check_supported(model)
    family, config = family_of(model), model.config
    embeddings = model.get_submodule(family.embeddings)
    words = graph.weight(embeddings.get_submodule(family.word_embeddings).weight, WORDS)
    x = graph.node("Gather", [words, "input_ids"], "word")
    x = graph.norm(x, embeddings.get_submodule(family.embeddings_norm), "embeddings")
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32) if masked else ""
    shared = _shared(graph, model, mask)
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        first_row = index == len(layers) - 1 and reads_first_token(model)
        x = _attention(graph, x, layer, shared, first_row, head_size_of(model), f"layer.{index}")
        x = _ffn(graph, x, layer, config.hidden_activation, f"layer.{index}")
    x = graph.norm(x, model.get_submodule(family.final_norm), "final_norm")
    _head(graph, model, x, masked)


def _check_supported(model: PreTrainedModel) -> None:
    config = model.config
    for key, possible in [("hidden_activation", HIDDEN_ACTIVATIONS), ("classifier_activation", tuple(ACTIVATIONS))]:
        if getattr(config, key) not in possible:
            raise NotFusable(
                f"the model's {key} is {getattr(config, key)!r} but only {', '.join(possible)} can be written as a "
                "fused graph"
            )
    for kind in set(config.layer_types):
        rotation = config.rope_parameters[kind]["rope_type"]
        if rotation != "default":
            raise NotFusable(f"the model's rope_type is {rotation!r} but only default can be written as a fused graph")


def _shared(graph: Graph, model: PreTrainedModel, mask: str) -> _Shared:
    """The angles of every position, and which tokens see each other in local layers."""
    rotary, kinds = model.base_model.rotary_emb, sorted(set(model.config.layer_types))
    length = graph.node("Shape", ["input_ids"], "positions.shape", start=1, end=2)
    length = graph.node("Squeeze", [length], "positions.length")
    bounds = [graph.weight(np.array(0), "positions.start"), length, graph.weight(np.array(1), "positions.step")]
    positions = graph.node("Range", bounds, "positions.range")
    positions = graph.node("Cast", [positions], "positions.row", to=TensorProto.FLOAT)
    axis = graph.weight(np.array([1]), "positions.axis")
    column = graph.node("Unsqueeze", [positions, axis], "positions.column")
    start = graph.weight(np.array([0]), "rotation.start")
    rotations, windows = {}, {}
    for kind in kinds:
        frequencies = graph.weight(getattr(rotary, f"{kind}_inv_freq")[None], f"rotation.{kind}.frequencies")
        angles = graph.node("Mul", [column, frequencies], f"rotation.{kind}.angles")
        caches = [graph.node(op, [angles], f"rotation.{kind}.{op.lower()}") for op in ("Cos", "Sin")]
        rotations[kind], windows[kind] = [start, *caches], ""
        if kind == "sliding_attention":
            distance = graph.node("Abs", [graph.node("Sub", [column, positions], "window.offset")], "window.distance")
            farthest = graph.weight(np.array(model.config.sliding_window, dtype=np.float32), "window.farthest")
            is_far = graph.node("Greater", [distance, farthest], "window.is_far")
            is_far = graph.node("Cast", [is_far], "window.is_far.float", to=TensorProto.FLOAT)
            bias = graph.node("Mul", [is_far, graph.weight(np.array(FAR, dtype=np.float32), "window.far")], "window")
            axes = graph.weight(np.array([0, 1]), "window.axes")
            windows[kind] = graph.node("Unsqueeze", [bias, axes], "window.bias")
    return _Shared(mask, rotations, windows)


def _attention(
    graph: Graph, x: str, layer: nn.Module, shared: _Shared, first_row: bool, head_size: int, name: str
) -> str:
    """`x` plus the attention of all rows, or of the first one alone."""
    attention, kind = layer.attn, layer.attention_type
    projection, output = attention.Wqkv, attention.Wo
    states = x
    if isinstance(layer.attn_norm, nn.LayerNorm):
        states = graph.norm(x, layer.attn_norm, f"{name}.attention_norm")
    if first_row:
        x = graph.first_row(x, f"{name}.residual")
    if not output.in_features:  # no head was kept
        if output.bias is None:
            return x
        return graph.node("Sub", [x, graph.weight(-output.bias, f"{name}.no_attention")], f"{name}.attention_sum")
    num_heads = output.in_features // head_size
    # Three products, as splitting the outcome of one would copy it.
    weights = projection.weight.chunk(3)
    biases = [None] * 3 if projection.bias is None else projection.bias.chunk(3)
    name = f"{name}.attention"
    window, start = shared.windows[kind], states
    if first_row:
        start = graph.first_row(states, name)
        if window:
            bounds = (graph.weight(np.array([i]), f"{name}.window.{i}") for i in (0, 1, 2))
            window = graph.node("Slice", [window, *bounds], f"{name}.window")
    queries = graph.linear(start, weights[0], biases[0], f"{name}.query")
    keys = graph.linear(states, weights[1], biases[1], f"{name}.key")
    values = graph.linear(states, weights[2], biases[2], f"{name}.value")
    rotation = shared.rotations[kind]
    if not first_row:  # at position 0 a rotation changes nothing
        queries = _rotated(graph, queries, rotation, num_heads)
    inputs = [queries, _rotated(graph, keys, rotation, num_heads), values, "", shared.mask, window]
    while not inputs[-1]:
        inputs.pop()
    context = graph.node("MultiHeadAttention", inputs, name, MICROSOFT, num_heads=num_heads)
    return _add(graph, x, context, output, f"{name}_output")


def _rotated(graph: Graph, states: str, rotation: list[str], num_heads: int) -> str:
    """Queries or keys [batch, length, heads * head size], rotated by the angles of their positions."""
    return graph.node("RotaryEmbedding", [states, *rotation], f"{states}.rotated", MICROSOFT, num_heads=num_heads)


def _ffn(graph: Graph, x: str, layer: nn.Module, activation: str, name: str) -> str:
    """`x` plus the gated FFN of its rows."""
    states = graph.norm(x, layer.mlp_norm, f"{name}.ffn_norm")
    # What is activated and what that is multiplied by, as two products: splitting one would copy it.
    weights, bias = layer.mlp.Wi.weight.chunk(2), layer.mlp.Wi.bias
    biases = [None] * 2 if bias is None else bias.chunk(2)
    inputs = graph.linear(states, weights[0], biases[0], f"{name}.ffn_input")
    gate = graph.linear(states, weights[1], biases[1], f"{name}.ffn_gate")
    operator, domain = ACTIVATIONS[activation]
    hidden = graph.node(operator, [inputs], f"{name}.activation", domain)
    hidden = graph.node("Mul", [hidden, gate], f"{name}.gated")
    return _add(graph, x, hidden, layer.mlp.Wo, f"{name}.ffn_output")


def _add(graph: Graph, x: str, states: str, linear: nn.Linear, name: str) -> str:
    """x + Linear(states), written as a difference; see `Graph.sum_norm`."""
    bias = None if linear.bias is None else -linear.bias
    return graph.node("Sub", [x, graph.linear(states, -linear.weight, bias, name)], f"{name}.sum")


def _head(graph: Graph, model: PreTrainedModel, x: str, masked: bool) -> None:
    """Logits [batch, labels] of the first row, or of the mean of a text's rows."""
    axis = graph.weight(np.array([1]), "head.axis")
    if reads_first_token(model):
        x = graph.node("Squeeze", [x, axis], "head.row")
    elif masked:
        tokens = graph.node("Cast", ["attention_mask"], "head.tokens", to=TensorProto.FLOAT)
        count = graph.node("ReduceSum", [tokens, axis], "head.count")
        last = graph.weight(np.array([2]), "head.last_axis")
        x = graph.node("Mul", [x, graph.node("Unsqueeze", [tokens, last], "head.is_token")], "head.masked")
        x = graph.node("Div", [graph.node("ReduceSum", [x, axis], "head.sum", keepdims=0), count], "head.mean")
    else:
        x = graph.node("ReduceMean", [x], "head.mean", axes=[1], keepdims=0)
    dense, output, config = model.head.dense, model.classifier, model.config
    x = graph.linear(x, dense.weight, dense.bias, "head.dense")
    operator, domain = ACTIVATIONS[config.classifier_activation]
    x = graph.node(operator, [x], "head.activation", domain)
    x = graph.norm(x, model.head.norm, "head.norm")
    graph.linear(x, output.weight, output.bias, "logits")
