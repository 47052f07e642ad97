"""The scale of calibrated logits inside an ONNX graph, so that whatever runs it gives calibrated probabilities."""

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.helper import make_node

LAST_LAYER = ("logits.weight", "logits.bias")  # of `utils.export.fused`, fp32 in its int8 versions too
OUTPUT = "logits"
UNSCALED = f"{OUTPUT}.unscaled"


def scale_logits(model: onnx.ModelProto, constant: float, of_margin: float = 0.0) -> onnx.ModelProto:
    """A copy of a graph that gives its logits multiplied by `constant` + `of_margin` x the row's margin.

    The margin is the distance of a row's two largest logits. Where `of_margin` is 0, the last layer's weight and bias
    are multiplied if they are plain fp32 weights, which costs nothing; else operators follow it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    if not of_margin and all(
        name in weights and weights[name].data_type == onnx.TensorProto.FLOAT for name in LAST_LAYER
    ):
        for name in LAST_LAYER:
            array = numpy_helper.to_array(weights[name])
            weights[name].CopyFrom(numpy_helper.from_array((array * constant).astype(np.float32), name))
        return result
    (last,) = [node for node in result.graph.node if OUTPUT in node.output]
    last.output[list(last.output).index(OUTPUT)] = UNSCALED
    scale = f"{OUTPUT}.constant"
    result.graph.initializer.append(numpy_helper.from_array(np.array([constant], dtype=np.float32), scale))
    if of_margin:
        scale = _add_margin(result.graph, scale, of_margin)
    result.graph.node.append(make_node("Mul", [UNSCALED, scale], [OUTPUT], name=f"{OUTPUT}.mul"))
    return result


def _add_margin(graph: onnx.GraphProto, constant: str, of_margin: float) -> str:
    """The scale of each row, [rows, 1]: the constant, and a product of the two largest logits [rows, 2]."""
    two, weights, largest, scale = (f"{OUTPUT}.{name}" for name in ("two", "of_largest", "largest", "scale"))
    graph.initializer.append(numpy_helper.from_array(np.array([2]), two))
    graph.initializer.append(numpy_helper.from_array(np.array([[of_margin], [-of_margin]], np.float32), weights))
    graph.node.append(make_node("TopK", [UNSCALED, two], [largest, f"{largest}.indices"], name=f"{OUTPUT}.topk"))
    graph.node.append(make_node("Gemm", [largest, weights, constant], [scale], name=f"{OUTPUT}.gemm"))
    return scale
