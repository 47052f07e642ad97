"""SIGKILL at random and at chosen moments: what a killed run leaves is whole, and what continues it ends the same."""

import functools
import importlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from conftest import ROOT
from safetensors import safe_open

from faults.processes import Recipe, die, nothing, start, wait
from utils.export.int8 import CANDIDATES
from utils.measuring import timing
from utils.predictor import Predictor
from utils.system.journal import unfinished_path

SAVE_STEPS = 5  # as in Recipe

# Where a chosen kill strikes: just before a call of one of these.
MOMENTS = {
    "while saving": ("safetensors.torch", "save_file"),
    "before a file is synced": ("os", "fsync"),
    "between renames": ("os", "replace"),
    "between folder swaps": ("utils.system.files", "_exchange"),
    "while evaluating": ("utils.training.scoring", "collate"),
    "while measuring": ("utils.measuring.timing", "timed"),
    "before clearing up": ("pathlib", "Path.unlink"),
}


def on_call(moment: str, number: int, act: Callable[[], None]) -> None:
    """In this process, call `act` before the call of this number (0: before every one) of what MOMENTS names."""
    module_name, name = MOMENTS[moment]
    owner = importlib.import_module(module_name)
    *path, name = name.split(".")
    owner = functools.reduce(getattr, path, owner)
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if number in (0, calls):
            act()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)
    if name == "save_file":  # imported by name
        for module in ("utils.training.resume", "utils.training.teacher"):
            setattr(importlib.import_module(module), name, wrapped)


def count_calls(recipe: Recipe, script: str, out: Path, moment: str, *more: str) -> int:
    """How many times a whole run calls what `moment` names."""
    tally = recipe.folder / "tally"
    tally.write_bytes(b"")

    def add() -> None:
        with open(tally, "ab") as file:
            file.write(b".")

    recipe.run(script, out, *more, change=lambda: on_call(moment, 0, add))
    return tally.stat().st_size


def corrupt_files(folder: Path) -> list[str]:
    """Names of the outputs in `folder` that exist and cannot be read whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.endswith(".tmp") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".unfinished" and path.read_bytes().startswith(b"{"):
                for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                    json.loads(line)
            elif path.suffix in (".safetensors", ".unfinished"):
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():
                        file.get_tensor(key)
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.is_dir() and (path / "config.json").exists() and (path / "model.onnx").exists():
                Predictor(str(path)).predict("good film")
            elif path.is_dir() and path.parent == folder and not (path / "config.json").exists():
                found.append(path.name)
        except Exception as error:
            found.append(f"{path.name}: {error!r}")
    return found


def litter(folder: Path) -> list[str]:
    """What finished runs should have removed."""
    return [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".old", ".unfinished")]


def weights(out: Path) -> bytes:
    """The bytes of both forms of a checkpoint's weights."""
    tensors = torch.load(f"{out}.pt", weights_only=True)
    return (out / "model.safetensors").read_bytes() + b"".join(t.numpy().tobytes() for t in tensors.values())


