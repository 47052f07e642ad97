"""prune.py: targets on its command line, and what is left of every layer."""

import pytest
from conftest import LABELS

from utils.models.classifier import load_model
from utils.models.config import Config
from utils.models.families import layer_shapes


@pytest.mark.parametrize("options", [
    ["--importance=first_order", "--no-recover"],
    ["--importance=fisher", "--importance_target=logits"],
    ["--importance=magnitude", "--normalize_importance"],
    ["--importance=random"],
])  # fmt: skip
def test_uneven_budget_on_the_command_line(trained, options):
    code, stderr = trained.prune("--target_macs=0.6", *options)
    assert code == 0, stderr
    pruned = load_model(str(trained.folder / "pruned"), "--flag", Config("bert", 16), LABELS)
    (heads, neurons), (last_heads, last_neurons) = layer_shapes(pruned)
    # For each of some 10 tokens; of the last layer, which only computes the first one, about a tenth.
    kept, whole = 1184 * heads + 64 * neurons + 166 * last_heads + 6 * last_neurons, 4 * 1350 + 64 * 70
    assert 0.4 < kept / whole < 0.75
    assert trained.quantize()[0] == 0


@pytest.mark.parametrize("options, shapes", [
    (["--target_num_heads=0"], [(0, 64), (0, 64)]),
    (["--target_num_heads=1", "--target_ffn_dim=24", "--iterations=3", "--lr=1e-3"], [(1, 24), (1, 24)]),
    (["--target_hidden_size=16"], [(4, 64), (4, 64)]),
    (["--target_hidden_size=8", "--target_ffn_dim=10", "--iterations=2"], [(4, 10), (4, 10)]),
])  # fmt: skip
def test_other_targets_on_the_command_line(trained, options, shapes):
    code, stderr = trained.prune(*options)
    assert code == 0, stderr
    pruned = load_model(str(trained.folder / "pruned"), "--flag", Config("bert", 16), LABELS)
    assert layer_shapes(pruned) == shapes
    assert trained.quantize()[0] == 0


def test_a_pruned_model_goes_on(trained):
    """It can be distilled and pruned again."""
    assert trained.prune("--target_macs=0.4")[0] == 0
    code, stderr = trained.distill(start=str(trained.folder / "pruned"))
    assert code == 0, stderr
    code, stderr = trained.prune("--target_num_heads=0", "--target_hidden_size=24", source="student", out="again")
    assert code == 0, stderr
    assert trained.train(f"--bert_model_name_or_path={trained.folder / 'again'}", out="tuned")[0] == 0
    assert trained.evaluate(source="tuned")[0] == 0


def test_latency_budget(trained, monkeypatch):
    """On a machine whose latencies are known: a head takes 2 ms, 32 neurons 3, everything else 1."""

    def latency(model) -> float:
        return 1 + sum(2 * heads + 3 * neurons / 32 for heads, neurons in layer_shapes(model))

    monkeypatch.setattr(
        "utils.pruning.latency_budget.measure_latencies", lambda models, split: list(map(latency, models))
    )
    code, stderr = trained.prune("--target_latency=0.5")
    assert code == 0, stderr
    pruned = load_model(str(trained.folder / "pruned"), "--flag", Config("bert", 16), LABELS)
    assert 0.4 < latency(pruned) / 29 <= 0.55
    code, stderr = trained.prune("--target_latency=0.01", out="none")
    assert code == 2 and "a latency of 0.01" in stderr and not (trained.folder / "none").exists()


def test_impossible_targets(trained):
    for options, part in [
        (["--target_hidden_size=12"], "multiple of 8"),
        (["--target_hidden_size=64"], "--target_hidden_size=64"),
        (["--target_num_heads=-1"], "below 0"),
        (["--target_macs=0.5", "--target_latency=0.5"], "--target_latency"),
        (["--target_latency=0.5", "--target_ffn_dim=8"], "--target_ffn_dim"),
        (["--target_latency=1.5"], "--target_latency"),
        (["--keep_layers=0,0"], "--keep_layers=0,0"),
        (["--keep_layers=0,2"], "--keep_layers=0,2"),
        (["--iterations=0", "--target_num_heads=2"], "--iterations"),
    ]:
        code, stderr = trained.prune(*options, out="none")
        assert code == 2 and part in stderr and "Traceback" not in stderr
    assert not (trained.folder / "none").exists()


def test_impossible_budgets(trained):
    for option, part in [
        ("--target_macs=0", "--target_macs"),
        ("--target_macs=1.5", "--target_macs"),
        ("--target_macs=0.05", "raise it"),
    ]:
        code, stderr = trained.prune(option, out="none")
        assert code == 2 and part in stderr and "Traceback" not in stderr
    code, stderr = trained.prune("--target_macs=0.5", "--target_num_heads=2", out="none")
    assert code == 2 and "--target_num_heads" in stderr
    assert not (trained.folder / "none.pt").exists()
