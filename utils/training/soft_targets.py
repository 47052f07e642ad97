"""What a student learns from in the place of a teacher's logits, or beside them: the soft labels of the data."""

import torch

from utils.data.soft_labels import as_logits
from utils.data.tables import Data


def with_soft_labels(
    data: Data, splits: list[str], teacher_logits: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that every row of some splits has, one split after the other; and which rows have some.

    Args:
        teacher_logits: for the rows without a soft label, [rows, labels]; None where there is no teacher.

    Returns:
        Logits, fp32 [rows, labels], 0 where a row has none; and bool [rows].
    """
    num_labels, parts = len(data.labels), []
    for split in splits:
        soft_labels = data.soft_labels.get(split)
        if soft_labels is None:
            parts.append(torch.full((len(data.splits[split]), num_labels), torch.nan))
        else:
            parts.append(torch.from_numpy(as_logits(soft_labels, num_labels, data.task)))
    logits = torch.cat(parts)
    has_logits = ~logits.isnan().any(-1)
    if teacher_logits is None:
        return logits.nan_to_num(), has_logits
    return torch.where(has_logits[:, None], logits, teacher_logits), torch.ones_like(has_logits)
