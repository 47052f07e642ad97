"""What every writer of a fused graph is made of: nodes and weights, and the operators of activations."""

import re

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from utils.system.errors import UserError

# Opset and IR version old enough for the onnxruntime releases of the last years, in any language.
OPSET, IR_VERSION = 17, 8
MICROSOFT = "com.microsoft"
WORDS = "word.weight"
FAR = -10000.0  # added to the scores of tokens out of sight, as onnxruntime does for padding; fits into fp16

# transformers' name of an activation -> its operator and the operator's domain.
ACTIVATIONS = {
    "gelu": ("Gelu", MICROSOFT),
    "gelu_new": ("FastGelu", MICROSOFT),
    "relu": ("Relu", ""),
    "tanh": ("Tanh", ""),
}
HIDDEN_ACTIVATIONS = ("gelu", "gelu_new", "relu")


class NotFusable(UserError):
    """A model has a part that the fused operators cannot compute exactly."""


class Graph:
    """The nodes and weights written so far; each call returns the name of the tensor that it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shared_layer = False  # whether all layers' weights are the same: they are written once then

    def weight(self, value: torch.Tensor | np.ndarray, name: str) -> str:
        if self.shared_layer:
            name = re.sub(r"^layer\.\d+", "layer", name)
            if any(tensor.name == name for tensor in self.weights):
                return name
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, domain: str = "", outputs: int = 1, **attributes) -> str:
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def linear(self, x: str, weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> str:
        """x times the transpose of a torch Linear's weight [out, in], plus its bias [out] where it has one."""
        product = self.node("MatMul", [x, self.weight(weight.T, f"{name}.weight")], f"{name}.matmul")
        if bias is None:
            return product
        return self.node("Add", [product, self.weight(bias, f"{name}.bias")], name)

    def sum_norm(self, x: str, negated: str, norm: nn.LayerNorm, name: str) -> str:
        """LayerNorm(x - negated).

        Sums are written as differences, exactly: onnxruntime would fuse a sum and a LayerNormalization into
        SkipLayerNormalization, whose CPU kernel takes four to seven times as long as the two apart.
        """
        return self.norm(self.node("Sub", [x, negated], f"{name}.sum"), norm, name)

    def norm(self, x: str, norm: nn.LayerNorm, name: str) -> str:
        """LayerNorm(x)."""
        scale = [self.weight(norm.weight, f"{name}.gamma")]
        scale += [] if norm.bias is None else [self.weight(norm.bias, f"{name}.beta")]
        return self.node("LayerNormalization", [x, *scale], name, epsilon=norm.eps)

    def first_row(self, x: str, name: str) -> str:
        """The first token of every row: [batch, 1, ...]."""
        start, end = (self.weight(np.array([i]), f"{name}.{bound}") for i, bound in ((0, "start"), (1, "end")))
        return self.node("Slice", [x, start, end, end], f"{name}.row")

    def skip_norm(self, x: str, linear: nn.Linear, skip: str, norm: nn.LayerNorm, name: str) -> str:
        """LayerNorm(skip + Linear(x))."""
        return self.sum_norm(skip, self.linear(x, -linear.weight, -linear.bias, f"{name}.negated"), norm, name)
