"""`python my-model/predictor`: see command_line.py."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).absolute().parent
    if not __package__:  # run as a folder, in which Python then looks for modules, and not for the package that it is
        sys.path[0] = str(folder.parent)
    importlib.import_module(f"{__package__ or folder.name}.command_line").main()
