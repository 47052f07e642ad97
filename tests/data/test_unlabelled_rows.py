"""Rows without labels: which of them are used, in every format, and what a student learns of them."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import fails, make_tokenizer, snapshot, write_texts
from data_files import write, write_rows
from safetensors.torch import load_file

from utils.data.preprocessing import tokenize_data
from utils.data.tables import NO_LABEL, load_data
from utils.data.texts import NAMES, Columns
from utils.data.unlabelled_rows import choose_rows, numbered_texts, used_texts
from utils.system.errors import UserError

LABELS = ["negative", "positive"]
KNOWN = {"train": "a good film\tpositive\na bad film\tnegative\n", "valid": "a plot\tpositive\n",
         "test": "The Cast\tnegative\n"}  # fmt: skip
# Those that are new are the first, the fourth and the last.
TEXTS = ["new one", "a  Plot", "", "a good plot", "the cast", "New one", " a good film", "a good plot", "x"]


def known_rows(folder):
    for split, text in KNOWN.items():
        write(folder / f"{split}.txt", text)
    return folder


def chosen(folder, names: Columns = NAMES):
    rows = choose_rows(folder, names, LABELS)
    return rows, list(used_texts(rows, names))


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl", ".parquet"])
def test_only_new_rows_are_used(tmp_path, suffix):
    known_rows(tmp_path)
    if suffix == ".txt":
        write(tmp_path / "unlabelled.txt", "\r\n".join(TEXTS))
    else:
        write_rows(tmp_path / f"unlabelled{suffix}", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    rows, texts = chosen(tmp_path)
    assert texts == [("new one",), ("a good plot",), ("x",)]
    assert rows.dropped == {"empty": 1, "in valid or test": 2, "in train": 1, "there before": 2}
    assert rows.is_used.sum() + sum(rows.dropped.values()) == len(TEXTS)
    assert rows.ignored_label == ""


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl", ".parquet"])
def test_labels_are_ignored_and_said_to_be(project, suffix):
    steps = project()
    texts = ["a film and a plot and a cast", "it is the ending"]
    if suffix == ".txt":
        write(steps.data / "unlabelled.txt", f"{texts[0]}\tpositive\n{texts[1]}\tother\n")
    else:
        write_rows(steps.data / f"unlabelled{suffix}", [{"text": text, "label": "other"} for text in texts])
    code, stderr = steps.preprocess()
    assert code == 0, stderr
    column = "the last column" if suffix == ".txt" else "the column 'label'"
    assert f"[unlabelled] : its labels, {column}, are ignored" in stderr
    split = load_data(steps.data, make_tokenizer(), 16).splits["unlabelled"]
    assert [make_tokenizer().decode(ids, skip_special_tokens=True) for ids in split["input_ids"]] == texts
    assert list(split["label"]) == [NO_LABEL, NO_LABEL]


def test_pairs(tmp_path):
    for split in KNOWN:
        write(tmp_path / f"{split}.txt", "a\tb\tpositive\nc\td\tnegative\n")
    write(tmp_path / "unlabelled.txt", "b\ta\n\na\tB\n\tx\n")
    rows, texts = chosen(tmp_path)
    assert texts == [("b", "a"), ("", "x")] and rows.dropped["in valid or test"] == rows.dropped["empty"] == 1
    write(tmp_path / "unlabelled.txt", "b\ta\tpositive\nx\ty\tz\n")
    assert chosen(tmp_path)[1] == [("b", "a"), ("x", "y")]
    (tmp_path / "unlabelled.txt").unlink()
    write_rows(tmp_path / "unlabelled.csv", [{"one": "b", "two": "a"}])
    with pytest.raises(UserError, match="unlabelled.csv: train has 2 texts a row: .*--text_column"):
        chosen(tmp_path)
    assert chosen(tmp_path, Columns(("one", "two")))[1] == [("b", "a")]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("unlabelled.txt", "", ["is empty", "put texts there"]),
        ("unlabelled.jsonl", "", ["is empty"]),
        ("unlabelled.csv", "text,id\n", ["is empty"]),
        ("unlabelled.txt", "a film\nfilm\tplot\n", ["line 2 has 2 texts", "train has one text"]),
        ("unlabelled.txt", "a film\tplot\n", ["line 1 has 2 texts", "train has one text"]),
        ("unlabelled.txt", "a film\tpositive\na plot\n", ["line 2 has one text"]),
        ("unlabelled.txt", "text\na film\n", ["line 1", "name the columns", "unlabelled.tsv"]),
        ("unlabelled.txt", b"a film\ncaf\xe9\n", ["line 2", "UTF-8"]),
        ("unlabelled.csv", "body,id\nfilm,1\n", ["'text', only 'body', 'id'", "--text_column"]),
        ("unlabelled.tsv", "body\tid\nfilm\t1\n", ["'text', only 'body', 'id'"]),
        ("unlabelled.jsonl", '{"text": "x"}\n{"body": "x"}\n', ["line 2", "'text', only 'body'", "--text_column"]),
        ("unlabelled.jsonl", '{"text": "x"}\n{"text": 1.5}\n', ["line 2", "1.5"]),
        ("unlabelled.jsonl", '{"text": "x"}\n{\n', ["line 2", "not valid JSON"]),
        ("unlabelled.parquet", b"PAR", ["unlabelled.parquet", "damaged"]),
    ],
)  # fmt: skip
def test_files_that_are_refused(project, name, content, parts):
    steps = project()
    assert steps.preprocess()[0] == 0
    write(steps.data / name, content)
    before = snapshot(steps.folder)
    fails(steps.preprocess(), name, *parts)
    assert snapshot(steps.folder) == before


def test_a_file_without_new_rows_or_two_files(project):
    steps = project()
    train = [line.split("\t")[0] for line in (steps.data / "train.txt").read_text().splitlines()]
    write(steps.data / "unlabelled.txt", "\n".join(train[:5]))
    fails(steps.preprocess(), "unlabelled.txt has no row that is new", " in train")
    write(steps.data / "unlabelled.csv", "text\nfilm\n")
    fails(steps.preprocess(), "both unlabelled.txt and unlabelled.csv")


def test_numbers_are_those_of_lines(tmp_path):
    path = write(tmp_path / "unlabelled.txt", "a\n\nb\n")
    assert list(numbered_texts(path, NAMES, 1, [])) == [(1, ("a",)), (2, ("",)), (3, ("b",))]


def new_texts(count: int) -> list[str]:
    """Of the tokenizer's words, none among those of `write_texts`, which has no word 5 times in a row."""
    words = itertools.product(["film", "plot", "cast", "ending"], repeat=5)
    return ["a a a a a " + " ".join(each) for each in itertools.islice(words, count)]


