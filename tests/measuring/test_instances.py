"""evaluate.py's engines, and several instances of one: every row once, the same answers, no hanging."""

import json
import os
import signal
import sys
from functools import partial

import numpy as np
import onnx
import pytest
from conftest import make_batch, make_model
from onnx import TensorProto, helper
from transformers import AutoModelForSequenceClassification

from utils.measuring import instances
from utils.measuring.engines import onnx_engine
from utils.predictor.cpus import allowed_cores
from utils.system import pinned
from utils.system.errors import UserError

IDENTICAL = ["accuracy", "num_correct", "num_examples", "confusion_matrix"]


@pytest.fixture
def two_cores(monkeypatch):
    """Two instances run on a machine with one core as well, taking turns on it."""
    cores = allowed_cores()
    monkeypatch.setattr(pinned, "allowed_cores", lambda: [cores[0], cores[-1]])


def evaluated(steps, *options: str) -> dict:
    code, stderr = steps.evaluate(*options, "--num_threads=1", "--output_json=result.json")
    assert code == 0, stderr
    return json.loads((steps.folder / "result.json").read_text()) | {"stderr": stderr}


def maskless_graph(path) -> str:
    """A graph without attention_mask: its two logits are the sum of the ids and 0."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axis"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["sum", "sum"], ["nothing"]),
        helper.make_node("Concat", ["sum", "nothing"], ["logits"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    weights = [helper.make_tensor("axis", TensorProto.INT64, [1], [1])]
    graph = helper.make_graph(nodes, "maskless", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def test_two_instances_answer_like_one(trained, two_cores):
    code, stderr = trained.quantize(source="teacher")
    assert code == 0, stderr
    onnx_options = ["--enable_ort", f"--onnx_path={trained.folder}/teacher.int8.onnx"]
    for options in (["--batch_size=8"], [*onnx_options, "--batch_size=1"], [*onnx_options, "--batch_size=8"]):
        one, two = evaluated(trained, *options), evaluated(trained, *options, "--num_instances=2")
        assert [two[key] for key in IDENTICAL] == [one[key] for key in IDENTICAL]
        assert (one["num_instances"], two["num_instances"]) == (1, 2)
        assert two["throughput_per_s"] == pytest.approx(24 / two["elapsed_ms"] * 1000)
        assert "2 instances of 1 thread(s)" in two["stderr"] and "instances" not in one["stderr"]


def test_torch_int8(trained, two_cores):
    plain, int8 = evaluated(trained), evaluated(trained, "--torch_int8", "--num_instances=2")
    assert (plain["engine"], int8["engine"]) == ("pytorch", "pytorch_int8")
    assert abs(plain["num_correct"] - int8["num_correct"]) <= 2
    for options in (["--enable_ort", "--onnx_path=some.onnx"], ["--device=cuda"]):
        code, stderr = trained.evaluate("--torch_int8", *options)
        assert code == 2 and "Traceback" not in stderr, stderr


def test_torch_int8_rounds_without_warnings(trained, recwarn):
    from utils.measuring.engines import pytorch_engine, quantize_linears

    model, batch = make_model("bert", AutoModelForSequenceClassification, noise=0.2), make_batch()
    expected = pytorch_engine(model)(batch)
    difference = np.abs(pytorch_engine(quantize_linears(model))(batch) - expected).max()
    assert 0 < difference < 0.5 * np.abs(expected).max()
    assert not [str(warning.message) for warning in recwarn if "quantiz" in str(warning.message)]


def test_too_many_instances(trained):
    count = len(allowed_cores()) + 1
    for options in ([], ["--num_threads=1"]):
        code, stderr = trained.evaluate(f"--num_instances={count}", *options)
        assert code == 2 and f"--num_instances={count}" in stderr and "Traceback" not in stderr


def test_instance_that_cannot_load_its_model(trained, two_cores):
    (trained.folder / "bad.onnx").write_bytes(b"nothing")
    code, stderr = trained.evaluate(
        "--enable_ort", f"--onnx_path={trained.folder}/bad.onnx", "--num_instances=2", "--num_threads=1"
    )
    assert code == 2 and "bad.onnx" in stderr and "Traceback" not in stderr


def test_graph_without_a_mask_is_for_rows_without_padding(trained, two_cores):
    options = ["--enable_ort", f"--onnx_path={maskless_graph(trained.folder / 'maskless.onnx')}"]
    evaluated(trained, *options)
    for more in (["--batch_size=8"], ["--use_fixed_seq_length"], ["--batch_size=8", "--num_instances=2"]):
        code, stderr = trained.evaluate(*options, *more, "--num_threads=1")
        assert code == 2 and "maskless.onnx" in stderr and "--batch_size=1" in stderr
        assert "Traceback" not in stderr


def test_every_batch_is_run_once_and_comes_back_in_its_place(tmp_path, two_cores):
    lengths = np.random.default_rng(0).integers(1, 9, size=101)
    batches = [
        {"input_ids": np.full((1 + i % 3, n), i), "attention_mask": np.ones((1 + i % 3, n))}
        for i, n in enumerate(lengths)
    ]
    opener = partial(onnx_engine, maskless_graph(tmp_path / "maskless.onnx"), 1, 2)
    outputs, milliseconds, seconds = instances.serve(opener, batches, 5, 2, 1)
    for batch, output in zip(batches, outputs, strict=True):
        assert (output[:, 0] == batch["input_ids"].sum(1)).all()
    assert milliseconds.shape == (101,) and 0 < seconds < milliseconds.sum() / 1000 + 1
    outputs, milliseconds, _ = instances.serve(opener, batches[:1], 5, 2, 1)
    assert len(outputs) == len(milliseconds) == 1


@pytest.mark.parametrize(
    "opener, reason",
    [
        (partial(os._exit, 3), "exit code 3"),
        (partial(int, "no number"), "exit code 1"),  # a bug
        (partial(signal.raise_signal, signal.SIGTERM), "signal 15"),
        (partial(partial, int, "no number"), "exit code 1"),  # a bug that shows with the first batch
    ],
)
def test_instance_that_dies(opener, reason, two_cores):
    batches = [{"padding": np.zeros(100_000)}] * 4  # more than a pipe holds
    with pytest.raises(UserError, match=f"--num_instances=2 .*{reason}"):
        instances.serve(opener, batches, 5, 2, 1)


def test_instances_leave_the_script_as_it_was(tmp_path, two_cores, monkeypatch):
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "__file__", "script.py", raising=False)
    with pytest.raises(UserError, match="missing.onnx"):
        instances.serve(partial(onnx_engine, tmp_path / "missing.onnx", 1, 2), [], 5, 2, 1)
    assert script.__file__ == "script.py"
