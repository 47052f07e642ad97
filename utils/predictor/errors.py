"""What goes wrong with a model folder, told in one sentence."""

import contextlib
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


class UserError(ValueError):
    """A mistake the user can mend: one sentence naming the file, line or flag, and the mend."""


def check_fetched(path: Path) -> None:
    """Check that a path is not the placeholder of one that has not been fetched; it may be missing altogether.

    Raises:
        UserError: it is a Git-LFS pointer, or a link to what is not there, as of git-annex and DVC.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {path.readlink()}, which is not there: fetch that file with the tool that made the "
            "link (`git annex get`, `dvc pull`)"
        )
    with contextlib.suppress(OSError), open(path, "rb") as file:  # of an error the caller tells
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository")


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]
