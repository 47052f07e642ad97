"""Tiny data sets of several labels a row and of scores, which depend on the words of the texts."""

import json
import random
import shutil

from conftest import ALIKE, WORDS, made_once

CONFIG = {"encoder_class": "bert", "n_ctx": 16}
MULTI, SCORES = "multi_label", "regression"
MEASURES = {MULTI: "macro_f1", SCORES: "pearson"}


def several_labels(text: str) -> list[str]:
    words = set(text.split())
    return [
        name
        for name, of in {"good": {"good", "great"}, "bad": {"bad", "awful"}, "cast": {"cast"}}.items()
        if of & words
    ]


def score(text: str) -> float:
    """From about 90 to 110."""
    values = {"good": 4.0, "great": 6.0, "bad": -4.0, "awful": -6.0}
    return 100 + sum(values.get(word, 0.0) for word in set(text.split()))


def rows_of(task: str, count: int, seed: int = 0) -> list[tuple[str, object]]:
    generator, rows = random.Random(seed), []
    for i in range(count):
        words = generator.choices(WORDS[:9], k=generator.randint(1, 6))
        words += generator.sample(["good", "great", "bad", "awful", "cast"], k=i % 3)
        generator.shuffle(words)
        text = " ".join(words)
        rows.append((text, several_labels(text) if task == MULTI else score(text)))
    return rows


def write_task(steps, task: str, counts: dict[str, int] | None = None):
    """Make the data set of a `Project` one of this task, in JSON lines, and its configuration; returns it."""
    shutil.rmtree(steps.data)
    steps.data.mkdir()
    for i, (split, count) in enumerate((counts or {"train": 192, "valid": 48, "test": 24}).items()):
        lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows_of(task, count, i)]
        (steps.data / f"{split}.jsonl").write_text("".join(lines))
    steps.config = str(steps.folder / "config.json")
    (steps.folder / "config.json").write_text(json.dumps(CONFIG | {"task": task}))
    return steps


def ready(steps, task: str):
    """As `write_task`, tokenized, with a teacher that knows the words: trained once, and copied from then on."""
    learn = ("--lr=1e-2", "--epoch=12", "--batch_size=8", *ALIKE)
    return made_once(task, write_task(steps, task), lambda steps: [steps.preprocess(), steps.train(*learn)])


def result_of(steps, *more: str, source: str = "teacher") -> dict:
    """What evaluate.py writes."""
    code, stderr = steps.evaluate(f"--output_json={steps.folder}/result.json", *more, source=source)
    assert code == 0, stderr
    return json.loads((steps.folder / "result.json").read_text())
