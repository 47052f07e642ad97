"""A pruned model against the whole one with what was cut masked out; and it comes back the same from its folder."""

import copy
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import FAMILY_NAMES, LABELS, logits, make_batch

from utils.export.fused import build_graph
from utils.measuring.engines import onnx_engine
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, save_checkpoint
from utils.models.config import Config
from utils.models.families import FAMILIES, family_of, layer_shapes, layers_of
from utils.pruning.narrow import keep_layers, narrow_layer, narrow_width, shape_like


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_pruning_equals_masking(model):
    batch = make_batch()
    heads, neurons = torch.tensor([0, 3]), torch.arange(0, 64, 3)
    masked = copy.deepcopy(model)
    family = family_of(model)
    with torch.no_grad():
        layer = layers_of(masked)[-1]
        dropped = [i for i in range(32) if i // 8 not in (0, 3)]
        layer.get_submodule(family.attention_output).weight[:, dropped] = 0
        layer.get_submodule(family.ffn_output).weight[:, [i for i in range(64) if i % 3]] = 0
        expected = logits(masked, batch)
        narrow_layer(model, len(layers_of(model)) - 1, heads, neurons)
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert layer_shapes(model) == ([(2, 22)] if family.shared_layer else [(4, 64), (2, 22)])


@pytest.mark.parametrize("num_heads", [0, 1])
@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_uneven_checkpoint_comes_back_the_same(model, num_heads, made, tmp_path):
    family = model.config.model_type
    narrow_layer(model, 0, torch.arange(num_heads), torch.arange(5))
    if not FAMILIES[family].shared_layer:
        narrow_layer(model, 1, torch.tensor([0, 1, 2]), torch.arange(40))
    shapes = layer_shapes(model)
    (tmp_path / "saved").mkdir()
    tokenizer = load_tokenizer(str(made[family] / "encoder"), "--flag")
    save_checkpoint(model, tokenizer, tmp_path / "saved", tmp_path / "saved.pt")
    batch = make_batch()
    for state_path in (None, str(tmp_path / "saved.pt")):
        again = load_model(str(tmp_path / "saved"), "--flag", Config(family, 16), LABELS, state_path)
        assert layer_shapes(again) == shapes and shapes[0] == (num_heads, 5)
        with torch.no_grad():
            assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_model_takes_any_smaller_shape(model):
    shape_like(model, [(1, 10), (3, 20)], hidden_size=16)
    assert layer_shapes(model) == [(1, 10), (3, 20)] and model.config.hidden_size == 16
    assert logits(model, make_batch()).isfinite().all()


def test_keep_layers_skips_the_others(model):
    batch = make_batch()
    last = copy.deepcopy(layers_of(model)[1])
    keep_layers(model, [1])
    assert model.config.num_hidden_layers == 1 and len(layers_of(model)) == 1
    for mine, theirs in zip(layers_of(model)[0].parameters(), last.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert logits(model, batch).shape == (6, 2)


@pytest.mark.parametrize("model", ["albert"], indirect=True)
def test_keep_layers_uses_the_shared_layer_less_often(model):
    expected = model(
        **{name: make_batch()[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True
    )
    keep_layers(model, [1])
    ids = {name: make_batch()[name] for name in ("input_ids", "attention_mask")}
    states = model(**ids, output_hidden_states=True).hidden_states
    assert len(states) == 2 and torch.equal(states[1], expected.hidden_states[1])
    assert not torch.equal(expected.hidden_states[1], expected.hidden_states[2])


@pytest.mark.parametrize("model", ["modernbert"], indirect=True)
def test_a_first_layer_that_was_not_the_first(model, made, tmp_path):
    """It keeps its norm, its window and its rotation, which transformers gives by a layer's number, when loaded again.

    With the first layer, what is left needs no code.
    """
    tokenizer, batch = load_tokenizer(str(made["modernbert"] / "encoder"), "--flag"), make_batch()
    for index, needs_code in [(1, True), (0, False)]:
        one_layer, folder = copy.deepcopy(model), tmp_path / str(index)
        keep_layers(one_layer, [index])
        save_checkpoint(one_layer, tokenizer, folder, None)
        again = load_model(str(folder), "--flag", Config("modernbert", 16), LABELS)
        assert again.config.layer_types == [model.config.layer_types[index]]
        with torch.no_grad():
            expected = logits(one_layer, batch)
            torch.testing.assert_close(logits(again, batch), expected)
        onnx.save(build_graph(again), tmp_path / "graph.onnx")
        arrays = {name: value.numpy() for name, value in batch.items()}
        np.testing.assert_allclose(onnx_engine(tmp_path / "graph.onnx", 1, 2)(arrays), expected.numpy(), atol=1e-4)
        assert (folder / "modeling_pruned.py").exists() == needs_code


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
@pytest.mark.parametrize("index", [0, 1])
def test_layers_without_heads(model, index, tmp_path):
    """In PyTorch as if the output projection had no weights, and the same as an ONNX graph."""
    batch, family, masked = make_batch(), family_of(model), copy.deepcopy(model)
    index = min(index, len(layers_of(model)) - 1)
    narrow_layer(model, index, torch.arange(0), torch.arange(40))
    with torch.no_grad():
        layers_of(masked)[index].get_submodule(family.attention_output).weight.zero_()
        layers_of(masked)[index].get_submodule(family.ffn_output).weight[:, 40:] = 0
        expected = logits(masked, batch)
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert layer_shapes(model)[index] == (0, 40)
    onnx.save(build_graph(model), tmp_path / "graph.onnx")
    arrays = {name: value.numpy() for name, value in batch.items()}
    onnx_logits = onnx_engine(tmp_path / "graph.onnx", 1, 2)(arrays)
    np.testing.assert_allclose(onnx_logits, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_narrowing_drops_units_that_are_always_zero(model, tmp_path):
    """Layer norms of fewer units would differ, so all of them are made to pass their input on."""
    batch, family = make_batch(), family_of(model)
    units = torch.arange(16)
    embeddings = model.get_submodule(family.embeddings)
    has_project = family.embeddings_project in dict(model.named_modules())
    with torch.no_grad():
        paths = (family.attention_output, family.ffn_output)
        writers = [layer.get_submodule(path) for layer in layers_of(model) for path in paths]
        writers.append(model.get_submodule(family.head_dense))
        if has_project:
            writers.append(model.get_submodule(family.embeddings_project))
        else:
            for table in (part for part in embeddings.children() if isinstance(part, torch.nn.Embedding)):
                table.weight[:, 16:] = 0
        if family.relative_embeddings:
            model.get_submodule(family.relative_embeddings).weight[:, 16:] = 0
        for linear in writers:
            linear.weight[16:] = 0
            if linear.bias is not None:
                linear.bias[16:] = 0
    narrow = copy.deepcopy(model)
    narrow_width(narrow, units, units)
    for each in (model, narrow):
        for norm in (module for module in each.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.forward = lambda x: x
    with torch.no_grad():
        torch.testing.assert_close(logits(narrow, batch), logits(model, batch), atol=1e-5, rtol=1e-5)
    assert narrow.config.hidden_size == 16 and set(layer_shapes(narrow)) == {(4, 64)}


LOAD_ELSEWHERE = """
import sys, torch
from transformers import AutoModelForSequenceClassification
batch = torch.load("batch.pt")
for family in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(family, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.save(model(**batch).logits, family + ".pt")
assert not any(name.startswith("utils") for name in sys.modules)
"""


def test_plain_transformers_loads_it(made, tmp_path, monkeypatch):
    """In a process that has never seen this repository: uneven, narrower, and with a layer without heads."""
    batch = {name: value for name, value in make_batch().items() if name in ("input_ids", "attention_mask")}
    torch.save(batch, tmp_path / "batch.pt")
    expected = {}
    for family in FAMILY_NAMES:
        encoder = str(made[family] / "encoder")
        model = load_model(encoder, "--flag", Config(family, 16), LABELS, new_head=True)
        narrow_layer(model, 0, torch.arange(0), torch.arange(5))
        if not FAMILIES[family].shared_layer:
            narrow_layer(model, 1, torch.tensor([0, 1, 3]), torch.arange(40))
        narrow_width(model, torch.arange(24), torch.arange(24))
        save_checkpoint(model, load_tokenizer(encoder, "--flag"), tmp_path / family, None)
        with torch.no_grad():
            expected[family] = model(**batch).logits
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", LOAD_ELSEWHERE, *FAMILY_NAMES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for family in FAMILY_NAMES:
        torch.testing.assert_close(torch.load(tmp_path / f"{family}.pt"), expected[family], atol=1e-6, rtol=1e-5)


def test_a_whole_model_needs_no_code(model, made, tmp_path):
    """Also one whose checkpoint was uneven before the uneven layers were removed."""
    narrow_layer(model, 0, torch.tensor([1]), torch.arange(5))
    tokenizer = load_tokenizer(str(made["bert"] / "encoder"), "--flag")
    save_checkpoint(model, tokenizer, tmp_path / "uneven", None)
    keep_layers(model, [1])
    save_checkpoint(model, tokenizer, tmp_path / "whole", None)
    again = load_model(str(tmp_path / "whole"), "--flag", Config("bert", 16), LABELS)
    assert layer_shapes(again) == [(4, 64)] and not hasattr(again.config, "layer_shapes")
    assert (tmp_path / "uneven/modeling_pruned.py").exists()
    assert not (tmp_path / "whole/modeling_pruned.py").exists()
