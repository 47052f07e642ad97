"""What a budget leaves of every layer."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utils.models.first_token import first_token_only
from utils.pruning.budget import NEURON_STEP, fit_macs, layer_macs, next_size, spread, uniform
from utils.pruning.latency_budget import narrow_copy
from utils.system.errors import UserError


def test_budget_goes_where_it_matters():
    heads = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([5.0, 0.1, 0.1, 0.1])]
    neurons = [torch.full((128,), 0.001), torch.full((128,), 1.0)]
    shapes = spread(heads, neurons, [32, 32], [1, 1], 0.5)
    cost = sum(32 * num_heads + num_neurons for num_heads, num_neurons in shapes)
    assert cost <= 256 + NEURON_STEP
    assert shapes == [(3, NEURON_STEP), (0, 128)]
    assert spread(heads, neurons, [32, 32], [1, 1], 1.0) == [(4, 128), (4, 128)]
    with pytest.raises(UserError, match="0.125"):
        spread(heads, neurons, [32, 32], [1, 1], 0.1)


def test_budget_counts_what_a_layer_costs():
    """Of equal scores those of the cheap layer are kept; and a layer may lose all heads."""
    heads, neurons = [torch.ones(4), torch.ones(4)], [torch.ones(64), torch.ones(64)]
    assert spread(heads, neurons, [30, 1], [1, 0.1], 0.5) == [(0, 64), (4, 64)]


def test_neurons_that_always_stay_are_the_best_ones():
    """So of the others those of the second layer matter more, though the first one's best are better."""
    high, low = NEURON_STEP * [10.0] + NEURON_STEP * [1.0], NEURON_STEP * [5.0] + NEURON_STEP * [2.0]
    neurons = [torch.tensor(high[::-1]), torch.tensor(low)]
    assert spread([torch.ones(0)] * 2, neurons, [1, 1], [1, 1], 0.75) == [(0, NEURON_STEP), (0, 2 * NEURON_STEP)]


def test_cheap_neurons_first():
    neurons = [torch.ones(2 * NEURON_STEP)] * 2
    shapes = spread([torch.ones(0)] * 2, neurons, [1, 1], [1, 0.5], 2 / 3)
    assert shapes == [(0, NEURON_STEP), (0, 2 * NEURON_STEP)]


def test_the_same_numbers_in_every_layer():
    shapes = [(4, 64), (2, 60)]
    assert uniform(shapes, 1, 20) == [(1, 20), (1, 20)]
    assert uniform(shapes, None, 20) == [(4, 20), (2, 20)]
    assert uniform(shapes, 0, None) == [(0, 64), (0, 60)]
    # Of three steps the first, and what is then left is two steps: 64, 49, 34, 20.
    assert uniform(shapes, 1, 20, steps_left=3) == [(3, 49), (1, 46)]
    assert [next_size(size, 20, steps) for size, steps in ((64, 3), (49, 2), (34, 1))] == [49, 34, 20]
    assert next_size(32, 16, steps_left=3, multiple=8) == 24


def macs(model, shapes, length) -> float:
    """MACs of the matrix products of one row of `length` tokens, counted by PyTorch."""
    narrow = narrow_copy(model, shapes).eval()
    narrow.set_attn_implementation("eager")
    ids = torch.full((1, length), 7)
    # Of PyTorch's own attention it counts the plain way alone.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), first_token_only(narrow), plain, FlopCounterMode(display=False) as counter:
        narrow(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("length", [1, 10])
@pytest.mark.parametrize("model", ["bert", "modernbert"], indirect=True)
def test_macs_of_heads_and_neurons_are_those_that_the_model_computes(model, length):
    whole = macs(model, [(4, 64), (4, 64)], length)
    heads, neurons = layer_macs(model, length)
    for layer in range(2):
        for shape, cost in (((3, 64), heads[layer]), ((4, 32), 32 * neurons[layer])):
            shapes = [(4, 64), (4, 64)]
            shapes[layer] = shape
            assert whole - macs(model, shapes, length) == pytest.approx(cost * length)


def test_layers_cost_the_same_where_the_classifier_reads_all_tokens(model):
    """A head has 4 projections of 32 x 8 weights, and for each of 10 tokens a score and a product of 8 values each."""
    model.config.classifier_pooling = "mean"
    assert layer_macs(model, 10) == ([4 * 32 * 8 + 2 * 10 * 8] * 2, [2 * 32] * 2)


def test_a_budget_of_macs(model):
    """The first layer's heads cost 1184 and its neurons 64, the last one's 166.4 and 6.4, in rows of 10 tokens."""
    heads = [torch.tensor([4.0, 3, 2, 1.5]), torch.tensor([4.0, 3, 2, 1])]
    neurons = [torch.full((64,), 1e-9)] * 2
    # All heads and the 32 neurons of each layer that always stay.
    fraction = (4 * 1350.4 + 32 * 70.4) / (4 * 1350.4 + 64 * 70.4)
    assert fit_macs(model, heads, neurons, fraction, 10) == [(4, 32), (4, 32)]
    # One head less, which matters least for its cost: the first layer's.
    assert fit_macs(model, heads, neurons, fraction - 0.01, 10)[0] == (3, 32)
    with pytest.raises(UserError, match="raise it"):
        fit_macs(model, heads, neurons, 0.1, 10)
