"""A model's logits on a whole split, and how good they are."""

from dataclasses import dataclass

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedModel

from utils.data.tables import batches_by_length, collate, lengths, row_labels
from utils.models.classifier import model_inputs
from utils.models.first_token import first_token_only
from utils.system.bars import progress_bar
from utils.system.devices import keep_freed_memory

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy and accuracy on a labelled split."""

    loss: float
    accuracy: float

    def better_than(self, other: "Evaluation | None", measure: str) -> bool:
        """By `measure`, ties broken by the other one."""
        if other is None:
            return True
        if measure == "loss":
            return (-self.loss, self.accuracy) > (-other.loss, other.accuracy)
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


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


def evaluate_logits(logits: torch.Tensor, split: datasets.Dataset) -> Evaluation:
    """Cross-entropy and accuracy of logits [rows, labels] against the split's labels."""
    labels = torch.as_tensor(row_labels(split), dtype=torch.long)
    return Evaluation(F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item())
