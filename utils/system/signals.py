"""Ctrl-C and SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, with another exit code."""

    signal = signal.SIGTERM


@contextmanager
def record_signals() -> Iterator[list[int]]:
    """Within the block, note the first Ctrl-C or SIGTERM in the list that is yielded; a second one interrupts.

    One that is ignored stays so: a shell starts its background jobs that way.
    """
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
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
