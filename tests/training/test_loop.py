"""What a training step does: which rows, which dropout, which rate, decay and length of the gradient."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import LABELS

from utils.data.tables import Data
from utils.models.classifier import set_dropout
from utils.training import loop
from utils.training.loop import Settings, train
from utils.training.scoring import Evaluation, predict

ROWS = 20
SETTINGS = Settings(lr=1e-3, epochs=2, batch_size=8, measure="loss", seed=3, warmup_ratio=0.0)


def make_split(count: int) -> datasets.Dataset:
    """Rows of 3 to 9 tokens, in another order than by length."""
    generator = np.random.default_rng(0)
    ids = [[1, *generator.integers(4, 24, size=int(length)).tolist(), 3] for length in generator.integers(1, 8, count)]
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids], "label": [i % 2 for i in range(count)]}
    )


@pytest.fixture
def data() -> Data:
    """20 rows to learn from, which are 3 steps of 8, 8 and 4, and 6 to be scored on."""
    return Data(LABELS, {"train": make_split(ROWS), "valid": make_split(6)}, Path("nowhere"), "", {}, 1)


def run(
    model, data: Data, settings: Settings = SETTINGS, dropout: float = 0.0, row_losses=None, kd_loss=None
) -> SimpleNamespace:
    """A training on the CPU, and all that it did: its rows, scalars, saved scores and weights before each step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    done = SimpleNamespace(rows=[], scalars={}, saves=[], weights=[], gradients=[], training=[])
    set_dropout(model, dropout)

    def default_losses(wrapped, inputs, batch, rows):
        done.rows.append(rows)
        done.training.append(wrapped.training)
        done.weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return F.cross_entropy(wrapped(**inputs).logits, torch.as_tensor(batch["labels"]), reduction="none")

    def write_scalars(step: int, values: dict[str, float]) -> None:
        done.scalars.setdefault(step, {}).update(values)

    done.best = train(
        model, data, row_losses or default_losses, settings, Accelerator(cpu=True, mixed_precision="no"),
        save=lambda saved: done.saves.append(len(done.rows)), write_scalars=write_scalars,
        kd_loss=kd_loss,
    )  # fmt: skip
    return done


def rates(done: SimpleNamespace) -> list[float]:
    """The rate that each step but the first was taken with: a schedule gives that of the next one."""
    return [values["train/lr"] for _, values in sorted(done.scalars.items()) if "train/lr" in values]


def test_dropout_differs_between_steps(model, data):
    """Of the same rows and weights; and is the same in another run."""
    losses = []

    def same_rows(wrapped, inputs, batch, rows):
        logits = wrapped(**inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}).logits
        losses.append(logits.detach().clone())
        return logits.sum(-1) * 0

    settings = replace(SETTINGS, batch_size=ROWS, epochs=3, weight_decay=0.0)
    sorted_rows = [np.arange(ROWS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "shuffled_batches", lambda *arguments, **options: sorted_rows)
        for _ in range(2):
            run(model, data, settings, dropout=0.3, row_losses=same_rows)
    first, second, third, *again = losses
    assert not torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(first, third)
    assert all(map(torch.equal, (first, second, third), again))


def test_seeds_differ_between_steps_and_processes():
    draws = set()
    for seed, step, process in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0), (1, 1, 1)):
        loop._seed_dropout(seed, step, process)
        draws.add(torch.rand(1).item())
    assert len(draws) == 5


def test_every_row_once_an_epoch_in_another_order(model, data):
    done = run(model, data)
    assert [sorted(map(len, part)) for part in (done.rows[:3], done.rows[3:])] == [[4, 8, 8]] * 2
    epochs = [np.concatenate(done.rows[:3]), np.concatenate(done.rows[3:])]
    for rows in epochs:
        assert sorted(rows) == list(range(ROWS))
    assert list(epochs[0]) != list(epochs[1])
    assert all(done.training)  # after an evaluation, too


def test_the_rate_rises_and_falls_to_nothing(model, data):
    """Linearly, over 6 steps of which a third are the warm-up; what is written is the next step's."""
    done = run(model, data, replace(SETTINGS, warmup_ratio=1 / 3))
    assert rates(done) == pytest.approx([0.5e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0])
    torch.testing.assert_close(done.weights[1], done.weights[0])  # the first step's rate is 0
    assert rates(run(model, data)) == pytest.approx([1e-3 * (1 - step / 6) for step in range(1, 7)])


def test_decay_of_matrices_alone(model, data):
    """Where the gradient is 0, a step scales them by 1 - rate * decay, and leaves biases and layer norms."""

    def no_gradient(wrapped, inputs, batch, rows):
        return wrapped(**inputs).logits.sum(-1) * 0

    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = replace(SETTINGS, lr=0.1, weight_decay=0.5, batch_size=ROWS, epochs=1)
    run(model, data, settings, row_losses=no_gradient)
    for name, value in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if value.ndim > 1 else before[name]
        torch.testing.assert_close(value.detach(), expected, msg=name)


