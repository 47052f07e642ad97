"""What the folders of quantize.py and cascade.py have in common: the program that labels texts with them.

Imports no PyTorch, which takes seconds.
"""

import json
import shutil
from pathlib import Path

from utils.system.errors import UserError
from utils.system.files import check_output_folder

ROOT = Path(__file__).resolve().parents[2]


def check_model_dir(path: str | Path, flag: str) -> None:
    """Check that `path` can become a model folder: that it is new, empty, or one already.

    Raises:
        UserError: it holds other files, or cannot be written to; names `flag`.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}={path} is a file: name a folder")
    if path.is_dir() and any(path.iterdir()) and not _is_model_dir(path):
        raise UserError(f"{flag}={path} holds other files, which would be replaced: name a new folder")
    check_output_folder(path.parent, flag)


def copy_runtime(folder: Path) -> None:
    """Put in what labels texts with a folder, and the names of the packages that it needs."""
    shutil.copytree(ROOT / "utils/predictor", folder / "predictor", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements-runtime.txt", folder / "requirements.txt")


def _is_model_dir(path: Path) -> bool:
    try:
        return "fastformers" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
