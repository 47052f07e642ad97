"""The fused graph computes what PyTorch computes, for every family, pruned or not; the int8 one nearly so."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils.export.fused import WORDS, build_graph
from utils.export.int8 import CANDIDATES, FFN_OUTPUT, Recipe, calibrate, quantize_int8
from utils.export.plain import export_plain, quantize_plain, save_graphs, to_fp16
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine
from utils.models.families import FAMILIES
from utils.pruning.narrow import narrow_layer
from utils.runtime import load_session, run_session
from utils.system.errors import UserError

VOCAB = 100
ACTIVATION_KEY = {"distilbert": "activation"}


def tiny_model(family: str, num_layers: int = 3, activation: str = "gelu"):
    """A model of random weights, biases and layer norms, large enough for every part to move the logits."""
    if family == "distilbert":
        sizes = dict(dim=32, n_heads=4, n_layers=num_layers, hidden_dim=48)
    else:
        sizes = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=num_layers, intermediate_size=48)
    if family == "electra":
        sizes["embedding_size"] = 16
    if family == "roberta":
        sizes["type_vocab_size"] = 1
    sizes[ACTIVATION_KEY.get(family, "hidden_act")] = activation
    config = AutoConfig.for_model(family, vocab_size=VOCAB, max_position_embeddings=40, num_labels=3, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def prune_unevenly(model) -> None:
    narrow_layer(model, 0, torch.tensor([0, 2]), torch.arange(30))
    narrow_layer(model, 1, torch.tensor([1, 2, 3]), torch.arange(5, 22))
    narrow_layer(model, 2, torch.tensor([3]), torch.arange(7))


def make_batch(model, lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, generator.integers(5, VOCAB, mask.shape), model.config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": generator.integers(0, 2, mask.shape) * mask}


def batches_of(model) -> list[dict[str, np.ndarray]]:
    return [make_batch(model, lengths) for lengths in ([1], [7], [30], [5, 12, 1, 9])]


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
    batch = make_batch(model, [8])
    batch["input_ids"][0, [2, 5]] = model.config.pad_token_id
    assert largest_difference(model, tmp_path, [batch]) < 1e-4


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_other_activations(family, activation, tmp_path):
    model = tiny_model(family, 2, activation)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match="silu"):
        build_graph(tiny_model("bert", 1, "silu"))


def test_one_layer(tmp_path):
    model = tiny_model("bert", 1)
    assert largest_difference(model, tmp_path, batches_of(model)) < 1e-4


def test_graph_takes_the_inputs_that_the_model_has():
    for family, has_types in [("bert", True), ("electra", True), ("roberta", False), ("distilbert", False)]:
        names = [value.name for value in build_graph(tiny_model(family, 1)).graph.input]
        assert names == ["input_ids", "attention_mask"] + ["token_type_ids"] * has_types


def test_token_types_change_the_logits(tmp_path):
    model = tiny_model("bert")
    run, batch = graph_runner(model, tmp_path), make_batch(model, [10])
    other = batch | {"token_type_ids": 1 - batch["token_type_ids"]}
    assert np.abs(run(batch) - run(other)).max() > 1e-2


def test_padding_does_not_change_the_logits(tmp_path):
    model = tiny_model("roberta")
    run, batch = graph_runner(model, tmp_path), make_batch(model, [5, 12])
    alone = {name: array[:1, :5] for name, array in batch.items()}
    assert np.abs(run(batch)[:1] - run(alone)).max() < 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_graph_without_mask_equals_pytorch(family, tmp_path):
    model = tiny_model(family)
    prune_unevenly(model)
    run_model, run = pytorch_engine(model), runner(build_graph(model, masked=False), tmp_path)
    batches = [make_batch(model, lengths) for lengths in ([1], [30], [7, 7, 7])]
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
    singles = [make_batch(model, [3 + seed % 20], seed) for seed in range(100)]
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


def test_parts_that_stay_fp32():
    fp32 = build_graph(tiny_model("bert"))
    kept = [
        node.name
        for node in quantize_int8(fp32, Recipe(fp32_parts=FFN_OUTPUT), 8).graph.node
        if node.op_type == "MatMul"
    ]
    assert kept == [f"layer.{i}.ffn_norm.negated.matmul" for i in range(3)] + ["logits.matmul"]


def test_calibrated_ranges_are_mean_extremes(tmp_path):
    model = tiny_model("bert")
    batches = [make_batch(model, [5]), make_batch(model, [9], seed=1)]
    ranges = calibrate(build_graph(model), batches)
    hidden = [pytorch_hidden(model, batch) for batch in batches]
    low, high = np.mean([[h.min(), h.max()] for h in hidden], axis=0)
    assert ranges["layer.0.ffn_norm"] == pytest.approx((low, high), abs=1e-5)


def pytorch_hidden(model, batch) -> np.ndarray:
    """What leaves the first layer."""
    inputs = {name: torch.as_tensor(array) for name, array in batch.items()}
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True).hidden_states[1].numpy()


def test_graphs_share_their_weights(tmp_path):
    model = tiny_model("bert")
    graphs = {"a.onnx": build_graph(model), "b.onnx": build_graph(model, masked=False)}
    save_graphs(graphs, tmp_path, "both.weights")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["a.onnx"] + sizes["b.onnx"] < sizes["both.weights"] < 2 * graphs["a.onnx"].ByteSize()
    batch = make_batch(model, [9])
    outputs = [run_session(load_session(tmp_path / name, 1), batch) for name in graphs]
    expected = pytorch_engine(model)(batch)
    assert all(np.abs(output - expected).max() < 1e-4 for output in outputs)


def test_fp16_is_close(tmp_path):
    model = tiny_model("bert")
    run, run_model = runner(to_fp16(build_graph(model)), tmp_path), pytorch_engine(model)
    batches = batches_of(model)
    assert compare_logits(run, [run_model(batch) for batch in batches], batches) < 0.05


def test_any_other_encoder_is_exported_plainly(tmp_path):
    sizes = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, embedding_size=16)
    config = AutoConfig.for_model("albert", vocab_size=VOCAB, max_position_embeddings=40, num_labels=3, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    graph, run_model, batches = export_plain(model), pytorch_engine(model), batches_of(model)
    expected = [run_model(batch) for batch in batches]
    assert [value.name for value in graph.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
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
