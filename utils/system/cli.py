"""What every script does the same way: report a user's mistake, log, end on Ctrl-C.

For scripts alone: importing it changes what Ctrl-C does. Modules that a program imports use `utils.system.errors`.
"""

import utils.system.startup  # isort: skip  # noqa: F401

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from utils.system.errors import FULL_DISK, UserError
from utils.system.signals import Terminated
from utils.system.startup import GC_THRESHOLDS

LIBRARIES = ("httpx", "httpx2", "datasets", "filelock", "accelerate", "torch", "huggingface_hub")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`: a `UserError` becomes one line on stderr and exit code 2; Ctrl-C ends with 130, SIGTERM
    with 143.

    Anything else is a bug and crashes with its traceback.
    """
    # With stderr, tqdm's default, so that a script's standard output stays its result.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s", stream=sys.stderr)
    _quiet_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)  # or Python would search all that libraries hold once more at its end, for a second
    script = os.path.basename(sys.argv[0])
    try:
        main()
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        print(f"{script}: error: the disk is full or limited ({error}): make room, and run this again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"{script}: {str(stop) or 'stopped: run the same command again'}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)


def _quiet_libraries() -> None:
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # it sets up its own, and bars for the weights it loads
        from transformers import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
