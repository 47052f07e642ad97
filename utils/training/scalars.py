"""Losses for TensorBoard."""

from collections.abc import Callable
from pathlib import Path

from utils.system.errors import UserError

# Called with a step and the values to note for it by name.
Scalars = Callable[[int, dict[str, float]], None]


def no_scalars(step: int, values: dict[str, float]) -> None:
    """Note nothing."""


def scalars_into(log_dir: str | Path | None) -> Scalars:
    """A function that writes event files into the folder `log_dir`, or, without one, does nothing.

    Raises:
        UserError: tensorboard is not installed.
    """
    if log_dir is None:
        return no_scalars
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--log_dir needs the package tensorboard: pip install tensorboard") from error
    writer = SummaryWriter(str(log_dir))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        if any(name.startswith("valid/") for name in values):
            writer.flush()

    return write
