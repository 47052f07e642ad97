"""report.py measures every engine, and says which could not be."""

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import fails
from safetensors.torch import load_file, save_file

from utils.measuring.rungs import OPENERS, Rung
from utils.measuring.text_engines import TextEngine


def test_every_engine(trained):
    assert trained.quantize("--fp32", "--output_dir", str(trained.folder / "model"), source="teacher")[0] == 0
    options = []
    for name, engine, path in [
        ("padded", "pytorch_fixed", "teacher"),
        ("own length", "pytorch", "teacher"),
        ("graph", "onnx", "teacher.int8.onnx"),
        ("instances", "onnx_instances", "teacher.int8.onnx"),
        ("folder", "onnx", "model"),
        ("its instances", "onnx_instances", "model"),
        ("TF-IDF", "linear", "-"),
        ("BERT-base", "bert_base", "-"),
    ]:
        options += ["--rung", name, engine, str(trained.folder / path) if path != "-" else path]
    out = trained.folder / "ladder"
    code, stderr = trained.script("report", *trained.common(), *options, f"--output_dir={out}", "--num_threads=1")
    assert code == 0, stderr
    assert sorted(path.name for path in out.iterdir()) == ["ladder.json", "ladder.md", "ladder.png", "ladder.svg"]
    rungs = {each["name"]: each for each in json.loads((out / "ladder.json").read_text())["rungs"]}
    assert trained.evaluate("--output_json", str(trained.folder / "result.json"))[0] == 0
    expected = json.loads((trained.folder / "result.json").read_text())["accuracy"]
    assert rungs["padded"]["accuracy"] == rungs["own length"]["accuracy"] == expected
    assert rungs["graph"]["accuracy"] == rungs["instances"]["accuracy"]
    assert [len(rungs[name]["ms_a_row_of_turns"]) for name in ("graph", "instances")] == [1, 3]
    # fp32, so exact, and as large as the checkpoint.
    for name in ("folder", "its instances"):
        assert rungs[name]["accuracy"] == expected
        assert rungs[name]["model_bytes"] == pytest.approx(rungs["padded"]["model_bytes"], rel=0.2)
    for name, rung in rungs.items():
        assert name == "TF-IDF" or 0 < rung["ms_a_row_from_tokens"] < rung["ms_a_row"]
    assert rungs["TF-IDF"]["ms_a_row_from_tokens"] is None
    # The label depends on single words.
    assert rungs["TF-IDF"]["accuracy"] == 1.0 and not rungs["TF-IDF"]["step"]
    assert rungs["BERT-base"]["accuracy"] is None and 85e6 < rungs["BERT-base"]["parameters"] < 111e6
    assert rungs["padded"]["speedup_vs_baseline"] > 10 and "vs BERT-base" in (out / "ladder.md").read_text()


KEYS = (
    "name accuracy num_correct num_examples latency_ms ms_a_row ms_a_row_of_turns ms_a_row_from_tokens parameters "
    "model_bytes engine step seconds speedup speedup_range step_speedup speedup_vs_baseline usd_per_100m"
)


