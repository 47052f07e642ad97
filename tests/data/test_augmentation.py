"""Augmented rows: varied, never twice, never of the other splits, the same whatever the number of processes."""

import random
import shutil

import pytest
import torch
from conftest import fails, make_tokenizer, snapshot
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from utils.data.augmentation import Ratios, nearest_words, new_rows, split_words, variants, vary
from utils.data.texts import read_rows
from utils.system.journal import uncached


def augment(project, *more: str) -> tuple[int, str]:
    encoder = f"--bert_model_name_or_path={project.encoder}"
    return project.script("augment_data", f"--data_dir={project.data}", encoder, "--mask_ratio=0", *more)


def rows(path) -> list[str]:
    return path.read_text().splitlines()


def test_nearest_words_are_nearest(made):
    tokenizer = make_tokenizer()
    table = AutoModel.from_pretrained(made["bert"] / "encoder").get_input_embeddings().weight
    neighbours = nearest_words(table.detach(), tokenizer, 2)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1]
    assert set(neighbours) == set(words)
    ids = tokenizer.get_vocab()
    for word in words:
        likeness = {
            other: torch.cosine_similarity(table[ids[word]], table[ids[other]], dim=0).item()
            for other in words
            if other != word
        }
        assert neighbours[word] == sorted(likeness, key=likeness.get, reverse=True)[:2]


def test_words_and_single_characters_are_not_neighbours():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["好", "坏", "x"])
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    neighbours = nearest_words(table, tokenizer, 50)
    assert neighbours["好"] == ["坏"] and "x" not in neighbours
    assert "好" not in neighbours["good"] and len(neighbours["good"]) > 10


def test_each_way_of_varying():
    near = {"good": ["great"]}
    generator = random.Random(0)
    assert vary("a Good film", near, "[MASK]", Ratios(0, 1, 0), generator) == "a great film"
    assert vary("a good film", near, "[MASK]", Ratios(1, 0, 0), generator) == "[MASK] [MASK] [MASK]"
    for _ in range(20):
        assert vary("a good film", near, None, Ratios(0, 0, 1), generator) in "a good film"


def test_scripts_without_spaces_are_varied_by_characters():
    assert split_words("good film  é") == (["good", "film", "é"], None)
    assert split_words("这部DVD 很好。") == (["这", "部", "DVD", "很", "好", "。"], [" ", "", "", " ", "", ""])
    assert split_words("ดีมาก")[0] == ["ดี", "ม", "า", "ก"], "a vowel sign stays with its consonant"
    generator = random.Random(0)
    assert vary("这部 电影好", {"好": ["坏"]}, None, Ratios(0, 1, 0), generator) == "这部 电影坏"
    assert vary("很好", {}, "[MASK]", Ratios(1, 0, 0), generator) == "[MASK][MASK]"
    parts = {vary("这部电影很好看", {}, None, Ratios(0, 0, 1), generator) for _ in range(50)}
    assert len(parts) > 10 and all(part in "这部电影很好看" for part in parts)


def test_chinese_rows_are_multiplied(project):
    steps = project()
    for split in ("train", "valid", "test"):
        rows = [f"这部电影很{'好坏'[i % 2]}看{chr(0x4E00 + 7 * i)}\t{i % 2}\n" for i in range(20)]
        (steps.data / f"{split}.txt").write_text("".join(rows), encoding="utf-8")
    assert augment(steps, "--n_iter=9")[0] == 0
    assert len(list(read_rows(steps.data / "augmented.txt"))) > 20


def test_rows_are_new_and_the_same_for_any_number_of_processes(project):
    steps = project()
    known = {
        line.rsplit("\t", 1)[0] for split in ("train", "valid", "test") for line in rows(steps.data / f"{split}.txt")
    }
    results = []
    for count in (1, 2):
        code, stderr = augment(steps, "--n_iter=4", f"--num_proc={count}")
        assert code == 0, stderr
        results.append(rows(steps.data / "augmented.txt"))
        assert f"[Augmented] : {len(results[-1])} rows of 96, written to " in stderr
    assert results[0] == results[1] and len(results[0]) > 96
    texts = [line.split("\t")[0] for line in results[0]]
    assert len(set(texts)) == len(texts) and not known & set(texts)
    assert augment(steps, "--n_iter=4", "--seed=1")[0] == 0
    assert rows(steps.data / "augmented.txt") != results[0]


