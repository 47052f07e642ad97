"""The fused graph computes what PyTorch computes, for every family, pruned or not; the int8 one nearly so."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils.cli import UserError
from utils.engines import pytorch_engine
from utils.families import FAMILIES
from utils.model import narrow_layer
from utils.onnx_graph import build_graph
from utils.quantization import WEIGHT_BITS, compare_logits, quantize_int8
from utils.runtime import load_session, run_session

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


def graph_runner(model, tmp_path):
    onnx.save(build_graph(model), tmp_path / "fp32.onnx")
    session = load_session(tmp_path / "fp32.onnx", num_threads=1)
    return lambda batch: run_session(session, batch)


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
def test_int8_is_close(family, tmp_path):
    model = tiny_model(family)
    prune_unevenly(model)
    run = graph_runner(model, tmp_path)
    # 7-bit weights: the only ones that do not saturate on any CPU that runs this test.
    quantize_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", "avx2")
    session = load_session(tmp_path / "int8.onnx", num_threads=1)
    singles = [make_batch(model, [3 + seed % 20], seed) for seed in range(100)]
    expected = np.concatenate([run(batch) for batch in singles])
    got = np.concatenate([run_session(session, batch) for batch in singles])
    assert np.abs(got - expected).mean() < 0.15 * expected.std()
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.85


@pytest.mark.parametrize("target_cpu", sorted(WEIGHT_BITS))
def test_weights_use_the_bits_of_the_target(target_cpu, tmp_path):
    onnx.save(build_graph(tiny_model("bert")), tmp_path / "fp32.onnx")
    quantize_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", target_cpu)
    weights = onnx.load(tmp_path / "int8.onnx").graph.initializer
    largest = [int(np.abs(numpy_helper.to_array(w)).max()) for w in weights if w.name.endswith(".weight.int8")]
    limit = 2 ** (WEIGHT_BITS[target_cpu] - 1) - 1
    # The word embeddings, the first, are only looked up: always 8 bits.
    assert sorted(set(largest)) == sorted({limit, 127})


def test_damaged_file(tmp_path):
    path = tmp_path / "fp32.onnx"
    onnx.save(build_graph(tiny_model("bert", 1)), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="fp32.onnx"):
        load_session(path, num_threads=1)
    with pytest.raises(UserError, match="fp32.onnx"):
        quantize_int8(path, tmp_path / "int8.onnx")
    with pytest.raises(UserError, match="missing.onnx"):
        load_session(tmp_path / "missing.onnx", num_threads=1)
