"""How much each attention head and FFN neuron matters: from the gradient of the loss with respect to a mask on it."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from utils.models.classifier import model_inputs
from utils.models.families import family_of, head_size_of, layer_shapes, layers_of

Importance = list[torch.Tensor]  # one tensor a layer


def mask_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str = "labels"
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradient of each row's cross-entropy with respect to a mask of ones on every head and neuron.

    A mask value a row gives the gradient of every row from one backward pass a batch.

    Args:
        batches: of `utils.data.tables.collate`.
        target: `labels`, or `logits` for the model's own predictions, which needs no labels.

    Returns:
        For every layer a tensor [rows, heads] and a tensor [rows, neurons], on the CPU.
    """
    family, head_size = family_of(model), head_size_of(model)
    layers = layers_of(model)
    masks: list[torch.Tensor] = [torch.empty(0)] * (2 * len(layers))
    hooks = []
    for index, layer in enumerate(layers):
        hooks.append(_mask_inputs(layer.get_submodule(family.attention_output), masks, index, head_size))
        hooks.append(_mask_inputs(layer.get_submodule(family.ffn_output), masks, len(layers) + index, 1))
    whole = _row_gradients(model, batches, target, masks, hooks)
    return whole[: len(layers)], whole[len(layers) :]


def width_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str = "labels"
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `mask_gradients`, of a mask on the hidden units, one for the embeddings and all layers together, and of one on
    the units between the classifier's two layers.

    Returns:
        [rows, hidden size] and the same again, on the CPU.
    """
    family = family_of(model)
    masks: list[torch.Tensor] = [torch.empty(0)] * 2
    embeddings = model.get_submodule(family.embeddings)
    if family.embeddings_project in dict(model.named_modules()):
        embeddings = model.get_submodule(family.embeddings_project)
    norms = [
        layer.get_submodule(path) for layer in layers_of(model) for path in (family.attention_norm, family.ffn_norm)
    ]

    def start(module: nn.Module, arguments: tuple, states: torch.Tensor) -> torch.Tensor:
        masks[0] = torch.ones(states.shape[0], states.shape[-1], device=states.device, requires_grad=True)
        return states * masks[0][:, None, :]

    def go_on(module: nn.Module, arguments: tuple, states: torch.Tensor) -> torch.Tensor:
        return states * masks[0][:, None, :]

    def at_classifier(module: nn.Module, arguments: tuple) -> tuple:
        masks[1] = torch.ones_like(arguments[0], requires_grad=True)
        return (arguments[0] * masks[1],)

    hooks = [embeddings.register_forward_hook(start), *(norm.register_forward_hook(go_on) for norm in norms)]
    hooks.append(model.get_submodule(family.head_output).register_forward_pre_hook(at_classifier))
    hidden, head = _row_gradients(model, batches, target, masks, hooks)
    return hidden, head


def _row_gradients(
    model: PreTrainedModel, batches: Iterable[dict], target: str, masks: list[torch.Tensor], hooks: list
) -> list[torch.Tensor]:
    """Gradients of every row's cross-entropy with respect to the masks that `hooks` leave in `masks` at each call."""
    model.eval()
    gradients: list[list[torch.Tensor]] = []
    try:
        for batch in batches:
            logits = model(**model_inputs(model, batch)).logits
            labels = torch.as_tensor(batch["labels"]) if target == "labels" else logits.argmax(-1)
            loss = F.cross_entropy(logits, labels.to(model.device), reduction="sum")
            gradients.append([gradient.cpu() for gradient in torch.autograd.grad(loss, masks)])
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in zip(*gradients, strict=True)]


def first_order(gradients: torch.Tensor) -> torch.Tensor:
    """Mean over rows of |gradient|: Michel et al. 2019 (equation 2), used by FastFormers (section 3.2)."""
    return gradients.abs().mean(0)


def fisher(gradients: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the squared gradient, the Fisher information's diagonal: Kwon et al. 2022 (section 4.1)."""
    return gradients.square().mean(0)


GRADIENT_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"first_order": first_order, "fisher": fisher}


def magnitudes(model: PreTrainedModel) -> tuple[Importance, Importance]:
    """Baseline: the Frobenius norm of all weights that a head or a neuron has."""
    family, head_size = family_of(model), head_size_of(model)
    heads, neurons = [], []
    for layer in layers_of(model):
        rows = sum(
            layer.get_submodule(path).weight.square().sum(1) for path in (family.query, family.key, family.value)
        )
        squares = rows + layer.get_submodule(family.attention_output).weight.square().sum(0)
        heads.append(squares.view(len(squares) // head_size, head_size).sum(1).sqrt().detach().cpu())
        squares = layer.get_submodule(family.ffn_input).weight.square().sum(1)
        squares = squares + layer.get_submodule(family.ffn_output).weight.square().sum(0)
        neurons.append(squares.sqrt().detach().cpu())
    return heads, neurons


def random_scores(model: PreTrainedModel, seed: int) -> tuple[Importance, Importance]:
    """Baseline: uniform random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(model)
    heads = [torch.rand(num_heads, generator=generator) for num_heads, _ in shapes]
    return heads, [torch.rand(num_neurons, generator=generator) for _, num_neurons in shapes]


def normalized(scores: Importance) -> Importance:
    """Scores that sum to 1 in every layer, so that no layer is pruned for its gradients' scale alone."""
    return [values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) for values in scores]


def most_important(importance: torch.Tensor, kept: int) -> torch.Tensor:
    """Indices of the `kept` largest values, in ascending order: what stays keeps its order."""
    return importance.topk(kept).indices.sort().values


def rearranged(gradients: torch.Tensor, kept: int) -> torch.Tensor:
    """Indices of `kept` heads or neurons of one layer, ascending, that together matter most.

    Greedy on the layer's whole Fisher information instead of its diagonal, so that of two which do the same one is
    enough: Kwon et al. 2022 (section 4.2). Takes out what raises the quadratic form of what is pruned the least.

    Args:
        gradients: of `mask_gradients`, [rows, heads or neurons].
    """
    information = gradients.double().T @ gradients.double() / len(gradients)
    alive = torch.ones(len(information), dtype=torch.bool)
    # Of adding i to the pruned set P: I_ii + 2 * (sum over j in P of I_ij).
    cost = information.diagonal().clone()
    for _ in range(len(information) - kept):
        out = int(torch.where(alive, cost, torch.inf).argmin())
        alive[out] = False
        cost += 2 * information[out]
    return alive.nonzero().flatten()


def _mask_inputs(linear: nn.Linear, masks: list[torch.Tensor], index: int, width: int):
    """Multiply a Linear's input [batch, length, n * width] by a fresh mask of ones [batch, n], left in masks[index]."""

    def hook(module: nn.Linear, arguments: tuple) -> tuple:
        (states,) = arguments
        mask = torch.ones(states.shape[0], states.shape[-1] // width, device=states.device, requires_grad=True)
        masks[index] = mask
        return (states * mask.repeat_interleave(width, dim=1)[:, None, :],)

    return linear.register_forward_pre_hook(hook)
