"""Write a classification model as a fused ONNX graph, straight from its weights.

No exporter and no pattern matching: every layer is written with onnxruntime's own fused operators, each with its own
number of heads and neurons, so that a pruned model is fused as fully as a whole one. The fusions are those of
onnxruntime's transformer optimizer (https://onnxruntime.ai/docs/performance/transformers-optimization.html), but for
one: see `Graph.sum_norm`. Only the [CLS] row of the last layer reaches the classifier, so that layer computes nothing
for the others, which is exact. Rows of equal length need no attention mask: their graph is written without one, which
is exact too.
"""

from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from utils.export.fused_deberta import write_deberta
from utils.export.fused_modernbert import write_modernbert
from utils.export.graph import (
    ACTIVATIONS,
    FAR,
    HIDDEN_ACTIVATIONS,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    WORDS,
    Graph,
    NotFusable,
)
from utils.models.families import Family, family_of, head_size_of, layer_uses, takes_token_types
from utils.system.errors import UserError

# A layer's entries in the table of families.
LAYER_PARTS = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_norm",
    "ffn_input",
    "ffn_output",
    "ffn_norm",
)


def build_graph(model: PreTrainedModel, masked: bool = True) -> onnx.ModelProto:
    """The model as an fp32 ONNX graph for onnxruntime.

    Inputs `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`: int64 [batch, sequence].
    Output `logits`: float32 [batch, labels].

    Args:
        masked: False leaves `attention_mask` out: faster, for batches without padding.

    Raises:
        NotFusable: the model has a part that the fused operators cannot compute exactly.
    """
    graph = Graph()
    WRITERS.get(model.config.model_type, _write)(graph, model, masked)
    inputs = ["input_ids"] + ["attention_mask"] * masked + ["token_type_ids"] * takes_token_types(model)

    axes = ["batch", "sequence"]
    proto = helper.make_graph(
        graph.nodes,
        model.config.model_type,
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.config.num_labels])],
        graph.weights,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastformers")


def _write(graph: Graph, model: PreTrainedModel, masked: bool) -> None:
    """The layers as BERT has them: attention and FFN, a norm behind each."""
    family = family_of(model)
    activation = _check_supported(model)
    graph.shared_layer = family.shared_layer
    x = _embeddings(graph, model, family)
    mask = [graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)] if masked else []
    position_bias = _position_bias(graph, model, family) if family.position_bias else ""
    layers = layer_uses(model)
    of_first = _first_of_attention if graph.shared_layer else _cls_attention
    for index, layer in enumerate(layers):
        attend = of_first if index == len(layers) - 1 else _attention
        parts = {part: layer.get_submodule(getattr(family, part)) for part in LAYER_PARTS}
        bias = _own_bias(graph, position_bias, layer.get_submodule(family.self_attention), f"layer.{index}")
        x = _layer(graph, x, mask, bias, parts, attend, head_size_of(model), activation, f"layer.{index}")
    _head(graph, model, family, x)


# What writes a family whose layers are built in another way.
WRITERS: dict[str, Callable[[Graph, PreTrainedModel, bool], None]] = {
    "deberta-v2": write_deberta,
    "modernbert": write_modernbert,
}


def _check_supported(model: PreTrainedModel) -> str:
    config = model.config
    activation = config.activation if config.model_type == "distilbert" else config.hidden_act
    if activation not in HIDDEN_ACTIVATIONS:
        raise NotFusable(
            f"the model's hidden activation is {activation!r} but only {', '.join(HIDDEN_ACTIVATIONS)} can be "
            "written as a fused graph"
        )
    if getattr(config, "is_decoder", False):
        raise UserError("the checkpoint's config.json says is_decoder: set it to false, a classifier is an encoder")
    return activation


def _embeddings(graph: Graph, model: PreTrainedModel, family: Family) -> str:
    """Sum of word, position and token type embeddings, normalized: [batch, sequence, hidden]."""
    embeddings = model.get_submodule(family.embeddings)
    # Negative, for `sum_norm`.
    position = -embeddings.position_embeddings.weight
    if hasattr(embeddings, "token_type_embeddings") and not takes_token_types(model):
        # One type for every token: its row is part of each position's.
        position = position - embeddings.token_type_embeddings.weight[0]
    if family.positions_follow_padding:
        # The row of padding and those behind it, by the number of tokens so far.
        rows = graph.weight(position[embeddings.padding_idx :], "position.weight")
        skip = graph.node("Gather", [rows, _positions_after_padding(graph, embeddings.padding_idx)], "position")
    else:
        start, axis = (graph.weight(np.array([i]), f"position.{name}") for i, name in ((0, "start"), (1, "axis")))
        length = graph.node("Shape", ["input_ids"], "position.length", start=1, end=2)
        skip = graph.node("Slice", [graph.weight(position[None], "position.weight"), start, length, axis], "position")
    if takes_token_types(model):
        types = graph.weight(-embeddings.token_type_embeddings.weight, "token_type.weight")
        types = graph.node("Gather", [types, "token_type_ids"], "token_type")
        skip = graph.node("Add", [types, skip], "position_and_type")
    word = graph.node("Gather", [graph.weight(embeddings.word_embeddings.weight, WORDS), "input_ids"], "word")
    x = graph.sum_norm(word, skip, embeddings.LayerNorm, "embeddings")
    # ELECTRA has this module only where its embeddings are narrower than its layers.
    if family.embeddings_project in dict(model.named_modules()):
        project = model.get_submodule(family.embeddings_project)
        x = graph.linear(x, project.weight, project.bias, "embeddings.project")
    return x


