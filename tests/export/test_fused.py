"""The fused graph computes what PyTorch computes, for every family, pruned or not; the int8 one nearly so."""

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_graphs import batches_of, graph_runner, largest_difference, numpy_batch, prune_unevenly, runner, tiny_model

from utils.export.fused import build_graph
from utils.export.int8 import CANDIDATES, Recipe, candidates_for, quantize_int8
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine
from utils.models.families import FAMILIES
from utils.system.errors import UserError


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fp32_equals_pytorch(family, pruned, tmp_path):
    model = tiny_model(family)
    if pruned:
        prune_unevenly(model)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_roberta_numbers_positions_around_padding_tokens_in_the_text(tmp_path):
    model = tiny_model("roberta")
    batch = numpy_batch(model, [8])
    batch["input_ids"][0, [2, 5]] = model.config.pad_token_id
    assert largest_difference(model, tmp_path, [batch]) < 1e-4


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_other_activations(family, activation, tmp_path):
    model = tiny_model(family, 2, hidden_act=activation)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match="silu"):
        build_graph(tiny_model("bert", 1, hidden_act="silu"))


def test_one_layer(tmp_path):
    model = tiny_model("bert", 1)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_graph_takes_the_inputs_that_the_model_has():
    for family, has_types in [("bert", True), ("electra", True), ("roberta", False), ("distilbert", False)]:
        names = [value.name for value in build_graph(tiny_model(family, 1)).graph.input]
        assert names == ["input_ids", "attention_mask"] + ["token_type_ids"] * has_types


def test_token_types_change_the_logits(tmp_path):
    model = tiny_model("bert")
    run, batch = graph_runner(model, tmp_path), numpy_batch(model, [10])
    other = batch | {"token_type_ids": 1 - batch["token_type_ids"]}
    assert np.abs(run(batch) - run(other)).max() > 1e-2


def test_padding_does_not_change_the_logits(tmp_path):
    model = tiny_model("roberta")
    run, batch = graph_runner(model, tmp_path), numpy_batch(model, [5, 12])
    alone = {name: array[:1, :5] for name, array in batch.items()}
    assert np.abs(run(batch)[:1] - run(alone)).max() < 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_graph_without_mask_equals_pytorch(family, tmp_path):
    model = tiny_model(family)
    prune_unevenly(model)
    run_model, run = pytorch_engine(model), runner(build_graph(model, masked=False), tmp_path)
    batches = [numpy_batch(model, lengths) for lengths in ([1], [30], [7, 7, 7])]
    assert compare_logits(run, [run_model(batch) for batch in batches], batches) < 1e-4


def test_onnxruntime_leaves_sums_and_norms_apart(tmp_path):
    """Fused to SkipLayerNormalization they would be several times slower."""
    onnx.save(build_graph(tiny_model("bert")), tmp_path / "fp32.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "fp32.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("LayerNormalization") == 7 and "SkipLayerNormalization" not in operators


def test_albert_holds_the_weights_of_its_one_layer_once():
    """In fp32 and int8 alike, however often it is used."""
    sizes = []
    for num_layers in (2, 6):
        fp32 = build_graph(tiny_model("albert", num_layers))
        for graph in (fp32, quantize_int8(fp32, Recipe(), 8)):
            names = [weight.name for weight in graph.graph.initializer]
            assert len(names) == len(set(names))
            sizes.append(sum(len(weight.raw_data) for weight in graph.graph.initializer))
    assert sizes[0] == sizes[2] and sizes[1] == sizes[3] < sizes[0] / 2


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_recipes_without_an_erf(activation):
    """Those that differ in GELU's approximation alone are measured once."""
    recipes = candidates_for(build_graph(tiny_model("bert", hidden_act=activation)))
    assert len(recipes) == len(set(recipes.values())) == len(CANDIDATES) - 1
    assert not any("GELU" in name or recipe.tanh_gelu for name, recipe in recipes.items())


def test_mpnets_position_bias_is_made_once(tmp_path):
    """And reaches as far as the positions do, whichever heads a layer has."""
    model = tiny_model("mpnet", max_position_embeddings=302)
    prune_unevenly(model)
    graph = build_graph(model)
    assert ["bias.table" in node.input for node in graph.graph.node].count(True) == 1
    # No int8 recipe is measured twice: onnxruntime's fused int8 attention takes no bias.
    assert len(candidates_for(graph)) < len(CANDIDATES) == len(candidates_for(build_graph(tiny_model("bert"))))
    assert largest_difference(model, tmp_path, [numpy_batch(model, [300]), numpy_batch(model, [150, 290])]) < 1e-4
