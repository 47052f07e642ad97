"""Tiny classifiers, their graphs and batches, for the tests of exported graphs."""

import numpy as np
import onnx
import torch
from conftest import make_batch, make_model
from transformers import AutoModelForSequenceClassification

from utils.export.fused import build_graph
from utils.export.verify import compare_logits
from utils.measuring.engines import pytorch_engine, run_session
from utils.models.families import layers_of
from utils.predictor.model import load_session
from utils.pruning.narrow import narrow_layer


def tiny_model(family: str, num_layers: int = 3, **sizes):
    """A classifier whose every part moves the logits."""
    sizes = {"num_hidden_layers": num_layers, "intermediate_size": 48, "num_labels": 3, "vocab_size": 100} | sizes
    return make_model(family, AutoModelForSequenceClassification, noise=0.2, **sizes)


def prune_unevenly(model) -> None:
    parts = [([0, 2], range(30)), ([1, 2, 3], range(5, 22)), ([3], range(7))]
    for index, (heads, neurons) in enumerate(parts[: len(layers_of(model))]):
        narrow_layer(model, index, torch.tensor(heads), torch.tensor(neurons))


def numpy_batch(model, lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    batch = make_batch(lengths=lengths, seed=seed, pad_token_id=model.config.pad_token_id)
    return {name: tensor.numpy() for name, tensor in batch.items() if name != "labels"}


def batches_of(model) -> list[dict[str, np.ndarray]]:
    return [numpy_batch(model, lengths) for lengths in ([1], [7], [30], [5, 12, 1, 9])]


def runner(graph: onnx.ModelProto, tmp_path):
    onnx.save(graph, tmp_path / "graph.onnx")
    session = load_session(tmp_path / "graph.onnx", num_threads=1)
    return lambda batch: run_session(session, batch)


def graph_runner(model, tmp_path):
    return runner(build_graph(model), tmp_path)


def largest_difference(model, tmp_path, batches) -> float:
    run_model = pytorch_engine(model)
    return compare_logits(graph_runner(model, tmp_path), [run_model(batch) for batch in batches], batches)
