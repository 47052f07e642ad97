"""Importance against plain references; a pruned model against the whole one with what was cut masked out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILY_NAMES

from utils.budget import NEURON_STEP, spread
from utils.checkpoint import load_tokenizer
from utils.cli import UserError
from utils.config import Config
from utils.families import family_of, layer_shapes, layers_of
from utils.importance import first_order, fisher, magnitudes, mask_gradients, most_important, normalized, rearranged
from utils.model import keep_layers, load_model, model_inputs, narrow_layer, save_checkpoint
from utils.recovery import recover

LABELS = ["negative", "positive"]


@pytest.fixture
def model(made, request):
    family = getattr(request, "param", "bert")
    return load_model(str(made[family] / "encoder"), "--flag", Config(family, 16), LABELS, new_head=True)


def make_batch(rows: int = 6) -> dict:
    torch.manual_seed(1)
    lengths = torch.randint(3, 12, (rows,))
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    ids = torch.randint(4, 24, (rows, 12)) * mask
    types = torch.zeros_like(ids)
    labels = torch.arange(rows) % 2
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}


def logits(model, batch) -> torch.Tensor:
    return model(**model_inputs(model, batch)).logits


def scale_neuron(model, layer: int, neuron: int, factor: float):
    """A copy whose FFN neuron is multiplied by `factor` on its way out."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        layers_of(scaled)[layer].get_submodule(family_of(scaled).ffn_output).weight[:, neuron] *= factor
    return scaled


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_importance_is_the_mean_absolute_gradient_of_each_row(model):
    batch = make_batch()
    heads, neurons = ([first_order(layer) for layer in part] for part in mask_gradients(model, [batch]))
    assert [(len(h), len(n)) for h, n in zip(heads, neurons, strict=True)] == layer_shapes(model)

    def row_losses(changed):
        with torch.no_grad():
            return F.cross_entropy(logits(changed, batch), batch["labels"], reduction="none").double()

    for layer, neuron in [(0, 0), (1, 5)]:
        up, down = (row_losses(scale_neuron(model, layer, neuron, 1 + step)) for step in (1e-2, -1e-2))
        expected = ((up - down) / 2e-2).abs().mean().item()
        assert neurons[layer][neuron].item() == pytest.approx(expected, rel=0.05, abs=2e-5)


def test_importance_does_not_depend_on_the_batches(model):
    batch = make_batch(6)
    halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 3), slice(3, 6))]
    for whole, split in zip(mask_gradients(model, [batch]), mask_gradients(model, halves), strict=True):
        for a, b in zip(whole, split, strict=True):
            torch.testing.assert_close(a, b)