def _positions_after_padding(graph: Graph, padding_id: int) -> str:
    """Position ids as transformers numbers RoBERTa's, less padding_id: 1, 2, ... for tokens, 0 for padding."""
    padding, no, yes = (
        graph.weight(np.array(i), f"positions.{name}")
        for i, name in ((padding_id, "padding_id"), (0, "no"), (1, "yes"))
    )
    is_padding = graph.node("Equal", ["input_ids", padding], "positions.is_padding")
    is_token = graph.node("Where", [is_padding, no, yes], "positions.is_token")
    count = graph.node("CumSum", [is_token, graph.weight(np.array(1), "positions.axis")], "positions.count")
    return graph.node("Mul", [count, is_token], "positions")


def _position_bias(graph: Graph, model: PreTrainedModel, family: Family) -> str:
    """MPNet's bias of every head for the distance of every two tokens, once for all layers: [1, heads, length, length].

    A table has a column for each distance, so that nothing is left to do but to look it up.
    """
    farthest = model.config.max_position_embeddings - 1
    buckets = MPNetEncoder.relative_position_bucket(torch.arange(-farthest, farthest + 1))
    table = graph.weight(model.get_submodule(family.position_bias).weight[buckets].T[None], "bias.table")
    positions = np.arange(farthest + 1)
    start, first = (graph.weight(np.array([i]), f"bias.{name}") for i, name in enumerate(("start", "axis")))
    length = graph.node("Shape", ["input_ids"], "bias.length", start=1, end=2)
    keys = graph.weight(positions[None] + farthest, "bias.all_keys")
    keys = graph.node("Slice", [keys, start, length, first], "bias.keys")
    queries = graph.weight(positions[:, None], "bias.all_queries")
    queries = graph.node("Slice", [queries, start, length, start], "bias.queries")
    distances = graph.node("Sub", [keys, queries], "bias.distances")
    return graph.node("Gather", [table, distances], "bias", axis=2)


def _own_bias(graph: Graph, position_bias: str, attention: nn.Module, name: str) -> str:
    """The part of the position bias that belongs to the heads of one layer."""
    heads = getattr(attention, "heads", None)  # those left by pruning
    if heads is None or len(heads) == 0:
        return position_bias
    return graph.node("Gather", [position_bias, graph.weight(heads, f"{name}.heads")], f"{name}.bias", axis=1)


def _layer(
    graph: Graph,
    x: str,
    mask: list[str],
    position_bias: str,
    parts: dict[str, nn.Module],
    attend: Callable[..., tuple[str, str]],
    head_size: int,
    activation: str,
    name: str,
) -> str:
    """One encoder layer over the rows that `attend` returns a context for; `mask` is the mask's name, or empty.

    `position_bias` is the name of what is added to the scores, [1, heads, sequence, sequence], or empty.
    """
    output, norm = parts["attention_output"], parts["attention_norm"]
    if output.in_features:
        context, x = attend(graph, x, mask, position_bias, parts, head_size, f"{name}.attention")
        x = graph.skip_norm(context, output, x, norm, f"{name}.attention_norm")
    else:  # no head was kept
        x = x if attend is _attention else graph.first_row(x, name)
        x = graph.sum_norm(x, graph.weight(-output.bias, f"{name}.no_attention"), norm, f"{name}.attention_norm")
    hidden = graph.linear(x, parts["ffn_input"].weight, parts["ffn_input"].bias, f"{name}.ffn_input")
    operator, domain = ACTIVATIONS[activation]
    hidden = graph.node(operator, [hidden], f"{name}.activation", domain)
    return graph.skip_norm(hidden, parts["ffn_output"], x, parts["ffn_norm"], f"{name}.ffn_norm")


def _attention(
    graph: Graph, x: str, mask: list[str], position_bias: str, parts: dict[str, nn.Module], head_size: int, name: str
) -> tuple[str, str]:
    """Self-attention of every row; returns the context and the rows, both [batch, sequence, ...]."""
    projections = [parts[part] for part in ("query", "key", "value")]
    width = projections[0].out_features
    weight, bias = (torch.cat([getattr(one, part) for one in projections]) for part in ("weight", "bias"))
    inputs = [
        x,
        graph.weight(weight.T, f"{name}.weight"),
        graph.weight(bias, f"{name}.bias"),
        *([*(mask or [""]), "", position_bias] if position_bias else mask),
    ]
    context = graph.node(
        "Attention", inputs, name, MICROSOFT, num_heads=width // head_size, qkv_hidden_sizes=[width] * 3
    )
    return context, x


