"""The whole recipe, on a tiny random encoder of every family."""

import json

import numpy as np
import pytest
import torch
from conftest import FAMILY_NAMES
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from utils.data.tables import collate, load_data
from utils.measuring.engines import onnx_engine, pytorch_engine
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import freeze_embeddings, load_model
from utils.models.config import load_config
from utils.models.families import family_of, layer_shapes


def succeeded(result: tuple[int, str]) -> str:
    code, stderr = result
    assert code == 0, stderr
    return stderr


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_step_works(project, family):
    steps = project(family)
    succeeded(steps.preprocess())
    assert "best so far: saved" in succeeded(steps.train())
    teacher = json.loads((steps.folder / "teacher/config.json").read_text())
    assert teacher["id2label"] == {"0": "negative", "1": "positive"}

    succeeded(steps.prune("--keep_layers=1", out="start"))
    losses = ["--state_loss_ratio=1", "--att_loss_ratio=1", "--kd_loss=mse", "--state_loss=cosine"]
    succeeded(steps.distill(*losses, start=str(steps.folder / "start")))
    succeeded(steps.prune("--target_num_heads=2", "--target_ffn_dim=24", source="student"))
    succeeded(steps.quantize())
    succeeded(steps.evaluate(f"--output_json={steps.folder / 'pytorch.json'}", source="pruned"))
    for kind in ("onnx", "int8.onnx"):
        succeeded(
            steps.evaluate(
                "--enable_ort",
                f"--onnx_path={steps.folder}/pruned.{kind}",
                f"--output_json={steps.folder}/{kind}.json",
                "--batch_size=4",
                "--num_threads=1",
                source="pruned",
            )
        )
    results = [json.loads((steps.folder / name).read_text()) for name in ("pytorch.json", "onnx.json")]
    assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]
    assert results[0]["num_examples"] == 24 and results[0]["num_correct"] == round(24 * results[0]["accuracy"])
    # A pruned student can be trained on labels, pruned again and exported again.
    steps.encoder = str(steps.folder / "pruned")
    succeeded(steps.train("--epoch=1", out="again"))
    succeeded(steps.prune("--target_num_heads=1", source="again", out="smaller"))
    config = load_config(steps.config)
    model = load_model(str(steps.folder / "smaller"), "--flag", config, ["negative", "positive"])
    assert layer_shapes(model) == [(1, 24)]


def test_bf16_learns_what_fp32_does(trained):
    """Attention is computed in another way in bf16, and rows of a batch are padded."""
    for precision in ("fp32", "bf16"):
        options = ["--dropout=0", "--kd_loss=mse", "--epoch=3", f"--precision={precision}"]
        assert f"cpu, {precision}" in succeeded(trained.distill(*options, out=precision))
    weights = [load_file(trained.folder / name / "model.safetensors") for name in ("fp32", "bf16")]
    start = load_file(f"{trained.encoder}/model.safetensors")
    for name in [name for name in start if "query.weight" in name or "word_embeddings" in name]:
        fp32, bf16 = (state[f"bert.{name}"] - start[name] for state in weights)
        assert torch.nn.functional.cosine_similarity(fp32.flatten(), bf16.flatten(), dim=0) > 0.9
    assert (trained.folder / "fp32/config.json").read_text() == (trained.folder / "bf16/config.json").read_text()


def test_training_learns(project):
    steps = project("bert")
    succeeded(steps.preprocess())
    succeeded(steps.train("--epoch=6"))
    succeeded(steps.evaluate("--output_json=result.json"))
    assert json.loads((steps.folder / "result.json").read_text())["accuracy"] > 0.9


def test_unpruned_checkpoint_loads_in_plain_transformers(trained):
    classify = pipeline("text-classification", str(trained.folder / "teacher"))
    answer = classify("the film was great")[0]
    assert answer["label"] in ("negative", "positive")
    plain = AutoModelForSequenceClassification.from_pretrained(trained.folder / "teacher")
    state = torch.load(trained.folder / "teacher.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_evaluate_prints_what_the_recipe_shows(trained):
    code, stderr = trained.evaluate(f"--model_path={trained.folder / 'teacher.pt'}", "--use_fixed_seq_length")
    assert code == 0
    lines = [line for line in stderr.splitlines() if line.startswith("INFO:")]
    names = [line.split("]")[0].split("[")[1] for line in lines if "evaluate" in line]
    first = ["Accuracy", "Macro F1", "Calibration"]
    assert names == [*first, "Elapsed Time", "Latency", "Throughput", "Report", "Confusion matrix"]
    assert "/   24" in lines[0]


def test_fixed_length_and_batches_change_no_prediction(trained):
    matrices = []
    for options in ([], ["--use_fixed_seq_length"], ["--batch_size=7"]):
        assert trained.evaluate(*options, "--output_json=result.json")[0] == 0
        matrices.append(json.loads((trained.folder / "result.json").read_text())["confusion_matrix"])
    assert matrices[0] == matrices[1] == matrices[2]


def test_student_of_another_family(trained, made):
    trained.config, teacher_config = str(made["distilbert"] / "config.json"), trained.config
    code, stderr = trained.distill(f"--teacher_config={teacher_config}", start=str(made["distilbert"] / "encoder"))
    assert code == 0, stderr


def test_sentence_pairs(project):
    from conftest import write_texts

    steps = project("bert")
    write_texts(steps.data, pairs=True)
    succeeded(steps.preprocess())
    succeeded(steps.train())
    succeeded(steps.quantize(source="teacher"))
    config = load_config(steps.config)
    tokenizer = load_tokenizer(str(steps.folder / "teacher"), "--flag")
    data = load_data(steps.data, tokenizer, config.n_ctx)
    batch = collate(data.splits["test"], np.arange(8), tokenizer.pad_token_id)
    assert batch["token_type_ids"].max() == 1
    run = pytorch_engine(load_model(str(steps.folder / "teacher"), "--flag", config, data.labels))
    torch_logits = run(batch)
    np.testing.assert_allclose(onnx_engine(steps.folder / "teacher.onnx", 1, 2)(batch), torch_logits, atol=1e-4)
    of_one_type = run(batch | {"token_type_ids": 0 * batch["token_type_ids"]})
    assert np.abs(torch_logits - of_one_type).max() > 1e-3


@pytest.mark.parametrize("model", FAMILY_NAMES, indirect=True)
def test_all_embeddings_can_be_frozen(model):
    freeze_embeddings(model)
    frozen = {name for name, weights in model.named_parameters() if not weights.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".embeddings." in name}
    assert any(family_of(model).word_embeddings in name for name in frozen)


def test_training_leaves_frozen_embeddings_as_they_are(trained):
    start = {f"bert.{key}": value for key, value in load_file(f"{trained.encoder}/model.safetensors").items()}
    succeeded(trained.train("--freeze_embeddings", out="frozen"))
    succeeded(trained.distill("--freeze_embeddings", "--epoch=2"))
    for name in ("frozen", "student"):
        state = load_file(trained.folder / name / "model.safetensors")
        same = {key for key, weights in state.items() if key in start and torch.equal(weights, start[key])}
        assert same == {key for key in state if ".embeddings." in key}, name
