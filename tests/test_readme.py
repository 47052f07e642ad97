"""The README's recipe, word for word, by the shell, on tiny data and tiny encoders."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_encoder, make_tokenizer, write_texts

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def recipe_commands() -> list[str]:
    """The commands in blocks of the README that follow a `recipe` mark, in order."""
    blocks = re.findall(r"<!-- recipe -->\n *```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [re.sub(r"\s*\\\n\s*", " ", block).splitlines() for block in blocks]
    return [line.strip() for line in sum(lines, []) if line.strip()]


@pytest.fixture
def run_command(tmp_path, monkeypatch):
    """Run a command in tmp_path: `run_command("python train.py ...")` -> (exit code, what it prints).

    A `python SCRIPT` is run by one process, which has PyTorch loaded: that saves most of the time.
    """
    # `python` must be the one that runs the tests.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runner = subprocess.Popen([sys.executable, "-m", "faults.processes"], cwd=tmp_path, text=True, **pipes)
    log = tmp_path / "log.txt"

    def run(command: str) -> tuple[int, str]:
        words = shlex.split(command)
        if words[0] == "python" and "|" not in words:
            log.write_bytes(b"")
            print(json.dumps([words[1].removesuffix(".py"), str(log), *words[2:]]), file=runner.stdin, flush=True)
            return int(runner.stdout.readline()), log.read_text()
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout or done.stderr

    with runner:
        yield run
        runner.stdin.close()


def test_recipe(tmp_path, run_command):
    for name in [*SCRIPTS, "utils", "configs"]:
        (tmp_path / name).symlink_to(ROOT / name)
    write_texts(tmp_path / "data/sst2")
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 1100, "max_position_embeddings": 100}
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    for name, layers in (("bert-base-uncased", 3), ("pytorch.uncased_L-4_H-512_A-8", 1)):
        make_encoder(tmp_path / "embeddings" / name, "bert", tokenizer, num_hidden_layers=layers, **sizes)
    commands = recipe_commands()
    assert [command.split()[1] for command in commands[:7]] == [
        "preprocess.py", "train.py", "evaluate.py", "fastformers.py", "prune.py", "quantize.py", "evaluate.py",
    ]  # fmt: skip
    for command in commands:
        code, shown = run_command(command)
        assert code == 0, f"{command}\n{shown}"
        if "predict.py" in command:
            assert re.fullmatch(r"(negative|positive)\t[01]\.\d+\n", shown)
        if "evaluate.py" in command:
            assert re.search(r"^INFO:__main__:\[Accuracy\] : \d\.\d{4}, +\d+/ +24$", shown, re.MULTILINE)
            elapsed = r"^INFO:__main__:\[Elapsed Time\] : \d+\.\d\dms, \d+\.\d{4}ms on average$"
            assert re.search(elapsed, shown, re.MULTILINE)
    for name in [
        "pytorch-model-teacher.pt",
        "bert-checkpoint-labels/model.safetensors",
        "pytorch-model-pruned.int8.onnx",
    ]:
        assert (tmp_path / name).is_file()
