"""Which layers a student learns from, by which losses, and what is saved of it."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LABELS, fails, make_batch, make_encoder
from torch import nn

from utils.models.classifier import load_model, model_inputs, set_dropout
from utils.models.config import Config
from utils.models.families import layers_of
from utils.pruning.narrow import narrow_layer
from utils.system.errors import UserError
from utils.training.distillation import (
    LossWeights,
    _queries_keys_values,
    add_projection,
    distillation_losses,
    paired_layers,
    without_projection,
)
from utils.training.losses import KD_LOSSES, attention_loss, relation_loss, state_loss

NONE = LossWeights("mse", 1.0, 0.0, 0.0, "mse", "ends", 0.0, 0.0)


def weights(**given) -> LossWeights:
    return LossWeights(**(NONE.__dict__ | given))


@pytest.fixture
def pair(tmp_path):
    """A teacher of 4 layers of 32 and a student of 2 of 16, in evaluation mode."""
    models = []
    for name, sizes in (("teacher", {"num_hidden_layers": 4}), ("student", {"hidden_size": 16})):
        folder = make_encoder(tmp_path / name, "bert", **sizes)
        torch.manual_seed(len(models))
        models.append(load_model(folder, "--flag", Config("bert", 16), LABELS, attention="eager", new_head=True))
    return SimpleNamespace(teacher=models[0], student=models[1])


def losses_of(pair, weights: LossWeights, layers=None) -> torch.Tensor:
    """Each row's loss: rows 0 to 5 of 6, of which the first 4 have labels."""
    batch = make_batch()
    layers = paired_layers(pair.teacher, pair.student, weights, layers)
    with torch.no_grad():
        teacher_logits = pair.teacher(**model_inputs(pair.teacher, batch)).logits
    row_losses = distillation_losses(pair.teacher, pair.student, teacher_logits, 4, weights, layers)
    return row_losses(pair.student, model_inputs(pair.student, batch), batch, np.arange(6))


def outputs(model) -> dict:
    return model(**model_inputs(model, make_batch()), output_hidden_states=True)


def test_labels_count_for_labelled_rows(pair):
    """The first 4 of 6 rows."""
    with_labels, without = losses_of(pair, weights(label_ratio=0.5)), losses_of(pair, NONE)
    expected = F.cross_entropy(outputs(pair.student).logits, make_batch()["labels"], reduction="none") / 2
    torch.testing.assert_close(with_labels - without, torch.cat([expected[:4], torch.zeros(2)]))


def test_a_rows_logits_are_its_own(pair):
    """Whatever the order in which rows come: the teacher's are kept by their index."""
    batch, teacher_logits = make_batch(), torch.randn(9, 2)
    rows = np.array([7, 0, 8, 3, 2, 5])
    row_losses = distillation_losses(pair.teacher, pair.student, teacher_logits, 9, NONE, [])
    losses = row_losses(pair.student, model_inputs(pair.student, batch), batch, rows)
    expected = F.mse_loss(outputs(pair.student).logits, teacher_logits[rows], reduction="none").mean(-1)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(("kind", "temperature"), [("mse", 1.0), ("soft_cross_entropy", 2.0)])
def test_the_loss_of_the_logits(pair, kind, temperature):
    losses = losses_of(pair, weights(kd_loss=kind, temperature=temperature))
    ours, theirs = (outputs(model).logits for model in (pair.student, pair.teacher))
    torch.testing.assert_close(losses, KD_LOSSES[kind](ours, theirs, temperature))
    losses.sum().backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())


