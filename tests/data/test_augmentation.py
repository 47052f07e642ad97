"""Augmented rows: varied, never twice, never of the other splits, the same whatever the number of processes."""

import random

import pytest
import torch
from conftest import fails, make_tokenizer
from transformers import AutoModel

from utils.data.augmentation import Ratios, augmented_chunks, nearest_words, vary


def augment(project, *more: str) -> tuple[int, str]:
    encoder = f"--bert_model_name_or_path={project.encoder}"
    return project.script("augment_data", f"--data_dir={project.data}", encoder, "--mask_ratio=0", *more)


def rows(path) -> list[str]:
    return path.read_text().splitlines()


def test_nearest_words_are_nearest(made):
    tokenizer = make_tokenizer()
    table = AutoModel.from_pretrained(made["bert"] / "encoder").get_input_embeddings().weight
    found = nearest_words(str(made["bert"] / "encoder"), tokenizer, 2)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1]
    assert set(found) == set(words)
    ids = tokenizer.get_vocab()
    for word in words:
        likeness = {
            other: torch.cosine_similarity(table[ids[word]], table[ids[other]], dim=0).item()
            for other in words
            if other != word
        }
        assert found[word] == sorted(likeness, key=likeness.get, reverse=True)[:2]


def test_each_way_of_varying():
    near = {"good": ["great"]}
    generator = random.Random(0)
    assert vary("a Good film", near, "[MASK]", Ratios(0, 1, 0), generator) == "a great film"
    assert vary("a good film", near, "[MASK]", Ratios(1, 0, 0), generator) == "[MASK] [MASK] [MASK]"
    for _ in range(20):
        assert vary("a good film", near, None, Ratios(0, 0, 1), generator) in "a good film"


def test_rows_are_new_and_the_same_for_any_number_of_processes(project):
    steps = project()
    known = {
        line.rsplit("\t", 1)[0] for split in ("train", "valid", "test") for line in rows(steps.data / f"{split}.txt")
    }
    found = []
    for count in (1, 2):
        code, stderr = augment(steps, "--n_iter=4", f"--num_proc={count}")
        assert code == 0, stderr
        found.append(rows(steps.data / "augmented.txt"))
    assert found[0] == found[1] and len(found[0]) > 96
    texts = [line.split("\t")[0] for line in found[0]]
    assert len(set(texts)) == len(texts) and not known & set(texts)
    assert augment(steps, "--n_iter=4", "--seed=1")[0] == 0
    assert rows(steps.data / "augmented.txt") != found[0]


def test_pairs_stay_pairs():
    rows = [(("good film", "a good plot"), "yes")]
    near = {"good": ["great", "fine"]}
    (varied,) = augmented_chunks(rows, near, None, Ratios(0, 0.5, 0), 9, 0, 1)
    assert len(varied) == 9 and all(len(texts) == 2 and label == "yes" for texts, label in varied)


@pytest.mark.parametrize("cut", [3, 40, 700, 1500])
def test_a_killed_run_goes_on(project, monkeypatch, cut):
    """As if its file had ended after so many bytes: in its header, in a row, between rows."""
    monkeypatch.setattr("utils.data.augmentation.CHUNK", 10)
    steps = project()
    assert augment(steps)[0] == 0
    expected = rows(steps.data / "augmented.txt")
    assert not (steps.data / "augmented.unfinished").exists()
    with monkeypatch.context() as patched:
        patched.setattr("augment_data.finish", lambda *_: None)
        assert augment(steps)[0] == 0
    unfinished = steps.data / "augmented.unfinished"
    unfinished.write_bytes(unfinished.read_bytes()[: cut if cut < 1000 else -cut])
    (steps.data / "augmented.txt").unlink()
    if cut > 1000:
        fails(augment(steps, "--seed=7"), "--seed is 7 but 42", "augmented.unfinished", "--overwrite")
    assert augment(steps)[0] == 0
    assert rows(steps.data / "augmented.txt") == expected
    assert not unfinished.exists()


def test_a_student_learns_from_them(trained):
    fails(trained.distill("--augmented"), "--augmented", "augment_data.py")
    assert augment(trained, "--n_iter=3")[0] == 0
    assert trained.train(out="other")[0] == 0, "until preprocess.py knows them, nothing changes"
    assert trained.preprocess()[0] == 0
    made = len(rows(trained.data / "augmented.txt"))
    code, stderr = trained.distill("--augmented", "--label_ratio=1", "--log_dir", str(trained.folder / "log"))
    assert code == 0, stderr
    (logits,) = trained.data.glob("tokenized/teacher-*-augmented-0.safetensors")
    assert made > 96 and logits.stat().st_size > made * 8
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
