"""quantize.py measures int8 recipes, writes the best that is accurate enough, and a folder that stands alone."""

import json
import os
import signal

import numpy as np
import onnx
import pytest
import torch
from conftest import fails, make_encoder, make_tokenizer, snapshot
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import quantize
from quantize import VersionResult, choose
from utils.export.graph import WORDS
from utils.export.int8 import CANDIDATES
from utils.measuring import timing
from utils.measuring.calibration import scaled_logits
from utils.measuring.engines import run_session
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, model_inputs
from utils.models.config import Config, load_config
from utils.predictor.model import Predictor, load_session


def result(accuracy: float, p50: float, drift: float = 0.0, megabytes: float = 1.0) -> VersionResult:
    return VersionResult(accuracy, p50, drift, megabytes, 0.1, 0.2, 0, (1.0, 0.0))


def test_choice():
    results = {"fp32": result(0.90, 4.0), "a": result(0.89, 1.0), "b": result(0.896, 2.0), "c": result(0.896, 3.0)}
    assert choose(results, 0.005) == "b"
    assert choose(results, 0.02) == "a"
    assert choose(results, 0.0) == "fp32"
    # Within 10 % of the fastest, the closest to fp32.
    close = {
        "fp32": result(0.9, 4.0),
        "a": result(0.9, 1.0, 0.2),
        "b": result(0.9, 1.09, 0.1),
        "c": result(0.9, 1.11, 0.0),
    }
    assert choose(close, 0.005) == "b"
    # But not at three times the size.
    close["b"] = close["b"]._replace(megabytes=3.0)
    assert choose(close, 0.005) == "a"


@pytest.fixture
def model_dir(trained):
    code, stderr = trained.quantize(f"--output_dir={trained.folder}/model", "--max_accuracy_drop=1", source="teacher")
    assert code == 0, stderr
    return trained.folder / "model"


def test_folder_predicts_what_pytorch_does(trained, model_dir):
    """At 8 bits within rounding; --fp32 exactly."""
    texts = [line.split("\t")[0] for line in (trained.data / "test.txt").read_text().splitlines()]
    code, stderr = trained.quantize(f"--output_dir={trained.folder}/exact", "--fp32", source="teacher")
    assert code == 0, stderr
    tokenizer, labels = make_tokenizer(), ["negative", "positive"]
    model = load_model(str(trained.folder / "teacher"), "--flag", load_config(trained.config), labels)
    for folder, tolerance in ((trained.folder / "exact", 1e-5), (model_dir, 0.2)):
        predictor = Predictor(folder)
        for text, prediction in zip(texts, predictor.predict_batch(texts), strict=True):
            with torch.inference_mode():
                encoded = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
                expected = model(**encoded).logits.softmax(-1)[0].numpy()
            got = np.array([prediction.probabilities[label] for label in labels])
            assert np.abs(got - expected).max() < tolerance


def test_a_single_file_holds_its_weights(trained):
    """And gives what two files and model.unpadded.onnx give, to everything that reads a folder."""
    folders = {"single": ["--single_file"], "several": []}
    for name, options in folders.items():
        code, stderr = trained.quantize(f"--output_dir={trained.folder}/{name}", "--fp32", *options, source="teacher")
        assert code == 0, stderr
    single, several = (trained.folder / name for name in folders)
    assert [path.name for path in single.glob("model.*")] == ["model.onnx"]
    texts = [line.split("\t")[0] for line in (trained.data / "test.txt").read_text().splitlines()]
    expected = Predictor(several).predict_batch(texts)
    for prediction, other in zip(Predictor(single).predict_batch(texts), expected, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-5)
    accuracies = []
    for folder in (several, single):
        graph = ["--enable_ort", f"--onnx_path={folder}", "--output_json=result.json"]
        rung = ["--rung", "teacher", "pytorch", trained.folder / "teacher", "--rung", "fp32", "onnx", folder]
        rung += [f"--output_dir={trained.folder}/ladder", "--num_threads=1"]
        cascade = [single, several, f"--data_dir={trained.data}", f"--output_dir={trained.folder}/cascade"]
        for code, stderr in (
            trained.evaluate(*graph),
            trained.script("report", *trained.common(), *rung),
            trained.script("cascade", *cascade, "--max_asked=0.5"),
        ):
            assert code == 0, stderr
        ladder = json.loads((trained.folder / "ladder/ladder.json").read_text())["rungs"][1]
        result = json.loads((trained.folder / "result.json").read_text())
        assert result["model_bytes"] == ladder["model_bytes"] > 4 * 1000
        accuracies += [result["accuracy"], ladder["accuracy"]]
    assert len(set(accuracies)) == 1
    assert Predictor(trained.folder / "cascade").predict_batch(texts)[0].probabilities.keys() == {
        "negative",
        "positive",
    }
    fails(trained.quantize("--single_file", source="teacher"), "--single_file", "--output_dir")


