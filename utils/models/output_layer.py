"""The last layer of a model of scores: it gives them in the data's units, and learns them standardized.

Standardized, a score is how many standard deviations it is above the mean of the training rows: numbers of the size
that layers start with and learning rates are made for, whatever the data's units are.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.families import family_of, in_table
from utils.system.errors import UserError

Scale = tuple[np.ndarray, np.ndarray]  # mean and standard deviation, each float32 [scores]


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer whose outputs are the logits, or scores.

    Raises:
        UserError: the family is not in the table of families, and no layer looks like it.
    """
    if in_table(model.config):
        layer = model.get_submodule(family_of(model).head_output)
        assert isinstance(layer, nn.Linear)
        return layer
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    layers = [part for part in layers if part.out_features == model.config.num_labels and part.bias is not None]
    if not layers:
        raise UserError(
            f"models of the family {model.config.model_type!r} have no last layer with a bias, as the tasks "
            "multi_label and regression need: use an encoder of another family"
        )
    return layers[-1]


def scale_output(model: PreTrainedModel, scale: Scale) -> None:
    """Let the last layer, in place, give scores in the data's units in the place of standardized ones."""
    layer, (mean, deviation) = output_layer(model), _tensors(model, scale)
    with torch.no_grad():
        layer.weight *= deviation[:, None]
        layer.bias.mul_(deviation).add_(mean)


@contextmanager
def standardized_output(
    model: PreTrainedModel, scale: Scale | None
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Within it, the last layer's weights are those of standardized scores; the model's scores stay as they are.

    Args:
        scale: None leaves everything as it is: the outputs are the logits of labels.

    Yields:
        A context within which the weights are again those of scores in the data's units, to be saved.
    """
    if scale is None:
        yield nullcontext
        return
    layer, (mean, deviation) = output_layer(model), _tensors(model, scale)
    with torch.no_grad():
        layer.bias.sub_(mean).div_(deviation)
        layer.weight /= deviation[:, None]

    def to_units(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.float() * deviation.to(output.device) + mean.to(output.device)

    hook = layer.register_forward_hook(to_units)

    @contextmanager
    def in_units() -> Iterator[None]:
        nonlocal hook
        weight, bias = layer.weight.data, layer.bias.data
        hook.remove()
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        scale_output(model, scale)
        try:
            yield
        finally:
            layer.weight.data, layer.bias.data = weight, bias  # to the bit, as training goes on from them
            hook = layer.register_forward_hook(to_units)

    try:
        yield in_units
    finally:
        hook.remove()
        scale_output(model, scale)


def _tensors(model: PreTrainedModel, scale: Scale) -> tuple[torch.Tensor, torch.Tensor]:
    device = output_layer(model).weight.device
    return torch.as_tensor(scale[0], device=device), torch.as_tensor(scale[1], device=device)
