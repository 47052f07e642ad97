"""What a benchmark is to reach: a line of text for each target, and the same in the benchmark's result file."""

from pathlib import Path

from utils.system.files import write_json
from utils.system.machine import describe_machine

RESULTS = Path(__file__).resolve().parent.parent / "results"


def at_least(name: str, measured: float | None, needs: float) -> dict:
    """A target that is met by `needs` or more; None: nothing was measured, and the target is not met."""
    return _target(name, measured, needs, at_most=False)


def at_most(name: str, measured: float | None, needs: float) -> dict:
    """A target that is met by `needs` or less; None as of `at_least`."""
    return _target(name, measured, needs, at_most=True)


def _target(name: str, measured: float | None, needs: float, at_most: bool) -> dict:
    met = measured is not None and (measured <= needs if at_most else measured >= needs)
    return {"target": name, "measured": measured, "needs": needs, "at_most": at_most, "met": met}


def write_results(path: str, found: dict, targets: list[dict]) -> None:
    """Write what was found, with the machine where `found` has none, and the targets.

    Args:
        path: in results/.
    """
    (RESULTS / path).parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / path, {"machine": describe_machine()} | found | {"targets": targets})


def print_targets(targets: list[dict]) -> None:
    """A line for each target."""
    for target in targets:
        value = "nothing" if target["measured"] is None else f"{target['measured']:.4g}"
        needs = f"{'<=' if target['at_most'] else ''}{target['needs']:g}"
        print(f"target: {target['target']} measured {value} needs {needs} {'ok' if target['met'] else 'short'}")
