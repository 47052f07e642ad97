"""Losses of a student against its teacher, one value a row, [batch]: parts of a batch sum up to the whole."""

import torch
import torch.nn.functional as F


def soft_cross_entropy(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against the teacher's probabilities (Hinton et al. 2015, temperature 1); logits [batch, labels]."""
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1)


def logits_mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the logits [batch, labels] (Ba & Caruana 2014)."""
    return F.mse_loss(student_logits, teacher_logits, reduction="none").mean(-1)


KD_LOSSES = {"soft_cross_entropy": soft_cross_entropy, "mse": logits_mse}


def state_loss(
    student_states: list[torch.Tensor], teacher_states: list[torch.Tensor], mask: torch.Tensor, kind: str
) -> torch.Tensor:
    """Distance of hidden states, averaged over the pairs given and over each row's real tokens.

    Args:
        student_states, teacher_states: as many tensors [batch, length, hidden size] each, pair by pair.
        mask: 1 for real tokens, [batch, length].
        kind: `mse`, or `cosine` for one minus the cosine similarity.
    """
    total = torch.zeros(mask.shape[0], device=mask.device)
    for student, teacher in zip(student_states, teacher_states, strict=True):
        if kind == "mse":
            distance = F.mse_loss(student, teacher, reduction="none").mean(-1)
        else:
            distance = 1 - F.cosine_similarity(student, teacher, dim=-1)
        total = total + (distance * mask).sum(-1) / mask.sum(-1)
    return total / len(student_states)


def attention_loss(
    student_attentions: list[torch.Tensor], teacher_attentions: list[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """Squared error of the attention probabilities of every student layer against its teacher block's last layer.

    As TinyBERT (Jiao et al. 2020, equation 7), on probabilities, over real tokens only.

    Args:
        student_attentions: one [batch, heads, length, length] a layer.
        teacher_attentions: the same for the teacher, a multiple of the student's number of layers.
        mask: 1 for real tokens, [batch, length].
    """
    block = len(teacher_attentions) // len(student_attentions)
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).to(student_attentions[0].dtype)
    total = torch.zeros(mask.shape[0], device=mask.device)
    for i, student in enumerate(student_attentions):
        teacher = teacher_attentions[(i + 1) * block - 1]
        error = F.mse_loss(student, teacher, reduction="none") * pairs
        total = total + error.sum((1, 2, 3)) / (student.shape[1] * mask.sum(-1) ** 2)
    return total / len(student_attentions)
