"""The processes that a launcher such as torchrun started: a folder that all of them write, and errors of one."""

import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from utils.system.errors import UserError, first_line
from utils.system.files import atomic_folder


def join_processes() -> PartialState:
    """This process among those of the launcher, on CPUs; one alone where there was none. Only the first one logs."""
    state = PartialState(cpu=True)
    leave_at_exit(state)
    if not state.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    return state


def leave_at_exit(state: PartialState) -> None:
    """Close the connections to the other processes in the end: gloo's threads abort a process that is over before."""
    if state.backend == "gloo":
        atexit.register(state.destroy_process_group)


@contextmanager
def together(state: PartialState) -> Iterator[None]:
    """Leave the block when all processes have come to its end; an error in one of them is an error in all.

    Raises:
        UserError: there was an error in another process, or it died.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    try:
        failures = gather_object([first_line(failure) if failure else None])
    except RuntimeError as error:  # of torch.distributed
        raise failure or UserError(
            "another process has ended before this one: see its message, and run the same command again"
        ) from error
    if failure:
        raise failure
    for number, failed in enumerate(failures):
        if failed:
            raise UserError(f"process {number} failed: {failed}")


@contextmanager
def atomic_folder_of_all(path: Path, state: PartialState) -> Iterator[Path]:
    """As `utils.system.files.atomic_folder`, one temporary folder for all processes, which must share their files.

    The first process puts it in place when it leaves the block, so only that one may write after the last `together`.

    Raises:
        UserError: as `together`, or the processes do not share their files.
    """
    parent = path.parent.resolve()
    with together(state), ExitStack() as stack:
        with together(state):
            folder = stack.enter_context(atomic_folder(path)) if state.is_main_process else path
        # Machines may have mounted the files they share in different places.
        (name,) = broadcast_object_list([os.path.relpath(folder, parent)])
        with together(state):
            if not (parent / name).is_dir():
                raise UserError(f"{parent} is not the same folder in all processes: put it where all machines see it")
        yield parent / name
