"""Dynamic int8 quantization of a fused graph, and the comparison of a graph's logits with PyTorch's.

Weights are rounded once, symmetrically, with a scale for each output column; activations as they come, by
onnxruntime's DynamicQuantizeMatMul. The quantized graph is written directly instead of with
onnxruntime.quantization.quantize_dynamic, whose quantized attention operator is slower than a quantized projection
followed by fp32 attention.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from utils.cli import UserError
from utils.engines import Engine
from utils.onnx_graph import MICROSOFT, WORD_TABLE

# Bits of a weight. Without VNNI, AVX2 sums pairs of products of an 8-bit activation and an 8-bit weight in 16 bits,
# which saturates; with one bit less it cannot.
WEIGHT_BITS = {"avx2": 7, "avx512_vnni": 8, "arm64": 8}

# The classifier's last layer: tiny, and its rounding goes straight into the logits.
LAST_MATMUL = "logits.matmul"


def detect_cpu() -> str:
    """This machine's key of `WEIGHT_BITS`."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") != "x86_64":
        return "arm64"
    vnni = capabilities.get("avx512_vnni", False) or capabilities.get("avx_vnni", False)
    return "avx512_vnni" if vnni else "avx2"


def quantize_int8(fp32_path: str | Path, int8_path: str | Path, target_cpu: str = "auto") -> None:
    """Write the int8 version of a graph that `utils.onnx_graph.build_graph` made.

    Quantizes the projections, the feed-forward layers and the word embeddings (a scale a row); biases, layer norms,
    attention itself and the classifier's last layer stay fp32.

    Args:
        target_cpu: the CPU that will run it: auto (this machine's), avx2, avx512_vnni or arm64.

    Raises:
        UserError: fp32_path is not an ONNX file, or target_cpu is unknown.
    """
    if target_cpu != "auto" and target_cpu not in WEIGHT_BITS:
        raise UserError(f"target_cpu {target_cpu!r} is unknown: choose auto, {', '.join(WEIGHT_BITS)}")
    bits = WEIGHT_BITS[detect_cpu() if target_cpu == "auto" else target_cpu]
    try:
        model = onnx.load(fp32_path)
    except Exception as error:  # protobuf raises whatever the bytes provoke
        raise UserError(f"{fp32_path} is not a readable ONNX file: write it again with quantize.py") from error
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.output[0] != LAST_MATMUL:
            nodes.append(_int8_matmul(weights, node.input[0], node.input[1], "", node.output[0], bits))
        elif node.op_type == "Attention":
            nodes += _int8_attention(weights, node, bits)
        elif node.op_type == "Gather" and node.input[0] == WORD_TABLE:
            nodes += _int8_embedding(weights, node)
        else:
            nodes.append(node)
    result = helper.make_graph(nodes, graph.name, graph.input, graph.output, list(weights.values()))
    model = helper.make_model(
        result, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )
    onnx.save(model, int8_path)


def _quantized(array: np.ndarray, axis: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round to signed `bits`-bit integers with a scale a row or column: int8, and float32 with `axis` reduced to 1."""
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(array).max(axis=axis, keepdims=True) / limit
    scale[scale == 0] = 1
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)


def _replace(weights: dict[str, TensorProto], name: str, parts: dict[str, np.ndarray]) -> list[str]:
    """Replace a weight by the arrays of `parts`; returns their names."""
    del weights[name]
    names = [f"{name}.{suffix}" for suffix in parts]
    weights.update((new, numpy_helper.from_array(array, new)) for new, array in zip(names, parts.values(), strict=True))
    return names


def _int8_matmul(weights: dict, x: str, weight: str, bias: str, output: str, bits: int) -> onnx.NodeProto:
    values, scale = _quantized(numpy_helper.to_array(weights[weight]), axis=0, bits=bits)
    zero = np.zeros(scale.size, dtype=np.int8)
    inputs = [x, *_replace(weights, weight, {"int8": values, "scale": scale[0], "zero": zero}), bias]
    return helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=output, domain=MICROSOFT)


def _int8_attention(weights: dict, node: onnx.NodeProto, bits: int) -> list[onnx.NodeProto]:
    """An int8 projection to query, key and value, then fp32 attention."""
    x, weight, bias, mask = node.input
    num_heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
    projected = [f"{node.name}.{part}" for part in ("query", "key", "value")]
    return [
        _int8_matmul(weights, x, weight, bias, f"{node.name}.projected", bits),
        helper.make_node("Split", [f"{node.name}.projected"], projected, name=f"{node.name}.split", axis=2),
        helper.make_node(
            "MultiHeadAttention", [*projected, "", mask], node.output,
            name=node.name, domain=MICROSOFT, num_heads=num_heads,
        ),
    ]  # fmt: skip


def _int8_embedding(weights: dict, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Look up int8 rows and their scales: a quarter of the file, for the price of one multiplication."""
    table, ids = node.input
    values, scale = _quantized(numpy_helper.to_array(weights[table]), axis=1, bits=8)
    values, scale = _replace(weights, table, {"int8": values, "scale": scale})
    return [
        helper.make_node("Gather", [values, ids], ["word.rows"], name="word.rows"),
        helper.make_node("Cast", ["word.rows"], ["word.float"], name="word.float", to=TensorProto.FLOAT),
        helper.make_node("Gather", [scale, ids], ["word.scale"], name="word.scale"),
        helper.make_node("Mul", ["word.float", "word.scale"], node.output, name=node.name),
    ]


def compare_logits(run: Engine, expected: list[np.ndarray], batches: list[dict[str, np.ndarray]]) -> float:
    """The largest absolute difference between a graph's logits and PyTorch's over `batches`; NaN where either has one.

    Args:
        run: the graph.
        expected: PyTorch's logits [rows, labels] of each batch.
        batches: of `utils.data.collate`; single rows or padded.
    """
    return float(np.max([np.abs(run(batch) - logits).max() for batch, logits in zip(batches, expected, strict=True)]))
