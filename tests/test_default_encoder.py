"""Real text and the default encoder: `make test-slow`, which fetches both."""

import json

import pytest
from conftest import ROOT, Project

ENCODER = ROOT / "embeddings/all-MiniLM-L6-v2"
DATA = ROOT / "data/movie-reviews-1000"


@pytest.mark.slow
@pytest.mark.skipif(not (ENCODER / "model.safetensors").exists(), reason=f"{ENCODER} is not there: make test-slow")
@pytest.mark.skipif(not (DATA / "train.txt").exists(), reason=f"{DATA} is not there: make test-slow")
def test_recipe_learns_and_keeps_what_it_learned(tmp_path, script):
    steps = Project(tmp_path, script, tmp_path)
    steps.encoder, steps.config = str(ENCODER), str(ROOT / "configs/config-bert-cls.json")
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").write_bytes((DATA / f"{split}.txt").read_bytes())
    accuracy = {}
    for step in [
        lambda: steps.preprocess(),
        lambda: steps.train("--lr=1e-4", "--epoch=3"),
        lambda: steps.evaluate("--output_json=teacher.json"),
        lambda: steps.prune("--target_num_layers=3", out="start"),
        lambda: steps.distill("--lr=1e-4", "--epoch=3", "--kd_loss=mse", start=str(tmp_path / "start")),
        lambda: steps.quantize(source="student"),
        lambda: steps.evaluate("--output_json=student.json", source="student"),
        lambda: steps.evaluate(
            "--enable_ort", f"--onnx_path={tmp_path}/student.int8.onnx", "--output_json=int8.json", source="student"
        ),
    ]:
        code, stderr = step()
        assert code == 0, stderr
    for name in ("teacher", "student", "int8"):
        accuracy[name] = json.loads((tmp_path / f"{name}.json").read_text())["accuracy"]
    # 100 test rows: one standard error is 4 points.
    assert accuracy["teacher"] > 0.68 and accuracy["student"] > 0.65
    assert abs(accuracy["int8"] - accuracy["student"]) <= 0.06
