"""The real scripts in processes of their own, which can be killed; started fast, as this process has PyTorch loaded."""

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, make_encoder, write_texts

LIMIT_S = 120

# With all that they need, loaded once and before any process is started.
for path in ROOT.glob("*.py"):
    importlib.import_module(path.stem)


def nothing() -> None:
    """Change nothing in the new process."""


def start(script: str, arguments: list[str], log: Path, change: Callable[[], None] = nothing) -> int:
    """Start a script; returns its process id. `change` is called in the new process first, and may break things there.

    What it prints goes to the end of `log`.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [f"{script}.py", *arguments]
        change()
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a process, negative for the signal that killed it.

    Raises:
        TimeoutError: it is still running after LIMIT_S.
    """
    for _ in range(LIMIT_S * 100):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError(f"process {pid} took more than {LIMIT_S} s")


def run(script: str, arguments: list[str], log: Path, change: Callable[[], None] = nothing) -> int:
    """Run a script to its end; returns its exit code."""
    return wait(start(script, arguments, log, change))


def die() -> None:
    """Kill this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Recipe:
    """A tiny project in a folder, and the arguments of every step in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log.txt"
        self.data = write_texts(folder / "data")
        self.encoder = make_encoder(folder / "encoder", "bert", hidden_size=16, intermediate_size=32)
        self.config = folder / "config.json"
        self.config.write_text('{"encoder_class": "bert", "n_ctx": 16}')

    def arguments(self, script: str, out: str, *more: str) -> list[str]:
        """The options of a step that writes to the path `out`."""
        common = [f"--config={self.config}", f"--data_dir={self.data}"]
        teacher = self.folder / "teacher"
        training = ["--epoch=3", "--batch_size=16", "--eval_steps=4", "--save_steps=5", "--device=cpu", "--lr=1e-3"]
        return {
            "preprocess": [*common, f"--bert_model_name_or_path={self.encoder}"],
            "train": [
                *common, f"--bert_model_name_or_path={self.encoder}", f"--bert_output_dir={out}",
                f"--save_path={out}.pt", *training,
            ],
            "fastformers": [
                *common, f"--teacher_config={self.config}", f"--teacher_bert_model_name_or_path={teacher}",
                f"--teacher_model_path={teacher}.pt", f"--bert_model_name_or_path={self.encoder}",
                f"--bert_output_dir={out}", f"--save_path={out}.pt", "--state_loss_ratio=1", *training,
            ],
            "prune": [
                *common, f"--bert_output_dir={teacher}", f"--bert_output_dir_pruned={out}",
                f"--save_path_pruned={out}.pt", "--target_num_heads=2", "--device=cpu",
            ],
            "quantize": [*common, f"--bert_output_dir={teacher}", f"--output_dir={out}", f"--onnx_path={out}.onnx"],
            "predict": [
                str(self.folder / "model"), f"--input={self.folder / 'texts.txt'}",
                *([f"--output={out}"] if out.endswith(".csv") else []),
            ],
            "evaluate": [*common, f"--bert_output_dir={teacher}", f"--output_json={out}", "--device=cpu"],
        }[script] + list(more)  # fmt: skip

    def run(self, script: str, out: str | Path, *more: str, change: Callable[[], None] = nothing) -> int:
        """Run a step to its end; returns its exit code."""
        return run(script, self.arguments(script, str(out), *more), self.log, change)

    def must(self, script: str, out: str | Path, *more: str, change: Callable[[], None] = nothing) -> None:
        """Run a step that has to succeed.

        Raises:
            RuntimeError: it fails.
        """
        if self.run(script, out, *more, change=change):
            raise RuntimeError(self.log.read_text())


def prepared(folder: Path) -> Recipe:
    """A recipe that is preprocessed and has a teacher."""
    recipe = Recipe(folder)
    recipe.must("preprocess", "")
    recipe.must("train", folder / "teacher")
    return recipe


if __name__ == "__main__":
    # For tests, whose own process has threads and cannot be forked: a JSON list of script, log and arguments a line.
    for request in map(json.loads, sys.stdin):
        print(run(request[0], request[2:], Path(request[1])), flush=True)
    os._exit(0)  # without a second of tidying up
