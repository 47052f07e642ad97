"""Graphs that torch.onnx exports, in half precision, and their files."""

import numpy as np
import onnx
import pytest
import torch
from tiny_graphs import batches_of, numpy_batch, runner, tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from quantize import export
from utils.export.fused import build_graph
from utils.export.plain import export_plain, quantize_plain, save_graphs, to_fp16
from utils.export.verify import compare_logits, pytorch_logits
from utils.measuring.engines import pytorch_engine, run_session
from utils.predictor.model import load_session
from utils.system.errors import UserError

# Encoders that no row of the table describes, and what their configurations call their sizes.
STRANGERS = {
    "roformer": dict(embedding_size=32),
    "nomic_bert": {},
    "albert": dict(num_hidden_groups=2),
}


def test_graphs_share_their_weights(tmp_path):
    model = tiny_model("bert")
    graphs = {"a.onnx": build_graph(model), "b.onnx": build_graph(model, masked=False)}
    save_graphs(graphs, tmp_path, "both.weights")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["a.onnx"] + sizes["b.onnx"] < sizes["both.weights"] < 2 * graphs["a.onnx"].ByteSize()
    batch = numpy_batch(model, [9])
    outputs = [run_session(load_session(tmp_path / name, 1), batch) for name in graphs]
    expected = pytorch_engine(model)(batch)
    assert all(np.abs(output - expected).max() < 1e-4 for output in outputs)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_fp16_is_close(family, tmp_path):
    model = tiny_model(family, max_position_embeddings=1000)
    run, run_model = runner(to_fp16(build_graph(model)), tmp_path), pytorch_engine(model)
    batches = [*batches_of(model), numpy_batch(model, [900])]
    assert compare_logits(run, [run_model(batch) for batch in batches], batches) < 0.05


@pytest.mark.parametrize(("family", "sizes"), STRANGERS.items())
def test_any_other_encoder_is_exported_plainly(family, sizes, tmp_path):
    model = tiny_model(family, 2, attn_implementation="eager", **sizes)
    graph, run_model, batches = export_plain(model), pytorch_engine(model), batches_of(model)
    expected = [run_model(batch) for batch in batches]
    assert [value.name for value in graph.graph.input][:2] == ["input_ids", "attention_mask"]
    assert compare_logits(runner(graph, tmp_path), expected, batches) < 1e-4
    int8 = quantize_plain(graph, 7)
    assert "MatMulInteger" in [node.op_type for node in int8.graph.node]
    assert compare_logits(runner(int8, tmp_path), expected, batches) < 0.1


@pytest.mark.parametrize(
    ("lengths", "message"), [([8], ""), ([7, 8], "differ from PyTorch's"), ([8, 30], "cannot run some rows")]
)
def test_an_export_that_fits_rows_of_one_length_is_refused(lengths, message):
    """Funnel's pooled positions become constants of the 8 tokens that torch.onnx follows."""
    sizes = dict(d_model=32, n_head=4, d_head=8, d_inner=48, block_sizes=[1, 1], vocab_size=100, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("funnel", **sizes)).eval()
    graphs, batches = export(model), [numpy_batch(model, [length]) for length in lengths]
    if not message:
        assert len(pytorch_logits(model, graphs, batches, 2)) == 1
        return
    with pytest.raises(UserError, match=f"{message}.*so nothing was written.*families in configs/.*'funnel'"):
        pytorch_logits(model, graphs, batches, 2)


def test_damaged_file(tmp_path):
    path = tmp_path / "fp32.onnx"
    onnx.save(build_graph(tiny_model("bert", 1)), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="fp32.onnx"):
        load_session(path, num_threads=1)
    with pytest.raises(UserError, match="missing.onnx"):
        load_session(tmp_path / "missing.onnx", num_threads=1)
