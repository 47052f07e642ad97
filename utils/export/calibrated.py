"""A temperature inside an ONNX graph, so that whatever runs it gives calibrated logits."""

import numpy as np
import onnx
from onnx import numpy_helper

LAST_LAYER = ("logits.weight", "logits.bias")  # of `utils.export.fused`, fp32 in its int8 versions too
OUTPUT = "logits"


def divide_logits(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """A copy of a graph that gives its logits divided by `temperature`.

    The last layer's weight and bias are divided where they are plain fp32 weights, which costs nothing; else a division
    follows it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    if all(name in weights and weights[name].data_type == onnx.TensorProto.FLOAT for name in LAST_LAYER):
        for name in LAST_LAYER:
            array = numpy_helper.to_array(weights[name])
            weights[name].CopyFrom(numpy_helper.from_array((array / temperature).astype(np.float32), name))
        return result
    (last,) = [node for node in result.graph.node if OUTPUT in node.output]
    undivided = f"{OUTPUT}.undivided"
    last.output[list(last.output).index(OUTPUT)] = undivided
    result.graph.initializer.append(
        numpy_helper.from_array(np.array(temperature, dtype=np.float32), f"{OUTPUT}.divisor")
    )
    result.graph.node.append(
        onnx.helper.make_node("Div", [undivided, f"{OUTPUT}.divisor"], [OUTPUT], name=f"{OUTPUT}.div")
    )
    return result
