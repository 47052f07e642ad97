"""int8 versions of a fused graph.

Weights are rounded once, symmetrically; activations as they come (dynamic) or with ranges measured beforehand on real
rows (static). The quantized graph is written directly instead of with onnxruntime.quantization, whose quantized
attention operator is slower than a quantized projection followed by fp32 attention. Which of the possible recipes is
fast and accurate enough depends on the model and the machine: `CANDIDATES` lists those that quantize.py measures.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from utils.export.graph import MICROSOFT, WORDS

# Bits of a weight. Without VNNI, AVX2 sums pairs of products of an 8-bit activation and an 8-bit weight in 16 bits,
# which saturates; with one bit less it cannot.
WEIGHT_BITS = {"avx2": 7, "avx512_vnni": 8, "arm64": 8}

# The classifier's last layer: tiny, and its rounding goes straight into the logits.
ALWAYS_FP32 = ("logits.matmul",)


@dataclass(frozen=True)
class Recipe:
    """What to quantize and how."""

    per_channel: bool = True  # a scale for each output column of a weight, not one for all
    static: bool = False  # activation ranges from calibration, not from each input
    int8_embeddings: bool = True
    fp32_parts: tuple[str, ...] = ()  # matrix products that stay fp32, by the end of their names
    tanh_gelu: bool = False  # GELU by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415): less work
    fused_attention: bool = False  # the projection to query, key and value inside onnxruntime's QAttention


FFN_OUTPUT = ("ffn_norm.negated.matmul", "ffn_output.matmul")  # its inputs have the widest range in BERT-like models

CANDIDATES = {
    "dynamic, per channel": Recipe(),
    "dynamic, per channel, fused attention": Recipe(fused_attention=True),
    "dynamic, per channel, fused attention, tanh GELU": Recipe(fused_attention=True, tanh_gelu=True),
    "dynamic, per channel, fp32 embeddings": Recipe(int8_embeddings=False),
    "dynamic, per tensor, tanh GELU": Recipe(per_channel=False, tanh_gelu=True),
    "static, per channel": Recipe(static=True),
    "static, per channel, fused attention, tanh GELU": Recipe(static=True, fused_attention=True, tanh_gelu=True),
    "static, per channel, fp32 FFN output": Recipe(static=True, fp32_parts=FFN_OUTPUT),
    "dynamic, per channel, fp32 FFN output": Recipe(fp32_parts=FFN_OUTPUT),
}


def candidates_for(model: onnx.ModelProto) -> dict[str, Recipe]:
    """The recipes to measure for a fused graph: `CANDIDATES`, each once where they differ in nothing that it has."""
    # QAttention takes no position bias, the sixth input.
    attention = any(node.op_type == "Attention" and len(node.input) < 6 for node in model.graph.node)
    gelu = any(node.op_type == "Gelu" for node in model.graph.node)
    recipes = {}
    for full_name, full_recipe in CANDIDATES.items():
        name, recipe = full_name, full_recipe
        if not attention:
            name, recipe = name.replace(", fused attention", ""), replace(recipe, fused_attention=False)
        if not gelu:
            name, recipe = name.replace(", tanh GELU", ""), replace(recipe, tanh_gelu=False)
        recipes[name] = recipe
    return recipes


def detect_cpu() -> str:
    """This machine's key of `WEIGHT_BITS`."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") != "x86_64":
        return "arm64"
    vnni = capabilities.get("avx512_vnni", False) or capabilities.get("avx_vnni", False)
    return "avx512_vnni" if vnni else "avx2"


