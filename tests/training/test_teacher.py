"""What a teacher said is asked of it again where it, the precision or the rows are others; and the mean of several."""

from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import LABELS, make_tokenizer
from datasets import Dataset
from safetensors.torch import save_file

from utils.data.tables import Data
from utils.training import teacher
from utils.training.losses import KD_LOSSES
from utils.training.scoring import predict
from utils.training.tasks import mean_by_probability
from utils.training.teacher import Teacher, taught_logits, teacher_logits


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many rows the teacher was asked for, each time."""
    counts: list[int] = []

    def count(model, rows, accelerator, name):
        counts.append(len(rows))
        return predict(model, rows, accelerator, name)

    monkeypatch.setattr("utils.training.teacher.predict", count)
    return counts


def make_data(folder) -> Data:
    ids = [[1, 4 + i, 5 + i % 3, 3][: 3 + i % 2] for i in range(5)]
    columns = {"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids], "label": [0] * 5}
    return Data(LABELS, {"train": Dataset.from_dict(columns)}, folder, "", {}, 1)


def ask(model, data: Data, precision: str = "no") -> torch.Tensor:
    AcceleratorState._reset_state(reset_partial_state=True)
    return teacher_logits(model, data, "train", Accelerator(cpu=True, mixed_precision=precision))


def test_the_same_teacher_is_asked_once(model, tmp_path, asked):
    """For logits in the rows' order."""
    data = make_data(tmp_path)
    logits = ask(model, data)
    assert torch.equal(ask(model, data), logits) and asked == [5]
    for row, ids in zip(logits, data.splits["train"]["input_ids"], strict=True):
        with torch.no_grad():
            torch.testing.assert_close(row, model(torch.tensor([ids])).logits[0], atol=1e-5, rtol=1e-4)


def test_another_teacher_or_precision_is_asked(model, tmp_path, asked):
    data = make_data(tmp_path)
    logits = ask(model, data)
    in_bf16 = ask(model, data, "bf16")
    assert asked == [5, 5] and not torch.equal(in_bf16, logits)
    with torch.no_grad():
        model.classifier.bias += 1
    torch.testing.assert_close(ask(model, data), logits + 1)
    assert asked == [5, 5, 5]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", ["another length", "another name", "damaged"])
def test_a_file_that_is_of_no_use_is_made_again(model, tmp_path, asked, content):
    data = make_data(tmp_path)
    logits = ask(model, data)
    (path,) = tmp_path.iterdir()
    if content == "damaged":
        path.write_bytes(path.read_bytes()[:20])
    else:
        save_file({"logits" if content == "another length" else "other": torch.zeros(4, 2)}, path)
    assert torch.equal(ask(model, data), logits) and asked == [5, 5]
    assert torch.equal(ask(model, data), logits) and asked == [5, 5]


def test_a_teacher_that_was_stopped_is_asked_for_the_rest(model, tmp_path, asked, monkeypatch):
    monkeypatch.setattr("utils.training.teacher.PART", 2)
    data = make_data(tmp_path)
    counting = teacher.predict

    def stop_at_the_third(*arguments):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return counting(*arguments)

    monkeypatch.setattr("utils.training.teacher.predict", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ask(model, data)
    monkeypatch.setattr("utils.training.teacher.predict", counting)
    logits = ask(model, data)
    assert asked == [2, 2, 1]
    torch.testing.assert_close(logits, predict(model, data.splits["train"], Accelerator(cpu=True), ""))


def test_several_teachers_are_put_together(model, tmp_path, caplog):
    """By the mean of what they say of each row, in the order of the data's labels; each is scored on valid."""
    data = make_data(tmp_path)
    data.splits["valid"] = data.splits["train"].select(range(3))
    other = deepcopy(model)
    with torch.no_grad():
        other.classifier.bias += torch.tensor([3.0, -1.0])
    tokenizer = make_tokenizer()
    ordered = [Teacher("one", model, tokenizer, 16, [0, 1], data), Teacher("two", other, tokenizer, 16, [1, 0], data)]
    options = (data, tokenizer, ["train"], "mse", 1.0)
    AcceleratorState._reset_state(reset_partial_state=True)
    with caplog.at_level("INFO"):
        logits = taught_logits(ordered, *options, Accelerator(cpu=True))
    train = ask(model, data)
    expected = (train + (train + torch.tensor([3.0, -1.0]))[:, [1, 0]]) / 2
    torch.testing.assert_close(logits, {"valid": expected[:3], "train": expected})
    said = [record.getMessage() for record in caplog.records if "[Teacher]" in record.getMessage()]
    assert ordered == [] and [line.split(" : ")[1].split(",")[0] for line in said] == ["one", "two", "mean of 2"]
    correct = (expected[:3].argmax(-1) == 0).float().mean().item()
    assert said[2].endswith(f"valid accuracy {correct:.4f}")
    # One alone says what it says.
    caplog.clear()
    with caplog.at_level("INFO"):
        alone = taught_logits([Teacher("one", model, tokenizer, 16, [0, 1], data)], *options, Accelerator(cpu=True))
    torch.testing.assert_close(alone["train"], train)
    (line,) = [record.getMessage() for record in caplog.records if "[Teacher]" in record.getMessage()]
    assert line.startswith("[Teacher] : valid loss")


@pytest.mark.parametrize(
    ("kd_loss", "temperature"), [("mse", 1.0), ("soft_cross_entropy", 1.0), ("soft_cross_entropy", 3.0)]
)
def test_a_students_loss_is_the_mean_of_those_against_each_teacher(kd_loss, temperature):
    """But for a constant, so that its gradients are theirs."""
    torch.manual_seed(0)
    teachers = [scale * torch.randn(7, 4) + 5 for scale in (1, 2, 8)]
    student = torch.randn(7, 4, requires_grad=True)
    loss = KD_LOSSES[kd_loss]
    each = torch.stack([loss(student, logits, temperature) for logits in teachers]).mean(0)
    (expected,) = torch.autograd.grad(each.sum(), student)
    mean = mean_by_probability(teachers, kd_loss, temperature)
    (gradient,) = torch.autograd.grad(loss(student, mean, temperature).sum(), student)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_the_mean_of_probabilities():
    """Two that are sure of different labels are, together, sure of none; by mse the one with larger logits wins."""
    sure = [torch.tensor([[9.0, -9.0]]), torch.tensor([[-5.0, 5.0]])]
    probabilities = mean_by_probability(sure, "soft_cross_entropy", 1.0).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5]]), atol=1e-4, rtol=0)
    assert mean_by_probability(sure, "mse", 1.0).tolist() == [[2.0, -2.0]]
