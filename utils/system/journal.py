"""A long run in parts: those that are finished are kept in a file beside the output, JSON lines, one a part.

Memory holds where each part begins in the file, not the parts.
"""

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
    """A `Cached` that keeps every part at `path`, as JSON has it (arrays as lists), and reads it from there when asked.

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
    offsets = _find_parts(path, flags) if is_there(path, resume) else {}
    if offsets:
        logger.info("[Resume] : %s, %d parts are done", path, len(offsets))

    def cached(name: str, make: Callable[[], Any]) -> Any:
        if name not in offsets:
            line = f"{json.dumps([name, make()], default=np.ndarray.tolist)}\n".encode()
            offsets[name] = _append(path, line, flags)
            return json.loads(line)[1]
        with open(path, "rb") as file:
            file.seek(offsets[name])
            return json.loads(file.readline())[1]

    return cached


def unfinished_path(output: str | Path) -> Path:
    """The file that keeps an unfinished run, beside its output folder."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.unfinished")


def _append(path: Path, line: bytes, flags: dict[str, Any]) -> int:
    """Write a part's line behind those at `path`, or start the file with it; returns the line's offset in bytes."""
    if not path.exists():
        first = f"{json.dumps(flags)}\n".encode()
        with atomic_file(path) as temporary:
            temporary.write_bytes(first + line)
        return len(first)
    with open(path, "ab") as file:
        offset = file.tell()
        file.write(line)
    return offset


def _find_parts(path: Path, flags: dict[str, Any]) -> dict[str, int]:
    """The offset in bytes of each finished part in a file of `cached_in`; a last one that is cut off is removed."""
    offsets: dict[str, int] = {}
    with open(path, "rb") as file:
        try:
            own_flags = dict(json.loads(file.readline()))
            end = file.tell()
            while (line := file.readline()).endswith(b"\n"):
                name, _ = json.loads(line)
                offsets[name], end = end, file.tell()
        except (TypeError, ValueError) as error:
            raise damaged(path) from error
    check_flags(path, own_flags, flags)
    os.truncate(path, end)
    return offsets


def is_there(path: Path, resume: str) -> bool:
    """Tell whether there is an unfinished run at `path`.

    Raises:
        UserError: `resume` is `always` and there is none.
    """
    if resume == "always" and not path.exists():
        raise UserError(f"--resume=always but {path} is not there: leave it out to start anew")
    return path.exists()


def check_flags(path: Path, theirs: dict, ours: dict) -> None:
    """Compare the options of the unfinished run at `path` with those given.

    Raises:
        UserError: one is another; names it.
    """
    ours = json.loads(json.dumps(ours))
    for flag in theirs | ours:
        if theirs.get(flag) != ours.get(flag):
            raise UserError(
                f"{flag} is {ours.get(flag)} but {theirs.get(flag)} in the unfinished run {path}: give the same to "
                "continue that run, or --overwrite to start again"
            )


def damaged(path: Path) -> UserError:
    """The error of an unfinished run that cannot be read."""
    return UserError(f"{path} is no unfinished run, or damaged: start again with --overwrite")
