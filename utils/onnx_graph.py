"""Write a classification model as a fused ONNX graph, straight from its weights.

No exporter and no pattern matching: every layer is written with onnxruntime's own fused operators, each with its own
number of heads and neurons, so that a pruned model is fused as fully as a whole one. The fusions are those of
onnxruntime's transformer optimizer (https://onnxruntime.ai/docs/performance/transformers-optimization.html). Only the
[CLS] row of the last layer reaches the classifier, so that layer computes its query, attention output and FFN for that
one row, which is exact.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import PreTrainedModel

from utils.cli import UserError
from utils.families import Family, family_of, head_size_of, layers_of, takes_token_types

# Opset and IR version old enough for the onnxruntime releases of the last years, in any language.
OPSET, IR_VERSION = 17, 8
MICROSOFT = "com.microsoft"
WORD_TABLE = "word.weight"

# A layer's entries in the table of families.
LAYER_PARTS = (
    "query", "key", "value", "attention_output", "attention_norm", "ffn_input", "ffn_output", "ffn_norm",
)  # fmt: skip

# transformers' name of a hidden activation -> the operator that adds the bias, then activates (relu has none).
ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "relu": "Relu"}
HEAD_ACTIVATIONS = {"tanh": ("Tanh", ""), "gelu": ("Gelu", MICROSOFT), "relu": ("Relu", "")}


class _Graph:
    """The nodes and weights written so far; each call returns the name of the tensor that it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, value: torch.Tensor | np.ndarray, name: str) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, domain: str = "", outputs: int = 1, **attributes) -> str:
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def matmul(self, x: str, weight: torch.Tensor, name: str) -> str:
        """x times the transpose of a torch Linear's weight [out, in]; the bias goes into the node that follows."""
        return self.node("MatMul", [x, self.weight(weight.T, f"{name}.weight")], name)

    def linear(self, x: str, linear: nn.Linear, name: str) -> str:
        product = self.matmul(x, linear.weight, f"{name}.matmul")
        return self.node("Add", [product, self.weight(linear.bias, f"{name}.bias")], name)

    def skip_norm(self, x: str, linear: nn.Linear, skip: str, norm: nn.LayerNorm, name: str) -> str:
        """LayerNorm(Linear(x) + skip)."""
        inputs = [self.matmul(x, linear.weight, f"{name}.matmul"), skip]
        inputs += [self.weight(norm.weight, f"{name}.gamma"), self.weight(norm.bias, f"{name}.beta")]
        inputs += [self.weight(linear.bias, f"{name}.bias")]
        return self.node("SkipLayerNormalization", inputs, name, MICROSOFT, epsilon=norm.eps)


def build_graph(model: PreTrainedModel) -> onnx.ModelProto:
    """The model as an fp32 ONNX graph for onnxruntime.

    Inputs `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`: int64 [batch, sequence].
    Output `logits`: float32 [batch, labels].

    Raises:
        UserError: the model has a part that the fused operators cannot compute exactly.
    """
    family = family_of(model)
    activation = _check_supported(model)
    graph = _Graph()
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_token_types(model) else [])

    x = _embeddings(graph, model, family)
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        attend = _cls_attention if index == len(layers) - 1 else _attention
        parts = {part: layer.get_submodule(getattr(family, part)) for part in LAYER_PARTS}
        x = _layer(graph, x, mask, parts, attend, head_size_of(model), activation, f"layer.{index}")
    _head(graph, model, family, x)

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


def _check_supported(model: PreTrainedModel) -> str:
    config = model.config
    activation = config.activation if config.model_type == "distilbert" else config.hidden_act
    if activation not in ACTIVATIONS:
        raise UserError(
            f"the model's hidden activation is {activation!r} but only {', '.join(ACTIVATIONS)} can be "
            "written as a fused graph: set it in the checkpoint's config.json and train again"
        )
    if getattr(config, "is_decoder", False):
        raise UserError("the checkpoint's config.json says is_decoder: set it to false, a classifier is an encoder")
    return activation


def _embeddings(graph: _Graph, model: PreTrainedModel, family: Family) -> str:
    """Sum of word, position and token type embeddings, normalized: [batch, sequence, hidden]."""
    embeddings = model.get_submodule(family.embeddings)
    position = embeddings.position_embeddings.weight
    if hasattr(embeddings, "token_type_embeddings") and not takes_token_types(model):
        # One type for every token: its row is part of each position's.
        position = position + embeddings.token_type_embeddings.weight[0]
    if family.positions_follow_padding:
        positions = _positions_after_padding(graph, embeddings.padding_idx)
        skip = graph.node("Gather", [graph.weight(position, "position.weight"), positions], "position")
    else:
        start, axis = (graph.weight(np.array([i]), f"position.{name}") for i, name in ((0, "start"), (1, "axis")))
        length = graph.node("Shape", ["input_ids"], "position.length", start=1, end=2)
        skip = graph.node("Slice", [graph.weight(position[None], "position.weight"), start, length, axis], "position")
    if takes_token_types(model):
        types = graph.weight(embeddings.token_type_embeddings.weight, "token_type.weight")
        types = graph.node("Gather", [types, "token_type_ids"], "token_type")
        skip = graph.node("Add", [types, skip], "position_and_type")
    word = graph.node("Gather", [graph.weight(embeddings.word_embeddings.weight, WORD_TABLE), "input_ids"], "word")
    norm = embeddings.LayerNorm
    scale = [graph.weight(norm.weight, "embeddings.gamma"), graph.weight(norm.bias, "embeddings.beta")]
    x = graph.node("SkipLayerNormalization", [word, skip, *scale], "embeddings", MICROSOFT, epsilon=norm.eps)
    # ELECTRA has this module only where its embeddings are narrower than its layers.
    if family.embeddings_project in dict(model.named_modules()):
        x = graph.linear(x, model.get_submodule(family.embeddings_project), "embeddings.project")
    return x