def test_folder_is_complete(model_dir):
    names = {"model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json", "config.json", "README.md"}
    assert names | {"predictor", "requirements.txt"} <= {path.name for path in model_dir.iterdir()}
    # As long as n_ctx, not as the encoder: transformers and transformers.js truncate by it.
    assert json.loads((model_dir / "tokenizer_config.json").read_text())["model_max_length"] == 16
    inputs = [
        [value.name for value in onnx.load(model_dir / name, load_external_data=False).graph.input]
        for name in ("model.onnx", "model.unpadded.onnx")
    ]
    assert inputs == [["input_ids", "attention_mask", "token_type_ids"], ["input_ids", "token_type_ids"]]
    config = json.loads((model_dir / "config.json").read_text())
    assert config["model_type"] == "bert" and config["id2label"] == {"0": "negative", "1": "positive"}
    card = (model_dir / "README.md").read_text()
    assert card.startswith("---\n") and "dynamic, per channel" in card and "negative, positive" in card


@pytest.mark.parametrize(("target", "limit"), [("avx2", 63), ("avx512_vnni", 127), ("arm64", 127), ("auto", 63)])
def test_weights_are_as_wide_as_the_target_cpu_can_add(trained, monkeypatch, target, limit):
    """AVX2 adds pairs of products in 16 bits: weights of 8 bits would saturate there."""
    monkeypatch.setattr("quantize.candidates_for", lambda graph: {"int8": CANDIDATES["dynamic, per channel"]})
    monkeypatch.setattr("quantize.choose", lambda results, max_accuracy_drop: "int8")
    monkeypatch.setattr("quantize.detect_cpu", lambda: "avx2")
    code, stderr = trained.quantize(f"--target_cpu={target}", source="teacher")
    assert code == 0, stderr
    arrays = {
        weight.name: numpy_helper.to_array(weight)
        for weight in onnx.load(trained.folder / "teacher.int8.onnx").graph.initializer
    }
    limits = {name: int(np.abs(array).max()) for name, array in arrays.items() if array.dtype == np.int8}
    assert limits.pop(f"{WORDS}.int8") == 127  # looked up, never added
    assert len(limits) > 5 and set(limits.values()) == {limit}


@pytest.mark.parametrize("kind", ["--fp32", "--fp16", "--max_accuracy_drop=1"])
@pytest.mark.parametrize("of_margin", [0.0, 0.3])
def test_calibrate_scales_the_logits_of_all_graphs(trained, monkeypatch, kind, of_margin):
    """By what fits valid best, or by that and a number that grows with the margin; answers stay."""
    fit = quantize.fit_logit_scale
    monkeypatch.setattr("quantize.fit_logit_scale", lambda *valid: (fit(*valid)[0], of_margin))
    monkeypatch.setattr("quantize.candidates_for", lambda graph: {"int8": CANDIDATES["dynamic, per channel"]})
    monkeypatch.setattr("quantize.choose", lambda results, max_accuracy_drop: list(results)[-1])
    outputs = {}
    for name, options in (("plain", []), ("calibrated", ["--calibrate"])):
        code, stderr = trained.quantize(f"--output_dir={trained.folder}/{name}", kind, *options, source="teacher")
        assert code == 0, stderr
        graphs = [trained.folder / name / "model.onnx", trained.folder / name / "model.unpadded.onnx"]
        graphs += [trained.folder / "teacher.onnx", trained.folder / "teacher.int8.onnx"]
        batch = {"input_ids": np.array([[1, 5, 9, 14, 3]]), "token_type_ids": np.zeros((1, 5), dtype=np.int64)}
        batch["attention_mask"] = np.ones_like(batch["input_ids"])
        outputs[name] = [run_session(load_session(graph, 1), batch) for graph in graphs]
    scale = json.loads((trained.folder / "calibrated/config.json").read_text())["fastformers"]["logit_scale"]
    assert abs(scale[0] - 1) > 0.02 and scale[1] == of_margin
    assert f"x ({scale[0]:.4f} + {of_margin:.4f} x margin), fitted on valid" in stderr
    said = [
        f"by {scale[0]:.4f} + {of_margin:.4f} x" in (trained.folder / name / "README.md").read_text()
        for name in outputs
    ]
    assert said == [False, True]
    for plain, scaled in zip(outputs["plain"][:2], outputs["calibrated"][:2], strict=True):
        assert scaled == pytest.approx(scaled_logits(plain, scale), rel=1e-2 if kind == "--fp16" else 1e-5)
    for plain, scaled in zip(outputs["plain"][2:], outputs["calibrated"][2:], strict=True):
        assert np.abs(scaled - plain).max() > 1e-3 and (scaled.argmax() == plain.argmax())