def test_any_number_of_processes_makes_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.preprocessing.CHUNK", 7)
    tables = []
    for count in (1, 3):
        folder = write_texts(tmp_path / str(count))
        write(folder / "unlabelled.txt", "\n".join(["a good film", *new_texts(40), *new_texts(50)]))
        _, summary = tokenize_data(folder, make_tokenizer(), 16, lambda rows, total, split: iter(rows), count)
        assert summary["unlabelled"]["rows"] == len(
            load_data(folder, make_tokenizer(), 16).splits["unlabelled"]
        ) in (50, 51)  # fmt: skip
        tables.append((folder / "tokenized/unlabelled.arrow").read_bytes())
    assert tables[0] == tables[1]


@pytest.fixture
def with_unlabelled(trained):
    write(trained.data / "unlabelled.txt", "\n".join(new_texts(60)))
    code, stderr = trained.preprocess()
    assert code == 0, stderr
    assert "[unlabelled] : 60 rows" in stderr
    assert "left out: 0 empty, 0 in valid or test, 0 in train, 0 there before" in stderr
    return trained


def test_a_student_learns_from_them(with_unlabelled, monkeypatch):
    """From the teacher's logits for each of them, and from the labels of the others."""
    import fastformers

    steps, given = with_unlabelled, {}
    original = fastformers.distillation_losses

    def spy(teacher, student, logits, num_labelled, *more):
        given.update(logits=logits, num_labelled=num_labelled)
        return original(teacher, student, logits, num_labelled, *more)

    monkeypatch.setattr(fastformers, "distillation_losses", spy)
    code, stderr = steps.distill("--unlabelled", "--label_ratio=1")
    assert code == 0, stderr
    assert given["num_labelled"] == 96 and given["logits"].shape == (156, 2)
    (path,) = steps.data.glob("tokenized/teacher-*-unlabelled-0.safetensors")
    assert torch.equal(load_file(path)["logits"], given["logits"][96:])
    # Tokenized once more, and with other rows of test: those that come to be in it go.
    assert steps.preprocess()[0] == 0 and path.exists(), "logits of rows that stay are kept"
    with open(steps.data / "test.txt", "a") as file:
        file.write(f"{new_texts(1)[0]}\tpositive\n")
    code, stderr = steps.preprocess()
    assert code == 0 and "1 in valid or test" in stderr and not path.exists()
    before = given["logits"]
    assert steps.distill("--unlabelled", out="other")[0] == 0
    torch.testing.assert_close(given["logits"], torch.cat([before[:96], before[97:]]))


