"""An unfinished training on disk: one safetensors file beside the output, written now and then, gone at the end."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from utils.system.files import atomic_file
from utils.system.journal import check_flags, damaged, is_there
from utils.training.scoring import Score

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0  # optimizer steps done
    evaluated: int = 0  # of them, at the last evaluation
    since_best: int = 0  # evaluations since the best one
    best: Score | None = None
    loss_sum: float = 0.0  # of the steps since the last evaluation


@dataclass(frozen=True)
class Unfinished:
    """Where a run is kept while it is not finished, after how many steps, and the options that decide its result.

    `part` says which of several trainings it is in, and what its model looks like.
    """

    path: Path
    save_steps: int
    flags: dict[str, Any]
    part: dict[str, Any] = field(default_factory=dict)


def unfinished_path(output: str | Path) -> Path:
    """The file that keeps an unfinished run, beside its output folder."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.unfinished")


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def hardware(accelerator: Accelerator) -> dict[str, str]:
    """What --device and --precision came to, by flag."""
    return {"--device": accelerator.device.type, "--precision": accelerator.mixed_precision}


def check_unfinished(unfinished: Unfinished, accelerator: Accelerator, resume: str, overwrite: bool) -> dict:
    """See whether the run that `unfinished` may hold is this one; say so, or, with `overwrite`, remove it.

    Args:
        resume: `auto`, or `always`: that there is none is an error.

    Returns:
        The part that it is in; empty where there is none.

    Raises:
        UserError: it is damaged, or one of its options is another; names that.
    """
    path = unfinished.path
    if overwrite:
        forget(unfinished, accelerator)
    if not is_there(path, resume):
        return {}
    kept = _read_metadata(path)
    check_flags(path, kept["flags"], unfinished.flags)
    logger.info("[Resume] : %s, from step %d", path, kept["progress"]["step"])
    return kept["part"]


def forget(unfinished: Unfinished, accelerator: Accelerator) -> None:
    """Remove a run that is finished, or is to start again."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def save_progress(
    unfinished: Unfinished,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Write all that `load_progress` needs, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, averages in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in averages.items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # of fp16
    kept = {"flags": unfinished.flags, "part": unfinished.part, "progress": asdict(progress), "scaler": scaler}
    with atomic_file(unfinished.path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary, metadata={"unfinished": json.dumps(kept)},
        )  # fmt: skip


def load_progress(
    unfinished: Unfinished, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> Progress:
    """Put the model and the optimizer, in place, where an unfinished run left them, if there is one.

    Raises:
        UserError: the file is damaged.
    """
    if not unfinished.path.exists():
        return Progress()
    kept = _read_metadata(unfinished.path)
    if kept["part"] != unfinished.part:
        return Progress()
    weights: dict[str, torch.Tensor] = {}
    averages: dict[int, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(unfinished.path, framework="pt") as file:
            for key in file.keys():
                kind, _, name = key.partition(".")
                if kind == "model":
                    weights[name] = file.get_tensor(key)
                else:
                    index, _, name = name.partition(".")
                    averages.setdefault(int(index), {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise damaged(unfinished.path) from error
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": averages, "param_groups": optimizer.state_dict()["param_groups"]})
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(kept["scaler"])
    progress = Progress(**kept["progress"])
    progress.best = Score(**kept["progress"]["best"]) if progress.best else None
    return progress


def _read_metadata(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["unfinished"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error
