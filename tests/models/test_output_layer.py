"""The last layer of a model of scores: standardized while it learns, in the data's units everywhere else."""

import numpy as np
import pytest
import torch
from conftest import logits, make_batch, make_model
from transformers import AutoModelForSequenceClassification

from utils.models.classifier import load_model
from utils.models.config import Config
from utils.models.output_layer import output_layer, standardized_output
from utils.system.errors import UserError

SCALE = (np.array([1000.0, -2.0], np.float32), np.array([50.0, 0.25], np.float32))
FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"]


def scores_model(made, family: str):
    torch.manual_seed(0)
    config = Config(family, 16, "regression")
    return load_model(str(made[family] / "encoder"), "--flag", config, ["one", "two"], new_head=True, start=SCALE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_classifier_starts_around_the_mean(made, family):
    model = scores_model(made, family)
    assert model.config.problem_type == "regression"
    with torch.no_grad():
        away = (logits(model, make_batch()) - torch.tensor(SCALE[0])) / torch.tensor(SCALE[1])
    assert away.abs().max() < 2 and (away != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_classifier_of_several_labels_starts_at_their_frequencies(made, family, tmp_path):
    torch.manual_seed(0)
    log_odds = np.array([-4.0, 0.5], np.float32)
    config, start = Config(family, 16, "multi_label"), (log_odds, np.ones(2, np.float32))
    model = load_model(str(made[family] / "encoder"), "--flag", config, ["one", "two"], new_head=True, start=start)
    with torch.no_grad():
        away = logits(model, make_batch()) - torch.tensor(log_odds)
    assert away.abs().max() < 2 and (away != 0).all()
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), "--flag", config, ["one", "two"], new_head=True, start=start)
    torch.testing.assert_close(output_layer(again).bias, output_layer(model).bias)  # it has a classifier


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_stay_as_they_are_while_weights_are_standardized(made, family):
    model, batch = scores_model(made, family), make_batch()
    layer = output_layer(model)
    with torch.no_grad():
        before, weight, bias = logits(model, batch), layer.weight.clone(), layer.bias.clone()
        with standardized_output(model, SCALE) as in_units:
            torch.testing.assert_close(layer.weight, weight / torch.tensor(SCALE[1])[:, None])
            torch.testing.assert_close(layer.bias, (bias - torch.tensor(SCALE[0])) / torch.tensor(SCALE[1]))
            torch.testing.assert_close(logits(model, batch), before)
            standardized = layer.weight.clone()
            with in_units():
                torch.testing.assert_close(layer.weight, weight)
                torch.testing.assert_close(logits(model, batch), before)
            assert torch.equal(layer.weight, standardized)  # to the bit: training goes on from them
            torch.testing.assert_close(logits(model, batch), before)
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(logits(model, batch), before)


def test_labels_are_left_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with standardized_output(model, None) as in_units, in_units():
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_optimizer_goes_on_with_the_same_weights_after_saving(made):
    """What is saved in between is no other parameter than the one that is trained."""
    model = scores_model(made, "bert")
    with standardized_output(model, SCALE) as in_units:
        parameter = output_layer(model).weight
        with in_units():
            pass
        assert output_layer(model).weight is parameter


def test_of_any_other_family_it_is_the_last_layer_with_as_many_outputs():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 2}
    model = make_model("roformer", AutoModelForSequenceClassification, vocab_size=24, embedding_size=16, **sizes)
    assert output_layer(model) is model.classifier.out_proj
    model.classifier.out_proj.bias = None
    model.roformer = None
    with pytest.raises(UserError, match="the family 'roformer' have no last layer with a bias"):
        output_layer(model)
