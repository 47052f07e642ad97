"""ONNX graphs that the fused writer does not make: any other encoder's plain export, half precision; graph files."""

import io
import logging
import os
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, external_data_helper
from torch import nn
from transformers import PreTrainedModel

from utils.measuring.engines import Engine, onnx_engine
from utils.models.families import takes_token_types
from utils.predictor.cpus import usable_cpus
from utils.system.errors import UserError, first_line

# Smaller weights stay in the graph; larger ones begin at a page of their own, so that they can be mapped into memory.
SHARED_BYTES, PAGE = 1024, 4096


Graphs = dict[str, onnx.ModelProto]  # by their file's name


def open_graph(graph: onnx.ModelProto, num_labels: int) -> Engine:
    """A graph as an engine, with as many threads as this process may use CPUs."""
    return onnx_engine(graph.SerializeToString(), usable_cpus(), num_labels)


def export_plain(model: PreTrainedModel) -> onnx.ModelProto:
    """Any encoder's classification model as torch.onnx exports it: nothing is fused but what onnxruntime finds itself.

    Inputs and output as those of `utils.export.fused.build_graph`.

    Raises:
        UserError: torch.onnx cannot export it.
    """
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * takes_token_types(model)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, inputs, strict=True))).logits

    example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in names)
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    try:
        with warnings.catch_warnings():
            # The older exporter, which is deprecated, writes the graph that onnxruntime optimizes further.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Logits().eval(),
                example,
                file,
                input_names=names,
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(
            f"torch.onnx cannot export an encoder of the family {model.config.model_type!r} ({first_line(error)}): "
            "use one of the families in configs/"
        ) from error
    return onnx.load_from_string(file.getvalue())


def quantize_plain(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The int8 version of an `export_plain` graph by onnxruntime's dynamic quantization, a scale for each channel.

    Args:
        bits: of a weight: a value of `utils.export.int8.WEIGHT_BITS`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        # Type inference does not know every operator: what it leaves open is float.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        logging.disable(logging.WARNING)  # it advises, on the root logger, what the export has done already
        try:
            quantize_dynamic(
                source,
                target,
                per_channel=True,
                reduce_range=bits < 8,
                weight_type=QuantType.QInt8,
                extra_options=options,
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with fp16 weights and arithmetic, for GPUs; its logits stay fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # The angles of far positions would be off by tenths.
    angles = [node.name for node in copy.graph.node if node.name.startswith("rotation.")]
    return convert_float_to_float16(copy, keep_io_types=True, node_block_list=angles)


def save_graphs(graphs: Graphs, folder: str | Path, weights_file: str) -> None:
    """Write graphs whose weights of the same name are the same to `folder`: each to its file, the weights all to one.

    Args:
        weights_file: name of the file of weights that the graphs refer to.
    """
    places: dict[str, tuple[int, int]] = {}
    with open(Path(folder) / weights_file, "wb") as file:
        for graph_file, model in graphs.items():
            written = onnx.ModelProto()
            written.CopyFrom(model)
            for tensor in written.graph.initializer:
                if len(tensor.raw_data) < SHARED_BYTES:
                    continue
                if tensor.name not in places:
                    file.seek(-(-file.seek(0, os.SEEK_END) // PAGE) * PAGE)
                    places[tensor.name] = file.tell(), len(tensor.raw_data)
                    file.write(tensor.raw_data)
                offset, length = places[tensor.name]
                external_data_helper.set_external_data(tensor, weights_file, offset, length)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
            onnx.save(written, Path(folder) / graph_file)
