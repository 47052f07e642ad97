"""A model's logits on a whole split, and how good they are."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from utils.data.tables import batches_by_length, collate, lengths, row_labels
from utils.models.classifier import model_inputs
from utils.models.config import SINGLE_LABEL
from utils.models.first_token import first_token_only
from utils.system.bars import progress_bar
from utils.system.devices import keep_freed_memory
from utils.training.metrics import NAMES, main_measure, measure
from utils.training.tasks import TASKS, Task

EVALUATION_BATCH = 128
# What --measure calls a loss, and people: that of the labels, and a student's against its teacher's logits.
LOSSES = {"loss": "loss", "kd_loss": "distillation loss"}


@dataclass(frozen=True)
class Evaluation:
    """A loss and a measure of `utils.training.metrics` on a labelled split."""

    loss: float
    score: float
    measure: str = "accuracy"  # what `score` is
    loss_name: str = "loss"  # of `LOSSES`: what `loss` is

    def better_than(self, other: "Evaluation | None", measure: str) -> bool:
        """By the loss if `measure` says so, else by the score; ties broken by the other one."""
        if other is None:
            return True
        if measure in LOSSES:
            return (-self.loss, self.score) > (-other.loss, other.score)
        return (self.score, -self.loss) > (other.score, -other.loss)

    def __str__(self) -> str:
        return f"valid {LOSSES[self.loss_name]} {self.loss:.4f}, {self.score_in_words()}"

    def score_in_words(self) -> str:
        return f"valid {NAMES[self.measure]} {self.score:.4f}"


def predict(model: PreTrainedModel, split: datasets.Dataset, accelerator: Accelerator, name: str) -> torch.Tensor:
    """The model's logits for every row of a split in its order, fp32 [rows, labels], on the CPU of every process.

    Each row is computed by one process only. `name` labels the progress bar.
    """
    keep_freed_memory()
    model.eval()
    logits = torch.zeros(len(split), model.config.num_labels, device=accelerator.device)
    batches = batches_by_length(lengths(split), EVALUATION_BATCH)
    with (
        torch.inference_mode(),
        first_token_only(model),
        progress_bar(total=len(split), desc=name, unit="row", shown=accelerator.is_main_process) as bar,
    ):
        for indices in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = collate(split, indices, model.config.pad_token_id)
            with accelerator.autocast():
                output = model(**model_inputs(model, batch)).logits
            logits[torch.as_tensor(indices, device=logits.device)] = output.float()
            bar.update(len(indices) * accelerator.num_processes)
    return accelerator.reduce(logits, "sum").cpu()


def evaluate_logits(
    logits: torch.Tensor,
    split: datasets.Dataset,
    task: Task = TASKS[SINGLE_LABEL],
    chosen: str = "loss",
    kd_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Evaluation:
    """A loss and a measure of logits [rows, outputs], both against the split's labels where `kd_loss` is left out.

    Args:
        chosen: the measure, or one of `LOSSES` for the task's main one.
        kd_loss: each row's loss against a teacher's logits, [rows]; taken in the place of the labels'.
    """
    labels, name = row_labels(split), main_measure(task.name) if chosen in LOSSES else chosen
    score = measure(name, logits.numpy(), labels)
    if kd_loss:
        return Evaluation(kd_loss(logits).mean().item(), score, name, "kd_loss")
    targets = torch.as_tensor(labels)
    targets = targets if targets.is_floating_point() else targets.long()
    loss = task.label_loss(logits, targets, reduction="mean").item()
    return Evaluation(loss, score, name)
