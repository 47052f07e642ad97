"""Importance against plain references; a pruned model against the whole one with what was cut masked out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILY_NAMES

from utils.checkpoint import load_tokenizer
from utils.config import Config
from utils.families import family_of, layer_shapes, layers_of
from utils.importance import gradient_importance, most_important
from utils.model import keep_layers, load_model, model_inputs, narrow_layer, save_checkpoint

LABELS = ["negative", "positive"]


@pytest.fixture
def model(made, request):
    family = getattr(request, "param", "bert")
    return load_model(str(made[family] / "encoder"), "--flag", Config(family, 16), LABELS, new_head=True)


def make_batch(rows: int = 6) -> dict:
    torch.manual_seed(1)
    lengths = torch.randint(3, 12, (rows,))
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    ids = torch.randint(4, 24, (rows, 12)) * mask
    types = torch.zeros_like(ids)
    labels = torch.arange(rows) % 2
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}


def logits(model, batch) -> torch.Tensor:
    return model(**model_inputs(model, batch)).logits


def scale_neuron(model, layer: int, neuron: int, factor: float):
    """A copy whose FFN neuron is multiplied by `factor` on its way out."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        layers_of(scaled)[layer].get_submodule(family_of(scaled).ffn_output).weight[:, neuron] *= factor
    return scaled


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_is_the_mean_absolute_gradient_of_each_row(model):
    batch = make_batch()
    heads, neurons = gradient_importance(model, [batch])
    assert [(len(h), len(n)) for h, n in zip(heads, neurons, strict=True)] == layer_shapes(model)

    def row_losses(changed):
        with torch.no_grad():
            return F.cross_entropy(logits(changed, batch), batch["labels"], reduction="none").double()

    for layer, neuron in [(0, 0), (1, 5)]:
        up, down = (row_losses(scale_neuron(model, layer, neuron, 1 + step)) for step in (1e-2, -1e-2))
        expected = ((up - down) / 2e-2).abs().mean().item()
        assert neurons[layer][neuron].item() == pytest.approx(expected, rel=0.05, abs=2e-5)


def test_importance_does_not_depend_on_the_batches(model):
    batch = make_batch(6)
    halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 3), slice(3, 6))]
    for whole, split in zip(gradient_importance(model, [batch]), gradient_importance(model, halves), strict=True):
        for a, b in zip(whole, split, strict=True):
            torch.testing.assert_close(a, b)


def test_most_important_keeps_the_order():
    assert most_important(torch.tensor([0.1, 0.9, 0.0, 0.5]), 2).tolist() == [1, 3]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_pruning_equals_masking(model):
    batch = make_batch()
    heads, neurons = torch.tensor([0, 3]), torch.arange(0, 64, 3)
    masked = copy.deepcopy(model)
    family = family_of(model)
    with torch.no_grad():
        layer = layers_of(masked)[1]
        dropped = [i for i in range(32) if i // 8 not in (0, 3)]
        layer.get_submodule(family.attention_output).weight[:, dropped] = 0
        layer.get_submodule(family.ffn_output).weight[:, [i for i in range(64) if i % 3]] = 0
        expected = logits(masked, batch)
        narrow_layer(model, 1, heads, neurons)
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert layer_shapes(model) == [(4, 64), (2, 22)]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_uneven_checkpoint_comes_back_the_same(model, made, tmp_path):
    family = model.config.model_type
    narrow_layer(model, 0, torch.tensor([1]), torch.arange(5))
    narrow_layer(model, 1, torch.tensor([0, 1, 2]), torch.arange(40))
    (tmp_path / "saved").mkdir()
    tokenizer = load_tokenizer(str(made[family] / "encoder"), "--flag")
    save_checkpoint(model, tokenizer, tmp_path / "saved", tmp_path / "saved.pt")
    batch = make_batch()
    for state_path in (None, str(tmp_path / "saved.pt")):
        again = load_model(str(tmp_path / "saved"), "--flag", Config(family, 16), LABELS, state_path)
        assert layer_shapes(again) == [(1, 5), (3, 40)]
        with torch.no_grad():
            assert torch.equal(logits(again, batch), logits(model, batch))


def test_keep_layers_skips_the_others(model):
    batch = make_batch()
    last = copy.deepcopy(layers_of(model)[1])
    keep_layers(model, [1])
    assert model.config.num_hidden_layers == 1 and len(layers_of(model)) == 1
    for mine, theirs in zip(layers_of(model)[0].parameters(), last.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert logits(model, batch).shape == (6, 2)


def test_target_num_layers_takes_the_last_of_each_block():
    import argparse

    from prune import chosen_layers

    wanted = argparse.Namespace(target_num_layers=3, keep_layers=None)
    assert chosen_layers(wanted, 6) == [1, 3, 5]
    wanted.target_num_layers = 4
    assert chosen_layers(wanted, 12) == [2, 5, 8, 11]
