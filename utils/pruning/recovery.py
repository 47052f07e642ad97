"""Get back what pruning lost, without training: each layer's output projections are fitted to the whole model's states.

After Kwon et al. 2022 (arXiv 2204.09656, section 4.3), who fit one factor a head or neuron by least squares, layer by
layer. Here the whole projection is fitted, as channel pruning does (He et al. 2017, arXiv 1707.06168): as cheap, since
the normal equations are of the projection's own size, and closer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.classifier import model_inputs
from utils.models.families import family_of, layers_of

# Ridge, as a share of the features' mean square: keeps the fit near the old weights where rows say little.
RIDGE = 0.01


@dataclass
class _Batch:
    """One batch on its way through both models, layer by layer."""

    used: torch.Tensor  # [rows, length], where there is a token
    mine: torch.Tensor  # the pruned model's states before the layer, [rows, length, hidden]
    whole: torch.Tensor
    more: tuple  # the layer's other arguments, such as the attention mask
    named: dict


def recover(
    pruned: PreTrainedModel,
    whole: PreTrainedModel,
    batches: Iterable[dict],
    ridge: float = RIDGE,
    hidden_kept: torch.Tensor | None = None,
) -> None:
    """Fit the attention and FFN output projections of `pruned`, in place, from the first layer to the last.

    Each is fitted so that what enters the layer norm behind it comes closest to what enters it in `whole`, given the
    states that the layers fitted before give.

    Args:
        batches: of `utils.data.tables.collate`; their states in both models are held in memory.
        hidden_kept: the hidden units that `pruned` has of those of `whole`, where not all.
    """
    family = family_of(pruned)
    columns = slice(None) if hidden_kept is None else hidden_kept
    states = [_enter(pruned, whole, batch) for batch in batches]
    layers = list(zip(layers_of(pruned), layers_of(whole), strict=True))
    for index, (mine, original) in enumerate(layers):
        wanted = []
        for batch in states:
            seen, batch.whole = _run(original, batch.whole, batch, (family.attention_norm, family.ffn_norm))
            wanted.append([total[..., columns] for total in seen])
            if index == len(layers) - 1:
                batch.used[:, 1:] = False  # only the first row of the last layer reaches the classifier
        for part, (output, norm) in enumerate(
            [(family.attention_output, family.attention_norm), (family.ffn_output, family.ffn_norm)]
        ):
            projection = mine.get_submodule(output)
            gram, moment = 0, 0
            for batch, targets in zip(states, wanted, strict=True):
                (features, total), _ = _run(mine, batch.mine, batch, (output, norm))
                rows = features[batch.used]
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
                gram = gram + (rows.T @ rows).cpu().double()  # not every device has doubles
                moment = moment + (rows.T @ (targets[part] - total)[batch.used]).cpu().double()
            _change(projection, gram, moment, ridge)
        for batch in states:
            _, batch.mine = _run(mine, batch.mine, batch, ())


def _enter(pruned: PreTrainedModel, whole: PreTrainedModel, batch: dict) -> _Batch:
    """What the first layers of both models get of a batch."""

    class Stop(Exception):
        pass

    def first_layer(module: nn.Module, arguments: tuple, named: dict) -> None:
        raise Stop(arguments, named)

    entered = []
    for model in (pruned, whole):
        hook = layers_of(model)[0].register_forward_pre_hook(first_layer, with_kwargs=True)
        try:
            with torch.inference_mode():
                model(**model_inputs(model, batch))
        except Stop as stop:
            entered.append(stop.args)
        finally:
            hook.remove()
    ((mine, *more), named), ((original, *_), _) = entered
    used = torch.as_tensor(batch["attention_mask"]).bool().to(mine.device)
    return _Batch(used, mine, original, tuple(more), named)


def _run(layer: nn.Module, x: torch.Tensor, batch: _Batch, paths: tuple[str, ...]) -> tuple[list, torch.Tensor]:
    """Run one layer on states `x`; returns the inputs of its parts `paths`, and its output."""
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str):
        def hook(module: nn.Module, arguments: tuple) -> None:
            seen[path] = arguments[0]

        return hook

    hooks = [layer.get_submodule(path).register_forward_pre_hook(keep(path)) for path in paths]
    try:
        with torch.inference_mode():
            output = layer(x, *batch.more, **batch.named)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[path] for path in paths], output


def _change(projection: nn.Linear, gram: torch.Tensor, moment: torch.Tensor, ridge: float) -> None:
    """Add the least-squares change of weight and bias: gram [inputs + 1, inputs + 1], moment [inputs + 1, outputs]."""
    diagonal = gram.diagonal()
    diagonal[:-1] += ridge * diagonal[:-1].mean()
    diagonal[-1] += ridge * diagonal[-1]
    change = torch.linalg.solve(gram, moment).float().to(projection.weight.device)
    with torch.no_grad():
        projection.weight += change[:-1].T
        projection.bias += change[-1]
