"""What is compared with PyTorch: rows of all lengths, each alone and in padded batches; and a difference is seen."""

import numpy as np
import pytest
from conftest import make_tokenizer

from utils.data.tables import load_data
from utils.export import verify
from utils.export.fused import build_graph
from utils.measuring.timing import evenly_spaced
from utils.predictor.folder import GRAPH, UNPADDED_GRAPH
from utils.system.errors import UserError


@pytest.fixture
def batches(project, monkeypatch):
    """20 rows of valid of which 12 are taken, or, where valid has too few, those of train."""
    steps = project("bert")
    assert steps.preprocess()[0] == 0

    def of(count: int) -> list[dict]:
        monkeypatch.setattr(verify, "COMPARED_ROWS", count)
        return verify.comparison_batches(load_data(steps.data, make_tokenizer(), 16), pad_token_id=0)

    return of


@pytest.mark.parametrize(("count", "num_rows"), [(12, 12), (32, 32), (50, 50), (1000, 32 + 96)])
def test_rows_of_all_lengths(batches, count, num_rows):
    compared = batches(count)
    singles = [batch for batch in compared if len(batch["labels"]) == 1]
    padded = [batch for batch in compared if len(batch["labels"]) > 1]
    lengths = [batch["input_ids"].shape[1] for batch in singles]
    assert len(singles) == num_rows == sum(len(batch["labels"]) for batch in padded)
    assert all(batch["attention_mask"].all() for batch in singles)
    assert (min(lengths), max(lengths)) == (5, 13)  # of 3 to 11 words
    assert all(not batch["attention_mask"].all() for batch in padded)


def test_evenly_spaced():
    assert evenly_spaced(3, 101).tolist() == [0, 50, 100]
    assert evenly_spaced(9, 4).tolist() == [0, 1, 2, 3]
    assert evenly_spaced(0, 4).tolist() == evenly_spaced(4, 0).tolist() == []


@pytest.mark.parametrize("file", [GRAPH, UNPADDED_GRAPH])
def test_a_difference_in_either_graph_is_found(model, batches, file):
    graphs = {GRAPH: build_graph(model), UNPADDED_GRAPH: build_graph(model, masked=False)}
    compared = batches(8)
    assert len(verify.pytorch_logits(model, graphs, compared, 2)) == len(compared)
    bias = next(weight for weight in graphs[file].graph.initializer if weight.name == "logits.bias")
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + np.float32(2e-4)).tobytes()
    with pytest.raises(UserError, match="differ from PyTorch's by 0.0002"):
        verify.pytorch_logits(model, graphs, compared, 2)
