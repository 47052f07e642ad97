"""How much each attention head, FFN neuron and hidden unit matters to the loss.

Gradients with respect to a mask of ones, after Michel et al. 2019 (arXiv 1905.10650) and Kwon et al. 2022 (arXiv
2204.09656), or a baseline, give a score to each; the scores say which to keep.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.classifier import model_inputs
from utils.models.config import SINGLE_LABEL
from utils.models.families import Family, family_of, head_size_of, layer_shapes, layers_of, projections
from utils.training.tasks import TASKS, Task

Importance = list[torch.Tensor]  # for every layer the scores of its heads [heads], or of its neurons [neurons]


def mask_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str = "labels", task: Task = TASKS[SINGLE_LABEL]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradient of each row's loss with respect to a mask of ones on every head and neuron.

    Every row has a mask value of its own, so one backward pass gives the gradients of all rows of a batch.

    Args:
        batches: of `utils.data.tables.collate`.
        target: `labels`, or `logits` to take the model's own predictions as labels.
        task: whose loss it is.

    Returns:
        For every layer a tensor [rows, heads], and for every layer a tensor [rows, neurons], on the CPU.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    family, head_size = family_of(model), head_size_of(model)
    layers = layers_of(model)
    masks: list[torch.Tensor] = [torch.empty(0)] * (2 * len(layers))
    hooks = []
    for index, layer in enumerate(layers):
        hooks.append(_mask_inputs(layer.get_submodule(family.attention_output), masks, index, head_size))
        hooks.append(_mask_inputs(layer.get_submodule(family.ffn_output), masks, len(layers) + index, 1))
    gradients = _row_gradients(model, batches, target, task, masks, hooks)
    return gradients[: len(layers)], gradients[len(layers) :]


def width_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str = "labels", task: Task = TASKS[SINGLE_LABEL]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `mask_gradients`, with respect to two other masks: one on the hidden units, the same in the embeddings and in
    all layers, and one on the units between the classifier's two layers.

    Returns:
        [rows, hidden size] and [rows, units of the classifier], on the CPU.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    family = family_of(model)
    masks: list[torch.Tensor] = [torch.empty(0)] * 2
    embeddings = model.get_submodule(family.embeddings)
    if family.embeddings_project in dict(model.named_modules()):
        embeddings = model.get_submodule(family.embeddings_project)
    # Each unit is multiplied by its mask once: behind every norm, or where nothing between the layers normalizes, each
    # time that something is added to it.
    paths = (family.attention_norm, family.ffn_norm)
    if family.pre_norm:
        paths = (family.attention_output, family.ffn_output)
    parts = [layer.get_submodule(path) for layer in layers_of(model) for path in paths]

    def new_mask(module: nn.Module, arguments: tuple, states: torch.Tensor) -> torch.Tensor:
        masks[0] = torch.ones(states.shape[0], states.shape[-1], device=states.device, requires_grad=True)
        return states * masks[0][:, None, :]

    def same_mask(module: nn.Module, arguments: tuple, states: torch.Tensor) -> torch.Tensor:
        return states * masks[0][:, None, :]

    def classifier_mask(module: nn.Module, arguments: tuple) -> tuple:
        masks[1] = torch.ones_like(arguments[0], requires_grad=True)
        return (arguments[0] * masks[1],)

    hooks = [embeddings.register_forward_hook(new_mask), *(part.register_forward_hook(same_mask) for part in parts)]
    hooks.append(model.get_submodule(family.head_output).register_forward_pre_hook(classifier_mask))
    hidden_units, classifier_units = _row_gradients(model, batches, target, task, masks, hooks)
    return hidden_units, classifier_units


def _row_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str, task: Task, masks: list[torch.Tensor], hooks: list
) -> list[torch.Tensor]:
    """Gradients of every row's loss with respect to the masks that `hooks` put into `masks` at each call.

    Returns:
        For every mask a tensor [rows, width of the mask], on the CPU; the hooks are removed.
    """
    model.eval()
    gradients: list[list[torch.Tensor]] = []
    try:
        for batch in batches:
            masks[:] = [torch.empty(0)] * len(masks)
            logits = model(**model_inputs(model, batch)).logits
            if target == "labels":
                losses = task.label_loss(logits, torch.as_tensor(batch["labels"]).to(model.device))
            else:
                losses = task.own_loss(logits)
            gradients.append([gradient.cpu() for gradient in torch.autograd.grad(losses.sum(), masks)])
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in zip(*gradients, strict=True)]


def first_order_scores(gradients: torch.Tensor) -> torch.Tensor:
    """Mean over rows of |gradient|: Michel et al. 2019 (equation 2), used by FastFormers (section 3.2).

    Gradients are [rows, units], scores [units].
    """
    return gradients.abs().mean(0)


def fisher_scores(gradients: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the squared gradient, the Fisher information's diagonal: Kwon et al. 2022 (section 4.1).

    Gradients are [rows, units], scores [units].
    """
    return gradients.square().mean(0)


