"""Truncated files and flipped bytes in every kind of file that the scripts read."""

import random
from pathlib import Path

from faults.processes import Recipe, run

# What is damaged, relative to the recipe's folder, and the step that reads it. A flipped bit may go unnoticed: a text
# is as good with another letter.
FILES = [
    ("data/train.txt", "preprocess"),
    ("data/valid.txt", "preprocess"),
    ("data/tokenized/meta.json", "train"),
    ("data/tokenized/train.arrow", "train"),
    ("data/tokenized/valid.arrow", "train"),
    ("config.json", "train"),
    ("encoder/config.json", "train"),
    ("encoder/model.safetensors", "train"),
    ("encoder/tokenizer.json", "train"),
    ("encoder/tokenizer_config.json", "train"),
    ("teacher.pt", "fastformers"),
    ("teacher/config.json", "fastformers"),
    ("teacher/model.safetensors", "evaluate"),
    ("stopped.unfinished", "train"),
    ("model.onnx", "onnx"),
    ("model/model.onnx", "predict"),
    ("model/model.weights", "predict"),
    ("model/tokenizer.json", "predict"),
    ("model/config.json", "predict"),
]


def prepare(recipe: Recipe) -> None:
    """Make one file of each kind.

    Raises:
        RuntimeError: a step fails.
    """
    from faults.kills import on_call
    from faults.processes import die

    recipe.must("quantize", recipe.folder / "model")
    stopped = recipe.folder / "stopped"
    recipe.run("train", stopped, change=lambda: on_call("while evaluating", 4, die))
    assert stopped.with_name("stopped.unfinished").exists()


def read(recipe: Recipe, step: str) -> int:
    """Run the step that reads a file; returns its exit code."""
    if step == "predict":
        arguments = [str(recipe.folder / "model"), f"--input={recipe.data / 'test.txt'}"]
        return run("predict", arguments, recipe.log)
    if step == "onnx":
        more = ["--enable_ort", f"--onnx_path={recipe.folder / 'model.onnx'}"]
        return recipe.run("evaluate", recipe.folder / "result.json", *more)
    outs = {"train": "stopped", "fastformers": "student", "evaluate": "result.json"}
    return recipe.run(step, recipe.folder / outs.get(step, ""))


def damages(content: bytes, flips: int, seed: int) -> list[tuple[str, bytes]]:
    """Damaged versions of a file: cut short twice, empty, and with single bytes flipped."""
    generator = random.Random(seed)
    versions = [("empty", b""), ("halved", content[: len(content) // 2]), ("a byte short", content[:-1])]
    for _ in range(flips):
        at = (
            generator.randrange(min(len(content), 4096))
            if generator.random() < 0.7
            else generator.randrange(len(content))
        )
        flipped = bytearray(content)
        flipped[at] ^= 1 << generator.randrange(8)
        versions.append((f"bit flipped at {at}", bytes(flipped)))
    return versions


def damage(recipe: Recipe, name: str, step: str, flips: int) -> tuple[int, list[str]]:
    """Read damaged versions of one file; returns how many, and which ended in neither success nor a clear error."""
    path = recipe.folder / name
    content = path.read_bytes()
    unfinished = Path(recipe.folder / "stopped.unfinished").read_bytes()
    lost = []
    versions = damages(content, flips, seed=len(name))
    for what, version in versions:
        path.write_bytes(version)
        recipe.log.write_bytes(b"")
        code = read(recipe, step)
        log = recipe.log.read_text(errors="replace")
        if code not in (0, 2) or "Traceback" in log:
            lost.append(f"{name}, {what}: exit code {code}: {log[-300:]}")
        elif code == 0 and what in ("empty", "halved") and not name.endswith(".txt"):
            lost.append(f"{name}, {what}: not noticed")
        path.write_bytes(content)
        recipe.folder.joinpath("stopped.unfinished").write_bytes(unfinished)
    return len(versions), lost
