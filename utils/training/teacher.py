"""What teachers say of every row: computed once, kept beside the tokenized data of each, and put together."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from utils.data.tables import Data
from utils.data.teacher_rows import rows_of_teacher
from utils.models.classifier import fingerprint
from utils.system.files import atomic_file
from utils.training.resume import hardware
from utils.training.scoring import evaluate_logits, predict

logger = logging.getLogger(__name__)

PART = 20_000  # rows; so many at most are asked for again after an interruption


@dataclass(frozen=True)
class Teacher:
    """A teacher, and how its rows and its outputs go with those of the data set."""

    name: str  # its checkpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    n_ctx: int  # the longest row that it reads, in its own tokens
    columns: list[int]  # its output for each of the data set's labels
    rows: Data | None  # what it reads; None where that is still to be tokenized


def taught_logits(
    teachers: list[Teacher],
    data: Data,
    student: PreTrainedTokenizerFast,
    splits: list[str],
    kd_loss: str,
    temperature: float,
    accelerator: Accelerator,
) -> torch.Tensor:
    """What a student is to say of every row of some splits, one split after the other, fp32 [rows, labels].

    Logs how good that is on valid, and how good each teacher is. Empties the list of teachers.

    Args:
        student: the tokenizer that the texts of `data` were tokenized with.
        kd_loss, temperature: as `mean_of_teachers`.

    Raises:
        UserError: as `rows_of_teacher`.
    """
    names = [teacher.name for teacher in teachers]
    logits = _answers(teachers, data, student, ["valid", *splits], accelerator)
    mean = {split: mean_of_teachers([own[split] for own in logits], kd_loss, temperature) for split in logits[0]}
    scored = [("", mean)]
    if len(names) > 1:
        scored = [(f"{name}, ", own) for name, own in zip(names, logits, strict=True)]
        scored.append((f"mean of {len(names)}, ", mean))
    for name, own in scored:
        target = evaluate_logits(own["valid"], data.splits["valid"])
        logger.info("[Teacher] : %svalid loss %.4f, valid accuracy %.4f", name, target.loss, target.accuracy)
    return torch.cat([mean[split] for split in splits])


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


def mean_of_teachers(logits: list[torch.Tensor], kd_loss: str, temperature: float) -> torch.Tensor:
    """Put the logits of several teachers, each [rows, labels], together into one such tensor.

    A student's loss against the result is, but for a constant, the mean of its losses against each teacher. For `mse`
    that is the mean of their logits, which is the geometric mean of their predictive distributions; for
    `soft_cross_entropy` the logits of the mean of their probabilities, taken at the temperature, the arithmetic mean.
    Both are Hinton et al.'s (2015, section 1) for an ensemble. The first weighs a teacher more the larger its logits.
    """
    if len(logits) == 1:
        return logits[0]
    if kd_loss == "mse":
        return torch.stack(logits).mean(0)
    log_probabilities = (torch.stack(logits) / temperature).log_softmax(-1)
    return temperature * (log_probabilities.logsumexp(0) - math.log(len(logits)))


def _answers(
    teachers: list[Teacher], data: Data, student: PreTrainedTokenizerFast, splits: list[str], accelerator: Accelerator
) -> list[dict[str, torch.Tensor]]:
    """Each teacher's logits for every row of the splits, as of `teacher_logits`, in the order of the data's labels.

    Empties the list: a model that nobody else holds is freed before the next one goes to the device.

    Args:
        student: the tokenizer that the texts of `data` were tokenized with.

    Raises:
        UserError: as `rows_of_teacher`.
    """
    logits = []
    while teachers:
        teacher = teachers.pop(0)
        rows = teacher.rows or rows_of_teacher(data, student, teacher.tokenizer, teacher.n_ctx)
        teacher.model.to(accelerator.device)
        logits.append(
            {split: teacher_logits(teacher.model, rows, split, accelerator)[:, teacher.columns] for split in splits}
        )
    return logits


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
