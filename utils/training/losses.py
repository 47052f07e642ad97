"""Losses of a student against its teacher, one value a row, [batch]: parts of a batch sum up to the whole."""

import math

import torch
import torch.nn.functional as F

from utils.data.tables import NO_LABEL


def soft_cross_entropy(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-entropy against the teacher's probabilities, both at a temperature (Hinton et al. 2015).

    Times the square of the temperature, so that gradients keep their size. Logits are [batch, labels].
    """
    teacher, student = teacher_logits / temperature, student_logits / temperature
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1) * temperature**2


def logits_mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean squared error of the logits [batch, labels] (Ba & Caruana 2014), which a temperature would only scale."""
    return F.mse_loss(student_logits, teacher_logits, reduction="none").mean(-1)


def soft_binary_cross_entropy(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """As `soft_cross_entropy`, of labels of which a row has any number: each one's probability is a sigmoid's, and the
    mean is taken over the labels."""
    targets = (teacher_logits / temperature).sigmoid()
    errors = F.binary_cross_entropy_with_logits(student_logits / temperature, targets, reduction="none")
    return errors.mean(-1) * temperature**2


def label_loss(student_logits: torch.Tensor, labels: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Cross-entropy against label ids [batch]; 0 for a row whose id is NO_LABEL."""
    return F.cross_entropy(student_logits, labels, reduction=reduction, ignore_index=NO_LABEL)


def binary_label_loss(student_logits: torch.Tensor, labels: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Mean over labels of the binary cross-entropy against 1 or 0 for each, [batch, labels]; 0 for a row of NaN."""
    has_labels = ~labels.isnan().any(-1)
    errors = F.binary_cross_entropy_with_logits(student_logits, labels.nan_to_num(), reduction="none").mean(-1)
    errors = torch.where(has_labels, errors, 0.0)
    return errors if reduction == "none" else errors.mean()


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
    """Squared error of attention probabilities, layer by layer, as TinyBERT's (Jiao et al. 2020, equation 7).

    On probabilities, over real tokens only.

    Args:
        student_attentions, teacher_attentions: as many tensors [batch, heads, length, length] each, pair by pair.
        mask: 1 for real tokens, [batch, length].
    """
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).to(student_attentions[0].dtype)
    total = torch.zeros(mask.shape[0], device=mask.device)
    for student, teacher in zip(student_attentions, teacher_attentions, strict=True):
        error = F.mse_loss(student, teacher, reduction="none") * pairs
        total = total + error.sum((1, 2, 3)) / (student.shape[1] * mask.sum(-1) ** 2)
    return total / len(student_attentions)


def relation_loss(
    student_parts: list[torch.Tensor], teacher_parts: list[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """Divergence of the relations of a layer's queries, of its keys and of its values (MiniLMv2, Wang et al. 2021).

    A relation is the softmax of scaled products between tokens. It needs neither equal hidden sizes nor equal numbers
    of heads, as the parts are split anew into relation heads: as many as both widths allow, at least 32 wide.

    Args:
        student_parts, teacher_parts: queries, keys and values, each [batch, length, width].
        mask: 1 for real tokens, [batch, length].
    """
    num_heads = max(1, math.gcd(student_parts[0].shape[-1], teacher_parts[0].shape[-1]) // 32)

    def relations(part: torch.Tensor) -> torch.Tensor:
        heads = part.float().unflatten(-1, (num_heads, -1)).transpose(1, 2)
        products = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
        return products.masked_fill(mask[:, None, None, :] == 0, torch.finfo(products.dtype).min).log_softmax(-1)

    total = torch.zeros(mask.shape[0], device=mask.device)
    for student, teacher in zip(student_parts, teacher_parts, strict=True):
        divergence = F.kl_div(relations(student), relations(teacher), reduction="none", log_target=True).sum(-1)
        total = total + (divergence.mean(1) * mask).sum(-1) / mask.sum(-1)
    return total / len(student_parts)
