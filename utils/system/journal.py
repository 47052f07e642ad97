"""A long run in parts: those that are finished are kept in a file beside the output, JSON lines, one a part."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from utils.system.errors import UserError
from utils.system.files import atomic_file

logger = logging.getLogger(__name__)

# Gives a part of a run by its name: what the function makes, or made before the run was stopped.
Cached = Callable[[str, Callable[[], Any]], Any]


def uncached(name: str, make: Callable[[], Any]) -> Any:
    """A `Cached` that remembers nothing."""
    return make()


def cached_in(path: Path, flags: dict[str, Any], resume: str, overwrite: bool) -> Cached:
    """A `Cached` that keeps every part at `path`, as JSON has it (arrays as lists), and gives those found there.

    The caller removes the file in the end.

    Args:
        flags: the options that decide the result.
        resume: `auto`, or `always`: that there is no unfinished run is an error.
        overwrite: start again.

    Raises:
        UserError: the file is damaged, or one of its options is another; names that.
    """
    if overwrite:
        path.unlink(missing_ok=True)
    parts = _read_parts(path, flags) if is_there(path, resume) else {}
    if parts:
        logger.info("[Resume] : %s, %d parts are done", path, len(parts))

    def cached(name: str, make: Callable[[], Any]) -> Any:
        if name not in parts:
            line = json.dumps([name, make()], default=np.ndarray.tolist)
            if parts:
                with open(path, "ab") as file:
                    file.write(f"{line}\n".encode())
            else:
                with atomic_file(path) as temporary:
                    temporary.write_bytes(f"{json.dumps(flags)}\n{line}\n".encode())
            parts[name] = json.loads(line)[1]
        return parts[name]

    return cached


def unfinished_path(output: str | Path) -> Path:
    """The file that keeps an unfinished run, beside its output folder."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.unfinished")


def _read_parts(path: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """The finished parts in a file of `cached_in`; a last one that is cut off is removed."""
    try:
        first, *lines = path.read_bytes().splitlines(keepends=True)
        kept = dict(json.loads(first))
        whole = [line for line in lines if line.endswith(b"\n")]
        parts = dict(json.loads(line) for line in whole)
    except (TypeError, ValueError) as error:
        raise damaged(path) from error
    check_flags(path, kept, flags)
    os.truncate(path, len(first) + sum(map(len, whole)))
    return parts


def is_there(path: Path, resume: str) -> bool:
    """Tell whether there is an unfinished run at `path`.

    Raises:
        UserError: `resume` is `always` and there is none.
    """
    if resume == "always" and not path.exists():
        raise UserError(f"--resume=always but {path} is not there: leave it out to start anew")
    return path.exists()


def check_flags(path: Path, kept: dict, ours: dict) -> None:
    """Compare the options of the unfinished run at `path` with those given.

    Raises:
        UserError: one is another; names it.
    """
    ours = json.loads(json.dumps(ours))
    for flag in kept | ours:
        if kept.get(flag) != ours.get(flag):
            raise UserError(
                f"{flag} is {ours.get(flag)} but {kept.get(flag)} in the unfinished run {path}: give the same to "
                "continue that run, or --overwrite to start again"
            )


def damaged(path: Path) -> UserError:
    """The error of an unfinished run that cannot be read."""
    return UserError(f"{path} is no unfinished run, or damaged: start again with --overwrite")