@pytest.mark.parametrize(("teacher_layers", "layers"), [(None, [1, 3]), ([0, 2], [0, 2])])
def test_attentions_of_paired_layers(pair, teacher_layers, layers):
    asked = weights(att_loss_ratio=3.0)
    losses = losses_of(pair, asked, teacher_layers) - losses_of(pair, NONE)
    ours, theirs = (
        model(**model_inputs(model, make_batch()), output_attentions=True).attentions
        for model in (pair.student, pair.teacher)
    )
    expected = 3 * attention_loss(ours, [theirs[layer] for layer in layers], make_batch()["attention_mask"])
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-4)
    losses.sum().backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_states_of_the_ends(pair, kind):
    """Of the embeddings and of the last layer, half of the loss each."""
    asked = weights(state_loss_ratio=2.0, state_loss=kind)
    add_projection(pair.teacher, pair.student, asked)
    losses = losses_of(pair, asked) - losses_of(pair, NONE)
    ours, theirs = outputs(pair.student).hidden_states, outputs(pair.teacher).hidden_states
    projected = [pair.student.state_projection(ours[i]) for i in (0, -1)]
    expected = 2 * state_loss(projected, [theirs[0], theirs[-1]], make_batch()["attention_mask"], kind)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("teacher_layers", "layers"), [(None, [1, 3]), ([0, 2], [0, 2])])