def test_logits_go_on_where_they_were_stopped(with_unlabelled, monkeypatch):
    steps, asked = with_unlabelled, []
    import utils.training.teacher as teacher

    original = teacher.predict

    def predict(model, rows, accelerator, name):
        if name == "teacher on unlabelled, part 3 of 3" and not asked:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(name)
        return original(model, rows, accelerator, name)

    monkeypatch.setattr(teacher, "PART", 25)
    assert steps.distill("--unlabelled", out="whole")[0] == 0
    parts = sorted(steps.data.glob("tokenized/teacher-*-unlabelled-*.safetensors"))
    assert [len(load_file(path)["logits"]) for path in parts] == [25, 25, 10]
    parts[2].unlink()
    monkeypatch.setattr(teacher, "predict", predict)
    assert steps.distill("--unlabelled")[0] == 130
    assert steps.distill("--unlabelled")[0] == 0
    assert asked == ["stopped", "teacher on unlabelled, part 3 of 3"]
    whole, continued = (load_file(steps.folder / name / "model.safetensors") for name in ("whole", "student"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_files_that_are_missing_or_changed(with_unlabelled):
    steps = with_unlabelled
    write(steps.data / "unlabelled.txt", "\n".join(new_texts(59)))
    fails(steps.distill("--unlabelled"), "unlabelled.txt has changed", "preprocess.py")
    (steps.data / "unlabelled.txt").unlink()
    assert steps.preprocess()[0] == 0
    assert not list(steps.data.glob("tokenized/*unlabelled*"))
    fails(steps.distill("--unlabelled"), "--unlabelled", "no unlabelled rows", "preprocess.py")


def test_their_variants_have_no_label(with_unlabelled):
    steps = with_unlabelled
    encoder = f"--bert_model_name_or_path={steps.encoder}"
    options = [f"--data_dir={steps.data}", encoder, "--mask_ratio=0", "--n_iter=2", "--ngram_ratio=0"]
    code, stderr = steps.script("augment_data", *options, "--unlabelled")
    assert code == 0, stderr
    lines = [line.split("\t") for line in (steps.data / "augmented.txt").read_text().splitlines()]
    assert {label for _, label in lines} == {"negative", "positive", ""}
    assert not {text for text, _ in lines} & set(new_texts(60))
    assert sum(label == "" for _, label in lines) > 60
    code, stderr = steps.preprocess()
    assert code == 0, stderr
    labels = np.array(load_data(steps.data, make_tokenizer(), 16).splits["augmented"]["label"])
    assert (labels == NO_LABEL).tolist() == [label == "" for _, label in lines]
    assert steps.distill("--augmented", "--unlabelled", "--label_ratio=1")[0] == 0
    (steps.data / "unlabelled.txt").unlink()
    fails(steps.script("augment_data", *options, "--unlabelled"), "--unlabelled", "no unlabelled.txt")


def test_a_teacher_with_another_tokenizer_reads_the_same_rows(with_unlabelled):
    """Which depend on test.txt, too."""
    steps = with_unlabelled
    other = write_texts(steps.folder / "other")
    write(other / "unlabelled.txt", "\n".join(new_texts(60)))
    write(other / "test.txt", f"{new_texts(1)[0]}\tpositive\n")
    own, steps.data = steps.data, other
    assert steps.preprocess()[0] == 0
    steps.data = own
    fails(steps.distill("--unlabelled", f"--teacher_data_dir={other}"), "the same test.txt")
    assert json.loads((own / "tokenized/meta.json").read_text())["texts"].keys() == {
        "train", "valid", "test", "unlabelled",
    }  # fmt: skip
