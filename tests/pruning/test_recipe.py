"""Each step of the recipe on a tiny model, and how far each of several steps goes."""

import copy

import pytest
import torch
from conftest import LABELS, logits, make_batch

from utils.data.tables import load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, model_inputs
from utils.models.config import Config
from utils.models.families import family_of, layer_shapes, layers_of
from utils.pruning.importance import GRADIENT_SCORES, mask_gradients, random_scores, width_gradients
from utils.pruning.recipe import prune_layers, prune_width, rank, rank_width, sample_batches


def test_rows_to_rank_on(project):
    steps = project("bert")
    assert steps.preprocess()[0] == 0
    train = load_data(steps.data, load_tokenizer(steps.encoder, "--flag"), 16).splits["train"]

    def ids(num_rows: int, seed: int) -> list:
        return [batch["input_ids"].tolist() for batch in sample_batches(train, num_rows, 0, seed, "rows")]

    assert [len(batch) for batch in ids(40, 1)] == [32, 32]
    assert [len(batch) for batch in ids(1000, 1)] == [32, 32, 32]
    assert ids(40, 1) == ids(40, 1) == ids(1000, 1)[:2] != ids(40, 2)


@pytest.mark.parametrize("importance", ["fisher", "first_order", "magnitude"])
def test_what_has_no_effect_is_pruned(model, importance):
    """A head and two neurons of the second layer that nothing reads: without them all logits stay the same."""
    batch, family, layer = make_batch(), family_of(model), layers_of(model)[1]
    head, neurons = slice(8, 16), [3, 60]
    with torch.no_grad():
        layer.get_submodule(family.attention_output).weight[:, head] = 0
        layer.get_submodule(family.ffn_output).weight[:, neurons] = 0
        # Their other weights are small, too, which magnitude looks at.
        for path in (family.query, family.key, family.value):
            layer.get_submodule(path).weight[head] *= 1e-3
        layer.get_submodule(family.ffn_input).weight[neurons] *= 1e-3
        expected = logits(model, batch)
    ranking = rank(model, [batch], importance)
    assert (ranking.gradients is not None) == (importance == "fisher")  # by them a layer's heads are judged together
    assert ranking.heads[1].argmin() == 1
    assert ranking.neurons[1].topk(2, largest=False).indices.sort().values.tolist() == neurons
    prune_layers(model, [(4, 64), (3, 62)], ranking)
    assert layer_shapes(model) == [(4, 64), (3, 62)]
    with torch.no_grad():
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_ranking_by_labels_or_by_the_models_own_answers(model):
    """And by the score that is asked for, of heads and neurons as of hidden units."""
    batch = make_batch()
    for target in ("labels", "logits"):
        gradients, width = mask_gradients(model, [batch], target), width_gradients(model, [batch], target)
        for name, score in GRADIENT_SCORES.items():
            ranking = rank(model, [batch], name, target)
            torch.testing.assert_close(ranking.heads[1], score(gradients[0][1]))
            torch.testing.assert_close(ranking.neurons[0], score(gradients[1][0]))
            for units, expected in zip(rank_width(model, [batch], name, target), width, strict=True):
                torch.testing.assert_close(units, score(expected))
    for units, expected in zip(rank_width(model, [batch], "magnitude", "logits"), width, strict=True):
        torch.testing.assert_close(units, GRADIENT_SCORES["first_order"](expected))
    assert not torch.equal(rank(model, [batch]).heads[0], rank(model, [batch], target="logits").heads[0])


def test_random_ranking(model):
    """By the seed alone: the batches are not read."""
    ranking = rank(model, None, "random", seed=7)
    for scores, expected in zip((ranking.heads, ranking.neurons), random_scores(model, 7), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(scores, expected, strict=True))
    normalized = rank(model, None, "random", normalize=True, seed=7)
    for layer, scores in zip(normalized.neurons, ranking.neurons, strict=True):
        torch.testing.assert_close(layer, scores / scores.sum())


