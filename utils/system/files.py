"""Outputs are written under a temporary name beside the real one, synced and renamed: the old file or the new, never
half of one. A killed process leaves its temporaries; the next one that writes the same output removes them."""

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from utils.system.errors import FULL_DISK, UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: see renameat2(2)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error it replaces `path`.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        with _disk_may_be_full(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; when the block ends without an error it replaces `path` whole.

    Where `path` cannot be moved, as a mount point cannot, the new files replace those in it one by one.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    fixed = path.is_dir() and (os.path.ismount(path) or path == Path.cwd() or not os.access(path.parent, os.W_OK))
    temporary = _temporary_beside(path / path.name if fixed else path)
    temporary.mkdir()
    try:
        with _disk_may_be_full(path):
            yield temporary
            _sync_folder(temporary)
            if fixed:
                for entry in temporary.iterdir():
                    os.replace(entry, path / entry.name)
            elif path.exists():
                _exchange(temporary, path)
            else:
                os.replace(temporary, path)
        _sync(path if fixed else path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_files_into(folder: str | Path) -> Iterator[Path]:
    """As `atomic_folder`, but whatever else the user keeps in `folder` stays."""
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        yield temporary
        if folder.is_dir() and temporary.parent != folder.resolve():
            for entry in folder.iterdir():
                if not (temporary / entry.name).exists():
                    _link(entry, temporary / entry.name)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output_file(path: str | Path, flag: str) -> None:
    """Fail before the long work, not after it, where `path` cannot be written.

    Raises:
        UserError: naming `flag`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path} is a device or a pipe, which cannot be replaced: name a file")
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


def _temporary_beside(path: Path) -> Path:
    """A name for this process's temporary, after removing those of processes that are no more."""
    name = glob.escape(path.name)
    for old in [*path.parent.glob(f".{name}.*.tmp"), *path.parent.glob(f".{name}.*.tmp.old")]:
        process = old.name.removesuffix(".old").removesuffix(".tmp").rpartition(".")[2]
        if not process.isdecimal() or (int(process) != os.getpid() and psutil.pid_exists(int(process))):
            continue
        if old.suffix == ".old" and not path.exists():  # killed between the two renames of `_exchange`
            os.replace(old, path)
        else:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _disk_may_be_full(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Libraries wrap it in errors of their own.
        full = (*map(os.strerror, FULL_DISK), "PytorchStreamWriter failed writing file")
        if any(text in str(error) for text in full):
            raise UserError(
                f"{path} cannot be written, as the disk is full or limited: make room, and run this again"
            ) from error
        raise


def _sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, last through a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders at once where the system can, else by two renames."""
    if sys.platform == "linux":
        names = os.fsencode(new), os.fsencode(old)
        with contextlib.suppress(AttributeError):  # an old C library
            if ctypes.CDLL(None).renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
                return
    aside = new.with_name(f"{new.name}.old")
    os.replace(old, aside)
    os.replace(new, old)
    os.replace(aside, new)


def _link(source: Path, target: Path) -> None:
    """Give a file, or all in a folder, a second name; where the file system has no links, copy it."""

    def link(one: str | Path, other: str | Path) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    else:
        link(source, target)
