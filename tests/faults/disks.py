"""A disk that is full, and folders that may not be written: the old output stays, and the error says so."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import snapshot

from faults.kills import litter
from faults.processes import Recipe, nothing

STEPS = ("preprocess", "train", "fastformers", "prune", "quantize", "evaluate", "predict")


def output_of(script: str, folder: Path) -> Path:
    """Where a step writes, in `folder`."""
    return folder / {"evaluate": "result.json", "predict": "out.csv"}.get(script, "out")


def limited_file_size() -> None:
    """In this process, let no file grow beyond 4 kB: the write fails as on a full disk."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def failing(recipe: Recipe, script: str, out: Path, watched: Path, change: Callable[[], None] = nothing) -> list[str]:
    """Run a step that cannot write; returns what it lost below `watched`, and what it did not say."""
    before = snapshot(watched)
    recipe.log.write_bytes(b"")
    code = recipe.run(script, out, change=change)
    log, lost = recipe.log.read_text(), []
    if code != 2 or "Traceback" in log or f"{script}.py: error: " not in log.splitlines()[-1]:
        lost.append(f"{script}: exit code {code}: {log[-200:]}")
    after = snapshot(watched)
    lost += [f"{script}: {name} changed" for name in before if after.get(name) != before[name]]
    return lost + [f"{script}: {name} left behind" for name in litter(watched)]


def small_tmpfs(recipe: Recipe, script: str) -> list[str] | None:
    """Overwrite an output on a file system that has no room for two; None where none can be mounted."""
    mount = recipe.folder / f"tmpfs-{script}"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    try:
        place = recipe
        if script == "preprocess":
            shutil.copytree(recipe.data, mount / "data")
            place = Recipe.__new__(Recipe)
            place.__dict__ |= recipe.__dict__ | {"data": mount / "data"}
        out = output_of(script, mount)
        place.must(script, out)
        with open(mount / "filler", "wb") as file:
            file.write(bytes(os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize))
        return failing(place, script, out, mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def full_disk(recipe: Recipe, script: str) -> list[str] | None:
    """Overwrite an output where no file may grow beyond 4 kB; None for one that is smaller."""
    if script == "evaluate":
        return None
    folder = recipe.folder / f"full-{script}"
    folder.mkdir()
    recipe.must(script, output_of(script, folder))
    watched = recipe.data if script == "preprocess" else folder
    return failing(recipe, script, output_of(script, folder), watched, limited_file_size)


def without_rights(recipe: Recipe, script: str) -> list[str] | None:
    """Write into a folder without permission, as another user than root; None where that cannot be."""
    if os.getuid() != 0 or script == "preprocess":
        return None
    folder = recipe.folder / f"closed-{script}"
    folder.mkdir(mode=0o555)

    def become_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    return failing(recipe, script, output_of(script, folder), folder, become_nobody)
