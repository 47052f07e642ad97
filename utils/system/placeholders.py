"""What tools that keep large files elsewhere leave in a file's place until it is fetched."""

from pathlib import Path

from utils.system.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


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
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # the caller says so
        return
    if is_pointer:
        raise UserError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository")
