"""Scores of heads, neurons and hidden units against plain references."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILY_NAMES, logits, make_batch

from utils.models.families import family_of, layer_shapes, layers_of
from utils.pruning.importance import (
    first_order_scores,
    fisher_scores,
    magnitude_scores,
    mask_gradients,
    most_important,
    most_important_together,
    normalize_layers,
    width_gradients,
)


def scale_neuron(model, layer: int, neuron: int, factor: float):
    """A copy whose FFN neuron is multiplied by `factor` on its way out."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        layers_of(scaled)[layer].get_submodule(family_of(scaled).ffn_output).weight[:, neuron] *= factor
    return scaled


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_is_the_mean_absolute_gradient_of_each_row(model):
    batch = make_batch()
    heads, neurons = ([first_order_scores(layer) for layer in part] for part in mask_gradients(model, [batch]))
    assert [(len(h), len(n)) for h, n in zip(heads, neurons, strict=True)] == layer_shapes(model)

    def row_losses(changed):
        with torch.no_grad():
            return F.cross_entropy(logits(changed, batch), batch["labels"], reduction="none").double()

    for layer, neuron in [(0, 0), (len(neurons) - 1, 5)]:
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


def test_importance_without_labels_is_that_of_the_predictions(model):
    batch = make_batch()
    with torch.no_grad():
        predicted = batch | {"labels": logits(model, batch).argmax(-1)}
    unlabelled = mask_gradients(model, [batch | {"labels": 1 - predicted["labels"]}], target="logits")
    for mine, expected in zip(unlabelled, mask_gradients(model, [predicted]), strict=True):
        torch.testing.assert_close(mine, expected)


def test_scores_of_gradients():
    gradients = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert first_order_scores(gradients).tolist() == [2.0, 1.0]
    assert fisher_scores(gradients).tolist() == [5.0, 2.0]
    assert [layer.tolist() for layer in normalize_layers([torch.tensor([1.0, 3.0]), torch.zeros(2)])] == [
        [0.25, 0.75],
        [0, 0],
    ]


def test_magnitude_grows_with_the_weights(model):
    before = magnitude_scores(model)
    scaled = scale_neuron(model, 1, 5, 3.0)
    after = magnitude_scores(scaled)
    assert after[1][1][5] > before[1][1][5]
    after[1][1][5] = before[1][1][5]
    for part, expected in zip(after, before, strict=True):
        torch.testing.assert_close(part, expected)


def test_magnitude_is_the_norm_of_all_weights_of_a_part(model):
    """Of head 2 and neuron 7 of the last layer of BERT, whose heads are 8 wide."""
    heads, neurons = magnitude_scores(model)
    layer = model.bert.encoder.layer[-1]
    inputs = [getattr(layer.attention.self, name).weight[16:24] for name in ("query", "key", "value")]
    weights = [*inputs, layer.attention.output.dense.weight[:, 16:24]]
    torch.testing.assert_close(heads[-1][2], torch.cat([part.flatten() for part in weights]).norm().detach())
    weights = [layer.intermediate.dense.weight[7], layer.output.dense.weight[:, 7]]
    torch.testing.assert_close(neurons[-1][7], torch.cat(weights).norm().detach())


def test_pruning_one_after_the_other_adds_least_to_the_quadratic_form():
    """Against trying every part that is left in each step."""
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(40, 9, generator=generator) @ torch.rand(9, 9, generator=generator)
    information = gradients.double().T @ gradients.double()
    pruned: list[int] = []
    for left in range(8, 0, -1):
        costs = {i: information[[*pruned, i]][:, [*pruned, i]].sum() for i in range(9) if i not in pruned}
        pruned.append(min(costs, key=costs.__getitem__))
        assert most_important_together(gradients, left).tolist() == sorted(set(range(9)) - set(pruned))


def test_rearranging_drops_one_of_two_that_do_the_same():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator)
    # 0 and 1 are the same and together outweigh 2, whose own score is higher than either's.
    gradients = torch.stack([a, a, 1.1 * b, 0.1 * b], dim=1)
    assert most_important(fisher_scores(gradients), 2).tolist() != [0, 2]
    assert most_important_together(gradients, 2).tolist() in ([0, 2], [1, 2])
    assert most_important_together(gradients, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_of_width_is_the_gradient_of_each_row(model):
    """Against scaling a unit of the classifier by hand, and a hidden unit wherever it is normalized, or added up."""
    batch, family = make_batch(), family_of(model)
    hidden, head = width_gradients(model, [batch])
    assert hidden.shape == (6, 32) and head.shape == (6, model.get_submodule(family.head_output).in_features)

    def row_losses(unit: int, factor: float, norms: bool) -> torch.Tensor:
        changed = copy.deepcopy(model).double()
        with torch.no_grad():
            if norms:
                parts = [changed.get_submodule(f"{family.embeddings}.{family.embeddings_norm}")]
                if family.embeddings_project in dict(changed.named_modules()):
                    parts = [changed.get_submodule(family.embeddings_project)]
                paths = (family.attention_norm, family.ffn_norm)
                if family.pre_norm:
                    paths = (family.attention_output, family.ffn_output)
                parts += [layer.get_submodule(path) for layer in layers_of(changed) for path in paths]
                for parameter in (parameter for part in parts for parameter in part.parameters()):
                    parameter[unit] *= factor
            else:
                changed.get_submodule(family.head_output).weight[:, unit] *= factor
            return F.cross_entropy(logits(changed, batch), batch["labels"], reduction="none").double()

    for unit in (0, 7):
        for gradients, norms in ((hidden, True), (head, False)):
            # A short step: DistilBERT's classifier has a ReLU, whose slope changes at once.
            up, down = (row_losses(unit, 1 + step, norms) for step in (1e-5, -1e-5))
            expected = ((up - down) / 2e-5).float()
            torch.testing.assert_close(gradients[:, unit], expected, rtol=0.1, atol=2e-4)
