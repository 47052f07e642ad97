"""The steps of pruning, as prune.py takes them: rank, choose shapes, prune, recover; and all of that several times.

The order is that of Kwon et al. 2022 (arXiv 2204.09656). The shapes come from budget.py (`uniform`, `fit_macs`) or
latency_budget.py (`fit_latency`), `recover` from recovery.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import datasets
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from utils.data.tables import Data, collate, lengths, shuffled_batches
from utils.models.config import SINGLE_LABEL
from utils.models.families import layer_shapes
from utils.pruning.budget import Shapes
from utils.pruning.importance import (
    GRADIENT_SCORES,
    Importance,
    first_order_scores,
    magnitude_scores,
    mask_gradients,
    most_important,
    most_important_together,
    normalize_layers,
    random_scores,
    width_gradients,
)
from utils.pruning.narrow import narrow_layer, narrow_width, shape_like
from utils.system.bars import progress_bar
from utils.training.distillation import LossWeights, distillation_losses
from utils.training.loop import Settings, train
from utils.training.resume import UnfinishedRun
from utils.training.tasks import TASKS, Task, task_of

IMPORTANCE_BATCH = 32
# Ba & Caruana 2014: the mean squared error of the logits, and nothing else.
LOGITS_ONLY = LossWeights(
    kd_loss="mse",
    temperature=1.0,
    label_ratio=0.0,
    state_loss_ratio=0.0,
    state_loss="mse",
    state_layers="ends",
    att_loss_ratio=0.0,
    relation_loss_ratio=0.0,
)


@dataclass(frozen=True)
class Ranking:
    """How much every attention head and FFN neuron matters.

    The gradients are those of `mask_gradients` where the heads, or neurons, of a layer are judged together by them, and
    None where the scores alone decide.
    """

    heads: Importance
    neurons: Importance
    gradients: tuple[list[torch.Tensor], list[torch.Tensor]] | None


def sample_batches(split: datasets.Dataset, num_rows: int, pad_token_id: int, seed: int, name: str) -> Iterator[dict]:
    """Random rows of a split in batches of `utils.data.tables.collate`, the same ones for the same seed.

    Args:
        num_rows: so many, rounded up to whole batches, or all rows where there are fewer.
        name: the label of the progress bar.
    """
    num_batches = math.ceil(num_rows / IMPORTANCE_BATCH)
    batches = shuffled_batches(lengths(split), IMPORTANCE_BATCH, seed)[:num_batches]
    for indices in progress_bar(batches, desc=name, unit="batch", leave=False):
        yield collate(split, indices, pad_token_id)


def rank(
    model: PreTrainedModel,
    batches: Iterable[dict],
    importance: str = "fisher",
    target: str = "labels",
    normalize: bool = False,
    seed: int = 42,
    task: Task = TASKS[SINGLE_LABEL],
) -> Ranking:
    """Score every head and neuron.

    Args:
        batches: of `utils.data.tables.collate`; not read for `magnitude` and `random`.
        importance: a name of `GRADIENT_SCORES`, `magnitude` or `random`.
        target, task: of `mask_gradients`.
        normalize: make the scores of every layer sum to 1.
        seed: of `random`.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    gradients = None
    if importance == "magnitude":
        heads, neurons = magnitude_scores(model)
    elif importance == "random":
        heads, neurons = random_scores(model, seed)
    else:
        gradients = mask_gradients(model, batches, target, task)
        heads, neurons = ([GRADIENT_SCORES[importance](layer) for layer in part] for part in gradients)
    if normalize:
        heads, neurons = normalize_layers(heads), normalize_layers(neurons)
    return Ranking(heads, neurons, gradients if importance == "fisher" else None)


def prune_layers(model: PreTrainedModel, shapes: Shapes, ranking: Ranking) -> None:
    """Keep the most important heads and neurons of every layer, in place.

    Args:
        shapes: how many of them, (heads, neurons) of every layer.
        ranking: of this model.
    """
    for index, counts in enumerate(shapes):
        if ranking.gradients:
            parts = [most_important_together(part[index], n) for part, n in zip(ranking.gradients, counts, strict=True)]
        else:
            scores = ranking.heads[index], ranking.neurons[index]
            parts = [most_important(part, n) for part, n in zip(scores, counts, strict=True)]
        heads, neurons = (indices.to(model.device) for indices in parts)
        narrow_layer(model, index, heads, neurons)


def rank_width(
    model: PreTrainedModel,
    batches: Iterable[dict],
    importance: str = "fisher",
    target: str = "labels",
    task: Task = TASKS[SINGLE_LABEL],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every hidden unit of the encoder and every unit between the classifier's two layers.

    Args:
        importance: a name of `GRADIENT_SCORES`; others, which score no hidden units, are taken for `first_order`.
        target, task: of `width_gradients`.

    Returns:
        Scores [hidden size] and [units of the classifier], on the CPU.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    score_units = GRADIENT_SCORES.get(importance, first_order_scores)
    hidden, classifier = width_gradients(model, batches, target, task)
    return score_units(hidden), score_units(classifier)


def prune_width(
    model: PreTrainedModel, size: int, hidden_scores: torch.Tensor, classifier_scores: torch.Tensor
) -> torch.Tensor:
    """Keep the `size` most important hidden units, in place; returns their indices [size], on the model's device.

    Args:
        size: a multiple of the head size.
        hidden_scores, classifier_scores: of `rank_width`.
    """
    hidden_units = most_important(hidden_scores, size).to(model.device)
    narrow_width(model, hidden_units, most_important(classifier_scores, size).to(model.device))
    return hidden_units


def prune_in_steps(
    model: PreTrainedModel,
    num_steps: int,
    prune_step: Callable[[int], None],
    teacher_logits: torch.Tensor,
    data: Data,
    settings: Settings,
    accelerator: Accelerator,
    run: UnfinishedRun,
) -> None:
    """Prune in several steps, each followed by distillation towards the whole model's logits, in place.

    Args:
        prune_step: prunes `model`, in place; called with the number of steps that are left, itself included.
        teacher_logits: the whole model's for every row of train, [rows, labels].
        settings: of every distillation.
        run: where an unfinished distillation is kept, and continued from if it is there; the caller removes it in the
            end.

    Raises:
        UserError: the unfinished run is damaged.
        KeyboardInterrupt: Ctrl-C, or (Terminated) SIGTERM; what was done so far is kept.
    """
    losses = distillation_losses(None, model, teacher_logits, 0, LOGITS_ONLY, [], task=task_of(data))
    part = run.part
    if part:
        # Which heads and neurons does not matter: their weights are read from the unfinished run.
        shape_like(model, part["shapes"], part["hidden_size"])
    for steps_left in range(part.get("steps", num_steps), 0, -1):
        if steps_left != part.get("steps"):
            prune_step(steps_left)
        shapes = list(map(list, layer_shapes(model)))
        now = {"steps": steps_left, "hidden_size": model.config.hidden_size, "shapes": shapes}
        train(model, data, losses, settings, accelerator, save=lambda model: None, run=replace(run, part=now))
