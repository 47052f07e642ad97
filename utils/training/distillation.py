"""A student's loss against its teacher: which parts of it, how much of each, and between which layers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from utils.data.tables import hide_labels
from utils.models.classifier import model_inputs
from utils.models.config import SINGLE_LABEL
from utils.models.families import family_of, last_of_blocks, layer_uses, projections, shapes_in_order
from utils.models.first_token import first_token_only
from utils.system.errors import UserError
from utils.training.loop import RowLosses
from utils.training.losses import attention_loss, relation_loss, state_loss
from utils.training.tasks import TASKS, Task

PROJECTION = "state_projection"


@dataclass(frozen=True)
class LossWeights:
    """What a distillation minimizes: the loss of the logits, and others with a weight, 0 for none."""

    kd_loss: str  # of the task's
    temperature: float
    label_ratio: float
    state_loss_ratio: float
    state_loss: str  # "mse" or "cosine"
    state_layers: str  # "ends": embeddings and last states; "all": embeddings and every layer's
    att_loss_ratio: float
    relation_loss_ratio: float


def paired_layers(
    teacher: PreTrainedModel, student: PreTrainedModel, weights: LossWeights, teacher_layers: list[int] | None
) -> list[int]:
    """The teacher's layer that each layer of the student learns from, where a loss needs them.

    Args:
        teacher_layers: those asked for; without them the last layer of each of equal blocks.

    Raises:
        UserError: they are not one for each layer of the student and among the teacher's, or their numbers of heads do
            not go together; names both numbers.
    """
    if not (weights.state_loss_ratio or weights.att_loss_ratio or weights.relation_loss_ratio):
        return []
    theirs, ours = ([heads for heads, _ in shapes_in_order(model)] for model in (teacher, student))
    if teacher_layers is None:
        if len(ours) > len(theirs):
            raise UserError(
                f"the teacher has {len(theirs)} layers and the student {len(ours)}: say with --teacher_layers which of "
                "them each of the student's learns from"
            )
        teacher_layers = last_of_blocks(len(theirs), len(ours))
    if len(teacher_layers) != len(ours) or not all(0 <= layer < len(theirs) for layer in teacher_layers):
        raise UserError(
            f"--teacher_layers={','.join(map(str, teacher_layers))}: give {len(ours)} numbers, one for each layer of "
            f"the student, from 0 to {len(theirs) - 1}"
        )
    for layer, our_heads in zip(teacher_layers, ours, strict=True):
        if weights.att_loss_ratio and theirs[layer] != our_heads:
            raise UserError(
                f"--att_loss_ratio needs equal numbers of attention heads but the teacher has {theirs[layer]} and the "
                f"student {our_heads}: leave it out, or take --relation_loss_ratio"
            )
    if weights.relation_loss_ratio and not (ours[-1] and theirs[teacher_layers[-1]]):
        raise UserError("--relation_loss_ratio needs attention heads in the student's last layer: leave it out")
    return teacher_layers


def add_projection(teacher: PreTrainedModel, student: PreTrainedModel, weights: LossWeights) -> None:
    """Where hidden sizes differ, give the student a layer from its own to its teacher's, to be trained with it."""
    theirs, ours = teacher.config.hidden_size, student.config.hidden_size
    if weights.state_loss_ratio and theirs != ours:
        student.add_module(PROJECTION, nn.Linear(ours, theirs))


