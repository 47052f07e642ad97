"""Costs of heads and neurons where all latencies are known, and what is timed."""

import os

import numpy as np
import onnxruntime
import pytest
from conftest import LABELS, make_encoder

from utils.data.tables import load_data
from utils.export.fused import build_graph
from utils.export.int8 import WEIGHT_BITS, Recipe, detect_cpu, quantize_int8
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import Config
from utils.models.families import layer_shapes
from utils.pruning import latency_budget
from utils.pruning.latency_budget import measure_latencies, measure_table, narrow_copy

HEAD, NEURON = (2.0, 2.0, 0.5), (0.05, 0.05, 0.01)  # milliseconds of one, in each of three layers


@pytest.fixture
def three_layers(tmp_path):
    encoder = make_encoder(tmp_path / "encoder", "bert", num_hidden_layers=3)
    return load_model(encoder, "--flag", Config("bert", 16), LABELS, new_head=True)


@pytest.fixture
def valid(project):
    steps = project("bert")
    assert steps.preprocess()[0] == 0
    return load_data(steps.data, load_tokenizer(steps.encoder, "--flag"), 16).splits["valid"]


def test_a_table_of_known_costs(three_layers, monkeypatch):
    def latency(model) -> float:
        return 1.5 + sum(
            heads * head + neurons * neuron
            for (heads, neurons), head, neuron in zip(layer_shapes(model), HEAD, NEURON, strict=True)
        )

    monkeypatch.setattr(latency_budget, "measure_latencies", lambda models, split: list(map(latency, models)))
    table = measure_table(three_layers, None)
    assert table.heads == pytest.approx(HEAD) and table.neurons == pytest.approx(NEURON)
    assert table.rest == pytest.approx(1.5) and table.whole == pytest.approx(latency(three_layers))


def test_noise_makes_no_cost_negative(three_layers, monkeypatch):
    """A whole model that seems faster than its parts."""
    monkeypatch.setattr(latency_budget, "measure_latencies", lambda models, split: [1.0] + [1.1] * (len(models) - 1))
    table = measure_table(three_layers, None)
    assert min(table.heads + table.neurons) > 0 and 0 < table.rest < table.whole == 1


def test_what_is_timed(three_layers, valid, monkeypatch):
    """The int8 graphs of these models, in this order, with the median of each row's repeats; a byte takes 1 ms here."""
    shapes = [(0, 32), (3, 64), (4, 40)]
    small = narrow_copy(three_layers, shapes)
    assert layer_shapes(small) == shapes and layer_shapes(three_layers) == [(4, 64)] * 3
    repeats = iter([1, 1, 1, 50, 1, 1, 50])

    def timed(engines, make_inputs, num_rows):
        busy = next(repeats)
        return None, [[np.full(num_rows - 1, busy * size), np.full(1, size)] for size in engines]

    monkeypatch.setattr(latency_budget, "open_graph", lambda graph, num_labels: graph.ByteSize())
    monkeypatch.setattr(latency_budget, "timed_in_turns", timed)
    graphs = [build_graph(model, masked=False) for model in (small, three_layers)]
    sizes = [quantize_int8(graph, Recipe(), WEIGHT_BITS[detect_cpu()]).ByteSize() for graph in graphs]
    assert sizes[0] < sizes[1]
    assert measure_latencies([small, three_layers], valid) == pytest.approx(sizes)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone limits a process to some CPUs this way")
def test_threads_are_those_that_this_process_may_use(three_layers, valid, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    session, threads = onnxruntime.InferenceSession, []

    def opened(graph, options, **more):
        threads.append(options.intra_op_num_threads)
        return session(graph, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(latency_budget, "REPEATS", 1)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        latencies = measure_latencies([three_layers, narrow_copy(three_layers, [(0, 32)] * 3)], valid)
    finally:
        os.sched_setaffinity(0, allowed)
    assert threads == [1, 1] and min(latencies) > 0
