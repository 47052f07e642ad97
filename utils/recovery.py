"""Get back what pruning lost, without training: each layer's output projections are fitted to the whole model's states.

After Kwon et al. 2022 (arXiv 2204.09656, section 4.3), who fit one factor a head or neuron by least squares, layer by
layer. Here the whole projection is fitted, as channel pruning does (He et al. 2017, arXiv 1707.06168): as cheap, since
the normal equations are of the projection's own size, and closer.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.families import family_of, layers_of
from utils.model import model_inputs

# Ridge, as a share of the features' mean square: keeps the fit near the old weights where rows say little.
RIDGE = 0.01


def recover(
    pruned: PreTrainedModel, whole: PreTrainedModel, batches: Callable[[], Iterable[dict]], ridge: float = RIDGE
) -> None:
    """Fit the attention and FFN output projections of `pruned`, in place, from the first layer to the last.

    Each is fitted so that what enters the layer norm behind it comes closest to what enters it in `whole`, given the
    states that the layers fitted before give.

    Args:
        batches: gives the same batches of `utils.data.collate` again at every call.
    """
    family = family_of(pruned)
    layers = list(zip(layers_of(pruned), layers_of(whole), strict=True))
    for index, (mine, original) in enumerate(layers):
        for output, norm in ((family.attention_output, family.attention_norm), (family.ffn_output, family.ffn_norm)):
            _fit(
                _Probe(pruned, mine.get_submodule(output), mine.get_submodule(norm)),
                _Probe(whole, original.get_submodule(output), original.get_submodule(norm)),
                batches(),
                # Only the first row of the last layer reaches the classifier.
                first_rows=index == len(layers) - 1,
                ridge=ridge,
            )


class _Stop(Exception):
    """The part of the model that is looked at has been computed."""


class _Probe:
    """Runs a model up to one layer norm; returns a projection's input and output, and the layer norm's input."""

    def __init__(self, model: PreTrainedModel, projection: nn.Linear, norm: nn.LayerNorm) -> None:
        self.model, self.projection, self.norm = model, projection, norm

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def at_projection(module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
            seen["features"], seen["projected"] = arguments[0], output

        def at_norm(module: nn.Module, arguments: tuple) -> None:
            seen["sum"] = arguments[0]
            raise _Stop

        hooks = [
            self.projection.register_forward_hook(at_projection),
            self.norm.register_forward_pre_hook(at_norm),
        ]
        try:
            with torch.inference_mode():
                self.model(**model_inputs(self.model, batch))
        except _Stop:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return seen["features"], seen["projected"], seen["sum"]


def _fit(mine: _Probe, original: _Probe, batches: Iterable[dict], first_rows: bool, ridge: float) -> None:
    """Least squares for the change of one projection's weight and bias."""
    width = mine.projection.in_features + 1  # and the bias
    gram = torch.zeros(width, width, dtype=torch.float64)
    moment = torch.zeros(width, mine.projection.out_features, dtype=torch.float64)
    for batch in batches:
        features, _, total = mine(batch)
        missing = original(batch)[2] - total
        used = torch.as_tensor(batch["attention_mask"]).bool()
        if first_rows:
            used[:, 1:] = False
        used = used.to(features.device)
        rows = torch.cat([features[used], torch.ones_like(features[used][:, :1])], dim=1)
        gram += (rows.T @ rows).double().cpu()
        moment += (rows.T @ missing[used]).double().cpu()
    gram.diagonal()[:-1] += ridge * gram.diagonal()[:-1].mean()
    gram.diagonal()[-1] += ridge * gram.diagonal()[-1]
    change = torch.linalg.solve(gram, moment).float().to(mine.projection.weight.device)
    with torch.no_grad():
        mine.projection.weight += change[:-1].T
        mine.projection.bias += change[-1]