@contextmanager
def without_projection(student: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The student as it is saved and used."""
    projection = student._modules.pop(PROJECTION, None)
    try:
        yield student
    finally:
        if projection:
            student.add_module(PROJECTION, projection)


def distillation_losses(
    teacher: PreTrainedModel | None,
    student: PreTrainedModel,
    teacher_logits: torch.Tensor,
    num_labelled: int,
    weights: LossWeights,
    layers: list[int],
    has_logits: torch.Tensor | None = None,
    task: Task = TASKS[SINGLE_LABEL],
) -> RowLosses:
    """The `row_losses` that training minimizes.

    Args:
        teacher: not needed where only its logits count.
        teacher_logits: the teacher's, for every row of the training split, [rows, labels].
        num_labelled: so many of these rows, the first ones, have labels to learn from.
        layers: of `paired_layers`.
        has_logits: the rows that `teacher_logits` are for, bool [rows]; the loss of the logits is 0 for the others.
            None where they are for all.
    """
    states, attentions = weights.state_loss_ratio > 0, weights.att_loss_ratio > 0
    relations = weights.relation_loss_ratio > 0
    outputs = {"output_hidden_states": states, "output_attentions": attentions}

    def row_losses(model: nn.Module, inputs: dict, batch: dict, rows: np.ndarray) -> torch.Tensor:
        mask = inputs["attention_mask"]
        with ExitStack() as stack:
            our_parts = stack.enter_context(_queries_keys_values(student, -1)) if relations else []
            if not (states or attentions or relations):
                stack.enter_context(first_token_only(student))
            ours = model(**inputs, **outputs)
            logits = ours.logits.float()
            targets = teacher_logits[torch.as_tensor(rows)].to(logits.device)
            losses = task.kd_losses[weights.kd_loss](logits, targets, weights.temperature)
            if has_logits is not None:
                losses = losses * has_logits[torch.as_tensor(rows)].to(losses.device)
            if weights.label_ratio:
                labels = torch.as_tensor(hide_labels(batch["labels"], rows >= num_labelled)).to(logits.device)
                losses = losses + weights.label_ratio * task.label_loss(logits, labels)
            if not (states or attentions or relations):
                return losses
            assert teacher is not None, "these losses compare with its states"
            with torch.no_grad():
                their_parts = stack.enter_context(_queries_keys_values(teacher, layers[-1])) if relations else []
                theirs = teacher(**model_inputs(teacher, batch), **outputs)
        if states:
            pairs = _state_pairs(ours.hidden_states, theirs.hidden_states, weights.state_layers, layers)
            project = getattr(student, PROJECTION, nn.Identity())
            distance = state_loss([project(s) for s, _ in pairs], [t for _, t in pairs], mask, weights.state_loss)
            losses = losses + weights.state_loss_ratio * distance
        if attentions:
            distance = attention_loss(ours.attentions, [theirs.attentions[i] for i in layers], mask)
            losses = losses + weights.att_loss_ratio * distance
        if relations:
            losses = losses + weights.relation_loss_ratio * relation_loss(our_parts, their_parts, mask)
        return losses

    return row_losses


def loss_against(
    teacher_logits: torch.Tensor, weights: LossWeights, task: Task
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of a student's logits that gives each row's loss against the teacher's, both [rows, outputs]."""
    return lambda logits: task.kd_losses[weights.kd_loss](logits, teacher_logits, weights.temperature)


def _state_pairs(ours: tuple, theirs: tuple, which: str, layers: list[int]) -> list[tuple]:
    # The first of the states are the embeddings.
    pairs = [(ours[0], theirs[0]), *((ours[i + 1], theirs[layer + 1]) for i, layer in enumerate(layers))]
    return pairs if which == "all" else [pairs[0], pairs[-1]]


@contextmanager
def _queries_keys_values(model: PreTrainedModel, index: int) -> Iterator[list[torch.Tensor]]:
    """A list that gets a layer's queries, keys and values, each [batch, length, width], when the model runs."""
    family, uses = family_of(model), layer_uses(model)
    index %= len(uses)
    layer, earlier_uses, outputs = uses[index], uses[:index].count(uses[index]), 0
    parts: list[torch.Tensor] = []
    paths = projections(family)

    def take(linear: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal outputs
        # ALBERT uses its one layer many times, and DeBERTa projects its relative embeddings afterwards.
        if outputs // len(paths) == earlier_uses:
            parts.extend(output.chunk(3 // len(paths), -1))
        outputs += 1

    hooks = [layer.get_submodule(path).register_forward_hook(take) for path in paths]
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()