def calibrate(model: onnx.ModelProto, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Ranges of what goes into every matrix product of a fused fp32 graph: name -> (smallest, largest).

    Averages the extremes of the batches, so that one outlier does not stretch a range for all.

    Args:
        batches: of `utils.data.tables.collate`, from train.txt.
    """
    names = sorted({node.input[0] for node in model.graph.node if node.op_type in ("MatMul", "Attention")})
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    takes = [value.name for value in session.get_inputs()]
    extremes = []
    for batch in batches:
        arrays = session.run(names, {name: batch[name] for name in takes})
        extremes.append([(array.min(), array.max()) for array in arrays])
    low, high = np.moveaxis(np.mean(extremes, axis=0), -1, 0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def quantize_int8(
    model: onnx.ModelProto, recipe: Recipe, bits: int, ranges: dict[str, tuple[float, float]] | None = None
) -> onnx.ModelProto:
    """The int8 version of a graph that `utils.export.fused.build_graph` made.

    Quantizes the projections, the feed-forward layers and the word embeddings (a scale a row); the other embeddings,
    which are few, layer norms, attention itself and the classifier's last layer stay fp32.

    Args:
        bits: of a weight: a value of `WEIGHT_BITS`.
        ranges: of `calibrate`, for a static recipe.
    """
    graph = model.graph
    writer = _Writer(graph, recipe, bits, ranges or {})
    for node in graph.node:
        rewrite = OPERATORS.get(node.op_type, _Writer.copy)
        rewrite(writer, node)
    result = helper.make_graph(writer.nodes, graph.name, graph.input, graph.output, list(writer.weights.values()))
    return helper.make_model(
        result, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )


class _Writer:
    """The int8 graph's nodes and weights written so far. Methods that take a node write what takes its place."""

    def __init__(self, graph: onnx.GraphProto, recipe: Recipe, bits: int, ranges: dict) -> None:
        self.recipe, self.bits, self.ranges = recipe, bits, ranges
        self.weights: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        additions = [node for node in graph.node if node.op_type == "Add" and node.input[1] in self.weights]
        self.products = Counter(node.input[0] for node in graph.node if node.op_type == "MatMul")  # of each tensor
        self.biases = {node.input[0]: node for node in additions}  # by the product that they are added to
        self.nodes: list[onnx.NodeProto] = []
        self.written: set[str] = set()
        self.rounded: dict[str, list[str]] = {}
        self.int8_weights: dict[str, list[str]] = {}  # those of ALBERT's one layer are used many times

    def copy(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)

    def constant(self, array: np.ndarray, name: str) -> str:
        self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> list[str]:
        """Round a weight [in, out]; returns the names of the int8 weight and of its scale."""
        if name in self.int8_weights:
            return self.int8_weights[name]
        axis = 0 if self.recipe.per_channel else None
        values, scale = _rounded(numpy_helper.to_array(self.weights.pop(name)), axis, self.bits)
        scale = scale[0] if self.recipe.per_channel else scale.reshape(())
        names = [self.constant(values, f"{name}.int8"), self.constant(scale, f"{name}.scale")]
        self.int8_weights[name] = names
        return names

    def matmul(self, node: onnx.NodeProto) -> None:
        """An int8 product, with the bias that is added to it, if any."""
        # Others multiply states with states, or are those of one row's heads, which are small.
        weight = node.input[1]
        is_weight = weight in self.int8_weights or (weight in self.weights and len(self.weights[weight].dims) == 2)
        if not is_weight or node.name.endswith(ALWAYS_FP32 + self.recipe.fp32_parts):
            return self.copy(node)
        addition = self.biases.get(node.output[0])
        bias, output = ("", node.output[0]) if addition is None else (addition.input[1], addition.output[0])
        self.product(node.input[0], node.input[1], bias, output)

    def add(self, node: onnx.NodeProto) -> None:
        """Nothing, where the bias went into an int8 product."""
        if node.output[0] not in self.written:
            self.copy(node)

    def gelu(self, node: onnx.NodeProto) -> None:
        """Its approximation, where the recipe says so."""
        if not self.recipe.tanh_gelu:
            return self.copy(node)
        self.nodes.append(helper.make_node("FastGelu", node.input, node.output, name=node.name, domain=MICROSOFT))

    def product(self, x: str, weight: str, bias: str, output: str) -> None:
        """An int8 matrix product that takes and gives fp32: x times `weight`, plus `bias`."""
        values, scale = self.weight(weight)
        if self.recipe.static or self.products[x] > 1:  # rounded once for all of them
            rounded, x_scale, x_zero = self.rounded_input(x)
            inputs = [rounded, values, x_scale, scale, x_zero, "", bias]
            operator = "MatMulIntegerToFloat"
        else:
            inputs, operator = [x, values, scale, "", bias], "DynamicQuantizeMatMul"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=MICROSOFT))
        self.written.add(output)

    def rounded_input(self, x: str) -> list[str]:
        """Round `x`, by its calibrated range or its own; returns the names of the rounded tensor, scale, zero point."""
        if x in self.rounded:
            return self.rounded[x]
        names = [f"{x}.uint8", f"{x}.scale", f"{x}.zero"]
        if self.recipe.static:
            low, high = min(self.ranges[x][0], 0.0), max(self.ranges[x][1], 0.0)
            scale = (high - low) / 255 or 1.0
            self.constant(np.array(scale, dtype=np.float32), names[1])
            self.constant(np.array(round(-low / scale), dtype=np.uint8), names[2])
            self.nodes.append(helper.make_node("QuantizeLinear", [x, *names[1:]], names[:1], name=names[0]))
        else:
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], names, name=names[0]))
        self.rounded[x] = names
        return names

    def attention(self, node: onnx.NodeProto) -> None:
        """An int8 projection to query, key and value, then fp32 attention."""
        x, weight, bias, *more = node.input
        mask, _, position_bias = [*more, "", "", ""][:3]
        num_heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
        if self.recipe.fused_attention and not position_bias:  # QAttention takes none
            values, scale = self.weight(weight)
            rounded, x_scale, x_zero = self.rounded_input(x)
            inputs, operator = [rounded, values, bias, x_scale, scale, mask, x_zero], "QAttention"
        else:
            projected = [f"{node.name}.{part}" for part in ("query", "key", "value")]
            self.product(x, weight, bias, f"{node.name}.projected")
            split = helper.make_node("Split", [f"{node.name}.projected"], projected, name=f"{node.name}.split", axis=2)
            self.nodes.append(split)
            inputs, operator = [*projected, "", mask, position_bias], "MultiHeadAttention"
            while not inputs[-1]:
                inputs.pop()
        self.nodes.append(
            helper.make_node(operator, inputs, node.output, name=node.name, domain=MICROSOFT, num_heads=num_heads)
        )

    def embedding(self, node: onnx.NodeProto) -> None:
        """Look up int8 rows and their scales: a quarter of the file, for the price of one multiplication."""
        table, ids = node.input
        if table != WORDS or not self.recipe.int8_embeddings:
            return self.copy(node)
        values, scale = _rounded(numpy_helper.to_array(self.weights.pop(table)), axis=-1, bits=8)
        values_name, scale_name = self.constant(values, f"{table}.int8"), self.constant(scale, f"{table}.scale")
        rows, floats, scales = (f"{node.name}.{part}" for part in ("rows", "float", "scale"))
        self.nodes += [
            helper.make_node("Gather", [values_name, ids], [rows], name=rows),
            helper.make_node("Cast", [rows], [floats], name=floats, to=TensorProto.FLOAT),
            helper.make_node("Gather", [scale_name, ids], [scales], name=scales),
            helper.make_node("Mul", [floats, scales], node.output, name=node.name),
        ]


# What rewrites a node, by its operator; every other node is copied.
OPERATORS: dict[str, Callable[[_Writer, onnx.NodeProto], None]] = {
    "MatMul": _Writer.matmul,
    "Add": _Writer.add,
    "Attention": _Writer.attention,
    "Gather": _Writer.embedding,
    "Gelu": _Writer.gelu,
}


def _rounded(array: np.ndarray, axis: int | None, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round to signed `bits`-bit integers with a scale a row or column: int8, and float32 with `axis` reduced to 1."""
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(array).max(axis=axis, keepdims=True) / limit
    scale[scale == 0] = 1
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)
