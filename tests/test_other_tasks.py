"""Several labels a row, and scores, through every script."""

import json

import pytest
import torch
from conftest import fails
from task_data import MULTI, SCORES, ready, rows_of, write_task
from transformers import pipeline

from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import load_config

MEASURES = {MULTI: "macro_f1", SCORES: "pearson"}


@pytest.fixture(params=[MULTI, SCORES])
def task(request) -> str:
    return request.param


@pytest.fixture
def steps(project, task):
    """A project of each task, with a teacher."""
    return ready(project(), task)


def result_of(steps, *more: str, source: str = "teacher") -> dict:
    code, stderr = steps.evaluate(f"--output_json={steps.folder}/result.json", *more, source=source)
    assert code == 0, stderr
    return json.loads((steps.folder / "result.json").read_text())


def test_a_teacher_learns(steps, task):
    result = result_of(steps)
    if task == MULTI:
        assert result["mean_average_precision"] > 0.55, result
    else:  # in the data's units
        assert result["pearson"] > 0.8 and result["mean_squared_error"] < 10, result


def test_plain_transformers_give_the_same_answers(steps, task):
    """By the problem_type of the checkpoint: a sigmoid for each label, or the score as it is."""
    folder = str(steps.folder / "teacher")
    keys = json.loads((steps.folder / "teacher/config.json").read_text())
    assert keys["problem_type"] == {MULTI: "multi_label_classification", SCORES: "regression"}[task]
    config = load_config(steps.config)
    labels = ["bad", "cast", "good"] if task == MULTI else ["label"]
    model, tokenizer = load_model(folder, "--flag", config, labels), load_tokenizer(folder, "--flag")
    texts = [text for text, _ in rows_of(task, 8, 2)]
    for text, answer in zip(texts, pipeline("text-classification", folder, top_k=None)(texts), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        expected = logits.sigmoid() if task == MULTI else logits
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(
            dict(zip(labels, expected.tolist(), strict=True)), rel=1e-5
        )
    if task == SCORES:
        assert 80 < expected.item() < 120


def test_thresholds_are_tuned_on_request(project):
    steps = ready(project(), MULTI)
    assert set(result_of(steps)["thresholds"].values()) == {0.5}
    tuned = result_of(steps, "--tune_thresholds", "--split=valid")
    assert set(tuned["thresholds"].values()) != {0.5}
    assert tuned["macro_f1"] >= result_of(steps, "--split=valid")["macro_f1"]
    steps = ready(project(), SCORES)
    fails(steps.evaluate("--tune_thresholds"), "--tune_thresholds is for the task multi_label", "leave it out")


def test_measures_choose(steps, task):
    other = {MULTI: "micro_f1", SCORES: "spearman"}[task]
    code, stderr = steps.train(f"--measure={other}", "--epoch=1", out="other")
    assert code == 0 and f"valid {'micro F1' if task == MULTI else 'Spearman'} " in stderr
    fails(steps.train("--measure=accuracy"), f"--measure=accuracy is not one of the task {task}", MEASURES[task])


def test_a_stopped_training_ends_as_one_that_was_not(project, monkeypatch):
    """The last layer of scores is unfinished in standardized form, and finished in the data's units."""
    from utils.training import loop

    steps = ready(project(), SCORES)
    steps.train("--epoch=2", "--lr=1e-2", out="whole")
    stop_if_asked, seen = loop._stop_if_asked, []

    def stopped(received, accelerator, progress, save_run):
        seen.append(progress.step)
        stop_if_asked([1] if len(seen) == 9 else [], accelerator, progress, save_run)

    monkeypatch.setattr(loop, "_stop_if_asked", stopped)
    assert steps.train("--epoch=2", "--lr=1e-2", out="parts")[0] == 130
    assert steps.train("--epoch=2", "--lr=1e-2", out="parts")[0] == 0
    whole, parts = (torch.load(steps.folder / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_checkpoints_of_another_task(project):
    steps = ready(project(), MULTI)
    write_task(steps, SCORES)
    (steps.data / "label.txt").unlink(missing_ok=True)
    assert steps.preprocess()[0] == 0
    (steps.folder / "teacher/config.json").write_text(
        json.dumps(
            json.loads((steps.folder / "teacher/config.json").read_text())
            | {"id2label": {"0": "label"}, "label2id": {"label": 0}}
        )
    )
    fails(steps.evaluate(), "problem_type multi_label_classification", '"task": "multi_label"')
    # As a start, its classifier is begun anew.
    steps.encoder = str(steps.folder / "teacher")
    assert steps.train("--epoch=1", out="again")[0] == 0
    assert json.loads((steps.folder / "again/config.json").read_text())["problem_type"] == "regression"


def test_pairs_are_ranked_by_their_scores(project):
    steps = write_task(project(), SCORES)
    for i, (split, count) in enumerate({"train": 96, "valid": 48, "test": 24}.items()):
        (steps.data / f"{split}.jsonl").unlink()
        rows = enumerate(rows_of(SCORES, count, i))
        lines = [f"what film {'very ' * (n // 4 % 4)}\t{text}\t{target}\n" for n, (text, target) in rows]
        (steps.data / f"{split}.txt").write_text("".join(lines))
    assert steps.preprocess()[0] == 0
    assert steps.train("--epoch=12", "--batch_size=8")[0] == 0
    result = result_of(steps)
    assert result["pearson"] > 0.9 and 0.9 < result["ndcg_at_10"] <= 1 and 0.5 < result["mrr"] <= 1
    assert result["num_queries"] == 4