def test_the_table_says_what_int8_does_to_probabilities(trained, monkeypatch):
    results, table = {}, quantize.table
    monkeypatch.setattr("quantize.table", lambda found, *more: results.update(found) or table(found, *more))
    code, stderr = trained.quantize("--max_accuracy_drop=1", source="teacher")
    assert code == 0, stderr
    assert results["fp32"].flips == 0 and all(0 <= each.flips <= 32 for each in results.values())
    code, stderr = trained.evaluate("--split=valid", f"--output_json={trained.folder}/result.json")
    assert code == 0 and "[Calibration] : expected calibration error 0." in stderr, stderr
    evaluated = json.loads((trained.folder / "result.json").read_text())
    assert results["fp32"].calibration_error == pytest.approx(evaluated["calibration_error"], abs=1e-4)
    assert results["fp32"].brier == pytest.approx(evaluated["brier"], abs=1e-4)
    assert table(results, "fp32").splitlines()[0].split()[:5] == ["version", "accuracy", "ECE", "Brier", "flips"]


def test_only_the_folder_is_replaced(trained, model_dir):
    code, stderr = trained.quantize(f"--output_dir={model_dir}", "--fp16", source="teacher")
    assert code == 0, stderr
    assert json.loads((model_dir / "config.json").read_text())["fastformers"]["version"] == "fp16"
    before = snapshot(trained.folder)
    for target in (trained.folder / "teacher", trained.folder / "teacher.pt"):
        code, stderr = trained.quantize(f"--output_dir={target}", source="teacher")
        assert code == 2 and "--output_dir" in stderr
    assert snapshot(trained.folder) == before


def test_no_output_named(trained):
    common = [*trained.common(), f"--bert_output_dir={trained.folder}/teacher"]
    code, stderr = trained.script("quantize", *common)
    assert code == 2 and "--output_dir" in stderr and stderr.count("\n") == 1
    code, stderr = trained.script("quantize", *common, "--fp16", "--onnx_path=x.onnx")
    assert code == 2 and "--output_dir" in stderr


def test_infinite_logits_write_nothing(trained):
    path = trained.folder / "teacher/model.safetensors"
    state = load_file(path)
    state["bert.encoder.layer.0.output.dense.weight"][:] = 3e38  # finite, but no sum of them is
    save_file(state, path, {"format": "pt"})
    before = snapshot(trained.folder)
    common = [*trained.common(), f"--bert_output_dir={trained.folder}/teacher"]
    code, stderr = trained.script("quantize", *common, f"--output_dir={trained.folder}/model")
    assert code == 2 and "differ" in stderr
    assert snapshot(trained.folder) == before