def _cls_attention(
    graph: Graph, x: str, mask: list[str], position_bias: str, parts: dict[str, nn.Module], head_size: int, name: str
) -> tuple[str, str]:
    """Attention of the first row to all rows; returns the context and the row, both [batch, 1, ...].

    Exact, and without any row's key or value: a head's scores q (x K)^T are (q K^T) x^T, its context s (x V) is
    (s x) V, which takes a fifteenth of the multiply-adds or less (DeepSeek-V2, arXiv 2405.04434, section 2.1.2, absorbs
    projections so). The keys' bias adds the same to all of a head's scores, which the softmax does not see; the shares
    sum to 1, so the values' bias is added whole.
    """
    query, key, value = (parts[part] for part in ("query", "key", "value"))
    num_heads, scale, row = query.out_features // head_size, head_size**-0.5, graph.first_row(x, name)
    queries = graph.linear(row, scale * query.weight, scale * query.bias, f"{name}.query")
    sizes = graph.weight(np.array([0, num_heads, head_size]), f"{name}.query_sizes")
    queries = graph.node("Reshape", [queries, sizes], f"{name}.queries")
    keys = key.weight.unflatten(0, (num_heads, head_size))
    asked = _by_head(graph, queries, keys, f"{name}.asked")  # [batch, heads, hidden]
    scores = graph.node("FusedMatMul", [asked, x], f"{name}.scores", MICROSOFT, transB=1)  # [batch, heads, sequence]
    for bias in _score_biases(graph, mask, position_bias, name):
        scores = graph.node("Add", [scores, bias], f"{bias}.added")
    shares = graph.node("Softmax", [scores], f"{name}.shares", axis=-1)
    mixed = graph.node("MatMul", [shares, x], f"{name}.mixed")  # [batch, heads, hidden]
    values = value.weight.unflatten(0, (num_heads, head_size)).transpose(1, 2)
    context = _by_head(graph, mixed, values, f"{name}.contexts")
    sizes = graph.weight(np.array([0, 1, value.out_features]), f"{name}.sizes")
    context = graph.node("Reshape", [context, sizes], f"{name}.context")
    return graph.node("Add", [context, graph.weight(value.bias, f"{name}.value_bias")], name), row


def _by_head(graph: Graph, x: str, weight: torch.Tensor, name: str) -> str:
    """Each head's vector of every text, [batch, heads, in], times the head's own weight [heads, in, out]."""
    x = graph.node("Transpose", [x], f"{name}.by_head", perm=[1, 0, 2])  # one product a head, whatever the batch
    product = graph.node("MatMul", [x, graph.weight(weight, f"{name}.weight")], f"{name}.matmul")
    return graph.node("Transpose", [product], name, perm=[1, 0, 2])


def _score_biases(graph: Graph, mask: list[str], position_bias: str, name: str) -> list[str]:
    """What is added to the first row's scores, [batch, heads, sequence] or of a size 1."""
    biases = []
    axes = [graph.weight(np.array([i]), f"{name}.axis_{i}") for i in range(3)] if mask or position_bias else []
    if mask:
        is_token = graph.node("Cast", mask, f"{name}.is_token", to=TensorProto.FLOAT)
        less = graph.node("Sub", [is_token, graph.weight(np.float32(1), f"{name}.one")], f"{name}.is_padding")
        bias = graph.node("Mul", [less, graph.weight(np.float32(-FAR), f"{name}.far")], f"{name}.padding")
        biases.append(graph.node("Unsqueeze", [bias, axes[1]], f"{name}.padding_bias"))
    if position_bias:
        row = graph.node("Slice", [position_bias, *axes], f"{name}.bias_row")  # from 0 to 1 of axis 2
        biases.append(graph.node("Squeeze", [row, axes[2]], f"{name}.position_bias"))
    return biases


def _first_of_attention(
    graph: Graph, x: str, mask: list[str], position_bias: str, parts: dict[str, nn.Module], head_size: int, name: str
) -> tuple[str, str]:
    """As `_cls_attention`, by the weights that all rows were attended with in earlier uses of the same layer."""
    context, x = _attention(graph, x, mask, position_bias, parts, head_size, name)
    return graph.first_row(context, f"{name}.context"), graph.first_row(x, name)


def _head(graph: Graph, model: PreTrainedModel, family: Family, x: str) -> None:
    """Logits [batch, labels] of the one row left: [batch, 1, hidden]."""
    axis = graph.weight(np.array([1]), "head.axis")
    x = graph.node("Squeeze", [x, axis], "head.row")
    dense, output = model.get_submodule(family.head_dense), model.get_submodule(family.head_output)
    x = graph.linear(x, dense.weight, dense.bias, "head.dense")
    operator, domain = ACTIVATIONS[family.head_activation]
    x = graph.node(operator, [x], "head.activation", domain)
    graph.linear(x, output.weight, output.bias, "logits")
