"""fastformers.py with teachers of other tokens, other labels, without their options, and with several of them."""

import copy
import json
import os
import shutil
import signal
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ALIKE, LABELS, fails, make_encoder, make_tokenizer, snapshot, write_texts
from datasets import Dataset
from safetensors.torch import load_file, save_file

from utils.data.tables import NO_LABEL
from utils.models.classifier import load_model
from utils.models.config import Config
from utils.training.distillation import distillation_losses
from utils.training.loop import train


@pytest.fixture
def foreign(trained):
    """A trained BERT `Project` and a teacher of it whose family is not known here and whose tokens are others."""
    tokenizer = make_tokenizer(cls="<s>", sep="</s>", pad="<pad>")
    encoder = make_encoder(trained.folder / "mpnet", "mpnet", tokenizer)
    config = trained.folder / "config-mpnet.json"
    config.write_text('{"encoder_class": "mpnet", "n_ctx": 20}')
    data = write_texts(trained.folder / "data-mpnet")
    steps = copy.copy(trained)
    steps.encoder, steps.config, steps.data = encoder, str(config), data
    for code, stderr in (steps.preprocess(), steps.train(out="mpnet-teacher")):
        assert code == 0, stderr
    teacher = trained.folder / "mpnet-teacher"
    options = [f"--teacher_config={config}", f"--teacher_bert_model_name_or_path={teacher}"]
    options += [f"--teacher_model_path={teacher}.pt", f"--teacher_data_dir={data}", "--kd_loss=mse"]
    return SimpleNamespace(
        steps=steps,
        trained=trained,
        config=str(config),
        teacher=teacher,
        tokenizer=tokenizer,
        data=data,
        options=options,
    )


def taught_by(project, *teachers, more=(), out: str = "student") -> str:
    """Let these teachers, and their folders' weights, teach; returns what was logged."""
    code, stderr = distill(project, *teachers, more=more, out=out)
    assert code == 0, stderr
    return stderr


def distill(project, *teachers, more=(), out: str = "student") -> tuple[int, str]:
    return project.script(
        "fastformers", *project.common(), "--teacher_bert_model_name_or_path", *teachers,
        f"--bert_model_name_or_path={project.encoder}", f"--bert_output_dir={project.folder / out}",
        f"--save_path={project.folder / out}.pt", "--lr=5e-3", "--epoch=1", "--batch_size=16", *ALIKE, *more,
    )  # fmt: skip


def assert_same_student(project, one: str, other: str) -> None:
    expected, weights = (torch.load(project.folder / f"{out}.pt", weights_only=True) for out in (one, other))
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


def test_the_checkpoint_alone_is_enough(trained):
    """Without its state dict and its config the same student comes out, to the bit."""
    assert trained.distill(out="old")[0] == 0
    taught_by(trained, trained.folder / "teacher", out="new")
    assert_same_student(trained, "old", "new")


def test_the_student_nearest_to_its_teacher_is_kept(trained):
    """By the loss of the logits on valid, as `--measure=kd_loss` says; train.py has no teacher to compare with."""
    code, stderr = trained.distill("--kd_loss=mse", "--measure=kd_loss", "--epoch=3")
    assert code == 0, stderr
    evaluations = [line for line in stderr.splitlines() if "valid distillation loss" in line]
    losses = [float(line.split("valid distillation loss ")[1].split(",")[0]) for line in evaluations]
    assert len(losses) == 4 and losses[3] == min(losses)  # of three epochs, and the best
    folders = [str(trained.folder / name) for name in ("teacher", "student")]
    models = [load_model(folder, "--flag", Config("bert", 16), LABELS) for folder in folders]
    teacher, student = (logits_of_rows(model, trained.data, "valid") for model in models)
    assert F.mse_loss(student, teacher).item() == pytest.approx(losses[3], abs=1e-3)
    fails(trained.train("--measure=kd_loss"), "invalid choice: 'kd_loss'")


