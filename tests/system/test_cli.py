"""How a script ends: its exit code, and one line."""

import errno
import os
import signal

import pytest

from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.signals import Terminated


@pytest.fixture(autouse=True)
def former_handler():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def ending(error: BaseException) -> int:
    """The exit code of a script whose work ends with an error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UserError("--flag: mend it"), 2, ": error: --flag: mend it\n"),
        (KeyboardInterrupt(), 130, ": stopped: run the same command again\n"),
        (KeyboardInterrupt("stopped at step 3"), 130, ": stopped at step 3\n"),
        (Terminated(), 143, ": stopped: run the same command again\n"),
        *(
            (OSError(number, os.strerror(number)), 2, "the disk is full or limited")
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        ),
    ],
)
def test_endings(capsys, error, code, part):
    assert ending(error) == code
    stderr = capsys.readouterr().err
    assert part in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EIO, "Input/output error"), ValueError("bug")])
def test_bugs_crash_loudly(error):
    with pytest.raises(type(error)):
        run_script(lambda: (_ for _ in ()).throw(error))


def test_sigterm_ends_the_work():
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: signal.raise_signal(signal.SIGTERM))
    assert stop.value.code == 143
