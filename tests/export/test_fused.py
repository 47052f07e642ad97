"""The fused graph computes what PyTorch computes, for every family, pruned or not; the int8 one nearly so."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_batch, make_model
from onnx import numpy_helper
from transformers import AutoModelForSequenceClassification

from utils.export.fused import build_graph
from utils.export.graph import WORDS
from utils.export.int8 import CANDIDATES, FFN_OUTPUT, Recipe, calibrate, candidates_for, detect_cpu, quantize_int8
from utils.export.plain import export_plain, quantize_plain, save_graphs, to_fp16
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine
from utils.models.classifier import model_inputs
from utils.models.families import FAMILIES, layers_of
from utils.pruning.narrow import narrow_layer
from utils.runtime import load_session, run_session
from utils.system.errors import UserError

# Encoders that no row of the table describes, and what their configurations call their sizes.
STRANGERS = {
    "roformer": dict(embedding_size=32),
    "nomic_bert": {},
    "albert": dict(num_hidden_groups=2),
}


def tiny_model(family: str, num_layers: int = 3, **sizes):
    """A classifier whose every part moves the logits."""
    sizes = {"num_hidden_layers": num_layers, "intermediate_size": 48, "num_labels": 3, "vocab_size": 100} | sizes
    return make_model(family, AutoModelForSequenceClassification, noise=0.2, **sizes)


def prune_unevenly(model) -> None:
    parts = [([0, 2], range(30)), ([1, 2, 3], range(5, 22)), ([3], range(7))]
    for index, (heads, neurons) in enumerate(parts[: len(layers_of(model))]):
        narrow_layer(model, index, torch.tensor(heads), torch.tensor(neurons))


def numpy_batch(model, lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    batch = make_batch(lengths=lengths, seed=seed, pad_token_id=model.config.pad_token_id)
    return {name: tensor.numpy() for name, tensor in batch.items() if name != "labels"}


def batches_of(model) -> list[dict[str, np.ndarray]]:
    return [numpy_batch(model, lengths) for lengths in ([1], [7], [30], [5, 12, 1, 9])]


def runner(graph: onnx.ModelProto, tmp_path):
    onnx.save(graph, tmp_path / "graph.onnx")
    session = load_session(tmp_path / "graph.onnx", num_threads=1)
    return lambda batch: run_session(session, batch)


def graph_runner(model, tmp_path):
    return runner(build_graph(model), tmp_path)


def largest_difference(model, tmp_path, batches) -> float:
    run_model = pytorch_engine(model)
    return compare_logits(graph_runner(model, tmp_path), [run_model(batch) for batch in batches], batches)


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


def check_close(model, recipe, tmp_path) -> None:
    """Of random weights, so that logits lie close together: the hardest case for rounding."""
    fp32 = build_graph(model, masked=False)
    singles = [numpy_batch(model, [3 + seed % 20], seed) for seed in range(100)]
    # 7-bit weights: the only ones that do not saturate on any CPU that runs this test.
    graph = quantize_int8(fp32, recipe, 7, calibrate(fp32, singles[:30]))
    outputs = []
    for proto in (fp32, graph):
        run = runner(proto, tmp_path)
        outputs.append(np.concatenate([run(batch) for batch in singles]))
    expected, got = outputs
    assert 0 < np.abs(got - expected).mean() < 0.2 * expected.std()
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.85


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_int8_is_close(family, tmp_path):
    model = tiny_model(family)
    prune_unevenly(model)
    check_close(model, Recipe(), tmp_path)


@pytest.mark.parametrize("name", sorted(CANDIDATES))
def test_every_recipe_is_close(name, tmp_path):
    check_close(tiny_model("bert"), CANDIDATES[name], tmp_path)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(per_channel=False), Recipe(int8_embeddings=False)])
@pytest.mark.parametrize("bits", [7, 8])
def test_weights_use_their_bits(recipe, bits):
    graph = quantize_int8(build_graph(tiny_model("bert")), recipe, bits).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    largest = {name: int(np.abs(array).max()) for name, array in weights.items() if array.dtype == np.int8}
    # Embeddings are only looked up: always 8 bits.
    assert (largest.pop(f"{WORDS}.int8", None) == 127) == recipe.int8_embeddings
    assert len(largest) == 3 * 4 + 2 and set(largest.values()) == {2 ** (bits - 1) - 1}
    assert weights["layer.0.ffn_input.weight.scale"].shape == ((48,) if recipe.per_channel else ())


@pytest.mark.parametrize(("bits", "limit"), [(7, 64), (8, 127)])
def test_weights_of_plain_graphs_use_their_bits(bits, limit):
    """onnxruntime's 7 bits are -64 to 64: two products with 255 still fit into 16 bits."""
    graph = quantize_plain(export_plain(tiny_model("albert", 1, attn_implementation="eager")), bits)
    weights = [numpy_helper.to_array(weight) for weight in graph.graph.initializer]
    assert max(int(np.abs(weight).max()) for weight in weights if weight.dtype == np.int8) == limit


@pytest.mark.parametrize(
    ("architecture", "capability", "expected"),
    [
        ("x86_64", "avx2", "avx2"),
        ("x86_64", "avx512_f", "avx2"),
        ("x86_64", "avx512_vnni", "avx512_vnni"),
        ("x86_64", "avx_vnni", "avx512_vnni"),
        ("aarch64", "neon", "arm64"),
    ],
)
def test_cpu_is_told_by_what_it_can(architecture, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": architecture, capability: True})
    assert detect_cpu() == expected


def test_parts_that_stay_fp32():
    fp32 = build_graph(tiny_model("bert"))
    int8 = quantize_int8(fp32, Recipe(fp32_parts=FFN_OUTPUT), 8)
    products = [node.name for node in int8.graph.node if node.op_type == "MatMul"]
    assert products == [f"layer.{i}.ffn_norm.negated.matmul" for i in range(3)] + ["logits.matmul"]


def test_calibrated_ranges_are_mean_extremes(tmp_path):
    model = tiny_model("bert")
    batches = [numpy_batch(model, [5]), numpy_batch(model, [9], seed=1)]
    ranges = calibrate(build_graph(model), batches)
    hidden = [pytorch_hidden(model, batch) for batch in batches]
    low, high = np.mean([[h.min(), h.max()] for h in hidden], axis=0)
    assert ranges["layer.0.ffn_norm"] == pytest.approx((low, high), abs=1e-5)


def pytorch_hidden(model, batch) -> np.ndarray:
    """What leaves the first layer."""
    with torch.inference_mode():
        return model(**model_inputs(model, batch), output_hidden_states=True).hidden_states[1].numpy()


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


def test_mpnets_position_bias_is_made_once(tmp_path):
    """And reaches as far as the positions do, whichever heads a layer has."""
    model = tiny_model("mpnet", max_position_embeddings=302)
    prune_unevenly(model)
    graph = build_graph(model)
    assert [node.op_type for node in graph.graph.node].count("Range") == 1
    # No int8 recipe is measured twice: onnxruntime's fused int8 attention takes no bias.
    assert len(candidates_for(graph)) < len(CANDIDATES) == len(candidates_for(build_graph(tiny_model("bert"))))
    assert largest_difference(model, tmp_path, [numpy_batch(model, [300]), numpy_batch(model, [150, 290])]) < 1e-4


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


def test_damaged_file(tmp_path):
    path = tmp_path / "fp32.onnx"
    onnx.save(build_graph(tiny_model("bert", 1)), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="fp32.onnx"):
        load_session(path, num_threads=1)
    with pytest.raises(UserError, match="missing.onnx"):
        load_session(tmp_path / "missing.onnx", num_threads=1)