def test_pairs_stay_pairs():
    rows = [(("good film", "a good plot"), "yes")]
    near = {"good": ["great", "fine"]}
    varied = list(variants(uncached, lambda: rows, 1, near, None, Ratios(0, 0.5, 0), 9, 0, 1))
    assert len(varied) == 9 and all(len(texts) == 2 and label == "yes" for texts, label in varied)


def test_no_text_comes_twice():
    rows = [(("a",), "1"), (("b",), "1"), (("a",), "0"), (("c",), "1")]
    assert list(new_rows(rows, {("c",)})) == [(("a",), "1"), (("b",), "1")]


def without_last_bytes(path, count: int) -> int:
    """Cut a file; returns how many lines remain whole."""
    content = path.read_bytes()[:-count]
    path.write_bytes(content)
    return content.count(b"\n")


@pytest.mark.parametrize("cut", [1, 700, 3000])
def test_a_killed_run_goes_on(project, monkeypatch, cut):
    """As if so many bytes had not been written; whole parts are not made again."""
    monkeypatch.setattr("utils.data.augmentation.CHUNK", 10)
    steps = project()
    assert augment(steps)[0] == 0
    expected = rows(steps.data / "augmented.txt")
    unfinished = steps.data / "augmented.txt.unfinished"
    assert not unfinished.exists()
    (steps.data / "augmented.txt").unlink()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("augment_data.unfinished_path", stop)
        assert augment(steps)[0] == 130
    parts = without_last_bytes(unfinished, cut) - 1
    (steps.data / "augmented.txt").unlink()
    fails(augment(steps, "--seed=7"), "--seed is 7 but 42", "augmented.txt.unfinished", "--overwrite")
    train = (steps.data / "train.txt").read_text()
    (steps.data / "train.txt").write_text(train.replace("negative", "positive", 1))
    fails(augment(steps), "--data_dir", "--overwrite")
    (steps.data / "train.txt").write_text(train)
    code, stderr = augment(steps, "--resume=always")
    assert code == 0 and f"{parts} parts are done" in stderr
    assert rows(steps.data / "augmented.txt") == expected
    assert not unfinished.exists()


def test_damaged_unfinished_run(project):
    steps = project()
    fails(augment(steps, "--resume=always"), "--resume=always", "augmented.txt.unfinished")
    (steps.data / "augmented.txt.unfinished").write_text('{"--se')
    fails(augment(steps), "augmented.txt.unfinished", "--overwrite")
    assert augment(steps, "--overwrite")[0] == 0


def test_encoder_without_usable_weights(project):
    steps = project()
    encoder = steps.folder / "encoder"
    shutil.copytree(steps.encoder, encoder)
    steps.encoder = str(encoder)
    before = snapshot(steps.data)
    weights = load_file(encoder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "word_embed" not in name}, encoder / "model.safetensors"
    )
    fails(augment(steps), f"--bert_model_name_or_path={encoder}", "has no word embeddings")
    (encoder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    fails(augment(steps), str(encoder / "model.safetensors"), "git lfs pull")
    (encoder / "model.safetensors").unlink()
    fails(augment(steps), f"--bert_model_name_or_path={encoder}")
    assert snapshot(steps.data) == before


def test_a_student_learns_from_them(trained):
    fails(trained.distill("--augmented"), "--augmented", "augment_data.py")
    assert augment(trained, "--n_iter=3")[0] == 0
    assert trained.train(out="other")[0] == 0, "until preprocess.py knows them, nothing changes"
    assert trained.preprocess()[0] == 0
    count = len(rows(trained.data / "augmented.txt"))
    code, stderr = trained.distill("--augmented", "--label_ratio=1", "--log_dir", str(trained.folder / "log"))
    assert code == 0, stderr
    (logits,) = trained.data.glob("tokenized/teacher-*-augmented-0.safetensors")
    assert count > 96 and logits.stat().st_size > count * 8
    # One that was changed by hand is noticed.
    with open(trained.data / "augmented.txt", "a") as file:
        file.write("a film\tpositive\n")
    fails(trained.distill("--augmented"), "augmented.txt has changed", "preprocess.py")


@pytest.mark.parametrize("option", ["--n_iter=0", "--mask_ratio=2", "--replace_ratio=-1", "--num_proc=0"])
def test_impossible_options(project, option):
    assert augment(project(), option)[0] == 2


def test_a_tokenizer_without_a_mask(project):
    steps = project()
    code, stderr = steps.script(
        "augment_data", f"--data_dir={steps.data}", f"--bert_model_name_or_path={steps.encoder}"
    )
    fails((code, stderr), "--mask_ratio", "no mask token")
    assert not (steps.data / "augmented.txt").exists()