def test_hidden_units_that_are_kept(model):
    """The ones with the highest scores, in their order, with the weights that they had."""
    hidden, classifier = rank_width(model, [make_batch()])
    assert hidden.shape == classifier.shape == (32,)
    weight = copy.deepcopy(model.get_submodule(family_of(model).head_output).weight)
    units = prune_width(model, 16, hidden, classifier)
    assert units.tolist() == sorted(hidden.topk(16).indices.tolist())
    assert model.config.hidden_size == 16
    classifier_units = sorted(classifier.topk(16).indices.tolist())
    assert torch.equal(model.get_submodule(family_of(model).head_output).weight, weight[:, classifier_units])


def cost(shapes) -> float:
    """Of the whole model's MACs, for 10 tokens: 1184 a head and 64 a neuron, in the last layer 166.4 and 6.4."""
    (heads, neurons), (last_heads, last_neurons) = shapes
    return (1184 * heads + 64 * neurons + 166.4 * last_heads + 6.4 * last_neurons) / (4 * 1350.4 + 64 * 70.4)


@pytest.fixture
def distillations(monkeypatch):
    """A list of (the model's shapes, its hidden size, losses of a batch [rows], its logits) at every distillation."""
    observed = []

    def observe(model, data, row_losses, settings, accelerator, save, run):
        batch = make_batch()
        with torch.no_grad():
            losses = row_losses(model, model_inputs(model, batch), batch, torch.arange(6).numpy())
            observed.append((layer_shapes(model), model.config.hidden_size, losses, logits(model, batch)))

    monkeypatch.setattr("utils.pruning.recipe.train", observe)
    return observed


@pytest.mark.parametrize("options, steps", [
    (["--target_num_heads=2", "--target_ffn_dim=20"], [([(3, 42)] * 2, 32), ([(2, 20)] * 2, 32)]),
    (["--target_hidden_size=16"], [([(4, 64)] * 2, 24), ([(4, 64)] * 2, 16)]),
])  # fmt: skip
def test_equal_steps_to_the_targets(trained, distillations, options, steps):
    code, stderr = trained.prune(*options, "--iterations=2", "--device=cpu")
    assert code == 0, stderr
    assert [(shapes, hidden_size) for shapes, hidden_size, *_ in distillations] == steps


@pytest.mark.parametrize("option", ["--target_macs=0.36", "--target_latency=0.36"])
def test_equal_steps_to_a_budget(trained, distillations, monkeypatch, option):
    """0.36 in two steps is 0.6 twice; 32 neurons, the smallest step, are 0.207 of the whole."""
    monkeypatch.setattr(
        "utils.pruning.latency_budget.measure_latencies",
        lambda models, split: [cost(layer_shapes(model)) for model in models],
    )
    code, stderr = trained.prune(option, "--iterations=2")
    assert code == 0, stderr
    first, second = (cost(shapes) for shapes, *_ in distillations)
    assert first == pytest.approx(0.6, abs=0.12) and second == pytest.approx(0.36, abs=0.12)
    assert second < first - 0.1


def test_distillation_is_towards_the_logits_of_the_whole_model(trained, distillations):
    from accelerate import Accelerator

    from utils.training.scoring import predict

    assert trained.prune("--target_num_heads=1", "--iterations=2")[0] == 0
    data = load_data(trained.data, load_tokenizer(trained.encoder, "--flag"), 16)
    whole = load_model(str(trained.folder / "teacher"), "--flag", Config("bert", 16), LABELS)
    teacher_logits = predict(whole, data.splits["train"], Accelerator(cpu=True), "teacher")[:6]
    assert len(distillations) == 2
    for _, _, losses, student_logits in distillations:
        torch.testing.assert_close(losses, (student_logits - teacher_logits).square().mean(-1), atol=1e-6, rtol=1e-5)
