"""Distillation losses against plain references, and their gradients."""

import pytest
import torch
import torch.nn.functional as F

from utils.training.losses import (
    NO_LABEL,
    attention_loss,
    label_loss,
    logits_mse,
    relation_loss,
    soft_cross_entropy,
    state_loss,
)


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


def test_logits_mse_of_each_row():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = torch.stack([F.mse_loss(*row) for row in zip(student, teacher, strict=True)])
    torch.testing.assert_close(logits_mse(student, teacher), expected)


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


def test_losses_of_states_and_relations_are_means_over_what_is_compared():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    pairs = [(torch.randn(2, 3, 64), torch.randn(2, 3, 64)) for _ in range(2)]
    ours, theirs = map(list, zip(*pairs, strict=True))
    for loss in (lambda a, b: state_loss(a, b, mask, "mse"), lambda a, b: relation_loss(a, b, mask)):
        single = [loss([one], [other]) for one, other in pairs]
        torch.testing.assert_close(loss(ours, theirs), (single[0] + single[1]) / 2)


def test_attention_loss_ignores_padding():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    student, teacher = torch.rand(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
    assert attention_loss([teacher], [teacher], mask).max() == 0
    loss = attention_loss([student, teacher], [teacher, teacher], mask)
    torch.testing.assert_close(loss[0], F.mse_loss(student[0], teacher[0]) / 2)
    torch.testing.assert_close(loss[1], F.mse_loss(student[1, :, :2, :2], teacher[1, :, :2, :2]) / 2)


def test_temperature_keeps_the_size_of_gradients():
    """Of logits that differ little, to first order, whatever the temperature (Hinton et al. 2015, section 2.1)."""
    teacher = torch.randn(4, 3)
    gradients = []
    for temperature in (50.0, 100.0):
        student = (teacher + 1e-2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
        soft_cross_entropy(student, teacher, temperature).sum().backward()
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=1e-4)
    plain = -(F.softmax(teacher / 2, -1) * F.log_softmax(student / 2, -1)).sum(-1) * 4
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 2.0), plain)


def test_label_loss_of_rows_without_a_label():
    logits = torch.randn(3, 2)
    loss = label_loss(logits, torch.tensor([1, NO_LABEL, 0]))
    expected = F.cross_entropy(logits[[0, 2]], torch.tensor([1, 0]), reduction="none")
    torch.testing.assert_close(loss, torch.stack([expected[0], torch.tensor(0.0), expected[1]]))


def test_relation_loss_against_a_loop():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    student, teacher = [torch.randn(2, 4, 64)], [torch.randn(2, 4, 96)]  # 1 relation head
    loss = relation_loss(student, teacher, mask)
    for row, length in enumerate((3, 4)):
        total = 0.0
        for i in range(length):
            ours, theirs = (
                F.softmax(part[row, i] @ part[row, :length].T / part.shape[-1] ** 0.5, -1)
                for part in (student[0], teacher[0])
            )
            total += (theirs * (theirs / ours).log()).sum() / length
        torch.testing.assert_close(loss[row], total)
    assert relation_loss(teacher, teacher, mask).abs().max() < 1e-6


def test_relation_heads_are_compared_each_for_itself():
    """As many as both widths can be split into, of at least 32 numbers."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    student, teacher = torch.randn(2, 4, 128), torch.randn(2, 4, 64)  # 2 heads: of 64 and of 32
    halves = [
        relation_loss([ours], [theirs], mask)
        for ours, theirs in zip(student.split(64, -1), teacher.split(32, -1), strict=True)
    ]
    torch.testing.assert_close(relation_loss([student], [teacher], mask), sum(halves) / 2)
