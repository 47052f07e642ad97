"""What teachers say of every row: computed once, kept beside the tokenized data of each, and put together."""

import logging
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
from utils.models.output_layer import Scale, standardized_output
from utils.system.devices import wait_for_everyone
from utils.system.files import atomic_file
from utils.training.resume import hardware
from utils.training.scoring import evaluate_logits, predict
from utils.training.tasks import task_of

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
) -> dict[str, torch.Tensor]:
    """What a student is to say of every row of valid and of some other splits, fp32 [rows, labels] of each split.

    Logs how good that is on valid, and how good each teacher is. Empties the list of teachers.

    Args:
        student: the tokenizer that the texts of `data` were tokenized with.
        kd_loss, temperature: as `mean_of_teachers` of `utils.training.tasks`.

    Raises:
        UserError: as `rows_of_teacher`.
    """
    names, task = [teacher.name for teacher in teachers], task_of(data)
    logits = _answers(teachers, data, student, ["valid", *splits], accelerator)
    mean = logits[0]
    if len(logits) > 1:
        mean = {split: task.mean_of_teachers([own[split] for own in logits], kd_loss, temperature) for split in mean}
    scored = [("", mean)]
    if len(names) > 1:
        scored = [(f"{name}, ", own) for name, own in zip(names, logits, strict=True)]
        scored.append((f"mean of {len(names)}, ", mean))
    for name, own in scored:
        logger.info("[Teacher] : %s%s", name, evaluate_logits(own["valid"], data.splits["valid"], task))
    return mean


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
        path = data.folder / f"{name}-{i}.safetensors"
        logits.append(_logits_of_part(teacher, part, path, accelerator, shown, data.scale))
    return torch.cat(logits)


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
    teacher: PreTrainedModel,
    rows: datasets.Dataset,
    path: Path,
    accelerator: Accelerator,
    name: str,
    scale: Scale | None,
) -> torch.Tensor:
    try:
        logits = load_file(path)["logits"]
        if len(logits) == len(rows):
            return logits
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: it is made again
    wait_for_everyone(accelerator)  # all have looked before one writes
    with standardized_output(teacher, scale):  # so that bf16 rounds no large scores
        logits = predict(teacher, rows, accelerator, name)
    if accelerator.is_main_process and os.access(path.parent, os.W_OK):
        with atomic_file(path) as temporary:
            save_file({"logits": logits}, temporary)
    return logits