def _positions_after_padding(graph: _Graph, padding_id: int) -> str:
    """Position ids as transformers numbers RoBERTa's: padding_id + 1, 2, ... for tokens, padding_id for padding."""
    padding = graph.weight(np.array(padding_id), "positions.padding_id")
    is_padding = graph.node("Equal", ["input_ids", padding], "positions.is_padding")
    not_padding = graph.node("Not", [is_padding], "positions.not_padding")
    is_token = graph.node("Cast", [not_padding], "positions.is_token", to=TensorProto.INT64)
    axis = graph.weight(np.array(1), "positions.axis")
    count = graph.node("CumSum", [is_token, axis], "positions.count")
    return graph.node("Add", [graph.node("Mul", [count, is_token], "positions.masked"), padding], "positions")


def _layer(
    graph: _Graph, x: str, mask: str, parts: dict[str, nn.Module], attend, head_size: int, activation: str, name: str
) -> str:
    """One encoder layer over the rows that `attend` returns a context for."""
    context, x = attend(graph, x, mask, parts, head_size, f"{name}.attention")
    x = graph.skip_norm(context, parts["attention_output"], x, parts["attention_norm"], f"{name}.attention_norm")
    ffn_input = parts["ffn_input"]
    hidden = graph.matmul(x, ffn_input.weight, f"{name}.ffn_input")
    bias = graph.weight(ffn_input.bias, f"{name}.ffn_input.bias")
    if activation == "relu":
        hidden = graph.node("Add", [hidden, bias], f"{name}.ffn_input.sum")
        hidden = graph.node("Relu", [hidden], f"{name}.activation")
    else:
        hidden = graph.node(ACTIVATIONS[activation], [hidden, bias], f"{name}.activation", MICROSOFT)
    return graph.skip_norm(hidden, parts["ffn_output"], x, parts["ffn_norm"], f"{name}.ffn_norm")


def _attention(
    graph: _Graph, x: str, mask: str, parts: dict[str, nn.Module], head_size: int, name: str
) -> tuple[str, str]:
    """Self-attention of every row; returns the context and the rows, both [batch, sequence, ...]."""
    projections = [parts[part] for part in ("query", "key", "value")]
    width = projections[0].out_features
    inputs = [
        x,
        graph.weight(torch.cat([p.weight for p in projections]).T, f"{name}.weight"),
        graph.weight(torch.cat([p.bias for p in projections]), f"{name}.bias"),
        mask,
    ]
    context = graph.node(
        "Attention", inputs, name, MICROSOFT, num_heads=width // head_size, qkv_hidden_sizes=[width] * 3
    )  # fmt: skip
    return context, x


def _cls_attention(
    graph: _Graph, x: str, mask: str, parts: dict[str, nn.Module], head_size: int, name: str
) -> tuple[str, str]:
    """Attention of the first row to all rows; returns the context and the row, both [batch, 1, ...]."""
    query, key, value = (parts[part] for part in ("query", "key", "value"))
    start, end = (graph.weight(np.array([i]), f"{name}.{bound}") for i, bound in ((0, "start"), (1, "end")))
    row = graph.node("Slice", [x, start, end, end], f"{name}.row")
    queries = graph.matmul(row, query.weight, f"{name}.query")
    keys_values = graph.matmul(x, torch.cat([key.weight, value.weight]), f"{name}.key_value")
    keys = graph.node("Split", [keys_values], f"{name}.split", outputs=2, axis=2)
    bias = graph.weight(torch.cat([p.bias for p in (query, key, value)]), f"{name}.bias")
    context = graph.node(
        "MultiHeadAttention",
        [queries, keys, f"{keys}.1", bias, mask],
        name,
        MICROSOFT,
        num_heads=query.out_features // head_size,
    )
    return context, row


def _head(graph: _Graph, model: PreTrainedModel, family: Family, x: str) -> None:
    """Logits [batch, labels] of the one row left: [batch, 1, hidden]."""
    axis = graph.weight(np.array([1]), "head.axis")
    x = graph.node("Squeeze", [x, axis], "head.row")
    x = graph.linear(x, model.get_submodule(family.head_dense), "head.dense")
    operator, domain = HEAD_ACTIVATIONS[family.head_activation]
    x = graph.node(operator, [x], "head.activation", domain)
    graph.linear(x, model.get_submodule(family.head_output), "logits")
