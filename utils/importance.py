"""How much each attention head and FFN neuron matters, from the gradient of the loss with respect to a mask on it."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from utils.families import family_of, head_size_of, layer_shapes, layers_of
from utils.model import model_inputs


def gradient_importance(
    model: PreTrainedModel, batches: Iterable[dict]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """First-order importance of every head and neuron: the mean over rows of |d loss / d mask| at mask = 1.

    Michel et al. 2019 (equation 2), used by FastFormers (section 3.2). A mask value a row gives the gradient of every
    row from one backward pass a batch.

    Args:
        batches: of `utils.data.collate`.

    Returns:
        For every layer a tensor [heads] and a tensor [neurons].
    """
    family, head_size = family_of(model), head_size_of(model)
    shapes = layer_shapes(model)
    heads = [torch.zeros(num_heads, device=model.device) for num_heads, _ in shapes]
    neurons = [torch.zeros(num_neurons, device=model.device) for _, num_neurons in shapes]
    head_masks: list[torch.Tensor] = [torch.empty(0)] * len(shapes)
    neuron_masks: list[torch.Tensor] = [torch.empty(0)] * len(shapes)

    hooks = []
    for index, layer in enumerate(layers_of(model)):
        attention_output, ffn_output = (
            layer.get_submodule(family.attention_output),
            layer.get_submodule(family.ffn_output),
        )
        hooks.append(_mask_inputs(attention_output, head_masks, index, head_size))
        hooks.append(_mask_inputs(ffn_output, neuron_masks, index, 1))
    model.eval()
    rows = 0
    try:
        for batch in batches:
            labels = torch.as_tensor(batch["labels"]).to(model.device)
            loss = F.cross_entropy(model(**model_inputs(model, batch)).logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, head_masks + neuron_masks)
            for total, gradient in zip(heads + neurons, gradients, strict=True):
                total += gradient.abs().sum(0)
            rows += len(labels)
    finally:
        for hook in hooks:
            hook.remove()
    return [total / rows for total in heads], [total / rows for total in neurons]


def most_important(importance: torch.Tensor, kept: int) -> torch.Tensor:
    """Indices of the `kept` largest values, in ascending order: what stays keeps its order."""
    return importance.topk(kept).indices.sort().values


def _mask_inputs(linear: nn.Linear, masks: list[torch.Tensor], index: int, width: int):
    """Multiply a Linear's input [batch, length, n * width] by a fresh mask of ones [batch, n], left in masks[index]."""

    def hook(module: nn.Linear, arguments: tuple) -> tuple:
        (states,) = arguments
        mask = torch.ones(states.shape[0], states.shape[-1] // width, device=states.device, requires_grad=True)
        masks[index] = mask
        return (states * mask.repeat_interleave(width, dim=1)[:, None, :],)

    return linear.register_forward_pre_hook(hook)
