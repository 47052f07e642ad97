"""The models that benchmarks/families.py makes of every family: whole and pruned, ours computes what PyTorch does."""

from types import SimpleNamespace

import pytest
from conftest import write_texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import families, processes
from utils.models.families import FAMILIES, layer_shapes

TINY = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=3, intermediate_size=48, embedding_size=32)
TINY_DISTILBERT = dict(dim=32, n_heads=4, n_layers=3, hidden_dim=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    families.make_data(folder / "data", write_texts(folder / "source"))
    return folder / "data"


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_exact_whole_and_pruned(family, data, tmp_path, monkeypatch):
    tiny = TINY_DISTILBERT if family == "distilbert" else TINY
    if family == "deberta-v2":
        tiny = {key: value for key, value in tiny.items() if key != "embedding_size"}
    monkeypatch.setitem(families.SHAPES, family, families.SHAPES[family] | tiny)
    monkeypatch.setattr(families, "COMPARED_ROWS", 12)
    checkpoint = tmp_path / "checkpoint"
    families.make_checkpoint(checkpoint, family, data, seed=0)
    setup = processes.prepare(
        SimpleNamespace(
            config=f"{families.ROOT}/configs/config-{family}-cls.json", bert_output_dir=checkpoint, work_dir=tmp_path,
            data_dir=data, quick=False, num_rows=5, seed=0, num_threads=1,
        )
    )  # fmt: skip
    result = families.exactness(setup, 0, checkpoint)
    assert max(result["whole"], result["pruned"]) < 1e-4
    assert min(result["whole_spread"], result["pruned_spread"]) > 1e-4
    rows = families.read_rows(str(setup.rows))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(rows) == 5 and rows[0]["pad_token_id"] == 1
    assert rows[0]["input_ids"] == tokenizer(rows[0]["text"])["input_ids"]


def test_layers_are_pruned_unevenly(data, tmp_path):
    families.make_checkpoint(tmp_path / "checkpoint", "bert", data, seed=0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint")
    families.prune_unevenly(model, seed=0)
    shapes = layer_shapes(model)
    assert len(set(shapes)) == 6 and max(shapes) < (7, 1536)


def test_targets():
    engines = {
        "ours_int8": {"p50_ms": 1.0, "rows_per_s": 100.0},
        "optimum_int8": {"p50_ms": 1.6, "rows_per_s": 125.0},
    }
    result = {"exactness": {"whole": 2e-6, "pruned": 2e-4}, "engines": engines}
    assert [target["met"] for target in families.targets("mpnet", result)] == [False, True, False]
    assert [target["met"] for target in families.targets("bert", result)] == [False, False, False]
    assert [target["target"] for target in families.targets("roberta", result)] == ["roberta_fp32_logits_vs_pytorch"]
