"""A temperature inside a graph: every kind of graph then gives its logits divided by it, and costs no more."""

import numpy as np
import pytest
from conftest import make_batch

from utils.export.calibrated import divide_logits
from utils.export.fused import build_graph
from utils.export.int8 import Recipe, quantize_int8
from utils.export.plain import export_plain, quantize_plain, to_fp16
from utils.measuring.engines import run_session
from utils.predictor.model import load_session

GRAPHS = {
    "fused": lambda model: build_graph(model),
    "unmasked": lambda model: build_graph(model, masked=False),
    "int8": lambda model: quantize_int8(build_graph(model), Recipe(), 8),
    "fp16": lambda model: to_fp16(build_graph(model)),
    "plain": export_plain,
    "plain int8": lambda model: quantize_plain(export_plain(model), 8),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_logits_are_divided(model, kind):
    graph = GRAPHS[kind](model)
    before, batch = (
        graph.SerializeToString(),
        {key: value.numpy() for key, value in make_batch(lengths=[7] * 5).items()},
    )
    divided = divide_logits(graph, 2.5)
    expected = run_session(load_session(before, 1), batch) / 2.5
    logits = run_session(load_session(divided.SerializeToString(), 1), batch)
    assert logits.dtype == np.float32 and logits == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert graph.SerializeToString() == before
    # Of our graphs the last layer's weights are other ones: nothing is added.
    assert len(divided.graph.node) - len(graph.graph.node) == (kind in ("fp16", "plain", "plain int8"))
