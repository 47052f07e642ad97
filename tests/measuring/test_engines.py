"""The size of a checkpoint is that of its weights, in whichever files transformers keeps them."""

import json

import pytest
import torch
from conftest import make_encoder
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from utils.measuring.engines import checkpoint_bytes


def write_shards(folder):
    """Two files and an index, as transformers splits large models."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def write_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("rewrite", [write_shards, write_bin])
def test_other_weight_files_are_measured_like_one(trained, rewrite):
    teacher = trained.folder / "teacher"
    results = []
    for _ in range(2):
        assert trained.evaluate("--output_json=result.json")[0] == 0
        rung = ["--rung", "teacher", "pytorch", str(teacher)]
        code, stderr = trained.script("report", *trained.common(), *rung, "--output_dir=ladder")
        assert code == 0, stderr
        result = json.loads((trained.folder / "result.json").read_text())
        ladder = json.loads((trained.folder / "ladder/ladder.json").read_text())
        assert result["model_bytes"] == ladder["rungs"][0]["model_bytes"]
        results.append((result["num_correct"], result["model_bytes"]))
        if len(results) == 1:
            rewrite(teacher)
    (correct, size), (correct_then, size_then) = results
    assert correct_then == correct and size_then == pytest.approx(size, rel=0.2)


def test_the_weights_that_are_loaded_count_once(tmp_path):
    """Many folders of the hub hold them in two formats."""
    make_encoder(tmp_path, "bert")
    size = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 1000)
    assert checkpoint_bytes(tmp_path) == size
