"""What a teacher says of every row: computed once, and kept beside the tokenized data."""

import logging
import os
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from utils.data.tables import Data
from utils.models.classifier import fingerprint
from utils.system.files import atomic_file
from utils.training.resume import hardware
from utils.training.scoring import predict

logger = logging.getLogger(__name__)

PART = 20_000  # rows; so many at most are asked for again after an interruption


def teacher_logits(teacher: PreTrainedModel, data: Data, split: str, accelerator: Accelerator) -> torch.Tensor:
    """The teacher's logits for every row of a split, fp32 [rows, labels], on the CPU.

    In evaluation mode it says the same of a row in every epoch and every run, so they are kept in data.folder, in files
    that are named after the teacher's weights and the precision. preprocess.py drops those of splits that it changes.
    """
    rows = data.splits[split]
    name = f"teacher-{fingerprint(teacher)}-{'-'.join(hardware(accelerator).values())}-{split}"
    parts = [rows.select(range(start, min(start + PART, len(rows)))) for start in range(0, len(rows), PART)]
    logits = []
    for i, part in enumerate(parts):
        shown = f"teacher on {split}" + (f", part {i + 1} of {len(parts)}" if len(parts) > 1 else "")
        logits.append(_logits_of_part(teacher, part, data.folder / f"{name}-{i}.safetensors", accelerator, shown))
    return torch.cat(logits)


def _logits_of_part(
    teacher: PreTrainedModel, rows: datasets.Dataset, path: Path, accelerator: Accelerator, name: str
) -> torch.Tensor:
    try:
        logits = load_file(path)["logits"]
        if len(logits) == len(rows):
            return logits
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: it is made again
    accelerator.wait_for_everyone()  # all have looked before one writes
    logits = predict(teacher, rows, accelerator, name)
    if accelerator.is_main_process and os.access(path.parent, os.W_OK):
        with atomic_file(path) as temporary:
            save_file({"logits": logits}, temporary)
    return logits