def random_kills(recipe: Recipe, script: str, kills: int, seed: int) -> list[str]:
    """Kill trainings at random times until there were so many kills, continuing each to its end; returns what was lost.

    Raises:
        RuntimeError: a run that nothing disturbs fails.
    """
    folder, steps = recipe.folder / f"{script}-kills", recipe.folder / "steps"

    def count_steps() -> None:
        step = torch.optim.AdamW.step

        def counted(*arguments, **options):
            with open(steps, "ab") as file:
                file.write(b".")
            return step(*arguments, **options)

        torch.optim.AdamW.step = counted

    steps.write_bytes(b"")
    started = time.monotonic()
    recipe.must(script, recipe.folder / f"{script}-whole", change=count_steps)
    duration, total = time.monotonic() - started, steps.stat().st_size
    expected = weights(recipe.folder / f"{script}-whole")
    generator, lost, done_kills = random.Random(seed), [], 0
    while done_kills < kills:
        out = folder / f"run{done_kills}"
        folder.mkdir(exist_ok=True)
        reached, finished = 0, False
        while not finished:
            steps.write_bytes(b"")
            recipe.log.write_bytes(b"")
            pid = start(script, recipe.arguments(script, str(out)), recipe.log, count_steps)
            if done_kills < kills:
                time.sleep(generator.uniform(0.2, 1.1) * duration)
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            log = recipe.log.read_text()
            resumed = int((re.findall(r"\[Resume\].*from step (\d+)", log) or [0])[0])
            if steps.stat().st_size and reached - resumed > SAVE_STEPS:
                lost.append(f"{script}: {reached - resumed} steps repeated")
            if steps.stat().st_size:
                reached = resumed + steps.stat().st_size
            if code == -signal.SIGKILL:
                done_kills += 1
                lost += corrupt_files(folder)
                # Killed after its end, which is when it removes what it kept, before the process was gone.
                finished = reached == total and not unfinished_path(out).exists()
            elif code:
                lost.append(f"{script}: exit code {code}: {log[-300:]}")
                return lost
            else:
                finished = True
        if weights(out) != expected:
            lost.append(f"{script}: other weights after {done_kills} kills")
        lost += litter(folder)
    return lost