def test_rungs_with_a_vocabulary_of_their_own(trained):
    """A checkpoint and its model folder whose tokens have other numbers answer as before."""
    teacher, other = trained.folder / "teacher", trained.folder / "other"
    shutil.copytree(teacher, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    words = sorted((id, word) for word, id in tokenizer["model"]["vocab"].items() if id not in special)
    order = [id for id, _ in words]
    tokenizer["model"]["vocab"] |= {word: id for (_, word), id in zip(words, reversed(order), strict=True)}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(other / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name][order] = weights[name][order[::-1]].clone()
    save_file(weights, other / "model.safetensors", {"format": "pt"})

    data = trained.folder / "other-data"
    shutil.copytree(trained.data, data, ignore=shutil.ignore_patterns("tokenized*"))
    own = [f"--config={trained.config}", f"--data_dir={data}"]
    assert trained.script("preprocess", *own, f"--bert_model_name_or_path={other}")[0] == 0
    options = [f"--bert_output_dir={other}", "--fp32", f"--output_dir={trained.folder}/model"]
    code, stderr = trained.script("quantize", *own, *options)
    assert code == 0, stderr
    options = ["--rung", "teacher", "pytorch", str(teacher), "--rung", "other", "pytorch_fixed", str(other)]
    options += ["--rung", "graph", "onnx", f"{trained.folder}/model"]
    code, stderr = trained.script("report", *trained.common(), *options, "--output_dir=ladder", "--num_threads=1")
    assert code == 0, stderr
    rungs = json.loads((trained.folder / "ladder/ladder.json").read_text())["rungs"]
    assert trained.evaluate("--output_json", "result.json")[0] == 0
    assert {rung["accuracy"] for rung in rungs} == {json.loads(Path("result.json").read_text())["accuracy"]}


def test_chinese_rows(trained):
    """Words that are whole clauses never repeat; their characters do, and tell the labels."""
    generator = random.Random(0)
    for split, count in (("train", 60), ("valid", 8), ("test", 24)):
        rows = []
        for i in range(count):
            letters = generator.sample("電影我你他今天昨晚看了覺得這部那個故事演員音樂", 9) + list(
                "喜愛" if i % 2 else "討厭"
            )
            generator.shuffle(letters)
            rows.append("".join(letters) + ("\tpositive\n" if i % 2 else "\tnegative\n"))
        (trained.data / f"{split}.txt").write_text("".join(rows), encoding="utf-8")
    assert trained.preprocess()[0] == 0
    options = ["--rung", "teacher", "pytorch", f"{trained.folder}/teacher", "--rung", "TF-IDF", "linear", "-"]
    code, stderr = trained.script("report", *trained.common(), *options, "--output_dir=ladder")
    assert code == 0, stderr
    result = json.loads((trained.folder / "ladder/ladder.json").read_text())
    assert [each["name"] for each in result["rungs"]] == ["teacher", "TF-IDF"] and "failed" not in result
    assert [list(each) for each in result["rungs"]] == [KEYS.split()] * 2
    assert result["rungs"][1]["accuracy"] == 1.0


@pytest.mark.parametrize("when", ["opened", "run", "served"])
def test_a_rung_that_fails_leaves_the_others(trained, monkeypatch, when):
    def fail(*_):
        raise RuntimeError("no memory\nfor it")

    assert trained.quantize(source="teacher")[0] == 0
    teacher, graph = f"{trained.folder}/teacher", f"{trained.folder}/teacher.int8.onnx"
    engine, path = ("onnx_instances", graph) if when == "served" else ("bert_base", "-")
    if when == "opened":
        monkeypatch.setitem(OPENERS, engine, fail)
    elif when == "run":
        monkeypatch.setitem(OPENERS, engine, lambda *_: Rung(TextEngine(len, fail), 1, 1))
    else:
        monkeypatch.setattr("utils.measuring.rungs.serve", fail)
    options = ["--rung", "base", "pytorch", teacher, "--rung", "bad", engine, path, "--rung", "last", "onnx", graph]
    result = trained.script("report", *trained.common(), *options, "--output_dir=ladder", "--num_threads=1")
    fails(result, "1 of 3 rungs failed (bad: RuntimeError: no memory)", "ladder has the others")
    ladder = json.loads((trained.folder / "ladder/ladder.json").read_text())
    assert [each["name"] for each in ladder["rungs"]] == ["base", "last"]
    assert [len(each["ms_a_row_of_turns"]) for each in ladder["rungs"]] == [1, 1]
    assert ladder["failed"] == [{"name": "bad", "reason": "RuntimeError: no memory"}]
    assert "| bad | failed: RuntimeError: no memory |" in (trained.folder / "ladder/ladder.md").read_text()


def test_bad_rungs(trained):
    def report(*rung: str) -> tuple[int, str]:
        return trained.script("report", *trained.common(), "--rung", *rung, f"--output_dir={trained.folder / 'out'}")

    teacher = str(trained.folder / "teacher")
    fails(report("a", "tensorflow", teacher), "first rung")
    fails(report("a", "pytorch", teacher, "--rung", "b", "tensorflow", teacher), "unknown engine 'tensorflow'")
    fails(report("a", "linear", "-"), "first rung")
    fails(report("a", "pytorch", "nowhere"), "nowhere")
    fails(report("a", "pytorch", teacher, "--rung", "b", "onnx", "nowhere.onnx"), "nowhere.onnx")
    fails(
        report("a", "pytorch", teacher, "--rung", "b", "onnx", teacher),
        "name a folder that quantize.py --output_dir wrote",
    )
    assert not (trained.folder / "out").exists()
    (trained.data / "test.txt").write_text("a text\tno such label\n")
    fails(report("a", "pytorch", teacher), "label 'no such label' is not in train.txt")