def test_states_of_all_layers_through_a_projection(pair, teacher_layers, layers):
    asked = weights(state_loss_ratio=1.0, state_layers="all")
    add_projection(pair.teacher, pair.student, asked)
    losses = losses_of(pair, asked, teacher_layers) - losses_of(pair, NONE)
    ours, theirs = outputs(pair.student).hidden_states, outputs(pair.teacher).hidden_states
    projected = [pair.student.state_projection(state) for state in ours]
    lengths = make_batch()["attention_mask"].sum(-1)
    for row, length in enumerate(lengths):
        pairs = [(projected[0], theirs[0]), *((projected[i + 1], theirs[j + 1]) for i, j in enumerate(layers))]
        expected = sum(F.mse_loss(one[row, :length], other[row, :length]) for one, other in pairs) / 3
        torch.testing.assert_close(losses[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("teacher_layers", "last"), [(None, 3), ([0, 2], 2)])
def test_relations_of_the_last_layers(pair, teacher_layers, last):
    asked = weights(relation_loss_ratio=2.0)
    losses = losses_of(pair, asked, teacher_layers) - losses_of(pair, NONE)
    parts = []
    for model, index in ((pair.student, 1), (pair.teacher, last)):
        attention, states = model.bert.encoder.layer[index].attention.self, outputs(model).hidden_states[index]
        parts.append([part(states) for part in (attention.query, attention.key, attention.value)])
    torch.testing.assert_close(losses, 2 * relation_loss(*parts, make_batch()["attention_mask"]), atol=1e-5, rtol=1e-4)
    losses.sum().backward()
    assert pair.student.bert.encoder.layer[1].attention.self.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("option", ["state_loss_ratio", "att_loss_ratio", "relation_loss_ratio", "label_ratio"])
def test_a_loss_counts_by_its_ratio(pair, option):
    """However small that is."""
    add_projection(pair.teacher, pair.student, weights(state_loss_ratio=1.0))
    plain = losses_of(pair, NONE)
    small, large = (losses_of(pair, weights(**{option: ratio})) - plain for ratio in (0.25, 1.0))
    assert large[:4].min() > 0
    torch.testing.assert_close(small, large / 4, atol=1e-5, rtol=1e-3)


def test_states_of_one_width_need_no_projection(pair):
    asked = weights(state_loss_ratio=1.0, state_layers="all")
    pair.student = pair.teacher
    add_projection(pair.teacher, pair.student, asked)
    assert not any("projection" in name for name, _ in pair.student.named_parameters())
    torch.testing.assert_close(losses_of(pair, asked), losses_of(pair, NONE))


def test_a_projection_is_for_states_alone(pair):
    add_projection(pair.teacher, pair.student, weights(relation_loss_ratio=1.0))
    assert not any("projection" in name for name, _ in pair.student.named_parameters())


def test_relations_need_heads_in_both_last_layers(pair):
    none = torch.tensor([], dtype=torch.long)
    asked, neurons = weights(relation_loss_ratio=1.0), torch.arange(64)
    narrow_layer(pair.student, 0, none, neurons)
    narrow_layer(pair.teacher, 1, none, neurons)
    assert paired_layers(pair.teacher, pair.student, asked, None) == [1, 3]
    for layers in ([3, 1], [1, 1]):
        with pytest.raises(UserError, match="--relation_loss_ratio needs attention heads"):
            paired_layers(pair.teacher, pair.student, asked, layers)
    narrow_layer(pair.student, 1, none, neurons)
    with pytest.raises(UserError, match="--relation_loss_ratio needs attention heads"):
        paired_layers(pair.teacher, pair.student, asked, None)


def test_layers_that_do_not_fit(pair):
    states = weights(state_loss_ratio=1.0)
    for layers in ([0], [0, 1, 2], [0, 4], [-1, 0]):
        with pytest.raises(UserError, match="--teacher_layers=.*give 2 numbers.*0 to 3"):
            paired_layers(pair.teacher, pair.student, states, layers)
    with pytest.raises(UserError, match="2 layers and the student 4.*--teacher_layers"):
        paired_layers(pair.student, pair.teacher, states, None)
    assert paired_layers(pair.student, pair.teacher, states, [0, 0, 1, 1]) == [0, 0, 1, 1]
    # Who asks for the logits alone may have any.
    assert paired_layers(pair.student, pair.teacher, NONE, None) == []


def test_24_layers_teach_4(pair):
    """The shape of BERT-large and of the published student, in small."""
    for model, count in ((pair.teacher, 24), (pair.student, 4)):
        layers = model.bert.encoder.layer
        model.bert.encoder.layer = nn.ModuleList([copy.deepcopy(layers[i % len(layers)]) for i in range(count)])
    asked = weights(state_loss_ratio=1.0, state_layers="all", relation_loss_ratio=1.0, att_loss_ratio=1.0)
    assert paired_layers(pair.teacher, pair.student, asked, None) == [5, 11, 17, 23]
    add_projection(pair.teacher, pair.student, asked)
    assert losses_of(pair, asked).isfinite().all()


def test_the_projection_is_not_saved(trained):
    narrow = make_encoder(trained.folder / "narrow", "bert", hidden_size=16)
    options = ["--state_loss_ratio=1", "--state_layers=all", "--relation_loss_ratio=1", "--temperature=2"]
    code, stderr = trained.distill(*options, start=narrow)
    assert code == 0, stderr
    state = torch.load(trained.folder / "student.pt", weights_only=True)
    assert not any("projection" in name for name in state)
    assert trained.evaluate("--model_path", str(trained.folder / "student.pt"), source="student")[0] == 0
    fails(
        trained.distill("--state_loss_ratio=1", "--teacher_layers=0,7", out="other"), "--teacher_layers=0,7", "0 to 1"
    )


def test_a_student_keeps_its_projection_after_saving(pair):
    add_projection(pair.teacher, pair.student, weights(state_loss_ratio=1.0))
    with without_projection(pair.student) as plain:
        assert not any("projection" in name for name in plain.state_dict())
    assert any("projection" in name for name, _ in pair.student.named_parameters())


def test_without_dropout_training_draws_nothing(pair):
    pair.student.train()
    inputs = model_inputs(pair.student, make_batch())

    def differ() -> bool:
        return not torch.equal(pair.student(**inputs).logits, pair.student(**inputs).logits)

    assert differ()
    set_dropout(pair.student, 0.0)
    assert not differ()
    assert pair.student.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize("model", ["albert"], indirect=True)
def test_parts_of_a_shared_layer_are_those_of_one_use(model):
    """Its queries, keys and values of the use that is asked for, and a state of each use."""
    batch = make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    for index, use in ((-1, 1), (0, 0)):
        with _queries_keys_values(model, index) as parts, torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        attention = layers_of(model)[0].attention
        assert len(states) == 3 and len(parts) == 3
        torch.testing.assert_close(parts[0], attention.query(states[use]))
        torch.testing.assert_close(parts[2], attention.value(states[use]))
