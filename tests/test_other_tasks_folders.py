"""Model folders of several labels a row, and of scores: every script that makes or opens one."""

import json
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import fails, made_once, make_tokenizer
from task_data import MEASURES, MULTI, SCORES, ready, result_of, rows_of, write_task

from utils.data.tables import load_data, row_labels
from utils.models.classifier import load_model
from utils.models.config import load_config
from utils.predictor.command_line import is_sure
from utils.predictor.model import Prediction, Predictor, sigmoid
from utils.system.errors import UserError
from utils.training.metrics import measure, tuned_thresholds
from utils.training.scoring import predict


@pytest.fixture
def folders(steps, task):
    """Model folders of a teacher and of a narrower model."""
    more = ["--fp32"] + ["--tune_thresholds"] * (task == MULTI)

    def make(steps):
        yield steps.prune("--target_num_heads=1", "--target_ffn_dim=16")
        for source in ("teacher", "pruned"):
            yield steps.quantize(f"--output_dir={steps.folder}/{source}-model", *more, source=source)

    made_once(f"folders of {task}", steps, make)
    return steps.folder / "teacher-model", steps.folder / "pruned-model"


def test_folders_give_what_pytorch_gives(steps, task, folders, capsys):
    predictor, texts = Predictor(folders[0], 1), [text for text, _ in rows_of(task, 24, 2)]
    config = load_config(steps.config)
    model = load_model(str(steps.folder / "teacher"), "--flag", config, predictor.labels)
    tokenizer = make_tokenizer()
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts]).numpy()
    predictions = predictor.predict_batch(texts)
    card = (folders[0] / "README.md").read_text()
    if task == SCORES:
        assert [each.score for each in predictions] == pytest.approx(logits[:, 0].tolist(), rel=1e-5)
        assert predictions[0].label == "" and "# Model of scores: label" in card and "Pearson" in card
        return
    own = json.loads((folders[0] / "config.json").read_text())["fastformers"]
    valid = load_data(steps.data, tokenizer, 16, task=task).splits["valid"]
    assert own["label_separator"] == "|" and set(own["thresholds"]) == set(predictor.labels)
    thresholds = np.array([own["thresholds"][label] for label in predictor.labels])
    of_valid = predict(model, valid, Accelerator(cpu=True), "valid").numpy()
    assert thresholds == pytest.approx(tuned_thresholds(of_valid, row_labels(valid)), abs=1e-4)
    given = sigmoid(logits) > thresholds
    for prediction, row, is_given in zip(predictions, sigmoid(logits), given, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert prediction.labels == [label for label, own in zip(predictor.labels, is_given, strict=True) if own]
        assert prediction.label == "|".join(prediction.labels)
    assert "any number of labels a text" in card and "macro F1" in card
    more = ["--enable_ort", f"--onnx_path={folders[0]}", "--split=valid"]
    result = result_of(steps, *more)
    assert result["thresholds"] == own["thresholds"]
    assert result["macro_f1"] == pytest.approx(measure("macro_f1", of_valid, row_labels(valid), thresholds))


def test_lines_of_predict(script, steps, task, folders, capsys):
    (steps.folder / "texts.txt").write_text("good cast\nbad film\na plot\n")
    lines = {}
    for form in ("tsv", "jsonl"):
        assert run_predict(folders[0], form, steps) == 0
        lines[form] = capsys.readouterr().out.splitlines()
    predictor = Predictor(folders[0], 1)
    predictions = [predictor.predict(text) for text in ("good cast", "bad film", "a plot")]  # alone, as lines are
    for tsv, line, prediction in zip(lines["tsv"], lines["jsonl"], predictions, strict=True):
        if task == SCORES:
            assert tsv == f"{prediction.score:.6f}" and json.loads(line) == {"score": prediction.score}
        else:
            shares = "|".join(f"{prediction.probabilities[label]:.6f}" for label in prediction.labels)
            assert tsv == f"{prediction.label}\t{shares}"
            expected = {"label": prediction.label, "labels": prediction.labels}
            assert json.loads(line) == expected | {"probabilities": prediction.probabilities}


def run_predict(folder, form: str, steps, *more: str) -> int:
    """predict.py in this process, its lines on standard output."""
    import predict

    sys.argv = ["predict.py", str(folder), f"--input={steps.folder}/texts.txt", f"--format={form}", *more]
    predict.main()
    return 0


def test_sure_answers(project, capsys):
    prediction = Prediction("a|b", {"a": 0.9, "b": 0.7, "c": 0.2}, labels=["a", "b"])
    with pytest.raises(UserError, match="labels, not scores"):
        prediction.score  # noqa: B018
    assert is_sure(prediction, 0.7) and not is_sure(prediction, 0.75)
    assert not is_sure(prediction._replace(probabilities={"a": 0.9, "b": 0.9, "c": 0.4}), 0.7)
    steps = ready(project(), SCORES)
    steps.quantize(f"--output_dir={steps.folder}/model", "--fp32", source="teacher")
    (steps.folder / "texts.txt").write_text("good\n")
    with pytest.raises(UserError, match="--min_probability is for labels"):
        run_predict(steps.folder / "model", "tsv", steps, "--min_probability=0.8")


def test_ranking_passages(project):
    steps = write_task(project(), SCORES)
    for i, (split, count) in enumerate({"train": 192, "valid": 48, "test": 24}.items()):
        (steps.data / f"{split}.jsonl").unlink()
        rows = rows_of(SCORES, count, i)
        (steps.data / f"{split}.txt").write_text("".join(f"what film\t{text}\t{target}\n" for text, target in rows))
    assert steps.preprocess()[0] == 0 and steps.train("--epoch=12", "--batch_size=8")[0] == 0
    assert steps.quantize(f"--output_dir={steps.folder}/model", "--fp32", source="teacher")[0] == 0
    predictor, passages = Predictor(steps.folder / "model", 1), ["awful bad film", "a great good film", "a film"]
    ranked = predictor.rank("what film", passages)
    assert [number for number, _ in ranked] == [1, 2, 0]
    assert dict(ranked) == {
        i: pytest.approx(predictor.predict("what film", passage).score) for i, passage in enumerate(passages)
    }
    with pytest.raises(UserError, match="give a list"):
        predictor.rank("what film", "one")


def test_only_pairs_with_a_score_are_ranked(project):
    steps = ready(project(), MULTI)
    steps.quantize(f"--output_dir={steps.folder}/model", "--fp32", source="teacher")
    with pytest.raises(UserError, match="does not give a pair of texts a score"):
        Predictor(steps.folder / "model", 1).rank("what", ["film"])


def test_the_guard_of_int8(steps, task, monkeypatch):
    """By the task's measure on valid."""
    seen = {}

    def choose(results, max_drop):
        seen.update({name: result.accuracy for name, result in results.items()} | {"drop": max_drop})
        return "fp32"

    monkeypatch.setattr("quantize.choose", choose)
    code, stderr = steps.quantize("--max_metric_drop=0.25", source="teacher")
    assert code == 0 and seen.pop("drop") == 0.25, stderr
    expected = result_of(steps, "--split=valid")[MEASURES[task]]
    assert len(seen) > 3 and seen["fp32"] == pytest.approx(expected, abs=1e-3)
    assert steps.quantize(source="teacher")[0] == 0 and seen["drop"] == 0.005
    fails(steps.quantize("--max_accuracy_drop=1", source="teacher"), "give --max_metric_drop, of the")
    fails(steps.quantize("--calibrate", source="teacher"), "--calibrate is for the task single_label")
    if task == SCORES:
        fails(steps.quantize("--tune_thresholds", source="teacher"), "is for the task multi_label")


def test_cascades(steps, task, folders, milliseconds):
    names = [str(folders[1]), str(folders[0])]
    more = [f"--data_dir={steps.data}", f"--output_dir={steps.folder}/cascade", "--max_asked=0.9", "--num_threads=1"]
    result = steps.script("cascade", *names, *more)
    if task == SCORES:
        fails(result, "pruned-model gives scores, which do not say how sure they are", "one of the models alone")
        return
    assert result[0] == 0, result[1]
    cascade, models = Predictor(steps.folder / "cascade", 1), [Predictor(name, 1) for name in names]
    stages = json.loads((steps.folder / "cascade/config.json").read_text())["fastformers"]["cascade"]
    assert {stage["temperature"] for stage in stages} == {1.0}
    texts = [text for text, _ in rows_of(task, 24, 2)]
    if len(stages) == 2:  # else one model alone is better
        for text, prediction in zip(texts, cascade.predict_batch(texts), strict=True):
            first = models[0].predict(text)
            limits = models[0].thresholds[0]
            shares = np.array(list(first.probabilities.values()))
            away = np.where(shares > limits, (shares - limits) / (1 - limits), (limits - shares) / limits)
            is_sure = (0.5 + 0.5 * away).min() > stages[0]["threshold"]
            assert prediction.stage == (0 if is_sure else 1)
            assert prediction.labels == (first if is_sure else models[1].predict(text)).labels
        assert sum(cascade.answered) == len(texts)
    result = result_of(steps, "--enable_ort", f"--onnx_path={steps.folder}/cascade")
    given = [set(prediction.labels) for prediction in cascade.predict_batch(texts)]
    true = [set(labels) for _, labels in rows_of(task, 24, 2)]
    assert result["subset_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(given, true, strict=True)]))


def test_the_ladder_goes_by_the_tasks_measure(steps, task, folders):
    teacher = steps.folder / "teacher"
    rungs = [["padded", "pytorch_fixed", teacher], ["teacher", "pytorch", teacher], ["graph", "onnx", folders[0]]]
    rungs += [["words", "linear", "-"]]
    more = ["--tune_thresholds"] if task == MULTI else []
    options = [part for rung in rungs for part in ("--rung", *map(str, rung))]
    code, stderr = steps.script("report", *steps.common(), f"--output_dir={steps.folder}/ladder", *options, *more)
    assert code == 0, stderr
    ladder = json.loads((steps.folder / "ladder/ladder.json").read_text())["rungs"]
    assert "accuracy" not in ladder[0] and "num_correct" not in ladder[0]
    scores = [rung[MEASURES[task]] for rung in ladder]
    assert scores[:2] == pytest.approx([scores[2]] * 2, abs=1e-3)
    expected = result_of(steps, "--enable_ort", f"--onnx_path={folders[0]}")[MEASURES[task]]
    assert scores[2] == pytest.approx(expected, abs=1e-6) and scores[3] > 0.5
    name = {MULTI: "macro F1", SCORES: "Pearson"}[task]
    assert f"| rung | {name} |" in (steps.folder / "ladder/ladder.md").read_text()
    assert f"{name} on the test set" in (steps.folder / "ladder/ladder.svg").read_text()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [("thresholds", {"bad": 0.5}, "thresholds"), ("thresholds", {"bad": 2, "cast": 0.5, "good": 0.5}, "thresholds"),
     ("thresholds", {"bad": 0, "cast": 0.5, "good": 0.5}, "thresholds"),
     ("thresholds", {"bad": 1, "cast": 0.5, "good": 0.5}, "thresholds"),
     ("thresholds", [0.5], "thresholds"), ("label_separator", 3, "label_separator")],
)  # fmt: skip
def test_damaged_folders(project, key, value, part):
    steps = ready(project(), MULTI)
    steps.quantize(f"--output_dir={steps.folder}/model", "--fp32", source="teacher")
    path = steps.folder / "model/config.json"
    config = json.loads(path.read_text())
    config["fastformers"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"fastformers.{part}"):
        Predictor(steps.folder / "model", 1)


def test_files_of_labels_and_of_scores(steps, task, folders):
    texts = [text for text, _ in rows_of(task, 24, 2)]
    (steps.folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = [folders[0], f"--input={steps.folder}/rows.jsonl", f"--output={steps.folder}/out.jsonl"]
    code, stderr = steps.script("predict", *files)
    assert code == 0, stderr
    rows = [json.loads(line) for line in (steps.folder / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    for row, prediction in zip(rows, Predictor(folders[0], 1).predict_batch(texts), strict=True):
        if task == SCORES:
            assert row["score"] == pytest.approx(prediction.score, rel=1e-5)
        else:
            shares = [prediction.probabilities[label] for label in prediction.labels]
            assert row["label"] == prediction.label
            assert [float(each) for each in row["probability"].split("|") if each] == pytest.approx(shares, abs=2e-6)
    result = steps.script("predict", *files, "--min_probability=0.8", "--overwrite")
    if task == SCORES:
        fails(result, "--min_probability is for labels")
    else:
        assert result[0] == 0, result[1]
        rows = [json.loads(line) for line in (steps.folder / "out.jsonl").read_text().splitlines()]
        assert [row["sure"] for row in rows] == [
            is_sure(prediction, 0.8) for prediction in Predictor(folders[0], 1).predict_batch(texts)
        ]
