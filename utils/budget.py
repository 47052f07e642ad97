"""Spread a budget of multiply-accumulates (MACs) over the heads and neurons of all layers."""

import torch

from utils.cli import UserError
from utils.importance import Scores

# Neurons are kept by whole steps: matrix products compute in blocks of about this many columns.
NEURON_STEP = 32


def head_macs(hidden_size: int, head_size: int, length: float) -> float:
    """MACs a token of one attention head in rows of `length` tokens: its four projections, scores and context."""
    return 4 * hidden_size * head_size + 2 * length * head_size


def neuron_macs(hidden_size: int) -> float:
    """MACs a token of one FFN neuron."""
    return 2 * hidden_size


def spread(
    heads: Scores, neurons: Scores, head_cost: float, neuron_cost: float, fraction: float
) -> list[tuple[int, int]]:
    """Numbers of heads and neurons to keep in every layer, so that they cost `fraction` of what all of them do.

    Scores add up, so for each total number of heads the best ones are kept, with as many of the best neurons as the
    rest of the budget buys; of these plans the one that keeps most counts: Kwon et al. 2022 (algorithm 1). Every layer
    keeps at least a head and `NEURON_STEP` neurons.

    Args:
        heads, neurons: importance, a tensor a layer; of heads and neurons on one scale.
        head_cost, neuron_cost: of one, in MACs or anything else.

    Raises:
        UserError: the budget is below the smallest model's cost.
    """
    floors = [(1, min(NEURON_STEP, len(scores))) for scores in neurons]
    whole = sum(len(h) * head_cost + len(n) * neuron_cost for h, n in zip(heads, neurons, strict=True))
    smallest = sum(h * head_cost + n * neuron_cost for h, n in floors)
    budget = fraction * whole - smallest
    if budget < 0:
        raise UserError(
            f"the budget is {fraction:g} of the encoder but a head and {NEURON_STEP} neurons in every layer are "
            f"{smallest / whole:.3f} of it: raise it, or remove layers with --keep_layers"
        )
    # What is above each layer's floor, best first.
    extra_heads, head_layers = _pooled(heads, [h for h, _ in floors])
    extra_neurons, neuron_layers = _pooled(neurons, [n for _, n in floors])
    head_totals = torch.cat([torch.zeros(1), extra_heads.cumsum(0)])
    neuron_totals = torch.cat([torch.zeros(1), extra_neurons.cumsum(0)])
    best = (-1.0, 0, 0)
    for num_heads in range(min(len(extra_heads), int(budget / head_cost)) + 1):
        num_neurons = min(len(extra_neurons), int((budget - num_heads * head_cost) / neuron_cost))
        best = max(best, (float(head_totals[num_heads] + neuron_totals[num_neurons]), num_heads, num_neurons))
    _, num_heads, num_neurons = best
    head_counts = torch.bincount(head_layers[:num_heads], minlength=len(heads))
    neuron_counts = torch.bincount(neuron_layers[:num_neurons], minlength=len(heads))
    return [
        (floor_heads + int(h), _stepped(floor_neurons + int(n), len(scores)))
        for (floor_heads, floor_neurons), h, n, scores in zip(floors, head_counts, neuron_counts, neurons, strict=True)
    ]


def _pooled(scores: Scores, floors: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All layers' scores but each layer's `floors` best, descending, and the layer that each belongs to."""
    values = [layer.sort(descending=True).values[floor:] for layer, floor in zip(scores, floors, strict=True)]
    layers = torch.cat([torch.full((len(rest),), index) for index, rest in enumerate(values)])
    pooled, order = torch.cat(values).double().sort(descending=True)
    return pooled.float(), layers[order]


def _stepped(count: int, most: int) -> int:
    return min(most, max(1, round(count / NEURON_STEP)) * NEURON_STEP)
