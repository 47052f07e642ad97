"""How many heads and neurons each layer keeps: the same numbers in all of them, or a budget spread over them.

A budget is of multiply-accumulates (MACs) here, of milliseconds in latency_budget.py.
"""

import torch
from transformers import PreTrainedModel

from utils.models.families import family_of, head_size_of, layer_shapes, reads_first_token
from utils.pruning.importance import Importance
from utils.system.errors import UserError

# The number of neurons is a multiple of this: matrix products are computed in blocks of about this many columns.
NEURON_STEP = 32

Shapes = list[tuple[int, int]]  # (heads, neurons) of every layer


def next_size(size: int, target: int, steps_left: int, multiple: int = 1) -> int:
    """What the first of `steps_left` equal steps from `size` to `target` leaves: `target` plus a multiple of one."""
    return target + (size - target) * (steps_left - 1) // steps_left // multiple * multiple


def uniform(shapes: Shapes, num_heads: int | None, num_neurons: int | None, steps_left: int = 1) -> Shapes:
    """The same number of heads and of neurons for every layer; of None, a layer keeps what it has in `shapes`.

    Where more than one step is left, the numbers after the first of so many equal steps.
    """
    return [
        (
            heads if num_heads is None else next_size(heads, num_heads, steps_left),
            neurons if num_neurons is None else next_size(neurons, num_neurons, steps_left),
        )
        for heads, neurons in shapes
    ]


def layer_macs(model: PreTrainedModel, length: float) -> tuple[list[float], list[float]]:
    """MACs a token of one attention head, and of one FFN neuron, in every layer, in rows of `length` tokens.

    A head has four projections, the scores and their product with the values; a neuron has two columns of weights, or
    three where it is gated. Where the classifier reads the first token alone, the last layer computes nothing else, as
    `first_token_only` has it: keys and values come down to two products of that token's, and the scores and contexts
    are as wide as the states; ModernBERT and DeBERTa still need the keys and values of all tokens. DeBERTa's terms of
    position are left out.
    """
    family, hidden_size, head_size = family_of(model), model.config.hidden_size, head_size_of(model)
    columns = family.packed.get(family.ffn_input, 1) + 1
    projection, num_layers = hidden_size * head_size, len(layer_shapes(model))
    heads = [4 * projection + 2 * length * head_size] * num_layers
    neurons = [float(columns * hidden_size)] * num_layers
    if reads_first_token(model) and not family.shared_layer:
        if family.pre_norm or family.relative_embeddings is not None:
            heads[-1] = 2 * projection + 2 * projection / length + 2 * head_size
        else:
            heads[-1] = 4 * projection / length + 2 * hidden_size
        neurons[-1] = columns * hidden_size / length
    return heads, neurons


def fit_macs(model: PreTrainedModel, heads: Importance, neurons: Importance, fraction: float, length: float) -> Shapes:
    """Numbers of heads and neurons to keep in every layer, so that the layers do `fraction` of their MACs.

    Args:
        heads, neurons: scores, a tensor a layer; those of heads and of neurons are comparable.
        length: mean tokens of a row.

    Raises:
        UserError: the budget is below the MACs of the smallest model.
    """
    return spread(heads, neurons, *layer_macs(model, length), fraction)


def spread(
    heads: Importance, neurons: Importance, head_costs: list[float], neuron_costs: list[float], fraction: float
) -> Shapes:
    """Numbers of heads and neurons to keep in every layer, so that they cost `fraction` of what all of them do.

    Scores add up, so this is a knapsack problem: heads and neurons are taken in the order of score divided by cost, as
    long as they fit (Dantzig 1957), which misses the best choice by less than one head. Kwon et al. 2022 (algorithm 1)
    find the same where all layers cost the same. Every layer keeps at least `NEURON_STEP` neurons; it may lose all of
    its heads.

    Args:
        heads, neurons: scores, a tensor a layer; those of heads and of neurons are comparable.
        head_costs, neuron_costs: of one head and of one neuron in every layer, in MACs or any other unit.

    Raises:
        UserError: the budget is below the cost of the smallest model.
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
        (int(num_heads), _rounded(int(num_neurons), len(scores)))
        for num_heads, num_neurons, scores in zip(*counts, neurons, strict=True)
    ]


def _rounded(count: int, size: int) -> int:
    """The nearest multiple of `NEURON_STEP`, at least one and at most all of the layer's neurons."""
    return min(size, max(1, round(count / NEURON_STEP)) * NEURON_STEP)
