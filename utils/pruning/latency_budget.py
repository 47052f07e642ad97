"""A budget of milliseconds: how long heads and neurons take on this machine, in the int8 engine that will run them."""

import copy
import logging
import math
from dataclasses import dataclass

import datasets
import numpy as np
from transformers import PreTrainedModel

from utils.data.tables import lengths, single_rows
from utils.export.fused import build_graph
from utils.export.int8 import WEIGHT_BITS, Recipe, detect_cpu, quantize_int8
from utils.export.plain import open_graph
from utils.measuring.timing import evenly_spaced, timed_in_turns
from utils.models.families import layer_shapes
from utils.pruning.budget import NEURON_STEP, Shapes, spread
from utils.pruning.importance import Importance
from utils.pruning.narrow import shape_like
from utils.system.errors import UserError

logger = logging.getLogger(__name__)

TIMED_ROWS, REPEATS = 60, 7
CLOSE_ENOUGH, ATTEMPTS = 0.03, 5


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one head and one neuron in every layer, of everything else, and of the whole model."""

    heads: list[float]
    neurons: list[float]
    rest: float
    whole: float


def narrow_copy(model: PreTrainedModel, shapes: Shapes) -> PreTrainedModel:
    """A copy on the CPU whose layers have these numbers of (heads, neurons), for timing: any of them take as long."""
    smaller = copy.deepcopy(model).cpu()
    shape_like(smaller, shapes)
    return smaller


def measure_latencies(models: list[PreTrainedModel], split: datasets.Dataset) -> list[float]:
    """Mean milliseconds of every model's int8 graph over rows of evenly spread lengths, one row at a time, in turns.

    A row's latency is the median of its repeats, so that a busy moment of the machine does not count.

    Raises:
        UserError: the family of a model is not in `utils.models.families`.
    """
    bits = WEIGHT_BITS[detect_cpu()]
    engines = [
        open_graph(quantize_int8(build_graph(model, masked=False), Recipe(), bits), model.config.num_labels)
        for model in models
    ]
    order = np.argsort(lengths(split), kind="stable")
    rows = split.select(order[evenly_spaced(TIMED_ROWS, len(order))])
    make_inputs = [single_rows(rows, models[0].config.pad_token_id)] * len(engines)
    repeats = [timed_in_turns(engines, make_inputs, len(rows))[1] for _ in range(REPEATS)]
    by_row = [[np.concatenate(turns) for turns in repeat] for repeat in repeats]
    return np.median(np.array(by_row), axis=0).mean(-1).tolist()


def measure_table(model: PreTrainedModel, split: datasets.Dataset) -> LatencyTable:
    """Time the whole model, and without its heads or most of its neurons, and take the differences.

    The last layer is timed apart from the others: it computes its query and its FFN for the first token only.
    """
    shapes = layer_shapes(model)
    floors = [min(NEURON_STEP, num_neurons) for _, num_neurons in shapes]
    groups = [part for part in (range(len(shapes) - 1), range(len(shapes) - 1, len(shapes))) if part]
    variants = [shapes]
    for group in groups:
        variants.append([(0 if i in group else h, n) for i, (h, n) in enumerate(shapes)])
        variants.append([(h, floors[i] if i in group else n) for i, (h, n) in enumerate(shapes)])
    whole, *without = measure_latencies([narrow_copy(model, variant) for variant in variants], split)
    heads, neurons = [0.0] * len(shapes), [0.0] * len(shapes)
    for group, no_heads, no_neurons in zip(groups, without[::2], without[1::2], strict=True):
        num_heads = sum(shapes[i][0] for i in group)
        num_neurons = sum(shapes[i][1] - floors[i] for i in group)
        for i in group:
            # Above 0 always: noise may have made the smaller model the slower one.
            heads[i] = max(whole - no_heads, 1e-3 * whole) / max(num_heads, 1)
            neurons[i] = max(whole - no_neurons, 1e-3 * whole) / max(num_neurons, 1)
    in_layers = sum(h * heads[i] + n * neurons[i] for i, (h, n) in enumerate(shapes))
    return LatencyTable(heads, neurons, max(whole - in_layers, 0.0), whole)


def fit_latency(
    model: PreTrainedModel, heads: Importance, neurons: Importance, fraction: float, split: datasets.Dataset
) -> Shapes:
    """Numbers of heads and neurons to keep in every layer, so that the int8 model takes `fraction` of the whole one's
    latency on this machine.

    The table of costs is linear and the machine is not, so the shapes that it gives are timed beside the whole model,
    and the next attempt aims lower or higher by the difference.

    Args:
        heads, neurons: scores, a tensor a layer; those of heads and of neurons are comparable.
        split: rows to time.

    Raises:
        UserError: the budget is below the latency of the smallest model.
    """
    table = measure_table(model, split)
    logger.info(
        "[Latency] : %.3f ms; a head %.2f us and %d neurons %.2f us, in the last layer %.2f and %.2f; the rest %.3f ms",
        table.whole,
        1000 * table.heads[0],
        NEURON_STEP,
        1000 * NEURON_STEP * table.neurons[0],
        1000 * table.heads[-1],
        1000 * NEURON_STEP * table.neurons[-1],
        table.rest,
    )
    aim, best = fraction, (math.inf, layer_shapes(model))
    for _ in range(ATTEMPTS):
        share = (aim * table.whole - table.rest) / (table.whole - table.rest)
        try:
            shapes = spread(heads, neurons, table.heads, table.neurons, min(share, 1.0))
        except UserError as error:
            if best[0] < math.inf:
                break
            raise UserError(f"a latency of {fraction:g} of the whole model's cannot be reached: {error}") from error
        whole, smaller = measure_latencies([model, narrow_copy(model, shapes)], split)
        logger.info("[Latency] : planned %.3f, measured %.3f of the whole model's", aim, smaller / whole)
        missed = smaller / whole - fraction
        best = min(best, (abs(missed), shapes))
        if abs(missed) <= CLOSE_ENOUGH:
            break
        aim -= missed
    return best[1]
