"""A scale inside a graph: every kind of graph then gives its logits scaled."""

import numpy as np
import pytest
from conftest import make_batch

from utils.export.calibrated import scale_logits
from utils.export.fused import build_graph
from utils.export.int8 import Recipe, quantize_int8
from utils.export.plain import export_plain, quantize_plain, to_fp16
from utils.measuring.calibration import scaled_logits
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


@pytest.mark.parametrize("of_margin", [0.0, 0.75])
@pytest.mark.parametrize("kind", GRAPHS)
def test_logits_are_scaled(model, kind, of_margin):
    graph = GRAPHS[kind](model)
    before, batch = (
        graph.SerializeToString(),
        {key: value.numpy() for key, value in make_batch(lengths=[7] * 5).items()},
    )
    scaled = scale_logits(graph, 0.4, of_margin)
    plain = run_session(load_session(before, 1), batch)
    logits = run_session(load_session(scaled.SerializeToString(), 1), batch)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(scaled_logits(plain, (0.4, of_margin)), rel=1e-5, abs=1e-6)
    assert graph.SerializeToString() == before
    # Where a constant is all there is, our graphs' last layer has other weights: nothing is added.
    added = 3 if of_margin else int(kind in ("fp16", "plain", "plain int8"))
    assert len(scaled.graph.node) - len(graph.graph.node) == added
