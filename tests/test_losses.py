"""Distillation losses against plain references, and their gradients."""

import pytest
import torch
import torch.nn.functional as F

from utils.losses import attention_loss, logits_mse, soft_cross_entropy, state_loss


def test_soft_cross_entropy_of_certain_teacher_is_cross_entropy():
    student = torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    certain = F.one_hot(labels, 3) * 100.0
    torch.testing.assert_close(soft_cross_entropy(student, certain), F.cross_entropy(student, labels, reduction="none"))


def test_soft_cross_entropy_is_least_where_student_equals_teacher():
    teacher = torch.randn(4, 3)
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher).sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_logits_mse():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(logits_mse(student, teacher).mean(), F.mse_loss(student, teacher))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_state_loss_ignores_padding(kind):
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    loss = state_loss([student], [teacher], mask, kind)
    changed = student.clone()
    changed[0, 2] = 1e3
    torch.testing.assert_close(state_loss([changed], [teacher], mask, kind), loss)
    if kind == "mse":
        torch.testing.assert_close(loss[0], F.mse_loss(student[0, :2], teacher[0, :2]))
    else:
        torch.testing.assert_close(loss[0], 1 - F.cosine_similarity(student[0, :2], teacher[0, :2], dim=-1).mean())


def test_attention_loss_pairs_each_layer_with_its_blocks_last():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    teacher = [torch.rand(2, 4, 3, 3) for _ in range(6)]
    assert attention_loss([teacher[2], teacher[5]], teacher, mask).max() == 0
    loss = attention_loss([teacher[0], teacher[5]], teacher, mask)
    torch.testing.assert_close(loss[0], F.mse_loss(teacher[0][0], teacher[2][0]) / 2)
    torch.testing.assert_close(loss[1], F.mse_loss(teacher[0][1, :, :2, :2], teacher[2][1, :, :2, :2]) / 2)
