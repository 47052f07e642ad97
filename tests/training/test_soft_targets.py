"""Students of soft labels: with and without a teacher, and of rows that lack one or the other."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from conftest import ALIKE, LABELS, fails, make_batch
from datasets import Dataset
from safetensors.torch import load_file

from utils.data.tables import NO_LABEL, Data
from utils.models.classifier import model_inputs
from utils.training.distillation import LossWeights, distillation_losses
from utils.training.soft_targets import with_soft_labels

WEIGHTS = LossWeights("soft_cross_entropy", 1.0, 0.5, 0.0, "mse", "ends", 0.0, 0.0)
SOFT = torch.tensor([[0.2, 0.8], [0.6, 0.4]])


def make_data() -> Data:
    """2 rows of train, of which the first has a soft label, and 3 unlabelled rows, of which the last has one."""
    splits = {
        split: Dataset.from_dict({"label": [0] * count}) for split, count in {"train": 2, "unlabelled": 3}.items()
    }
    columns = {"train": [SOFT[0].tolist(), None], "unlabelled": [None, None, SOFT[1].tolist()]}
    soft = {split: pa.chunked_array([pa.array(rows, pa.list_(pa.float32()))]) for split, rows in columns.items()}
    return Data(LABELS, splits, Path(), "", {}, 1, soft)


def test_a_teacher_stands_in_where_a_row_has_none():
    logits, has_logits = with_soft_labels(make_data(), ["train", "unlabelled"], None)
    assert has_logits.tolist() == [True, False, False, False, True]
    torch.testing.assert_close(logits[has_logits].softmax(-1), SOFT)
    teacher = torch.randn(5, 2)
    both, has_logits = with_soft_labels(make_data(), ["train", "unlabelled"], teacher)
    assert has_logits.all() and torch.equal(both[1:4], teacher[1:4])
    torch.testing.assert_close(both[[0, 4]].softmax(-1), SOFT)
    data = make_data()
    del data.soft_labels["unlabelled"]
    assert with_soft_labels(data, ["train", "unlabelled"], None)[1].tolist() == [True] + [False] * 4


@pytest.mark.parametrize("kd_loss", ["soft_cross_entropy", "mse"])
def test_a_mixed_batch_as_by_hand(model, kd_loss):
    """Rows 0 to 2 are labelled, 3 to 5 are not; 0 and 4 have soft labels: each loss takes the rows it can."""
    batch = make_batch()
    batch["labels"][3:] = NO_LABEL
    logits, has_logits = torch.zeros(6, 2), torch.tensor([True, False, False, False, True, False])
    logits[has_logits] = SOFT.log()
    weights = LossWeights(**(WEIGHTS.__dict__ | {"kd_loss": kd_loss}))
    row_losses = distillation_losses(None, model, logits, 3, weights, [], has_logits)
    losses = row_losses(model, model_inputs(model, batch), batch, np.arange(6))
    ours = model(**model_inputs(model, batch)).logits.detach()
    expected = torch.zeros(6)
    for row, soft in ((0, SOFT[0]), (4, SOFT[1])):
        of_soft = -(soft * ours[row].log_softmax(-1)).sum(), ((ours[row] - soft.log()) ** 2).mean()
        expected[row] += of_soft[kd_loss == "mse"]
    expected[:3] += 0.5 * F.cross_entropy(ours[:3], batch["labels"][:3], reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)
    losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def distill_alone(steps, *more: str, out: str = "student"):
    """Without any option of a teacher."""
    return steps.script(
        "fastformers", *steps.common(), f"--bert_model_name_or_path={steps.encoder}",
        f"--bert_output_dir={steps.folder / out}", f"--save_path={steps.folder / out}.pt", "--lr=5e-3", "--epoch=3",
        "--batch_size=16", *ALIKE, *more,
    )  # fmt: skip


def soften(steps, split: str, every: int = 1) -> int:
    """Soft labels beside a split that say what its words say; returns how many rows have none."""
    lines = []
    for i, line in enumerate((steps.data / f"{split}.txt").read_text().splitlines()):
        is_good = any(word in line.split("\t")[0].split() for word in ("good", "great", "fine"))
        lines.append({"positive": 0.97, "negative": 0.03} if is_good else [0.97, 0.03])
        if i % every:
            lines[-1] = None
    (steps.data / f"{split}.soft.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines.count(None)


def test_a_student_without_a_teacher(project):
    """It learns what the soft labels say, not the labels."""
    steps = project()
    soften(steps, "train")
    lines = (steps.data / "train.txt").read_text()
    swapped = lines.replace("negative", "-").replace("positive", "negative").replace("-", "positive")
    (steps.data / "train.txt").write_text(swapped)
    assert steps.preprocess()[0] == 0
    code, stderr = distill_alone(steps, "--soft_labels")
    assert code == 0 and "[Teacher]" not in stderr and "teach nothing" not in stderr, stderr
    assert not list(steps.data.glob("tokenized/teacher-*"))
    assert steps.evaluate(f"--output_json={steps.folder}/scores.json", source="student")[0] == 0
    assert json.loads((steps.folder / "scores.json").read_text())["accuracy"] > 0.9


def test_rows_that_lack_something(project):
    steps = project()
    texts = "".join(f"a a a a {'film ' * i}good\n" for i in range(10))
    (steps.data / "unlabelled.txt").write_text(texts)
    without = soften(steps, "train", every=3)
    assert soften(steps, "unlabelled") == 0 and steps.preprocess()[0] == 0
    code, stderr = distill_alone(steps, "--soft_labels", "--unlabelled")
    assert code == 0 and f"{without} of 106 rows have neither a soft label nor a label" in stderr
    code, stderr = distill_alone(steps, "--soft_labels", "--unlabelled", "--label_ratio=1", out="labels")
    assert code == 0 and "teach nothing" not in stderr
    assert steps.train()[0] == 0
    code, stderr = steps.distill("--soft_labels", "--unlabelled", out="both")
    assert code == 0 and "[Teacher]" in stderr and "teach nothing" not in stderr
    assert steps.distill("--unlabelled", out="teachers")[0] == 0
    both, teachers = (load_file(steps.folder / name / "model.safetensors") for name in ("both", "teachers"))
    assert not torch.equal(both["classifier.weight"], teachers["classifier.weight"])


def test_nothing_to_learn_from(trained):
    steps = trained
    fails(distill_alone(steps), "nothing to learn from", "--teacher_bert_model_name_or_path", "--soft_labels")
    fails(distill_alone(steps, "--soft_labels"), "--soft_labels: the rows of train", "train.soft.jsonl")
    fails(steps.distill("--soft_labels"), "--soft_labels: the rows of train")
    fails(distill_alone(steps, "--soft_labels", "--measure=kd_loss"), "--measure=kd_loss needs a teacher")
    for option in ("--state_loss_ratio=1", "--teacher_config=x.json", "--teacher_layers=0,1"):
        fails(distill_alone(steps, "--soft_labels", option), f"{option.split('=')[0]} needs a teacher")
    (steps.data / "train.soft.jsonl").write_text("null\n" * 96)
    assert steps.preprocess()[0] == 0
    fails(distill_alone(steps, "--soft_labels", "--label_ratio=1"), "--soft_labels: the rows of train")
    assert not (steps.folder / "student").exists()