@pytest.mark.parametrize("augmented", [False, True])
def test_texts_are_tokenized_for_a_teacher(foreign, augmented):
    """The student is, to the bit, that of a folder in which preprocess.py did so, whatever the family."""
    if augmented:
        for steps in (foreign.trained, foreign.steps):
            shutil.copy(steps.data / "valid.txt", steps.data / "augmented.txt")
            assert steps.preprocess()[0] == 0
    more = ["--kd_loss=mse", f"--teacher_config={foreign.config}", *["--augmented"] * augmented]
    code, stderr = foreign.trained.distill(*foreign.options, *more, out="old")
    assert code == 0, stderr
    taught_by(foreign.trained, foreign.teacher, more=more, out="new")
    assert_same_student(foreign.trained, "old", "new")
    (folder,) = foreign.trained.data.glob("tokenized-*")
    ours, theirs = (
        sorted(path.name for path in where.glob("teacher-*")) for where in (folder, foreign.data / "tokenized")
    )
    assert ours == theirs and len(ours) == 2 + augmented
    # Without its config, rows are cut where the student's are, and those here are shorter.
    taught_by(foreign.trained, foreign.teacher, more=[*more[:1], *more[2:]], out="new")
    assert_same_student(foreign.trained, "old", "new")


def test_a_teacher_with_fewer_positions_reads_shorter_rows(trained):
    short = copy.copy(trained)
    short.encoder = make_encoder(trained.folder / "short", "bert", max_position_embeddings=8)
    short.config = str(trained.folder / "config-short.json")
    (trained.folder / "config-short.json").write_text('{"encoder_class": "bert", "n_ctx": 8}')
    short.data = write_texts(trained.folder / "data-short")
    for code, stderr in (short.preprocess(), short.train(out="short-teacher")):
        assert code == 0, stderr
    teacher = trained.folder / "short-teacher"
    taught_by(
        trained, teacher, more=[f"--teacher_data_dir={short.data}", f"--teacher_config={short.config}"], out="old"
    )
    taught_by(trained, teacher, out="new")
    assert_same_student(trained, "old", "new")


def test_several_teachers(foreign, monkeypatch):
    """The student learns the mean of what they say, each in its own tokens, and each is let go once it has spoken."""
    trained, teachers = foreign.trained, [foreign.trained.folder / "teacher", foreign.teacher]
    said = [logits_of_rows(load_model(str(teachers[0]), "--flag", Config("bert", 16), LABELS), trained.data)]
    said.append(logits_of_rows(load_model(str(teachers[1]), "--flag", Config("mpnet", 20), LABELS), foreign.data))
    targets, models = [], []

    def see(teacher, student, teacher_logits, *arguments):
        targets.append(teacher_logits)
        models.append(teacher)
        assert [weak() for weak in loaded[:-1]] == [None, None]
        return distillation_losses(teacher, student, teacher_logits, *arguments)

    loaded = []

    def load(*arguments, **options):
        model = load_model(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("fastformers.load_model", load)
    monkeypatch.setattr("fastformers.distillation_losses", see)
    log = taught_by(trained, *teachers, more=["--kd_loss=mse"], out="one")
    lines = [line for line in log.splitlines() if "[Teacher] : " in line and "valid loss" in line]
    assert [line.split("[Teacher] : ")[1].split(",")[0] for line in lines] == [*map(str, teachers), "mean of 2"]
    loaded.clear()
    taught_by(trained, *teachers, more=["--temperature=2"], out="other")
    torch.testing.assert_close(targets[0], (said[0] + said[1]) / 2, atol=1e-5, rtol=1e-4)
    mean = ((said[0] / 2).softmax(-1) + (said[1] / 2).softmax(-1)) / 2
    torch.testing.assert_close((targets[1] / 2).softmax(-1), mean, atol=1e-5, rtol=1e-4)
    assert models == [None, None]


def test_teachers_and_the_student_read_the_same_rows_of_every_split(foreign, monkeypatch):
    """What each teacher says of a text is learned of that text: of augmented and unlabelled ones, too."""
    trained, tokenizer = foreign.trained, make_tokenizer()
    texts = [line.split("\t")[0] for line in (trained.data / "train.txt").read_text().splitlines()]
    (trained.data / "augmented.txt").write_text("a bad cast\tnegative\nplot plot\t\nthe ending\tpositive\n")
    new, known = ["cast", "ending film cast", "a plot and a plot"], [texts[5].upper(), "", "Ending  film cast"]
    (trained.data / "unlabelled.txt").write_text("\n".join([known[0], new[0], known[1], *new[1:], known[2]]))
    assert trained.preprocess()[0] == 0
    texts += ["a bad cast", "plot plot", "the ending", *new]
    teachers, expected, seen = [trained.folder / "teacher", foreign.teacher], [], {}
    for folder, family, own in zip(teachers, ("bert", "mpnet"), (tokenizer, foreign.tokenizer), strict=True):
        model = load_model(str(folder), "--flag", Config(family, 16), LABELS)
        with torch.no_grad():
            expected.append(torch.cat([model(torch.tensor([own(text)["input_ids"]])).logits for text in texts]))

    def see(teacher, student, teacher_logits, num_labelled, *arguments):
        seen.update(logits=teacher_logits, num_labelled=num_labelled)
        return distillation_losses(teacher, student, teacher_logits, num_labelled, *arguments)

    def see_rows(student, data, *arguments):
        seen["rows"] = data.splits["train"]
        return train(student, data, *arguments)

    monkeypatch.setattr("fastformers.distillation_losses", see)
    monkeypatch.setattr("fastformers.train", see_rows)
    taught_by(trained, *teachers, more=["--kd_loss=mse", "--augmented", "--unlabelled", "--label_ratio=1"])
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in seen["rows"]["input_ids"]] == texts
    assert seen["num_labelled"] == 96 and list(seen["rows"]["label"])[96:] == [0, NO_LABEL, 1] + 3 * [NO_LABEL]
    assert not torch.allclose(*expected, atol=0.1)
    torch.testing.assert_close(seen["logits"], sum(expected) / 2, atol=1e-5, rtol=1e-4)


