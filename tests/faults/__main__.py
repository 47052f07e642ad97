"""Try everything, and print one table: what was tried, survived and lost.

    make faults                  all of it
    python -m faults --short     a sample, with tests/ in PYTHONPATH

Exit code 1 if anything was lost.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from faults import damage, disks, inputs, kills
from faults.processes import Recipe, prepared
from utils.measuring.timing import aligned_table

Result = tuple[str, int, list[str]]


def try_kills(recipe: Recipe, short: bool) -> list[Result]:
    """SIGKILL at random times, and at chosen moments."""
    results = []
    for script in ("train", "fastformers"):
        count = 2 if short else 20
        results.append((f"SIGKILL at random, {script}", count, kills.random_kills(recipe, script, count, seed=1)))
    results.append(("SIGKILL at random, predict --output", *kills.killed_labelling(recipe, 1 if short else 5)))
    results.append(("SIGKILL while measuring, quantize", *kills.killed_measurement(recipe, 1 if short else 12)))
    if not short:
        results.append(("SIGKILL of one of two processes", 1, kills.killed_worker(recipe)))
    steps = ("train", "fastformers", "prune", "preprocess", "quantize", "evaluate")
    moments = ["between renames"] if short else list(kills.MOMENTS)
    for script in ("train",) if short else steps:
        tried, lost = 0, []
        for moment in moments:
            more, found = kills.chosen_kills(recipe, script, moment, 2 if short else 12)
            tried, lost = tried + more, lost + found
        results.append((f"SIGKILL at chosen moments, {script}", tried, lost))
    return results


def try_disks(recipe: Recipe, short: bool) -> list[Result]:
    """No room, and no permission."""
    results = []
    if not short:
        kills.prepare_labelling(recipe, 2_000)
    for name, attempt in (
        ("a full disk", disks.full_disk), ("a full tmpfs", disks.small_tmpfs), ("no permission", disks.without_rights),
    ):  # fmt: skip
        found = [attempt(recipe, script) for script in (("train",) if short else disks.STEPS)]
        tried = [lost for lost in found if lost is not None]
        results.append((name, len(tried), sum(tried, [])))
    return results


def try_damage(recipe: Recipe, short: bool) -> list[Result]:
    """Truncated and flipped files."""
    damage.prepare(recipe)
    results = []
    for name, step in damage.FILES[::6] if short else damage.FILES:
        results.append((f"damaged {name}", *damage.damage(recipe, name, step, 1 if short else 12)))
    return results


def try_inputs(recipe: Recipe, short: bool) -> list[Result]:
    """Bad input, written down and generated."""
    cases = inputs.written_down(recipe)
    cases = cases[::12] if short else cases
    lost = [wrong for case in cases if (wrong := inputs.failure(recipe, case))]
    bombs = ["a pickle was executed"] if inputs.exploded(recipe) else []
    return [
        ("bad input, written down", len(cases), lost + bombs),
        ("bad input, generated", *inputs.generated(recipe, 5 if short else 60)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a sample of all")
    args = parser.parse_args()
    start, results = time.monotonic(), []
    for attempt in (try_inputs, try_kills, try_disks, try_damage):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            found = attempt(prepared(Path(folder)), args.short)
        results += found
        for name, _, lost in found:
            for what in lost:
                print(f"LOST {name}: {what}", flush=True)
    rows = [[name, str(tried), str(tried - min(tried, len(lost))), str(len(lost))] for name, tried, lost in results]
    print(aligned_table(["fault", "tried", "survived", "lost"], rows))
    print(f"{sum(tried for _, tried, _ in results)} faults in {time.monotonic() - start:.0f} s")
    sys.exit(any(lost for _, _, lost in results))


if __name__ == "__main__":
    main()
