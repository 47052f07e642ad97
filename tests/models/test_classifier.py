"""Weights of strangers are loaded as they were meant or refused, and what is saved says what it was trained for."""

import json
import shutil

import pytest
import torch
from conftest import FAMILY_NAMES, LABELS, fails, make_encoder, snapshot
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, pipeline

from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, load_word_embeddings, save_checkpoint
from utils.models.config import Config
from utils.models.families import FAMILIES
from utils.system.errors import UserError


@pytest.fixture
def encoder(tmp_path):
    """A folder of its own with an encoder."""
    make_encoder(tmp_path / "own", "bert")
    return tmp_path / "own"


def load(folder, family: str = "bert", n_ctx: int = 16, new_head: bool = True):
    return load_model(str(folder), "--flag", Config(family, n_ctx), LABELS, new_head=new_head)


def write_keys(folder, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write_weights(folder, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_pipeline_gives_the_probabilities_that_were_trained(trained, problem_type):
    """Of a start that was trained for another task, sigmoids or raw scores would be left."""
    start = trained.folder / "start"
    shutil.copytree(trained.folder / "teacher", start)
    write_keys(
        start,
        problem_type=problem_type,
        finetuning_task="stsb",
        function_to_apply="none",
        task_specific_params={"text-classification": {"problem_type": problem_type}},
        auto_map={"AutoModel": "x--y.Z"},
        id2label={"0": "LABEL_0", "1": "LABEL_1"},
    )
    trained.encoder = str(start)
    assert trained.train("--epoch=1", out="again")[0] == 0
    keys = json.loads((trained.folder / "again/config.json").read_text())
    assert keys["problem_type"] == "single_label_classification"
    assert not {"finetuning_task", "task_specific_params", "function_to_apply", "auto_map"} & keys.keys()

    text = "the film was great but bad"
    answer = pipeline("text-classification", str(trained.folder / "again"), top_k=None)([text])[0]
    model = load(trained.folder / "again", new_head=False)
    inputs = load_tokenizer(str(trained.folder / "again"), "--flag")(text, return_tensors="pt")
    expected = model(**inputs).logits.softmax(-1)[0].tolist()
    assert {each["label"]: each["score"] for each in answer} == pytest.approx(dict(zip(LABELS, expected, strict=True)))


def test_finished_classifier_of_several_labels_a_text(trained, caplog):
    write_keys(trained.folder / "teacher", problem_type="multi_label_classification")
    assert load(trained.folder / "teacher", new_head=False).config.problem_type == "single_label_classification"
    assert "multi_label_classification" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(encoder, dtype):
    weights = weights_of(encoder)
    write_weights(encoder, {name: tensor.to(dtype) for name, tensor in weights.items()})
    write_keys(encoder, dtype=str(dtype).removeprefix("torch."))
    state = load(encoder).bert.state_dict()
    assert all(torch.equal(state[name], tensor.to(dtype).float()) for name, tensor in weights.items())
    assert load_word_embeddings(str(encoder), "--flag").dtype == torch.float32


def test_weights_as_pytorch_model_bin(encoder):
    weights = weights_of(encoder)
    (encoder / "model.safetensors").unlink()
    torch.save(weights, encoder / "pytorch_model.bin")
    state = load(encoder).bert.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    torch.save({"state_dict": weights}, encoder / "pytorch_model.bin")
    with pytest.raises(UserError, match="other names.*state_dict"):
        load(encoder)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_weights_under_other_names(tmp_path, family, prefix):
    """Of DataParallel or Lightning: a random encoder would take their place."""
    make_encoder(tmp_path, family)
    base, weights = load(tmp_path, family).base_model_prefix, weights_of(tmp_path)
    write_weights(tmp_path, {f"{base}.{name}": tensor for name, tensor in weights.items()})
    state = load(tmp_path, family).base_model.state_dict()
    assert len(state) > 10 and all(torch.equal(tensor, weights[name]) for name, tensor in state.items())
    write_weights(tmp_path, {f"{prefix}{base}.{name}": tensor for name, tensor in weights.items()})
    if prefix == f"{base}.":  # ModernBERT's own: transformers takes it away
        state = load(tmp_path, family).base_model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in state.items())
        return
    with pytest.raises(UserError, match=f"other names.*{prefix}{base}"):
        load(tmp_path, family)


def test_one_weight_is_missing_or_of_another_shape(encoder):
    weights = weights_of(encoder)
    name = "encoder.layer.1.output.dense.weight"
    write_weights(encoder, {key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(UserError, match=f"bert.{name} is missing"):
        load(encoder)
    write_weights(encoder, weights | {name: torch.zeros(32, 60)})
    with pytest.raises(UserError, match=rf"bert.{name} has the shape \[32, 60\], by its config.json \[32, 64\]"):
        load(encoder)


@pytest.mark.parametrize(
    "name", ["encoder.layer.0.attention.self.query.lora_A.default.weight", "encoder.layer.2.output.dense.weight"]
)
def test_weights_that_would_be_left_out(encoder, name):
    """Those of an adapter that was not merged, or of more layers than config.json says."""
    write_weights(encoder, weights_of(encoder) | {name: torch.ones(4, 4)})
    with pytest.raises(UserError, match=f"no place for some of its weights, such as {name}"):
        load(encoder)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_of_another_head_are_left_out(tmp_path, family):
    """As a pretrained encoder has them, with buffers of older versions."""
    make_encoder(tmp_path, family)
    base = load(tmp_path, family).base_model_prefix
    others = {"cls.predictions.bias": torch.ones(25), "lm_head.dense.weight": torch.ones(4, 4)}
    others |= {
        f"{base}.pooler{'' if family == 'albert' else '.dense'}.bias": torch.ones(32),
        f"{base}.embeddings.position_ids": torch.arange(64)[None],
    }
    write_weights(tmp_path, {f"{base}.{name}": tensor for name, tensor in weights_of(tmp_path).items()} | others)
    load(tmp_path, family)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(trained, value):
    state = torch.load(trained.folder / "teacher.pt", weights_only=True)
    state["bert.encoder.layer.1.output.dense.bias"][3] = value
    torch.save(state, trained.folder / "teacher.pt")
    fails(trained.distill(), "teacher.pt", "bert.encoder.layer.1.output.dense.bias")
    weights = weights_of(trained.folder / "teacher")
    weights["bert.encoder.layer.1.output.dense.bias"][3] = value
    write_weights(trained.folder / "teacher", weights)
    fails(trained.evaluate(), "bert.encoder.layer.1.output.dense.bias", "no numbers")


def test_classifier_of_another_size(trained):
    labels = ["a", "b", "c"]
    write_keys(trained.folder / "teacher", id2label=dict(enumerate(labels)))
    with pytest.raises(UserError, match=r"classifier.bias has the shape \[2\], by its config.json \[3\]"):
        load_model(str(trained.folder / "teacher"), "--flag", Config("bert", 16), labels)


def test_encoder_without_a_classifier(encoder):
    write_keys(encoder, id2label=dict(enumerate(LABELS)))
    with pytest.raises(UserError, match=r"no classifier.*train\.py"):
        load(encoder, new_head=False)


def test_family_outside_the_table_that_cannot_read_n_ctx_tokens(tmp_path):
    """Its positions are compared with n_ctx; whether it can read padded rows is tried."""
    folder = make_encoder(tmp_path, "albert", embedding_size=16, max_position_embeddings=20)
    load(folder, "albert", 20)
    with pytest.raises(UserError, match="only 20 positions"):
        load(folder, "albert", 21)
    config = AutoConfig.for_model("gpt2", vocab_size=25, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    AutoModel.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="pad_token_id"):
        load(tmp_path / "gpt2", "gpt2")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_word_embeddings(tmp_path, family):
    folder = make_encoder(tmp_path / "encoder", family)
    (name,) = [name for name in weights_of(tmp_path / "encoder") if FAMILIES[family].word_embeddings in name]
    expected = weights_of(tmp_path / "encoder")[name]
    assert torch.equal(load_word_embeddings(folder, "--flag"), expected)
    save_checkpoint(load(folder, family), load_tokenizer(folder, "--flag"), tmp_path / "classifier", None)
    assert torch.equal(load_word_embeddings(str(tmp_path / "classifier"), "--flag"), expected)


def test_word_embeddings_that_are_not_there(encoder):
    weights = weights_of(encoder)
    write_weights(encoder, {name: tensor for name, tensor in weights.items() if "word_embeddings" not in name})
    with pytest.raises(UserError, match="no word embeddings"):
        load_word_embeddings(str(encoder), "--flag")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_word_embeddings(str(encoder), "--flag")
    with pytest.raises(UserError, match="not a folder"):
        load_word_embeddings(str(encoder / "nowhere"), "--flag")


def test_word_embeddings_of_a_pruned_checkpoint(trained):
    assert trained.prune("--target_num_heads=2", "--target_ffn_dim=24")[0] == 0
    before = snapshot(trained.folder)
    whole = load_word_embeddings(str(trained.folder / "teacher"), "--flag")
    assert torch.equal(load_word_embeddings(str(trained.folder / "pruned"), "--flag"), whole)
    assert snapshot(trained.folder) == before
