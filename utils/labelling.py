"""What a teacher says of every row: computed once, and kept beside the tokenized data."""

import logging
import os

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from utils.data import Data
from utils.files import atomic_file
from utils.resume import fingerprint, hardware
from utils.scoring import predict

logger = logging.getLogger(__name__)


def teacher_logits(teacher: PreTrainedModel, data: Data, split: str, accelerator: Accelerator) -> torch.Tensor:
    """The teacher's logits for every row of a split, fp32 [rows, labels], on the CPU.

    In evaluation mode it says the same of a row in every epoch and every run, so they are kept in a file of data.folder
    that is named after the teacher's weights and the precision. preprocess.py replaces that folder, and them with it.
    """
    precision = "-".join(hardware(accelerator).values())
    path = data.folder / f"teacher-{fingerprint(teacher)}-{precision}-{split}.safetensors"
    try:
        logits = load_file(path)["logits"]
        if len(logits) == len(data.splits[split]):
            return logits
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: it is made again
    accelerator.wait_for_everyone()  # all have looked before one writes
    logits = predict(teacher, data.splits[split], accelerator, f"teacher on {split}")
    if accelerator.is_main_process and os.access(data.folder, os.W_OK):
        with atomic_file(path) as temporary:
            save_file({"logits": logits}, temporary)
    return logits
