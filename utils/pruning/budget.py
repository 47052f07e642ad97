"""Spread a budget, of multiply-accumulates (MACs) or milliseconds, over the heads and neurons of all layers."""

import torch

from utils.pruning.importance import Importance
from utils.system.errors import UserError

# Neurons are kept by whole steps: matrix products compute in blocks of about this many columns.
NEURON_STEP = 32


def head_macs(hidden_size: int, head_size: int, length: float) -> float:
    """MACs a token of one attention head in rows of `length` tokens: its four projections, scores and context."""
    return 4 * hidden_size * head_size + 2 * length * head_size


def neuron_macs(hidden_size: int) -> float:
    """MACs a token of one FFN neuron."""
    return 2 * hidden_size


def spread(
    heads: Importance, neurons: Importance, head_costs: list[float], neuron_costs: list[float], fraction: float
) -> list[tuple[int, int]]:
    """Numbers of heads and neurons to keep in every layer, so that they cost `fraction` of what all of them do.

    Scores add up, so this is a knapsack: heads and neurons are taken by score a cost, as long as they fit (Dantzig
    1957), which misses the best choice by less than one head. Kwon et al. 2022 (algorithm 1) find the same where all
    layers cost alike. Every layer keeps at least `NEURON_STEP` neurons; one may lose all of its heads.

    Args:
        heads, neurons: importance, a tensor a layer; of heads and neurons on one scale.
        head_costs, neuron_costs: of one, in every layer, in MACs or anything else.

    Raises:
        UserError: the budget is below the smallest model's cost.
    """
    floors = [min(NEURON_STEP, len(scores)) for scores in neurons]
    whole = sum(
        len(scores) * cost for scores, cost in zip([*heads, *neurons], [*head_costs, *neuron_costs], strict=True)
    )
    smallest = sum(floor * cost for floor, cost in zip(floors, neuron_costs, strict=True))
    budget = fraction * whole - smallest
    if budget < 0:
        raise UserError(
            f"the budget leaves {max(fraction, 0):.3g} of the layers' cost but {NEURON_STEP} neurons in every layer "
            f"alone are {smallest / whole:.3g} of it: raise it, or remove layers with --keep_layers"
        )
    # (score a cost, cost, layer, is a head) of all heads, and of the neurons above each layer's floor.
    units = []
    for layer, (scores, cost) in enumerate(zip(heads, head_costs, strict=True)):
        units += [(score / cost, cost, layer, True) for score in scores.tolist()]
    for layer, (scores, cost, floor) in enumerate(zip(neurons, neuron_costs, floors, strict=True)):
        rest = scores.sort(descending=True).values[floor:]
        units += [(score / cost, cost, layer, False) for score in rest.tolist()]
    counts = torch.tensor([[0] * len(heads), floors])
    for _, cost, layer, is_head in sorted(units, reverse=True):
        if cost <= budget * (1 + 1e-9):
            budget -= cost
            counts[0 if is_head else 1, layer] += 1
    return [
        (int(num_heads), _stepped(int(num_neurons), len(scores)))
        for num_heads, num_neurons, scores in zip(*counts, neurons, strict=True)
    ]


def _stepped(count: int, most: int) -> int:
    return min(most, max(1, round(count / NEURON_STEP)) * NEURON_STEP)