def test_other_encoders_go_through_the_recipe(project, tmp_path):
    steps = project("bert")
    steps.encoder = make_encoder(tmp_path / "albert", "albert", num_hidden_groups=2)
    steps.config = str(tmp_path / "albert.json")
    (tmp_path / "albert.json").write_text('{"encoder_class": "albert", "n_ctx": 16}')
    for step in (steps.preprocess, steps.train):
        code, stderr = step()
        assert code == 0, stderr
    code, stderr = steps.quantize(f"--output_dir={tmp_path}/model", source="teacher")
    assert code == 0 and "nothing is fused" in stderr
    assert Predictor(tmp_path / "model").predict("a good film").label in ("negative", "positive")
    code, stderr = steps.prune("--target_num_heads=2")
    assert code == 2 and "albert" in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("family", "option"), [("modernbert", "hidden_activation"), ("mpnet", "activation"), ("albert", "activation")]
)
def test_an_option_that_is_not_known_is_exported_plainly(family, option, project, tmp_path):
    steps = project(family)
    steps.encoder = make_encoder(tmp_path / "encoder", family, hidden_act="silu")
    for step in (steps.preprocess, steps.train, lambda: steps.prune("--target_num_heads=1")):
        code, stderr = step()
        assert code == 0, stderr
    code, stderr = steps.quantize(f"--output_dir={tmp_path}/model", "--fp32")
    assert code == 0 and f"{option} is 'silu'" in stderr and "nothing is fused" in stderr
    model = load_model(str(tmp_path / "pruned"), "--flag", Config(family, 16), ["negative", "positive"])
    batch = load_tokenizer(str(tmp_path / "pruned"), "--flag")("a good film", return_tensors="pt")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    with torch.no_grad():
        expected = model(**model_inputs(model, batch)).logits.softmax(-1)[0].tolist()
    assert list(Predictor(tmp_path / "model").predict("a good film").probabilities.values()) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.fixture
def measurements(monkeypatch):
    """Count calls of `timed`, in turns of 8 rows, and do something before one of them: `measurements.at = (7, act)`."""

    class Counted:
        calls, at = 0, (0, lambda: None)

    counted, timed = Counted(), timing.timed

    def one(*arguments, **options):
        counted.calls += 1
        if counted.calls == counted.at[0]:
            counted.at[1]()
        return timed(*arguments, **options)

    monkeypatch.setattr(timing, "timed", one)
    monkeypatch.setattr(timing, "ROWS_A_TURN", 8)
    return counted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_measurement_goes_on(trained, measurements, monkeypatch, number, code):
    """With the turns that are missing; what was compared and calibrated is not done again."""
    versions, out = 1 + len(CANDIDATES), f"--output_dir={trained.folder}/model"
    before = snapshot(trained.folder)
    measurements.at = (2 * versions + 3, lambda: os.kill(os.getpid(), number))
    stopped, stderr = trained.quantize(out, source="teacher")
    assert stopped == code and stderr.splitlines()[-1] == "quantize.py: stopped: run the same command again"
    unfinished = trained.folder / "model.unfinished"
    with open(unfinished, "ab") as file:
        file.write(b'["rows 16 to 24", [[0.1')  # as killed while writing
    assert snapshot(trained.folder).keys() == {*before, unfinished.name}
    fails(trained.quantize(out, "--max_accuracy_drop=1", source="teacher"), "--max_accuracy_drop is 1.0 but 0.005")
    measurements.calls = 0
    monkeypatch.setattr("quantize.calibrate", None)
    monkeypatch.setattr("utils.export.verify.pytorch_engine", None)
    code, stderr = trained.quantize(out, "--resume=always", source="teacher")
    assert code == 0 and "4 parts are done" in stderr
    assert measurements.calls == 2 * versions  # of 4
    assert not unfinished.exists() and Predictor(trained.folder / "model").labels == ["negative", "positive"]


def test_another_model_or_data_is_not_continued(trained, measurements):
    measurements.at = (1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trained.quantize(source="teacher")[0] == 143
    path = trained.folder / "teacher.int8.onnx.unfinished"
    assert trained.train("--seed=7")[0] == 0
    fails(trained.quantize(source="teacher"), "--bert_output_dir is", path.name, "--overwrite")
    assert trained.quantize("--overwrite", source="teacher")[0] == 0
    fails(trained.quantize("--resume=always", source="teacher"), "--resume=always", path.name)
    path.write_bytes(b"damaged")
    fails(trained.quantize(source="teacher"), path.name, "--overwrite")
