"""What each task means for what a model learns: its losses, one value a row, [batch].

Logits are [batch, outputs]: of labels the logarithm of odds, of scores the scores themselves.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.data.tables import Data
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.training.losses import KD_LOSSES, binary_label_loss, label_loss, logits_mse, soft_binary_cross_entropy


@dataclass(frozen=True)
class Task:
    """The losses of a task.

    `label_loss` compares logits with labels as `utils.data.tables.row_labels` has them; with reduction="mean" it gives
    the mean over the rows. `own_loss` takes the model's own answers in the place of labels. `kd_losses`
    compare with a teacher's logits at a temperature, by the names of --kd_loss; the first one is taken where none is
    named. `mean_of_teachers` puts the logits of several teachers, each [rows, outputs], together for such a loss.
    """

    name: str
    label_loss: Callable[..., torch.Tensor]
    own_loss: Callable[[torch.Tensor], torch.Tensor]
    kd_losses: Mapping[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]]
    mean_of_teachers: Callable[[list[torch.Tensor], str, float], torch.Tensor]


def task_of(data: Data) -> Task:
    """The task that a data set is for."""
    if data.scale is None:
        return TASKS[data.task]
    return _regression(torch.as_tensor(data.scale[1]))


def mean_by_probability(logits: list[torch.Tensor], kd_loss: str, temperature: float) -> torch.Tensor:
    """Put the logits of several teachers, each [rows, labels], together into one such tensor, for one label a row.

    A student's loss against the result is, but for a constant, the mean of its losses against each teacher. For `mse`
    that is the mean of their logits, which is the geometric mean of their predictive distributions; for
    `soft_cross_entropy` the logits of the mean of their probabilities, taken at the temperature, the arithmetic mean.
    Both are Hinton et al.'s (2015, section 1) for an ensemble. The first weighs a teacher more the larger its logits.
    """
    if kd_loss == "mse":
        return torch.stack(logits).mean(0)
    log_probabilities = (torch.stack(logits) / temperature).log_softmax(-1)
    return temperature * (log_probabilities.logsumexp(0) - math.log(len(logits)))


def mean_by_binary_probability(logits: list[torch.Tensor], kd_loss: str, temperature: float) -> torch.Tensor:
    """Any number of labels a row: as `mean_by_probability`, for each label alone."""
    if kd_loss == "mse":
        return torch.stack(logits).mean(0)
    scaled = torch.stack(logits) / temperature
    return temperature * (F.logsigmoid(scaled).logsumexp(0) - F.logsigmoid(-scaled).logsumexp(0))


def mean_of_scores(logits: list[torch.Tensor], kd_loss: str, temperature: float) -> torch.Tensor:
    """The mean of the teachers' scores."""
    return torch.stack(logits).mean(0)


def _regression(deviation: torch.Tensor) -> Task:
    """Squared errors of standardized scores; `deviation` is that of each score in train, [scores]."""

    def squared_error(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        has_score = ~labels.isnan().any(-1)
        errors = ((logits - labels.nan_to_num()) / deviation.to(logits.device)).square().mean(-1)
        errors = torch.where(has_score, errors, 0.0)
        return errors if reduction == "none" else errors.mean()

    def own_loss(logits: torch.Tensor) -> torch.Tensor:
        # The squared error against the model's own scores has no gradient; against scores around them, drawn at random,
        # it has one that is a random number times this sum's.
        return (logits / deviation.to(logits.device)).sum(-1)

    def distance(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        deviations = deviation.to(logits.device)
        return logits_mse(logits / deviations, teacher_logits / deviations)

    return Task(REGRESSION, squared_error, own_loss, {"mse": distance}, mean_of_scores)


TASKS = {
    SINGLE_LABEL: Task(
        SINGLE_LABEL,
        label_loss,
        lambda logits: label_loss(logits, logits.argmax(-1)),
        KD_LOSSES,
        mean_by_probability,
    ),
    MULTI_LABEL: Task(
        MULTI_LABEL,
        binary_label_loss,
        lambda logits: binary_label_loss(logits, (logits > 0).to(logits.dtype)),
        KD_LOSSES | {"soft_cross_entropy": soft_binary_cross_entropy},
        mean_by_binary_probability,
    ),
}
