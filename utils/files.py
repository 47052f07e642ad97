"""Outputs are written under a temporary name beside the real one and renamed: the old file or the new, never half."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import UserError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error it replaces `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; when the block ends without an error it replaces `path` whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            replaced = temporary.with_suffix(".old")
            os.replace(path, replaced)
            os.replace(temporary, path)
            shutil.rmtree(replaced)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_files_into(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends without an error its files replace those in `folder`, one by one.

    For a folder that the user may keep other files in: nothing else there is touched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, folder / file.name)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_output_file(path: str | Path, flag: str) -> None:
    """Fail before the long work, not after it, where `path` cannot be written.

    Raises:
        UserError: naming `flag`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file")
    check_output_folder(path.parent, flag)


def check_output_folder(path: str | Path, flag: str) -> None:
    """Check that files can be made in the folder `path`, or, where it is missing, in the nearest folder above it.

    Raises:
        UserError: naming `flag`.
    """
    path = Path(path)
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in [path, *path.absolute().parents] if folder.exists())):
            pass
    except OSError as error:
        raise UserError(
            f"{flag}: cannot write to the folder {path} ({error.strerror}): name one you may write to"
        ) from error
