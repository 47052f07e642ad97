"""The losses of each task against plain computations, and several teachers."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.data.tables import Data
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.training.scoring import evaluate_logits
from utils.training.tasks import TASKS, task_of

NAN = float("nan")


def scores_task(deviation: list[float]):
    scale = (np.zeros(len(deviation), np.float32), np.array(deviation, np.float32))
    return task_of(Data([], {}, None, "", {}, 1, task=REGRESSION, scale=scale))


def test_label_loss_of_several_labels():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0], [1.0, 1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [NAN, NAN]])
    losses = TASKS[MULTI_LABEL].label_loss(logits, labels)
    by_hand = [(np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2, (np.log1p(np.exp(0.5)) + np.log1p(np.exp(3))) / 2, 0]
    assert losses.tolist() == pytest.approx(by_hand)
    losses.sum().backward()
    assert logits.grad[:2].abs().min() > 0 and (logits.grad[2] == 0).all()


def test_label_loss_of_scores_is_in_standard_deviations():
    task = scores_task([2.0, 10.0])
    logits = torch.tensor([[3.0, 40.0], [5.0, 5.0]], requires_grad=True)
    losses = task.label_loss(logits, torch.tensor([[1.0, 20.0], [NAN, NAN]]))
    assert losses.tolist() == pytest.approx([(1 + 4) / 2, 0])
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[1] == 0).all()
    assert task.kd_losses["mse"](logits, torch.tensor([[1.0, 20.0], [5.0, 15.0]]), 3.0).tolist() == pytest.approx(
        [2.5, 0.5]
    )
    assert list(task.kd_losses) == ["mse"]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_of_several_labels(temperature):
    """Each label's own Kullback-Leibler divergence, but for the teacher's entropy; least where both agree."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    loss = TASKS[MULTI_LABEL].kd_losses["soft_cross_entropy"](student, teacher, temperature)
    p, q = (teacher / temperature).sigmoid(), (student / temperature).sigmoid()
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean(-1) * temperature**2
    torch.testing.assert_close(loss, expected)
    same = TASKS[MULTI_LABEL].kd_losses["soft_cross_entropy"](teacher.clone().requires_grad_(), teacher, temperature)
    assert (same < loss).all()


def test_losses_of_scores_are_one_a_row():
    """With other numbers of rows and of scores; a row that lacks one of its scores has no loss."""
    task = scores_task([2.0, 10.0])
    logits = torch.tensor([[3.0, 40.0], [5.0, 5.0], [7.0, 10.0]])
    labels = torch.tensor([[1.0, 20.0], [1.0, NAN], [7.0, 0.0]])
    assert task.name == REGRESSION
    assert task.label_loss(logits, labels).tolist() == pytest.approx([2.5, 0.0, 0.5])
    assert task.label_loss(logits, labels, "mean").item() == pytest.approx(1.0)
    assert task.own_loss(logits).tolist() == pytest.approx([5.5, 3.0, 4.5])


def test_own_answers_in_the_place_of_labels():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert torch.equal(
        TASKS[SINGLE_LABEL].own_loss(logits), F.cross_entropy(logits, torch.tensor([0]), reduction="none")
    )
    own = TASKS[MULTI_LABEL].own_loss(logits)
    assert torch.equal(own, TASKS[MULTI_LABEL].label_loss(logits, torch.tensor([[1.0, 0.0, 1.0]])))
    assert scores_task([2.0, 1.0, 0.5]).own_loss(logits).tolist() == [1.0 - 1.0 + 1.0]


def test_several_teachers():
    logits = [torch.tensor([[4.0, -2.0]]), torch.tensor([[0.0, -2.0]])]
    mean = TASKS[MULTI_LABEL].mean_of_teachers(logits, "soft_cross_entropy", 2.0)
    expected = torch.stack([(each / 2).sigmoid() for each in logits]).mean(0)
    torch.testing.assert_close((mean / 2).sigmoid(), expected)
    assert TASKS[MULTI_LABEL].mean_of_teachers(logits, "mse", 1.0).tolist() == [[2.0, -2.0]]
    assert scores_task([3.0, 1.0]).mean_of_teachers(logits, "mse", 1.0).tolist() == [[2.0, -2.0]]


def test_evaluation():
    rows = {"label": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]}
    split = datasets.Dataset.from_dict(rows)
    logits = torch.tensor([[1.0, -1.0], [-1.0, -0.5], [-1.0, 2.0]])
    score = evaluate_logits(logits, split, TASKS[MULTI_LABEL])
    assert score.measure == "macro_f1" and score.score == pytest.approx((1 + 0) / 2)
    assert score.loss == pytest.approx(F.binary_cross_entropy_with_logits(logits, torch.tensor(rows["label"])).item())
    score = evaluate_logits(logits, split, TASKS[MULTI_LABEL], "subset_accuracy")
    assert score.score == pytest.approx(1 / 3) and str(score).endswith("valid subset accuracy 0.3333")
