"""The README's recipe, word for word, by the shell, on tiny data and tiny encoders."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, make_encoder, write_texts

SCRIPTS = ["preprocess.py", "train.py", "evaluate.py", "fastformers.py", "prune.py", "quantize.py", "predict.py"]


def recipe_commands() -> list[str]:
    """The command blocks of the README that follow a `recipe` mark, in order."""
    blocks = re.findall(r"<!-- recipe -->\n *```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [re.sub(r"\s*\\\n\s*", " ", block).strip() for block in blocks]


def test_recipe(tmp_path):
    for name in [*SCRIPTS, "utils", "configs"]:
        (tmp_path / name).symlink_to(ROOT / name)
    write_texts(tmp_path / "data/sst2")
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 1100, "max_position_embeddings": 100}
    make_encoder(tmp_path / "embeddings/bert-base-uncased", "bert", num_hidden_layers=3, **sizes)
    make_encoder(tmp_path / "embeddings/pytorch.uncased_L-4_H-512_A-8", "bert", num_hidden_layers=1, **sizes)
    # `python` must be the one that runs the tests.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    commands = recipe_commands()
    assert [command.split()[1] for command in commands[:7]] == [
        "preprocess.py", "train.py", "evaluate.py", "fastformers.py", "prune.py", "quantize.py", "evaluate.py",
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "predict.py" in command:
            assert re.fullmatch(r"(negative|positive)\t[01]\.\d+\n", done.stdout)
        if "evaluate.py" in command:
            assert re.search(r"^INFO:__main__:\[Accuracy\] : \d\.\d{4}, +\d+/ +24$", done.stderr, re.MULTILINE)
            elapsed = r"^INFO:__main__:\[Elapsed Time\] : \d+\.\d\dms, \d+\.\d{4}ms on average$"
            assert re.search(elapsed, done.stderr, re.MULTILINE)
    for name in [
        "pytorch-model-teacher.pt",
        "bert-checkpoint-labels/model.safetensors",
        "pytorch-model-pruned.int8.onnx",
    ]:
        assert (tmp_path / name).is_file()