def test_the_first_of_several_teaches_its_states(foreign, monkeypatch):
    trained, own = foreign.trained, foreign.trained.folder / "teacher"
    # The same teacher twice is that teacher.
    more = ["--kd_loss=mse", "--state_loss_ratio=1", "--att_loss_ratio=1"]
    taught_by(trained, own, more=more, out="one")
    taught_by(trained, own, own, more=more, out="twice")
    assert_same_student(trained, "one", "twice")
    taught_by(trained, own, foreign.teacher, more=more, out="both")
    fails(distill(trained, foreign.teacher, own, more=more), "--state_loss_ratio", "first teacher", "mpnet-teacher")


def test_outputs_in_another_order(trained):
    """Of 3 labels, so that a permutation and its inverse differ: the student is the same to the bit."""
    for split in ("train", "valid", "test"):
        path = trained.data / f"{split}.txt"
        lines = path.read_text().splitlines()
        lines = [line.rsplit("\t", 1)[0] + "\tneutral" if i % 3 == 2 else line for i, line in enumerate(lines)]
        path.write_text("\n".join(lines) + "\n")
    for step in (trained.preprocess, lambda: trained.train("--seed=3")):
        assert step()[0] == 0
    teacher = trained.folder / "teacher"
    taught_by(trained, teacher, out="old")
    other = trained.folder / "other"
    shutil.copytree(teacher, other)
    order = ["positive", "negative", "neutral"]  # of negative, neutral, positive
    columns = [2, 0, 1]
    weights = load_file(other / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][columns].contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "PLUS", "1": "MINUS", "2": "ZERO"}}))
    before = snapshot(trained.folder)
    fails(distill(trained, other, out="new"), "PLUS, MINUS, ZERO", "--teacher_labels=negative,neutral,positive")
    fails(distill(trained, other, more=["--teacher_labels=positive,negative"]), "2 labels", "3 outputs", "MINUS")
    fails(distill(trained, other, more=["--teacher_labels=positive,negative,zero"]), "'zero' is not a label")
    fails(distill(trained, other, more=["--teacher_labels=positive,negative,positive"]), "twice", "neutral not at all")
    assert snapshot(trained.folder) == before
    taught_by(trained, other, more=[f"--teacher_labels={','.join(order)}"], out="new")
    assert_same_student(trained, "old", "new")
    # Beside a teacher that needs no mapping, each has its own.
    taught_by(trained, teacher, teacher, more=["--kd_loss=mse"], out="twice")
    names = ["--teacher_labels", "negative,neutral,positive", ",".join(order)]
    taught_by(trained, teacher, other, more=["--kd_loss=mse", *names], out="mixed")
    assert_same_student(trained, "twice", "mixed")


