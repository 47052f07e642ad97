"""Importance against plain references, and recovery without training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILY_NAMES, logits, make_batch

from utils.models.families import family_of, layer_shapes, layers_of
from utils.pruning.importance import (
    first_order,
    fisher,
    magnitudes,
    mask_gradients,
    most_important,
    normalized,
    rearranged,
    width_gradients,
)
from utils.pruning.narrow import narrow_layer, narrow_width
from utils.pruning.recovery import recover


def scale_neuron(model, layer: int, neuron: int, factor: float):
    """A copy whose FFN neuron is multiplied by `factor` on its way out."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        layers_of(scaled)[layer].get_submodule(family_of(scaled).ffn_output).weight[:, neuron] *= factor
    return scaled


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_is_the_mean_absolute_gradient_of_each_row(model):
    batch = make_batch()
    heads, neurons = ([first_order(layer) for layer in part] for part in mask_gradients(model, [batch]))
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
    for whole, split in zip(mask_gradients(model, [batch]), mask_gradients(model, halves), strict=True):
        for a, b in zip(whole, split, strict=True):
            torch.testing.assert_close(a, b)


def test_most_important_keeps_the_order():
    assert most_important(torch.tensor([0.1, 0.9, 0.0, 0.5]), 2).tolist() == [1, 3]


def test_target_num_layers_takes_the_last_of_each_block():
    import argparse

    from prune import chosen_layers

    wanted = argparse.Namespace(target_num_layers=3, keep_layers=None)
    assert chosen_layers(wanted, 6) == [1, 3, 5]
    wanted.target_num_layers = 4
    assert chosen_layers(wanted, 12) == [2, 5, 8, 11]


def test_importance_without_labels_is_that_of_the_predictions(model):
    batch = make_batch()
    with torch.no_grad():
        predicted = batch | {"labels": logits(model, batch).argmax(-1)}
    unlabelled = mask_gradients(model, [batch | {"labels": 1 - predicted["labels"]}], target="logits")
    for mine, expected in zip(unlabelled, mask_gradients(model, [predicted]), strict=True):
        torch.testing.assert_close(mine, expected)


def test_scores_of_gradients():
    gradients = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert first_order(gradients).tolist() == [2.0, 1.0]
    assert fisher(gradients).tolist() == [5.0, 2.0]
    assert [layer.tolist() for layer in normalized([torch.tensor([1.0, 3.0]), torch.zeros(2)])] == [
        [0.25, 0.75],
        [0, 0],
    ]


def test_magnitude_grows_with_the_weights(model):
    before = magnitudes(model)
    scaled = scale_neuron(model, 1, 5, 3.0)
    after = magnitudes(scaled)
    assert after[1][1][5] > before[1][1][5]
    after[1][1][5] = before[1][1][5]
    for part, expected in zip(after, before, strict=True):
        torch.testing.assert_close(part, expected)


def test_rearranging_drops_one_of_two_that_do_the_same():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator)
    # 0 and 1 are the same and together outweigh 2, whose own score is higher than either's.
    gradients = torch.stack([a, a, 1.1 * b, 0.1 * b], dim=1)
    assert most_important(fisher(gradients), 2).tolist() != [0, 2]
    assert rearranged(gradients, 2).tolist() in ([0, 2], [1, 2])
    assert rearranged(gradients, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_recovery_makes_up_for_a_twin(model):
    """A neuron whose twin stays can be pruned without a trace."""
    family, batch = family_of(model), make_batch(64)
    with torch.no_grad():
        for layer in layers_of(model):
            for parameter in layer.get_submodule(family.ffn_input).parameters():
                parameter[1] = parameter[0]
    pruned = copy.deepcopy(model)
    for index in range(2):
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


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_of_width_is_the_gradient_of_each_row(model):
    """Against scaling a unit of the classifier by hand, and a hidden unit wherever it is normalized."""
    batch, family = make_batch(), family_of(model)
    hidden, head = width_gradients(model, [batch])
    assert hidden.shape == (6, 32) and head.shape == (6, model.get_submodule(family.head_output).in_features)

    def row_losses(unit: int, factor: float, norms: bool) -> torch.Tensor:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            if norms:
                parts = [changed.get_submodule(family.embeddings).LayerNorm]
                if family.embeddings_project in dict(changed.named_modules()):
                    parts = [changed.get_submodule(family.embeddings_project)]
                for layer in layers_of(changed):
                    parts += [layer.get_submodule(path) for path in (family.attention_norm, family.ffn_norm)]
                for part in parts:
                    part.weight[unit] *= factor
                    part.bias[unit] *= factor
            else:
                changed.get_submodule(family.head_output).weight[:, unit] *= factor
            return F.cross_entropy(logits(changed, batch), batch["labels"], reduction="none").double()

    for unit in (0, 7):
        for gradients, norms in ((hidden, True), (head, False)):
            up, down = (row_losses(unit, 1 + step, norms) for step in (1e-2, -1e-2))
            expected = ((up - down) / 2e-2).float()
            torch.testing.assert_close(gradients[:, unit], expected, rtol=0.1, atol=2e-4)


def test_recovery_of_a_narrower_model(model):
    """The first rows that enter the last layer norm come closer to the whole model's."""
    batch, pruned, kept = make_batch(64), copy.deepcopy(model), torch.arange(0, 32, 2)
    narrow_width(pruned, kept, kept)
    sums = []
    for each in (model, pruned):
        last = layers_of(each)[-1].get_submodule(family_of(each).ffn_norm)
        last.register_forward_pre_hook(lambda module, arguments: sums.append(arguments[0][:, 0]))
    with torch.no_grad():
        logits(model, batch)
        logits(pruned, batch)
        expected, cut = sums[0][:, kept], sums[1]
        recover(pruned, model, [batch], hidden_kept=kept)
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
