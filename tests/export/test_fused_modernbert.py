"""ModernBERT's options in the fused graph: what the classifier reads, biases, windows, rotations."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tiny_graphs import batches_of, graph_runner, largest_difference, numpy_batch, prune_unevenly, runner, tiny_model

from utils.export.fused import build_graph
from utils.export.graph import NotFusable
from utils.export.int8 import CANDIDATES, candidates_for
from utils.export.plain import to_fp16
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine
from utils.pruning.narrow import narrow_layer

BIASES = {"norm_bias": True, "mlp_bias": True, "attention_bias": True, "classifier_bias": True}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("options", [{"classifier_pooling": "mean"}, BIASES, {"classifier_activation": "relu"}])
def test_options(options, masked, tmp_path):
    model = tiny_model("modernbert", **options)
    prune_unevenly(model)
    batches = batches_of(model) if masked else [numpy_batch(model, lengths) for lengths in ([1], [30], [7, 7, 7])]
    run_model, run = pytorch_engine(model), runner(build_graph(model, masked), tmp_path)
    expected = [run_model(batch) for batch in batches]
    assert np.concatenate(expected).std() > 0.1
    assert compare_logits(run, expected, batches) < 1e-4


@pytest.mark.parametrize("options", [{"classifier_pooling": "mean"}, BIASES])
def test_layers_without_heads(options, tmp_path):
    model = tiny_model("modernbert", **options)
    for index in (1, 2):
        narrow_layer(model, index, torch.arange(0), torch.arange(20))
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_a_local_layer_sees_as_far_as_its_window(tmp_path):
    """Of two layers the second is local and read at the first token: what is farther than 3 tokens goes unseen."""
    model = tiny_model("modernbert", 2)
    narrow_layer(model, 0, torch.arange(0), torch.arange(20))  # the global layer mixes no tokens
    run, batch = graph_runner(model, tmp_path), numpy_batch(model, [12])
    for position, sees in [(3, True), (4, False)]:
        other = copy.deepcopy(batch)
        other["input_ids"][0, position] += 1
        assert (np.abs(run(other) - run(batch)).max() > 1e-5) == sees


def test_global_and_local_layers_rotate_differently(tmp_path):
    rotations = {"full_attention": {"rope_theta": 50.0}, "sliding_attention": {"rope_theta": 5.0}}
    rotations = {kind: {"rope_type": "default"} | theta for kind, theta in rotations.items()}
    model = tiny_model("modernbert", rope_parameters=rotations, local_attention=20)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_fp16_keeps_the_angles_of_far_positions(tmp_path):
    model = tiny_model("modernbert", max_position_embeddings=1000)
    graph = to_fp16(build_graph(model))
    sines = next(node.output[0] for node in graph.graph.node if node.op_type == "Sin" and "full" in node.name)
    graph.graph.output.append(helper.make_tensor_value_info(sines, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(
        [sines], {name: array for name, array in numpy_batch(model, [901]).items() if "type" not in name}
    )
    expected = np.sin(np.arange(901)[:, None] * model.model.rotary_emb.full_attention_inv_freq.numpy())
    assert np.abs(got - expected).max() < 0.05


def test_what_cannot_be_fused():
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    rotations = {"full_attention": scaled, "sliding_attention": scaled}
    for options, name in [({"hidden_act": "silu"}, "silu"), ({"classifier_activation": "silu"}, "silu"),
                          ({"rope_parameters": rotations}, "linear")]:  # fmt: skip
        with pytest.raises(NotFusable, match=name):
            build_graph(tiny_model("modernbert", 1, **options))


def test_recipes_without_a_fused_attention():
    """Rotations lie between projection and attention: recipes that differ in that alone are measured once."""
    names = list(candidates_for(build_graph(tiny_model("modernbert"))))
    assert "dynamic, per channel, tanh GELU" in names and not any("fused" in name for name in names)
    assert len(names) == len(CANDIDATES) - 1
    assert candidates_for(build_graph(tiny_model("bert"))) == CANDIDATES
