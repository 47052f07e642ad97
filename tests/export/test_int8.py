"""int8 graphs compute nearly what PyTorch computes, with as many bits as the CPU can add up."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_graphs import numpy_batch, prune_unevenly, runner, tiny_model

from utils.export.fused import build_graph
from utils.export.graph import WORDS
from utils.export.int8 import CANDIDATES, FFN_OUTPUT, Recipe, calibrate, detect_cpu, quantize_int8
from utils.export.plain import export_plain, quantize_plain
from utils.models.classifier import model_inputs
from utils.models.families import FAMILIES


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
    assert len(largest) == 3 * 4 + 1 and set(largest.values()) == {2 ** (bits - 1) - 1}
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
    of_heads = [f"layer.2.attention.{name}" for name in ("asked.matmul", "mixed", "contexts.matmul")]
    ffn_outputs = [f"layer.{i}.ffn_norm.negated.matmul" for i in range(3)]
    assert products == [*ffn_outputs[:2], *of_heads, ffn_outputs[2], "logits.matmul"]


@pytest.mark.parametrize(("low", "high", "zero"), [(-1.0, 3.0, 64), (0.5, 5.1, 0)])
def test_a_static_range_takes_all_of_8_bits(low, high, zero):
    """From the smallest, 0 at most as padding is 0, to the largest."""
    fp32 = build_graph(tiny_model("bert"))
    names = {node.input[0] for node in fp32.graph.node if node.op_type in ("MatMul", "Attention")}
    graph = quantize_int8(fp32, Recipe(static=True), 8, dict.fromkeys(names, (low, high))).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    assert weights["layer.0.ffn_norm.scale"] == pytest.approx((high - min(low, 0)) / 255)
    assert weights["layer.0.ffn_norm.zero"] == zero


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
