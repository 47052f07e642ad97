"""What a folder is that is no checkpoint, said by the scripts that are given it."""

import json
import os
import shutil

import pytest
import torch
from conftest import fails, make_encoder, snapshot
from transformers import AutoModel

from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, load_word_embeddings
from utils.models.config import Config
from utils.models.folder import check_folder
from utils.system.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 133466304\n"
LABELS = ["negative", "positive"]


@pytest.fixture
def encoder(tmp_path):
    """A folder of its own with an encoder."""
    make_encoder(tmp_path / "own", "bert")
    return tmp_path / "own"


def refused(folder, *parts: str) -> None:
    """The folder cannot be loaded as a start, and the error holds all of `parts`."""
    with pytest.raises(UserError) as caught:
        load_model(str(folder), "--flag", Config("bert", 16), LABELS, new_head=True)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_git_lfs_pointer(encoder, name):
    """Of a vocabulary, the three lines of a pointer would be three words."""
    (encoder / name).write_bytes(POINTER)
    refused(encoder, name, "git lfs pull")
    with pytest.raises(UserError, match="git lfs pull"):
        load_tokenizer(str(encoder), "--flag")


def test_git_lfs_pointer_as_state_dict(trained):
    (trained.folder / "teacher.pt").write_bytes(POINTER)
    fails(trained.evaluate(f"--model_path={trained.folder}/teacher.pt"), "teacher.pt", "git lfs pull")


def test_link_to_a_file_that_is_elsewhere(encoder):
    (encoder / "model.safetensors").unlink()
    os.symlink("../annex/objects/1", encoder / "model.safetensors")
    refused(encoder, "model.safetensors", "git annex get")


def test_links_to_files_that_are_here(encoder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in encoder.iterdir():
        os.symlink(path, linked / path.name)
    assert torch.equal(load_word_embeddings(str(linked), "--flag"), load_word_embeddings(str(encoder), "--flag"))


def test_adapter(encoder):
    (encoder / "adapter_config.json").write_text("{}")
    for path in (encoder / "config.json", None):
        refused(encoder, "PEFT", "merge_and_unload")
        if path:
            path.unlink()


def test_sentence_transformers(encoder, tmp_path):
    folder = tmp_path / "sentences"
    shutil.copytree(encoder, folder / "0_Transformer")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "modules.json").write_text("[]")
    refused(folder, "sentence-transformers", f"name {folder / '0_Transformer'}")
    shutil.rmtree(folder / "0_Transformer")
    refused(folder, "sentence-transformers without a transformers encoder")
    # With its weights at the top it is a checkpoint.
    (encoder / "modules.json").write_text("[]")
    load_model(str(encoder), "--flag", Config("bert", 16), LABELS, new_head=True)


def test_checkpoints_of_another_trainer(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "run/checkpoint-500")
    refused(tmp_path / "run", "holds no config.json", f"name {tmp_path / 'run/checkpoint-500'}")


def test_family_is_not_guessed_from_the_folders_name(tmp_path):
    """transformers takes the first model type that occurs in the path."""
    make_encoder(tmp_path / "my-bert", "bert")
    path = tmp_path / "my-bert/config.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in keys.items() if key != "model_type"}))
    refused(tmp_path / "my-bert", "config.json", '"model_type": "bert"')


@pytest.mark.parametrize(("name", "library"), [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")])
def test_weights_of_another_library(trained, name, library):
    encoder = trained.folder / "encoder"
    shutil.copytree(trained.encoder, encoder)
    (encoder / "model.safetensors").rename(encoder / name)
    before = snapshot(trained.folder)
    trained.encoder = str(encoder)
    fails(trained.train(out="other"), library, name, "transformers 4")
    assert snapshot(trained.folder) == before
    (encoder / name).rename(encoder / "model.onnx")
    fails(trained.train(out="other"), "ONNX")


def test_missing_shard(encoder):
    model = AutoModel.from_pretrained(encoder)
    (encoder / "model.safetensors").unlink()
    model.save_pretrained(encoder, max_shard_size="20KB")
    expected = {name: weights.clone() for name, weights in model.state_dict().items()}
    loaded = load_model(str(encoder), "--flag", Config("bert", 16), LABELS, new_head=True).bert
    assert all(torch.equal(weights, expected[name]) for name, weights in loaded.state_dict().items())
    shard = sorted(encoder.glob("model-*"))[1]
    shard.unlink()
    refused(encoder, "model.safetensors.index.json", shard.name)
    (encoder / "model.safetensors.index.json").write_text("[]")
    refused(encoder, "model.safetensors.index.json")


def test_hub_names_only_where_allowed(tmp_path):
    for name in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        check_folder(name, "--flag", allow_hub_name=True)
        with pytest.raises(UserError, match="--flag=.* is not a folder"):
            check_folder(name, "--bert_model_name_or_path=x --flag")
    (tmp_path / "model").mkdir()
    for path in ("./nowhere", "a/b/c", f"{tmp_path}/nowhere", "../nowhere"):
        with pytest.raises(UserError, match="is not a folder"):
            check_folder(path, "--flag", allow_hub_name=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_folder(f"{tmp_path}/file", "--flag", allow_hub_name=True)


def test_name_whose_owner_is_a_folder_here(tmp_path, monkeypatch):
    """A path with a typing error in its last part is not looked for on the hub."""
    (tmp_path / "embeddings").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        check_folder("embeddings/nowhere", "--flag", allow_hub_name=True)


def test_name_on_the_hub_is_checked_as_a_folder_is(encoder, tmp_path, monkeypatch):
    """Here from the hub's cache; a tokenizer that is not there is made up for a name too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--someone--encoder"
    shutil.copytree(encoder, repository / "snapshots/1234")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("1234")
    own, hub = (
        load_tokenizer(str(encoder), "--flag"),
        load_tokenizer("someone/encoder", "--flag", allow_hub_name=True),
    )
    assert hub.get_vocab() == own.get_vocab()
    model = load_model("someone/encoder", "--flag", Config("bert", 16), LABELS, new_head=True, allow_hub_name=True)
    embeddings = load_word_embeddings("someone/encoder", "--flag", allow_hub_name=True)
    assert torch.equal(embeddings, load_word_embeddings(str(encoder), "--flag"))
    assert torch.equal(embeddings, model.get_input_embeddings().weight)
    (repository / "snapshots/1234/tokenizer.json").unlink()
    with pytest.raises(UserError, match="no vocabulary"):
        load_tokenizer("someone/encoder", "--flag", allow_hub_name=True)