def test_the_gradient_is_of_the_mean_and_clipped(model, data, monkeypatch):
    """Whatever the parts that a step is computed in, and anew in each step."""
    found = []
    step = torch.optim.AdamW.step

    def spy(optimizer, *arguments, **options):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    settings = replace(SETTINGS, lr=1e-30, epochs=1)
    results = {}
    for name, change in {"whole": {}, "parts": {"accumulation_steps": 3}, "clipped": {"max_grad_norm": 1e-3}}.items():
        found.clear()
        done = run(model, data, replace(settings, **{"max_grad_norm": 1e9} | change))
        results[name] = [gradient.clone() for gradient in found]
        if name == "whole":
            rows, weights = done.rows, done.weights[0]
    assert [len(name) for name in results.values()] == [3, 3, 3]
    for whole, parts, clipped in zip(*results.values(), strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-4)
        assert clipped.norm().item() == pytest.approx(1e-3, rel=1e-3) and whole.norm() > 1e-2
        torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm(), atol=1e-6, rtol=1e-3)
    # Row by row, against autograd.
    model.load_state_dict(weights, strict=False)
    model.eval()
    losses = []
    for row in rows[0]:
        ids = torch.tensor([data.splits["train"][int(row)]["input_ids"]])
        losses.append(F.cross_entropy(model(input_ids=ids).logits, torch.tensor([int(row) % 2])))
    model.zero_grad()
    torch.stack(losses).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert results["whole"][0].norm().item() == pytest.approx(expected.item(), rel=1e-3)


def scores(monkeypatch, *values: tuple[float, float]) -> list[Evaluation]:
    """Let the evaluations of a training give these losses and accuracies, one after the other."""
    evaluations = [Evaluation(*value) for value in values]
    remaining = iter(evaluations)
    monkeypatch.setattr(loop, "evaluate_logits", lambda *arguments: next(remaining))
    return evaluations


def test_the_best_is_saved(model, data, monkeypatch):
    """Evaluated every second step and at the end of each epoch of 3; saved when better only."""
    evaluations = scores(monkeypatch, (0.6, 0.5), (0.7, 0.9), (0.5, 0.5), (0.5, 0.5))
    done = run(model, data, replace(SETTINGS, eval_steps=2))
    assert [step for step, values in sorted(done.scalars.items()) if "valid/loss" in values] == [2, 3, 4, 6]
    assert done.saves == [2, 4] and done.best == evaluations[2]
    evaluations = scores(monkeypatch, (0.6, 0.5), (0.7, 0.9), (0.5, 0.5), (0.6, 0.9))
    done = run(model, data, replace(SETTINGS, eval_steps=2, measure="accuracy"))
    assert done.saves == [2, 3, 6] and done.best == evaluations[3]  # of equal accuracy, by the loss


def test_the_best_by_the_distance_to_a_teacher(model, data):
    """It is asked of the logits of valid in their order, and decides in the place of the labels' loss."""
    distances, seen = iter((0.6, 0.4, 0.5, 0.7)), []

    def kd_loss(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return torch.arange(6.0) + next(distances) - 2.5

    done = run(model, data, replace(SETTINGS, eval_steps=2, measure="kd_loss"), kd_loss=kd_loss)
    assert done.saves == [2, 3] and done.best.loss == pytest.approx(0.4) and done.best.loss_name == "kd_loss"
    assert str(done.best).startswith("valid distillation loss 0.4000, valid accuracy")
    assert {"valid/kd_loss", "valid/accuracy"} <= done.scalars[6].keys() and "valid/loss" not in done.scalars[6]
    torch.testing.assert_close(seen[-1], predict(model, data.splits["valid"], Accelerator(cpu=True), ""))


def test_patience_counts_evaluations_since_the_best(model, data, monkeypatch):
    scores(monkeypatch, (0.6, 0.5), (0.7, 0.5), (0.5, 0.5), (0.5, 0.5), (0.6, 0.5), (0.1, 1.0))
    done = run(model, data, replace(SETTINGS, epochs=9, patience=2))
    assert len(done.rows) == 5 * 3 and done.saves == [3, 9]


def test_the_mean_loss_since_the_last_evaluation(model, data, caplog):
    """It is logged; rows of a smaller last batch weigh more, as the mean is over steps."""
    caplog.set_level("INFO", logger="utils.training.loop")
    done = run(model, data)
    losses = [done.scalars[step]["train/loss"] for step in range(1, 7)]
    logged = [record.args[1] for record in caplog.records if "train loss" in record.msg]
    assert logged == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_no_process_is_left_without_a_row():
    """Of 9 rows in batches of 4, the last one is dropped where two processes would share it."""
    lengths = np.full(9, 5)
    assert sorted(map(len, loop._epoch_batches(lengths, replace(SETTINGS, batch_size=4), 0, 1))) == [1, 4, 4]
    assert sorted(map(len, loop._epoch_batches(lengths, replace(SETTINGS, batch_size=4), 0, 2))) == [4, 4]


@pytest.mark.parametrize(
    ("device", "precision", "longest", "eager"),
    [("cpu", "bf16", 128, True), ("cpu", "bf16", 129, False), ("cpu", "no", 20, False), ("cuda", "bf16", 20, False)],
)
def test_attention_of_short_rows(device, precision, longest, eager):
    """Eager where it is faster: on a CPU in bf16."""
    asked = []
    loop._choose_attention(
        SimpleNamespace(set_attn_implementation=asked.append), np.array([3, longest]),
        SimpleNamespace(device=SimpleNamespace(type=device), mixed_precision=precision),
    )  # fmt: skip
    assert asked == ["eager"] * eager
