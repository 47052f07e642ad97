"""Several labels a row, and scores: trained, evaluated, distilled and pruned."""

import json

import pytest
import torch
from conftest import fails, make_tokenizer
from task_data import MEASURES, MULTI, SCORES, ready, result_of, rows_of, write_task
from transformers import pipeline

from utils.data.tables import load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import load_config
from utils.training.soft_targets import with_soft_labels

NAN = float("nan")


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
    assert result["pearson"] > 0.5 and 0.9 < result["ndcg_at_10"] <= 1 and 0.25 <= result["mrr"] <= 1
    assert result["num_queries"] == 4


KD_LOSSES = {MULTI: ["soft_cross_entropy", "mse"], SCORES: ["mse"]}


def test_students_learn_from_teachers(steps, task):
    """With the losses of states and labels, unlabelled and augmented rows, and two teachers."""
    (steps.data / "unlabelled.txt").write_text("".join(f"{text}\n" for text, _ in rows_of(task, 40, 7)))
    augment = [f"--data_dir={steps.data}", f"--bert_model_name_or_path={steps.encoder}", f"--config={steps.config}"]
    assert steps.script("augment_data", *augment, "--n_iter=2", "--mask_ratio=0", "--unlabelled")[0] == 0
    assert steps.preprocess()[0] == 0
    more = ["--unlabelled", "--augmented", "--label_ratio=0.5", "--state_loss_ratio=1", "--epoch=3"]
    for kd_loss in KD_LOSSES[task]:
        code, stderr = steps.distill(f"--kd_loss={kd_loss}", *more, out=kd_loss)
        assert code == 0, stderr
        assert result_of(steps, source=kd_loss)["mean_average_precision" if task == MULTI else "pearson"] > 0.35
    two = ["--teacher_bert_model_name_or_path", str(steps.folder / "teacher"), str(steps.folder / kd_loss)]
    paths = ["--teacher_config", *[steps.config] * 2, "--teacher_model_path", *(f"{path}.pt" for path in two[1:])]
    code, stderr = steps.distill(*two, *paths, "--epoch=1", out="of-two")
    assert code == 0 and "mean of 2, valid loss" in stderr, stderr
    if task == SCORES:
        fails(steps.distill("--kd_loss=soft_cross_entropy"), "--kd_loss=soft_cross_entropy is none", "give mse")


def test_a_student_says_what_its_teacher_says(steps, task):
    """Of the teacher's own layers, at once: the loss of the logits is 0 where nothing was cut."""
    steps.encoder = str(steps.folder / "teacher")
    code, stderr = steps.distill("--kd_loss=mse", "--dropout=0", "--lr=1e-9", "--measure=loss")
    assert code == 0 and "train loss 0.0000" in stderr, stderr


SOFT = {MULTI: [{"bad": 0.9, "cast": 0.8, "good": 0.05}, [0, 1, 0.5], None], SCORES: [101.5, [98], None]}
NO_SOFT = {
    MULTI: [([0.5, 1.2, 0], "the probability of 'cast' is 1.2"), ([1, 0], "2 probabilities, but there are 3 labels")],
    SCORES: [
        ([1, 2], "2 scores, but there are 1"),
        ("high", "the soft label is 'high'"),
        (NAN, "the soft label is nan"),
    ],
}


def test_soft_labels(steps, task):
    soft = steps.data / "train.soft.jsonl"
    soft.write_text("".join(json.dumps(value) + "\n" for value in SOFT[task] * 64))
    assert steps.preprocess()[0] == 0
    code, stderr = steps.distill("--soft_labels", "--kd_loss=mse", "--epoch=1")
    assert code == 0, stderr
    data = load_data(steps.data, make_tokenizer(), 16, task=task)
    logits, has_logits = with_soft_labels(data, ["train"], None)
    assert has_logits.tolist() == [True, True, False] * 64
    if task == SCORES:
        assert logits[:2].tolist() == [[101.5], [98.0]]
    else:
        torch.testing.assert_close(logits[0].sigmoid(), torch.tensor([0.9, 0.8, 0.05]))
        torch.testing.assert_close(logits[1].sigmoid(), torch.tensor([0.0, 1.0, 0.5]), atol=2e-4, rtol=0)
    for value, part in NO_SOFT[task]:
        soft.write_text("".join(json.dumps(each) + "\n" for each in [value, *SOFT[task] * 64][:192]))
        fails(steps.preprocess(), "train.soft.jsonl, line 1", part)


@pytest.mark.parametrize("target", ["labels", "logits"])
def test_pruning_by_the_tasks_loss(steps, task, target):
    """Half of each layer, and recovered: not far from the whole model."""
    code, stderr = steps.prune("--target_num_heads=2", "--target_ffn_dim=32", f"--importance_target={target}")
    name = "macro F1" if task == MULTI else "Pearson"
    assert code == 0 and stderr.count(f"valid {name} ") == 2, stderr
    before, after = (float(line.rsplit(" ", 1)[1]) for line in stderr.splitlines() if f"valid {name} " in line)
    assert after > before - 0.2
    if target == "labels":
        code, stderr = steps.prune("--target_num_heads=2", "--iterations=2", out="in-steps")
        assert code == 0, stderr
        keys = json.loads((steps.folder / "in-steps/config.json").read_text())
        assert keys["problem_type"] == {MULTI: "multi_label_classification", SCORES: "regression"}[task]