def chosen_kills(recipe: Recipe, script: str, moment: str, most: int, *more: str) -> tuple[int, list[str]]:
    """Kill a step before each call, `most` of them, of what `moment` names; returns how many, and what was lost."""
    folder = recipe.folder / f"{script}-{moment}".replace(" ", "-")
    folder.mkdir()
    whole = folder / "whole"
    out = folder / ("out.json" if script == "evaluate" else "out")
    for made in (whole, out):
        recipe.must(script, made, *more)  # replacing takes other calls than making
    calls = count_calls(recipe, script, whole, moment, *more)
    expected = weights(whole) if Path(f"{whole}.pt").exists() else None
    numbers = sorted({1 + i * (calls - 1) // max(1, most - 1) for i in range(min(most, calls))})
    lost = []
    for number in numbers:
        code = recipe.run(script, out, *more, change=lambda number=number: on_call(moment, number, die))
        lost += [f"{script}, {moment} {number}: {name}" for name in corrupt_files(folder)]
        if code != -signal.SIGKILL:
            lost.append(f"{script}, {moment} {number}: exit code {code} where it should have been killed")
        if recipe.run(script, out, *more, change=nothing):
            lost.append(f"{script}, {moment} {number}: cannot be run again")
        elif expected is not None and weights(out) != expected:
            lost.append(f"{script}, {moment} {number}: other weights")
        lost += [f"{script}, {moment} {number}: {name} left behind" for name in litter(recipe.folder)]
    return len(numbers), lost


def killed_measurement(recipe: Recipe, most: int) -> tuple[int, list[str]]:
    """Kill quantize.py between its measurements; it must go on with the turns that are missing, and end with a choice.

    Returns:
        How many times it was killed, and what was lost.
    """
    timing.ROWS_A_TURN, rows_a_turn = 8, timing.ROWS_A_TURN  # inherited by the processes
    try:
        folder = recipe.folder / "measured"
        folder.mkdir()
        versions, out, lost = 1 + len(CANDIDATES), folder / "out", []
        calls = count_calls(recipe, "quantize", out, "while measuring")
        numbers = [1 + i * (calls - 1) // most for i in range(1, most + 1)]
        for number in numbers:
            recipe.run("quantize", out, change=lambda number=number: on_call("while measuring", number, die))
            lost += [f"quantize, measurement {number}: {name}" for name in corrupt_files(folder)]
            finished = (number - 1) // versions * versions
            if (left := count_calls(recipe, "quantize", out, "while measuring")) != calls - finished:
                lost.append(f"quantize, measurement {number}: {left} measurements instead of {calls - finished}")
            lost += [f"quantize, measurement {number}: {name}" for name in corrupt_files(folder) + litter(folder)]
        return len(numbers), lost
    finally:
        timing.ROWS_A_TURN = rows_a_turn


def prepare_labelling(recipe: Recipe, rows: int) -> None:
    """A model's folder, and texts.txt with so many rows, for predict.py."""
    recipe.must("quantize", recipe.folder / "model", "--fp32")
    texts = [line.rpartition("\t")[0] for line in (recipe.data / "train.txt").read_text().splitlines()]
    repeated = itertools.islice(itertools.cycle(texts), rows)
    (recipe.folder / "texts.txt").write_text("".join(f"{text} {i}\n" for i, text in enumerate(repeated)))


def killed_labelling(recipe: Recipe, most: int) -> tuple[int, list[str]]:
    """Kill predict.py --output at random times, each time after what was left; returns how often, and what was lost."""
    prepare_labelling(recipe, 100_000)
    folder, lost, done_kills = recipe.folder / "labelled", [], 0
    folder.mkdir()
    whole, out = folder / "whole.csv", folder / "out.csv"
    started = time.monotonic()
    recipe.must("predict", whole)
    duration, generator = time.monotonic() - started, random.Random(2)
    parts = 0
    while done_kills < most:
        recipe.log.write_bytes(b"")
        pid = start("predict", recipe.arguments("predict", str(out)), recipe.log)
        time.sleep(generator.uniform(0.2, 0.95) * duration / most)
        instances = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code == 0:  # the machine is faster than when it made `whole`
            out.unlink()
            duration, parts = duration * 0.7, 0
            continue
        if code != -signal.SIGKILL:
            lost.append(f"predict: failed before it was killed: {recipe.log.read_text()[-300:]}")
            break
        done_kills += 1
        if psutil.wait_procs(instances, timeout=30)[1]:
            lost.append("predict: an instance outlived the script")
        if out.exists():
            lost.append("predict: the output is there before its end")
        lost += corrupt_files(folder)
        unfinished = unfinished_path(out)
        kept_parts = unfinished.read_bytes().count(b"\n") if unfinished.exists() else 0
        if kept_parts < parts:
            lost.append(f"predict: {kept_parts} finished chunks where there were {parts}")
        parts = kept_parts
    if recipe.run("predict", out):
        lost.append(f"predict: cannot be run again: {recipe.log.read_text()[-300:]}")
    elif out.read_bytes() != whole.read_bytes():
        lost.append(f"predict: other bytes after {done_kills} kills")
    return done_kills, lost + litter(folder)


def killed_worker(recipe: Recipe) -> list[str]:
    """Kill one of two processes of a training: the other must not wait for it, and the same command must go on."""
    outs, lost = [recipe.folder / name for name in ("two-whole", "two-killed")], []

    def launch(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        arguments = recipe.arguments("train", str(out), "--epoch=40")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(recipe.log, "ab") as log:
            script = str(ROOT / "train.py")
            return subprocess.Popen([*command, script, *arguments], env=environment, stdout=log, stderr=log)

    if launch(outs[0]).wait():
        raise RuntimeError(recipe.log.read_text())
    job = launch(outs[1])
    unfinished = outs[1].with_name(f"{outs[1].name}.unfinished")
    while job.poll() is None and not unfinished.exists():
        time.sleep(0.05)
    workers = [child for child in psutil.Process(job.pid).children() if "train.py" in " ".join(child.cmdline())]
    workers[-1].kill()
    start = time.monotonic()
    if not job.wait():
        lost.append("two processes: one was killed, and the job says it succeeded")
    if time.monotonic() - start > 60:
        lost.append(f"two processes: one was killed, and the job took {time.monotonic() - start:.0f} s to fail")
    recipe.log.write_bytes(b"")
    if launch(outs[1]).wait() or "[Resume]" not in recipe.log.read_text():
        lost.append(f"two processes: not continued: {recipe.log.read_text()[-300:]}")
    elif weights(outs[0]) != weights(outs[1]):
        lost.append("two processes: other weights")
    return lost + corrupt_files(recipe.folder / "two-killed") + litter(recipe.folder)