GRADIENT_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "first_order": first_order_scores,
    "fisher": fisher_scores,
}


def magnitude_scores(model: PreTrainedModel) -> tuple[Importance, Importance]:
    """Baseline: the Frobenius norm of all weights that a head or a neuron has, after Han et al. 2015 (single weights).

    Returns:
        For every layer the scores of its heads [heads], and for every layer those of its neurons [neurons], on the CPU.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    family, head_size = family_of(model), head_size_of(model)
    heads, neurons = [], []
    for layer in layers_of(model):
        rows = sum(_row_squares(layer, path, family) for path in projections(family))
        squares = rows + layer.get_submodule(family.attention_output).weight.square().sum(0)
        heads.append(squares.view(len(squares) // head_size, head_size).sum(1).sqrt().detach().cpu())
        squares = _row_squares(layer, family.ffn_input, family)
        squares = squares + layer.get_submodule(family.ffn_output).weight.square().sum(0)
        neurons.append(squares.sqrt().detach().cpu())
    return heads, neurons


def _row_squares(layer: nn.Module, path: str, family: Family) -> torch.Tensor:
    """Sum of the squared weights of each output of a Linear, [outputs]; those of all its blocks together."""
    squares = layer.get_submodule(path).weight.square().sum(1)
    return squares.view(family.packed.get(path, 1), -1).sum(0)


def random_scores(model: PreTrainedModel, seed: int) -> tuple[Importance, Importance]:
    """Baseline: random numbers, uniform from 0 to 1, the same for the same seed and shapes.

    Returns:
        For every layer the scores of its heads [heads], and for every layer those of its neurons [neurons], on the CPU.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(model)
    heads = [torch.rand(num_heads, generator=generator) for num_heads, _ in shapes]
    return heads, [torch.rand(num_neurons, generator=generator) for _, num_neurons in shapes]


def normalize_layers(scores: Importance) -> Importance:
    """Scale the scores of every layer to sum to 1, so that no layer is pruned only because its gradients are small."""
    return [values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) for values in scores]


def most_important(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count] of the largest of scores [units], in ascending order: the units that stay keep their order."""
    return scores.topk(count).indices.sort().values


def most_important_together(gradients: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count] of the heads or neurons of one layer that together matter most, in ascending order.

    Uses the layer's whole Fisher information instead of its diagonal, so that of two heads which do the same one is
    enough: Kwon et al. 2022 (section 4.2). Greedy: prunes, one after the other, the head or neuron that adds least to
    the quadratic form of all pruned ones.

    Args:
        gradients: of `mask_gradients`, [rows, heads or neurons].
    """
    information = gradients.double().T @ gradients.double() / len(gradients)
    remains = torch.ones(len(information), dtype=torch.bool)
    # What pruning i adds, where the set P is pruned: I_ii + 2 * (sum over j in P of I_ij).
    cost = information.diagonal().clone()
    for _ in range(len(information) - count):
        cheapest = int(torch.where(remains, cost, torch.inf).argmin())
        remains[cheapest] = False
        cost += 2 * information[cheapest]
    return remains.nonzero().flatten()


def _mask_inputs(linear: nn.Linear, masks: list[torch.Tensor], index: int, width: int):
    """Multiply a Linear's input [batch, length, n * width] by a new mask of ones [batch, n], put into masks[index]."""

    def hook(module: nn.Linear, arguments: tuple) -> tuple:
        (states,) = arguments
        if not masks[index].requires_grad:  # ALBERT uses its one layer many times, with one mask
            masks[index] = torch.ones(
                states.shape[0], states.shape[-1] // width, device=states.device, requires_grad=True
            )
        mask = masks[index]
        return (states * mask.repeat_interleave(width, dim=1)[:, None, :],)

    return linear.register_forward_pre_hook(hook)
