"""What every script does the same way: report a user's mistake, log, show progress."""

import logging
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake the user can mend: one sentence naming the file, line or flag, and the mend.

    A ValueError, so that a program that uses `utils.runtime.Predictor` need not know this class.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    Anything else is a bug and crashes with its traceback.
    """
    # With stderr, tqdm's default, so that a script's standard output stays its result.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "datasets", "filelock", "accelerate", "torch", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        main()
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
