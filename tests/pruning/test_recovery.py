"""What pruning lost comes back without training."""

import copy

import pytest
import torch
from conftest import FAMILY_NAMES, logits, make_batch

from utils.models.families import family_of, layers_of
from utils.pruning.narrow import narrow_layer, narrow_width
from utils.pruning.recovery import recover


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_recovery_makes_up_for_a_twin(model):
    """A neuron whose twin stays can be pruned without a trace."""
    family, batch = family_of(model), make_batch(64)
    with torch.no_grad():
        for layer in layers_of(model):
            for parameter in layer.get_submodule(family.ffn_input).parameters():
                parameter[1] = parameter[0]
            layer.get_submodule(family.ffn_output).weight[:, :2] *= 10  # so that the loss of one shows
    pruned = copy.deepcopy(model)
    for index in range(len(layers_of(model))):
        narrow_layer(pruned, index, torch.arange(4), torch.tensor([0, *range(2, 64)]))
    with torch.no_grad():
        expected, cut = logits(model, batch), logits(pruned, batch)
        recover(pruned, model, [batch], ridge=1e-7)
        recovered = logits(pruned, batch)
    assert (recovered - expected).abs().max() < 0.05 * (cut - expected).abs().max()


def test_recovery_leaves_a_whole_model_as_it_is(model):
    batch, again = make_batch(64), copy.deepcopy(model)
    recover(again, model, [batch])
    for mine, expected in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_recovery_of_a_narrower_model(model):
    """The first rows that enter the last layer norm come closer to the whole model's."""
    batch, pruned, units = make_batch(64), copy.deepcopy(model), torch.arange(0, 32, 2)
    narrow_width(pruned, units, units)
    sums = []
    for each in (model, pruned):
        last = layers_of(each)[-1].get_submodule(family_of(each).ffn_norm)
        last.register_forward_pre_hook(lambda module, arguments: sums.append(arguments[0][:, 0]))
    with torch.no_grad():
        logits(model, batch)
        logits(pruned, batch)
        expected, cut = sums[0][:, units], sums[1]
        recover(pruned, model, [batch], hidden_units=units)
        logits(pruned, batch)
    assert (sums[-1] - expected).square().mean() < 0.8 * (cut - expected).square().mean()


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_recovery_of_a_layer_without_heads(model):
    batch, pruned = make_batch(64), copy.deepcopy(model)
    narrow_layer(pruned, 0, torch.arange(0), torch.arange(64))
    with torch.no_grad():
        expected, cut = logits(model, batch), logits(pruned, batch)
        recover(pruned, model, [batch])
        assert (logits(pruned, batch) - expected).abs().mean() < (cut - expected).abs().mean()
