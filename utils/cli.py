"""What every script does the same way: report a user's mistake, log, show progress."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

LIBRARIES = ("httpx", "httpx2", "datasets", "filelock", "accelerate", "torch", "huggingface_hub")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """A mistake the user can mend: one sentence naming the file, line or flag, and the mend.

    A ValueError, so that a program that uses `utils.runtime.Predictor` need not know this class.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, with another exit code."""

    signal = signal.SIGTERM


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Within the block, note the first Ctrl-C or SIGTERM in the list that is yielded; a second one interrupts."""
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """For processes that are started within the block: they inherit it, as Ctrl-C is for the script, which ends them.

    One that got it while it still imports would print a traceback.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: a `UserError` becomes one line on stderr and exit code 2; Ctrl-C ends with 130, SIGTERM
    with 143.

    Anything else is a bug and crashes with its traceback.
    """
    # With stderr, tqdm's default, so that a script's standard output stays its result.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s", stream=sys.stderr)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    signal.signal(signal.SIGTERM, _terminate)
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


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """As Python does, but Ctrl-C in a script that still imports its libraries, before `run`, needs no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _uncaught


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
