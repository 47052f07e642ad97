"""Ctrl-C and SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
