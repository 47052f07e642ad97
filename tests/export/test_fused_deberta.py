"""DeBERTa's options in the fused graph: the terms of a score, distances, embeddings; and those that are not known."""

import numpy as np
import pytest
import torch
from conftest import logits, make_batch
from tiny_graphs import batches_of, numpy_batch, prune_unevenly, runner, tiny_model

from quantize import export
from utils.export.fused import build_graph
from utils.export.graph import NotFusable
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine
from utils.models.first_token import first_token_only
from utils.pruning.narrow import narrow_layer
from utils.pruning.targets import check_sizes
from utils.system.errors import UserError

V2 = {"position_biased_input": True, "type_vocab_size": 2, "norm_rel_ebd": "none"}
UNKNOWN = [("conv_kernel_size", 3), ("share_att_key", False), ("embedding_size", 16), ("relative_attention", False)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"pos_att_type": "c2p"},
        {"pos_att_type": "p2c"},
        {"pos_att_type": None},
        {"position_buckets": -1},
        {"position_buckets": -1, "max_relative_positions": 6},  # farther tokens are as far as those
        {"pooler_hidden_act": "tanh", "hidden_act": "gelu_new"},
        V2,
        {"position_biased_input": True, "type_vocab_size": 1},
    ],
)
def test_options(options, masked, tmp_path):
    model = tiny_model("deberta-v2", **options)
    prune_unevenly(model)
    batches = [*batches_of(model), numpy_batch(model, [64])]
    if not masked:
        batches = [numpy_batch(model, lengths) for lengths in ([1], [64], [7, 7, 7])]
    run_model, run = pytorch_engine(model), runner(build_graph(model, masked), tmp_path)
    expected = [run_model(batch) for batch in batches]
    assert np.concatenate(expected).std() > 0.05
    assert compare_logits(run, expected, batches) < 1e-4


@pytest.mark.parametrize("options", [{"pos_att_type": "c2p"}, {"pos_att_type": "p2c"}, {"pos_att_type": None}, V2])
def test_options_in_the_shortened_last_layer(options):
    model, batch = tiny_model("deberta-v2", **options), make_batch()
    narrow_layer(model, 2, torch.tensor([0, 3]), torch.arange(20))
    with torch.no_grad():
        whole = logits(model, batch)
        with first_token_only(model):
            torch.testing.assert_close(logits(model, batch), whole)


def test_the_terms_of_distances_change_the_logits(tmp_path):
    """Without them, all orders of the tokens behind the first one would be the same."""
    model = tiny_model("deberta-v2")
    run, batch = runner(build_graph(model), tmp_path), numpy_batch(model, [12])
    one = batch["input_ids"]
    other = np.concatenate([one[:, :1], one[:, :0:-1]], axis=1)
    mask = {"attention_mask": np.ones_like(one)}
    assert np.abs(run({"input_ids": one} | mask) - run({"input_ids": other} | mask)).max() > 1e-2


@pytest.mark.parametrize(("key", "value"), UNKNOWN)
def test_unknown_options_are_exported_plainly_and_not_pruned(key, value, tmp_path, caplog):
    model = tiny_model("deberta-v2", 2, **{key: value, "attn_implementation": "eager"})
    with pytest.raises(NotFusable, match=f"{key} {value}"):
        build_graph(model)
    (graph,) = export(model).values()
    assert f"{key} {value}" in caplog.text and "nothing is fused" in caplog.text
    run_model, batches = pytorch_engine(model), batches_of(model)
    assert compare_logits(runner(graph, tmp_path), [run_model(batch) for batch in batches], batches) < 1e-4
    with pytest.raises(UserError, match=f"{key} {value}.*cannot be pruned"):
        check_sizes(model, [0, 1], 2, None, None)
    batch = make_batch()
    with torch.no_grad():
        whole = logits(model, batch)
        with first_token_only(model):
            torch.testing.assert_close(logits(model, batch), whole)


def test_unknown_activations():
    for key in ("hidden_act", "pooler_hidden_act"):
        with pytest.raises(NotFusable, match=f"{key} is 'silu'"):
            build_graph(tiny_model("deberta-v2", 1, **{key: "silu"}))
