"""The shortened last layer: the same logits and gradients as the whole one, and the whole one again afterwards."""

import pytest
import torch
from conftest import FAMILY_NAMES, logits, make_batch

from utils.models.classifier import set_dropout
from utils.models.families import family_of, layer_uses, layers_of
from utils.models.first_token import first_token_only
from utils.pruning.narrow import narrow_layer


def gradients(model, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    values.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_logits_and_gradients_are_those_of_the_whole_layer(model):
    batch = make_batch()
    whole = logits(model, batch)
    expected = gradients(model, whole)
    with first_token_only(model):
        short = logits(model, batch)
    torch.testing.assert_close(short, whole)
    torch.testing.assert_close(gradients(model, short), expected)


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_only_one_token_gets_to_the_last_ffn_and_all_do_again_afterwards(model):
    widths = []
    uses = layer_uses(model)
    earlier = uses[:-1].count(uses[-1])  # of ALBERT's one layer
    ffn = uses[-1].get_submodule(family_of(model).ffn_input)
    ffn.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    batch = make_batch()
    with first_token_only(model):
        logits(model, batch)
    logits(model, batch)
    length = batch["input_ids"].shape[1]
    assert widths == [length] * earlier + [1] + [length] * (earlier + 1)


@pytest.mark.parametrize("heads", [[], [1, 3]])
@pytest.mark.parametrize("model", ["bert", "distilbert", "mpnet", "albert", "deberta-v2", "modernbert"], indirect=True)
def test_pruned_last_layer(model, heads):
    narrow_layer(model, len(layers_of(model)) - 1, torch.tensor(heads, dtype=torch.int64), torch.arange(40))
    whole = logits(model, make_batch())
    with first_token_only(model):
        torch.testing.assert_close(logits(model, make_batch()), whole)
    assert whole.std() > 0


@pytest.mark.parametrize("model", ["modernbert"], indirect=True)
def test_a_classifier_of_all_tokens_gets_all(model):
    batch, of_first = make_batch(), logits(model, make_batch())
    model.config.classifier_pooling = "mean"
    of_all = logits(model, batch)
    assert (of_all - of_first).abs().max() > 1e-3
    with first_token_only(model):
        torch.testing.assert_close(logits(model, batch), of_all)


@pytest.mark.parametrize("model", ["bert", "modernbert"], indirect=True)
def test_dropout_of_attention_is_applied_in_training(model):
    attention = layers_of(model)[-1].get_submodule(family_of(model).self_attention)
    set_dropout(model, 0.9)
    model.eval()
    with first_token_only(model):
        before = logits(model, make_batch())
        attention.train()
        assert (logits(model, make_batch()) - before).abs().max() > 1e-6
