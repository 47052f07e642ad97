"""Several labels a row, and scores, through every script."""

import json
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import fails, make_tokenizer
from task_data import MULTI, SCORES, ready, rows_of, write_task
from transformers import pipeline

from utils.data.tables import load_data, row_labels
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import load_config
from utils.predictor import Prediction, Predictor, is_sure, sigmoid
from utils.system.errors import UserError
from utils.training.metrics import measure, tuned_thresholds
from utils.training.scoring import predict
from utils.training.soft_targets import with_soft_labels

NAN = float("nan")
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


@pytest.fixture
def folders(steps, task):
    """Model folders of a teacher and of a narrower model."""
    more = ["--tune_thresholds"] if task == MULTI else []
    assert steps.prune("--target_num_heads=1", "--target_ffn_dim=16")[0] == 0
    for source in ("teacher", "pruned"):
        code, stderr = steps.quantize(f"--output_dir={steps.folder}/{source}-model", "--fp32", *more, source=source)
        assert code == 0, stderr
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
    predictions = Predictor(folders[0], 1).predict_batch(["good cast", "bad film", "a plot"])
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
    rungs = [["teacher", "pytorch", steps.folder / "teacher"], ["graph", "onnx", folders[0]], ["words", "linear", "-"]]
    more = ["--tune_thresholds"] if task == MULTI else []
    options = [part for rung in rungs for part in ("--rung", *map(str, rung))]
    code, stderr = steps.script("report", *steps.common(), f"--output_dir={steps.folder}/ladder", *options, *more)
    assert code == 0, stderr
    ladder = json.loads((steps.folder / "ladder/ladder.json").read_text())["rungs"]
    assert "accuracy" not in ladder[0] and "num_correct" not in ladder[0]
    scores = [rung[MEASURES[task]] for rung in ladder]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    expected = result_of(steps, "--enable_ort", f"--onnx_path={folders[0]}")[MEASURES[task]]
    assert scores[1] == pytest.approx(expected, abs=1e-6) and scores[2] > 0.5
    name = {MULTI: "macro F1", SCORES: "Pearson"}[task]
    assert f"| rung | {name} |" in (steps.folder / "ladder/ladder.md").read_text()
    assert f"{name} on the test set" in (steps.folder / "ladder/ladder.svg").read_text()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [("thresholds", {"bad": 0.5}, "thresholds"), ("thresholds", {"bad": 2, "cast": 0.5, "good": 0.5}, "thresholds"),
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
