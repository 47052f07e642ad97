"""Get back what pruning lost, without training: each layer's output projections are fitted to the whole model's states.

After Kwon et al. 2022 (arXiv 2204.09656, section 4.3), who fit one factor a head or neuron by least squares, layer by
layer. Here the whole projection is fitted, as channel pruning does (He et al. 2017, arXiv 1707.06168), which fits more
closely and takes no longer, since the normal equations have the size of the projection.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.classifier import model_inputs
from utils.models.families import family_of, layers_of, reads_first_token

# A fraction of the features' mean square: keeps the fit near the old weights where there are few rows to tell.
RIDGE = 0.01


@dataclass
class _Batch:
    """One batch on its way through both models, layer by layer."""

    tokens: torch.Tensor  # bool [rows, length]: where there is a token
    pruned: torch.Tensor  # the pruned model's states before the layer, [rows, length, hidden size]
    whole: torch.Tensor  # the whole model's
    arguments: list[tuple[tuple, dict]]  # every layer's other ones, such as the attention mask


def recover(
    pruned: PreTrainedModel,
    whole: PreTrainedModel,
    batches: Iterable[dict],
    hidden_units: torch.Tensor | None = None,
    ridge: float = RIDGE,
) -> None:
    """Fit the attention and FFN output projections of `pruned`, in place, from the first layer to the last.

    Each is fitted so that the sum that its output is added to comes closest to that in `whole`, given the states that
    the layers fitted before give.

    Args:
        batches: of `utils.data.tables.collate`; their states in both models are held in memory.
        hidden_units: indices of the hidden units of `whole` that `pruned` has, where not all.
        ridge: as a fraction of the features' mean square.

    Raises:
        UserError: the models' family is not in `utils.models.families`.
    """
    family = family_of(pruned)
    columns = slice(None) if hidden_units is None else hidden_units
    # The parts that the sums behind attention and FFN go into; None for what leaves the layer.
    after = (family.ffn_norm, None) if family.pre_norm else (family.attention_norm, family.ffn_norm)
    states = [_enter(pruned, whole, batch) for batch in batches]
    if family.shared_layer:
        _recover_shared(pruned, whole, states, columns, ridge)
        return
    layers = list(zip(layers_of(pruned), layers_of(whole), strict=True))
    for index, (layer, original) in enumerate(layers):
        targets = []
        for batch in states:
            sums, batch.whole = _run(original, batch.whole, batch, index, after)
            targets.append([total[..., columns] for total in sums])
            if index == len(layers) - 1 and reads_first_token(pruned):
                batch.tokens[:, 1:] = False  # only the first token of the last layer reaches the classifier
        for part, output in enumerate((family.attention_output, family.ffn_output)):
            gram, moment = 0, 0
            for batch, sums in zip(states, targets, strict=True):
                (features, total), _ = _run(layer, batch.pruned, batch, index, (output, after[part]))
                products = _products(features[batch.tokens], (sums[part] - total)[batch.tokens])
                gram, moment = gram + products[0], moment + products[1]
            _change(layer.get_submodule(output), gram, moment, ridge)
        for batch in states:
            _, batch.pruned = _run(layer, batch.pruned, batch, index, ())


def _recover_shared(
    pruned: PreTrainedModel,
    whole: PreTrainedModel,
    states: list[_Batch],
    columns: slice | torch.Tensor,
    ridge: float,
) -> None:
    """As `recover`, for the one layer of an ALBERT: its projections are fitted to all of its uses at once.

    What goes into a use is the whole model's, so that one fit does not change what the others are for.
    """
    family, num_uses = family_of(pruned), pruned.config.num_hidden_layers
    layer, original = layers_of(pruned)[0], layers_of(whole)[0]
    for output, norm in ((family.attention_output, family.attention_norm), (family.ffn_output, family.ffn_norm)):
        gram, moment = 0, 0
        for batch in states:
            x = batch.whole
            for use in range(num_uses):
                tokens = batch.tokens.clone()
                if use == num_uses - 1:
                    tokens[:, 1:] = False  # only the first token of the last layer reaches the classifier
                (features, total), _ = _run(layer, x[..., columns], batch, use, (output, norm))
                (target,), x = _run(original, x, batch, use, (norm,))
                products = _products(features[tokens], (target[..., columns] - total)[tokens])
                gram, moment = gram + products[0], moment + products[1]
        _change(layer.get_submodule(output), gram, moment, ridge)


def _enter(pruned: PreTrainedModel, whole: PreTrainedModel, batch: dict) -> _Batch:
    """What goes into the layers of both models for a batch, as a `_Batch`."""
    (states, arguments), (original, _) = (_layer_arguments(model, batch) for model in (pruned, whole))
    tokens = torch.as_tensor(batch["attention_mask"]).bool().to(states.device)
    return _Batch(tokens, states, original, arguments)


def _layer_arguments(model: PreTrainedModel, batch: dict) -> tuple[torch.Tensor, list[tuple[tuple, dict]]]:
    """The states before the first layer, and every layer's other arguments; no layer is run."""
    arguments: list[tuple[tuple, dict]] = []
    returns_tuple = family_of(model).layer_returns_tuple

    def pass_on(states: torch.Tensor, *more: object, **named: object) -> torch.Tensor | tuple:
        arguments.append(((states, *more), named))
        return (states, None) if returns_tuple else states

    layers = layers_of(model)
    for layer in layers:
        layer.forward = pass_on
    try:
        with torch.inference_mode():
            model(**model_inputs(model, batch))
    finally:
        for layer in layers:
            del layer.forward
    return arguments[0][0][0], [(more[1:], named) for more, named in arguments]


def _run(
    layer: nn.Module, x: torch.Tensor, batch: _Batch, index: int, paths: tuple[str | None, ...]
) -> tuple[list, torch.Tensor]:
    """Run one layer, which has the number `index`, on states `x`, [rows, length, hidden size].

    Returns:
        The inputs of its parts `paths`, its output for None; and its output.
    """
    inputs: dict[str | None, torch.Tensor] = {}

    def keep(path: str):
        def hook(module: nn.Module, arguments: tuple) -> None:
            inputs[path] = arguments[0]

        return hook

    hooks = [layer.get_submodule(path).register_forward_pre_hook(keep(path)) for path in paths if path]
    more, named = batch.arguments[index]
    try:
        with torch.inference_mode():
            output = layer(x, *more, **named)
    finally:
        for hook in hooks:
            hook.remove()
    inputs[None] = output = output[0] if isinstance(output, tuple) else output
    return [inputs[path] for path in paths], output


def _products(features: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows add to `_change`'s gram and moment: features [rows, inputs], what their sums lack [rows, outputs]."""
    rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    return (rows.T @ rows).cpu().double(), (rows.T @ missing).cpu().double()  # not every device has doubles


def _change(projection: nn.Linear, gram: torch.Tensor, moment: torch.Tensor, ridge: float) -> None:
    """Add the least-squares change of weight and bias: gram [inputs + 1, inputs + 1], moment [inputs + 1, outputs].

    Of the weight alone where there is no bias.
    """
    size = projection.in_features
    if projection.bias is None:
        gram, moment = gram[:size, :size], moment[:size]
    diagonal = gram.diagonal()
    diagonal[:size] += ridge * diagonal[:size].mean()
    diagonal[size:] += ridge * diagonal[size:]
    change = torch.linalg.solve(gram, moment).float().to(projection.weight.device)
    with torch.no_grad():
        projection.weight += change[:size].T
        if projection.bias is not None:
            projection.bias += change[size]
