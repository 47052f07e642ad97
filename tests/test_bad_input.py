"""Every mistake a user can make: exit code 2, one sentence with the mend, every existing output untouched."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, fails, make_encoder, make_tokenizer, snapshot, write_texts


def with_line(folder, split: str, line: bytes, at: int = 2) -> None:
    lines = (folder / f"{split}.txt").read_bytes().splitlines(keepends=True)
    lines.insert(at - 1, line)
    (folder / f"{split}.txt").write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("split", "line", "parts"),
    [
        ("train", b"no tab here\n", ["train.txt", "line 2", "no tab"]),
        ("valid", b"\n", ["valid.txt", "line 2", "no tab"]),
        ("train", b"a film\t \n", ["train.txt", "line 2", "empty label"]),
        ("test", b"caf\xe9\tpositive\n", ["test.txt", "line 2", "UTF-8"]),
        ("valid", b"a film\tmixed\n", ["valid.txt", "line 2", "'mixed'", "train.txt"]),
        ("test", b"a film\tanother\tpositive\n", ["test.txt", "line 2", "3 columns"]),
        ("train", b"a\tb\tc\tpositive\n", ["train.txt", "line 2", "4 columns"]),
    ],
)
def test_bad_line(project, split, line, parts):
    steps = project()
    assert steps.preprocess()[0] == 0
    with_line(steps.data, split, line)
    before = snapshot(steps.folder)
    fails(steps.preprocess(), *parts)
    assert snapshot(steps.folder) == before


def test_missing_and_empty_files(project):
    steps = project()
    (steps.data / "valid.txt").unlink()
    fails(steps.preprocess(), "valid.txt")
    (steps.data / "valid.txt").write_text("")
    fails(steps.preprocess(), "valid.txt", "empty")
    steps.data = steps.folder / "nowhere"
    fails(steps.preprocess(), "nowhere")
    assert not (steps.data).exists()


def test_one_label_only(project):
    steps = project()
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").write_text("good\tpositive\n")
    fails(steps.preprocess(), "train.txt", "'positive'")


def test_pairs_in_one_file_only(project):
    steps = project()
    write_texts(steps.data, {"test": 4}, pairs=True)
    fails(steps.preprocess(), "test.txt", "columns")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ["not valid JSON"]),
        ('{"encoder_class": "bert", "n_ctx": 16, "dropout": 0.1}', ["dropout"]),
        ('{"encoder_class": "bert"}', ["n_ctx"]),
        ('{"encoder_class": "gpt9", "n_ctx": 16}', ["'gpt9'", "distilbert"]),
        ('{"encoder_class": ["bert"], "n_ctx": 16}', ["encoder_class"]),
        ('{"encoder_class": "bert", "n_ctx": "16"}', ["n_ctx"]),
        ('{"encoder_class": "bert", "n_ctx": 100}', ["n_ctx is 100", "64 positions"]),
        ('{"encoder_class": "roberta", "n_ctx": 16}', ["configs/config-bert-cls.json"]),
        ("[]", ["keys"]),
    ],
)
def test_bad_config(project, text, parts):
    steps = project()
    (steps.folder / "config.json").write_text(text)
    steps.config = str(steps.folder / "config.json")
    fails(steps.preprocess(), *parts)


def test_missing_config(project):
    steps = project()
    steps.config = "nowhere.json"
    fails(steps.preprocess(), "nowhere.json")


def test_missing_or_damaged_checkpoint(trained):
    before = snapshot(trained.folder)
    trained.encoder = "./nowhere"
    fails(trained.train(out="other"), "./nowhere", "embeddings/fetch.py")
    fails(trained.evaluate(source="nowhere"), "nowhere")
    fails(trained.evaluate("--model_path=nowhere.pt"), "nowhere.pt")
    fails(trained.evaluate("--enable_ort", "--onnx_path=nowhere.onnx"), "nowhere.onnx")
    fails(trained.evaluate("--enable_ort"), "--onnx_path")
    assert snapshot(trained.folder) == before
    (trained.folder / "half.pt").write_bytes((trained.folder / "teacher.pt").read_bytes()[:1000])
    fails(trained.evaluate(f"--model_path={trained.folder}/half.pt"), "half.pt")
    weights = trained.folder / "teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(trained.evaluate(), "teacher")
    weights.unlink()
    fails(trained.evaluate(), "teacher")
    (trained.folder / "teacher/config.json").write_text("{}")
    fails(trained.evaluate(), "teacher", "config.json")


def test_state_dict_of_another_model(trained):
    assert trained.prune("--target_num_heads=2")[0] == 0
    fails(trained.evaluate(f"--model_path={trained.folder}/pruned.pt"), "pruned.pt")


def test_encoder_without_a_classifier_cannot_be_evaluated(trained):
    fails(trained.script("evaluate", *trained.common(), f"--bert_output_dir={trained.encoder}"), "LABEL_0")


def test_pickle_is_not_executed(trained):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(trained.folder / "exploded"),)

    torch.save({"weight": Bomb()}, trained.folder / "bomb.pt")
    (trained.folder / "bomb2.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "bomb2.pt"):
        fails(trained.evaluate(f"--model_path={trained.folder}/{name}"), name)
    assert not (trained.folder / "exploded").exists()


def test_targets_larger_than_the_model(trained):
    before = snapshot(trained.folder)
    fails(trained.prune("--target_num_heads=5"), "--target_num_heads=5", "has 4")
    fails(trained.prune("--target_ffn_dim=65"), "--target_ffn_dim=65", "has 64")
    fails(trained.prune("--target_num_layers=3"), "--target_num_layers=3", "has 2")
    fails(trained.prune("--keep_layers=0,2"), "--keep_layers=0,2", "0 to 1")
    fails(trained.prune("--keep_layers=1,1"), "--keep_layers=1,1")
    fails(trained.prune(), "--target_num_heads", "--keep_layers")
    assert snapshot(trained.folder) == before


@pytest.mark.parametrize(
    "option",
    ["--target_num_heads=-1", "--target_ffn_dim=0", "--target_ffn_dim=-1", "--keep_layers=a", "--keep_layers="],
)
def test_impossible_values(trained, option):
    code, stderr = trained.prune(option)
    assert code == 2 and option.split("=")[0] in stderr and "Traceback" not in stderr


def test_losses_of_mismatched_shapes(trained):
    heads = make_encoder(trained.folder / "heads", "bert", num_attention_heads=2)
    layers = make_encoder(trained.folder / "layers", "bert", num_hidden_layers=3)
    before = snapshot(trained.folder)
    fails(trained.distill("--att_loss_ratio=1", start=heads), "--att_loss_ratio", "4", "2")
    fails(trained.distill("--att_loss_ratio=1", start=layers), "--teacher_layers", "2", "3")
    assert snapshot(trained.folder) == before


def test_tokenizers_that_differ(trained):
    before = snapshot(trained.folder)
    other = make_tokenizer(cls="<s>", sep="</s>", pad="<pad>")
    encoder = make_encoder(trained.folder.parent / f"{trained.folder.name}-other", "bert", other)
    fails(trained.distill(start=encoder), "tokenizers")
    fails(trained.preprocess(f"--teacher_bert_model_name_or_path={encoder}"), "tokenizers")
    trained.encoder = encoder
    fails(trained.train(out="other"), "another tokenizer", "preprocess.py")
    assert snapshot(trained.folder) == before


def test_data_set_of_another_n_ctx_or_none(trained):
    (trained.folder / "config.json").write_text('{"encoder_class": "bert", "n_ctx": 12}')
    trained.config = str(trained.folder / "config.json")
    fails(trained.evaluate(), "n_ctx 16", "12", "preprocess.py")
    trained.data = trained.folder / "empty"
    fails(trained.evaluate(), "empty", "preprocess.py")


def test_damaged_data_set(trained):
    table = trained.data / "tokenized/test.arrow"
    table.write_bytes(table.read_bytes()[:200])
    fails(trained.evaluate(), "tokenized", "preprocess.py")
    (trained.data / "tokenized/meta.json").write_text("{")
    fails(trained.evaluate(), "tokenized", "preprocess.py")


def test_labels_of_another_data_set(trained):
    for split in ("train", "valid", "test"):
        (trained.data / f"{split}.txt").write_text("good\tyes\nbad\tno\n")
    assert trained.preprocess()[0] == 0
    fails(trained.evaluate(), "negative, positive", "no, yes")


def test_outputs_that_cannot_be_written(trained):
    (trained.folder / "file").write_text("")
    (trained.folder / "other.pt").mkdir()
    before = snapshot(trained.folder)
    fails(trained.train(f"--bert_output_dir={trained.folder}/file"), "--bert_output_dir", "file")
    fails(trained.train(out="other"), "--save_path", "other.pt")
    fails(trained.train(f"--save_path={trained.folder}/file/x.pt"), "--save_path")
    fails(trained.prune("--target_num_heads=2", f"--save_path_pruned={trained.folder}/other.pt"), "--save_path_pruned")
    fails(trained.quantize(f"--onnx_path={trained.folder}/other.pt", source="teacher"), "--onnx_path")
    fails(trained.evaluate(f"--output_json={trained.folder}/other.pt"), "--output_json")
    assert snapshot(trained.folder) == before


def test_damaged_graph(trained):
    (trained.folder / "bad.onnx").write_bytes(b"\x08" * 100)
    fails(trained.evaluate("--enable_ort", f"--onnx_path={trained.folder}/bad.onnx"), "bad.onnx", "quantize.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_hardware_that_is_not_there(trained):
    fails(trained.train("--device=cuda", out="other"), "--device=cuda")
    fails(trained.train("--precision=fp16", out="other"), "--precision=fp16")


def test_exit_code_of_the_real_process(tmp_path):
    """Once as the shell sees it."""
    command = [sys.executable, "preprocess.py", "--config=configs/config-bert-cls.json", f"--data_dir={tmp_path}"]
    done = subprocess.run(
        [*command, "--bert_model_name_or_path=./nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "preprocess.py: error: --bert_model_name_or_path=./nowhere"
    )


SCRIPTS = ["train", "fastformers", "prune", "quantize", "cascade", "evaluate", "report", "preprocess", "augment_data"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_environment_that_libraries_cannot_read(name):
    """They crash as they are imported, before a script's own first line."""
    environment = os.environ | {"HF_ENDPOINT": "http://[x"}
    command = [sys.executable, str(ROOT / f"{name}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    fails((done.returncode, done.stderr), f"{name}.py: error: ", "Invalid IPv6 URL", "HF_ENDPOINT")
    assert done.stderr.count("\n") == 1


def test_code_of_a_checkpoint_is_not_run(trained, monkeypatch):
    """Nor is the user asked whether it may be."""
    encoder = trained.folder / "encoder"
    shutil.copytree(trained.encoder, encoder)
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}
    (encoder / "config.json").write_text(json.dumps(config))
    (encoder / "code.py").write_text(f"import os\nos.mkdir({str(trained.folder / 'exploded')!r})\nclass Config: pass\n")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    fails(trained.train(f"--bert_model_name_or_path={encoder}", out="other"), "config.json", "custom code")
    assert not (trained.folder / "exploded").exists()


def test_quiet_and_verbose(trained):
    level = logging.getLogger().level
    assert trained.evaluate("--quiet") == (0, "")
    logging.getLogger().setLevel(level)
    assert "[Accuracy]" in trained.evaluate("--verbose")[1]
    logging.getLogger().setLevel(level)
    assert trained.evaluate("--quiet", "--verbose")[0] == 2
    logging.getLogger().setLevel(level)