def test_most_important_keeps_the_order():
    assert most_important(torch.tensor([0.1, 0.9, 0.0, 0.5]), 2).tolist() == [1, 3]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_pruning_equals_masking(model):
    batch = make_batch()
    heads, neurons = torch.tensor([0, 3]), torch.arange(0, 64, 3)
    masked = copy.deepcopy(model)
    family = family_of(model)
    with torch.no_grad():
        layer = layers_of(masked)[1]
        dropped = [i for i in range(32) if i // 8 not in (0, 3)]
        layer.get_submodule(family.attention_output).weight[:, dropped] = 0
        layer.get_submodule(family.ffn_output).weight[:, [i for i in range(64) if i % 3]] = 0
        expected = logits(masked, batch)
        narrow_layer(model, 1, heads, neurons)
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert layer_shapes(model) == [(4, 64), (2, 22)]


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_uneven_checkpoint_comes_back_the_same(model, made, tmp_path):
    family = model.config.model_type
    narrow_layer(model, 0, torch.tensor([1]), torch.arange(5))
    narrow_layer(model, 1, torch.tensor([0, 1, 2]), torch.arange(40))
    (tmp_path / "saved").mkdir()
    tokenizer = load_tokenizer(str(made[family] / "encoder"), "--flag")
    save_checkpoint(model, tokenizer, tmp_path / "saved", tmp_path / "saved.pt")
    batch = make_batch()
    for state_path in (None, str(tmp_path / "saved.pt")):
        again = load_model(str(tmp_path / "saved"), "--flag", Config(family, 16), LABELS, state_path)
        assert layer_shapes(again) == [(1, 5), (3, 40)]
        with torch.no_grad():
            assert torch.equal(logits(again, batch), logits(model, batch))


def test_keep_layers_skips_the_others(model):
    batch = make_batch()
    last = copy.deepcopy(layers_of(model)[1])
    keep_layers(model, [1])
    assert model.config.num_hidden_layers == 1 and len(layers_of(model)) == 1
    for mine, theirs in zip(layers_of(model)[0].parameters(), last.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert logits(model, batch).shape == (6, 2)


def test_target_num_layers_takes_the_last_of_each_block():
    import argparse

    from prune import chosen_layers

    wanted = argparse.Namespace(target_num_layers=3, keep_layers=None)
    assert chosen_layers(wanted, 6) == [1, 3, 5]
    wanted.target_num_layers = 4
    assert chosen_layers(wanted, 12) == [2, 5, 8, 11]


def test_importance_without_labels_is_that_of_the_predictions(model):
    batch = make_batch()
    with torch.no_grad():
        predicted = batch | {"labels": logits(model, batch).argmax(-1)}
    unlabelled = mask_gradients(model, [batch | {"labels": 1 - predicted["labels"]}], target="logits")
    for mine, expected in zip(unlabelled, mask_gradients(model, [predicted]), strict=True):
        torch.testing.assert_close(mine, expected)


def test_scores_of_gradients():
    gradients = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert first_order(gradients).tolist() == [2.0, 1.0]
    assert fisher(gradients).tolist() == [5.0, 2.0]
    assert [layer.tolist() for layer in normalized([torch.tensor([1.0, 3.0]), torch.zeros(2)])] == [
        [0.25, 0.75],
        [0, 0],
    ]


def test_magnitude_grows_with_the_weights(model):
    before = magnitudes(model)
    scaled = scale_neuron(model, 1, 5, 3.0)
    after = magnitudes(scaled)
    assert after[1][1][5] > before[1][1][5]
    after[1][1][5] = before[1][1][5]
    for part, expected in zip(after, before, strict=True):
        torch.testing.assert_close(part, expected)


def test_rearranging_drops_one_of_two_that_do_the_same():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator)
    # 0 and 1 are the same and together outweigh 2, whose own score is higher than either's.
    gradients = torch.stack([a, a, 1.1 * b, 0.1 * b], dim=1)
    assert most_important(fisher(gradients), 2).tolist() != [0, 2]
    assert rearranged(gradients, 2).tolist() in ([0, 2], [1, 2])
    assert rearranged(gradients, 4).tolist() == [0, 1, 2, 3]


def test_budget_goes_where_it_matters():
    heads = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([5.0, 0.1, 0.1, 0.1])]
    neurons = [torch.full((128,), 0.001), torch.full((128,), 1.0)]
    shapes = spread(heads, neurons, head_cost=32, neuron_cost=1, fraction=0.5)
    cost = sum(32 * num_heads + num_neurons for num_heads, num_neurons in shapes)
    assert cost <= 256 + NEURON_STEP
    assert shapes[1][1] == 128 and shapes[0][1] == NEURON_STEP and shapes[1][0] == 1
    assert spread(heads, neurons, 32, 1, 1.0) == [(4, 128), (4, 128)]
    with pytest.raises(UserError, match="0.25"):
        spread(heads, neurons, 32, 1, 0.2)


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_recovery_makes_up_for_a_twin(model):
    """A neuron whose twin stays can be pruned without a trace."""
    family, batch = family_of(model), make_batch(64)
    with torch.no_grad():
        for layer in layers_of(model):
            for parameter in layer.get_submodule(family.ffn_input).parameters():
                parameter[1] = parameter[0]
    pruned = copy.deepcopy(model)
    for index in range(2):
        narrow_layer(pruned, index, torch.arange(4), torch.tensor([0, *range(2, 64)]))
    with torch.no_grad():
        expected, cut = logits(model, batch), logits(pruned, batch)
        recover(pruned, model, lambda: [batch], ridge=1e-7)
        recovered = logits(pruned, batch)
    assert (recovered - expected).abs().max() < 0.05 * (cut - expected).abs().max()


def test_recovery_leaves_a_whole_model_as_it_is(model):
    batch, again = make_batch(64), copy.deepcopy(model)
    recover(again, model, lambda: [batch])
    for mine, expected in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [
    ["--importance=first_order"],
    ["--importance=fisher", "--importance_target=logits", "--recover"],
    ["--importance=magnitude", "--normalize_importance"],
    ["--importance=random", "--recover"],
])  # fmt: skip
def test_uneven_budget_on_the_command_line(trained, options):
    code, stderr = trained.prune("--target_macs=0.6", *options)
    assert code == 0, stderr
    pruned = load_model(str(trained.folder / "pruned"), "--flag", Config("bert", 16), LABELS)
    shapes = layer_shapes(pruned)
    # A head costs 4 * 32 * 8 MACs and a few more for scores, a neuron 2 * 32.
    kept = sum(1024 * num_heads + 64 * num_neurons for num_heads, num_neurons in shapes) / (2 * (4096 + 4096))
    assert 0.4 < kept < 0.75
    assert trained.quantize()[0] == 0


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
