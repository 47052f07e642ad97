"""An unfinished training on disk: one safetensors file beside the output, written now and then, gone at the end."""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from utils.system.devices import wait_for_everyone
from utils.system.files import atomic_file
from utils.system.journal import check_flags, damaged, is_there, unfinished_path
from utils.training.scoring import Evaluation

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0  # optimizer steps done
    evaluated: int = 0  # of them, at the last evaluation
    since_best: int = 0  # evaluations since the best one
    best: Evaluation | None = None
    loss_sum: float = 0.0  # of the steps since the last evaluation


@dataclass(frozen=True)
class UnfinishedRun:
    """Where a run is kept while it is not finished, after how many steps, and the options that decide its result.

    `part` says which of several trainings it is in, and what its model looks like.
    """

    path: Path
    save_steps: int
    flags: dict[str, Any]
    part: dict[str, Any] = field(default_factory=dict)


def hardware(accelerator: Accelerator) -> dict[str, str]:
    """What --device and --precision came to, by flag."""
    return {"--device": accelerator.device.type, "--precision": accelerator.mixed_precision}


def begin_run(
    output: str | Path,
    flags: dict[str, Any],
    accelerator: Accelerator,
    save_steps: int,
    resume: str = "auto",
    overwrite: bool = False,
) -> UnfinishedRun:
    """The unfinished run beside `output`, if it is of the same options, or a new one, of which nothing is written yet.

    Args:
        flags: the options that decide the result.
        save_steps: steps after which it is written again.
        resume: `auto`, or `always`: that there is no unfinished run is an error.
        overwrite: remove an unfinished run and start again.

    Raises:
        UserError: the unfinished run is damaged, or one of its options is another; names that.
    """
    run = UnfinishedRun(unfinished_path(output), save_steps, flags)
    if overwrite:
        discard(run, accelerator)
    if not is_there(run.path, resume):
        return run
    metadata = _read_metadata(run.path)
    check_flags(run.path, metadata["flags"], flags)
    logger.info("[Resume] : %s, from step %d", run.path, metadata["progress"]["step"])
    return replace(run, part=metadata["part"])


def discard(run: UnfinishedRun, accelerator: Accelerator) -> None:
    """Remove a run that is finished, or is to start again."""
    wait_for_everyone(accelerator)
    if accelerator.is_main_process:
        run.path.unlink(missing_ok=True)
    wait_for_everyone(accelerator)


def save_progress(
    run: UnfinishedRun,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Write all that `load_progress` needs, atomically.

    Args:
        optimizer: AdamW; its averages, two tensors of each parameter's shape, are written too.

    Raises:
        UserError: the disk is full.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, averages in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in averages.items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # of fp16
    metadata = {"flags": run.flags, "part": run.part, "progress": asdict(progress), "scaler": scaler}
    with atomic_file(run.path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"unfinished": json.dumps(metadata)},
        )


def load_progress(
    run: UnfinishedRun, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> Progress:
    """Put the model and the optimizer, in place, where an unfinished run left them, if there is one.

    Raises:
        UserError: the file is damaged.
    """
    if not run.path.exists():
        return Progress()
    metadata = _read_metadata(run.path)
    if metadata["part"] != run.part:
        return Progress()
    weights: dict[str, torch.Tensor] = {}
    averages: dict[int, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(run.path, framework="pt") as file:
            for key in file.keys():
                kind, _, name = key.partition(".")
                if kind == "model":
                    weights[name] = file.get_tensor(key)
                else:
                    index, _, name = name.partition(".")
                    averages.setdefault(int(index), {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise damaged(run.path) from error
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": averages, "param_groups": optimizer.state_dict()["param_groups"]})
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(metadata["scaler"])
    progress = Progress(**metadata["progress"])
    try:
        progress.best = Evaluation(**metadata["progress"]["best"]) if progress.best else None
    except TypeError as error:  # as an older version wrote it
        raise damaged(run.path) from error
    return progress


def _read_metadata(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["unfinished"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error