def test_teachers_that_do_not_fit(trained, made):
    teacher = str(trained.folder / "teacher")
    three = trained.folder / "three"
    shutil.copytree(teacher, three)
    config = json.loads((three / "config.json").read_text())
    (three / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    before = snapshot(trained.folder)
    fails(distill(trained, made["roberta"] / "encoder"), "roberta", "has no classifier", "train.py")
    fails(distill(trained, teacher, made["bert"] / "encoder"), "has no classifier", "train.py")
    fails(distill(trained, teacher, "nowhere"), "--teacher_bert_model_name_or_path=nowhere")
    fails(distill(trained, three), "three", "classifier")
    for option in ("model_path", "config", "data_dir", "labels"):
        fails(distill(trained, teacher, teacher, more=[f"--teacher_{option}=x"]), f"--teacher_{option} has 1 value but",
              "--teacher_bert_model_name_or_path 2", "in the same order")  # fmt: skip
    fails(distill(trained, teacher, more=["--teacher_config", "a", "b"]), "--teacher_config has 2 values but")
    assert snapshot(trained.folder) == before


def test_another_second_teacher_is_refused(foreign, at_step):
    """In a run that was stopped."""
    trained, own = foreign.trained, foreign.trained.folder / "teacher"

    taught_by(trained, own, foreign.teacher, more=["--epoch=2"], out="whole")
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    more = ["--epoch=2"]
    assert distill(trained, own, foreign.teacher, more=more)[0] == 143
    fails(distill(trained, own, own, more=more), "--teacher_bert_model_name_or_path is", "--overwrite")
    fails(distill(trained, own, more=more), "--teacher_bert_model_name_or_path is", "--overwrite")
    taught_by(trained, own, foreign.teacher, more=[*more, "--resume=always"])
    assert_same_student(trained, "whole", "student")


def test_a_teacher_with_a_tokenizer_of_its_own(foreign):
    code, stderr = foreign.trained.distill(*foreign.options, "--epoch=8")
    assert code == 0, stderr
    (kept,) = (foreign.data / "tokenized").glob("teacher-*-train-0.safetensors")
    assert not list((foreign.trained.data / "tokenized").glob("teacher-*"))
    model = load_model(str(foreign.teacher), "--flag", Config("mpnet", 20), LABELS)
    taught = logits_of_rows(model, foreign.data)
    torch.testing.assert_close(load_file(kept)["logits"], taught, atol=1e-5, rtol=1e-4)
    student = load_model(str(foreign.trained.folder / "student"), "--flag", Config("bert", 16), LABELS)
    assert F.mse_loss(logits_of_rows(student, foreign.trained.data), taught) < 0.5 * taught.var(0).mean()


def logits_of_rows(model, data_dir, split: str = "train") -> torch.Tensor:
    rows = Dataset.from_file(str(data_dir / f"tokenized/{split}.arrow"))["input_ids"]
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits for ids in rows])


def test_a_teachers_rows_must_be_the_students(foreign):
    before = snapshot(foreign.trained.folder)
    fails(foreign.trained.distill(*foreign.options, "--state_loss_ratio=1"), "--state_loss_ratio", "--teacher_data_dir")
    fails(foreign.trained.distill(*foreign.options[:-2], "--teacher_data_dir=nowhere"), "nowhere", "preprocess.py")
    assert snapshot(foreign.trained.folder) == before
    text = foreign.data / "train.txt"
    text.write_text(text.read_text() + "a fine film\tpositive\n")
    assert foreign.steps.preprocess()[0] == 0
    fails(foreign.trained.distill(*foreign.options), "data-mpnet", "train.txt", "preprocess.py")
