"""The rows in a teacher's tokens are those that preprocess.py makes for it, made once and kept up to date."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_encoder, make_tokenizer, snapshot
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from utils.data import preprocessing
from utils.data.tables import Data, load_data
from utils.data.teacher_rows import check_rows_of_teacher, rows_of_teacher
from utils.models.checkpoint import load_tokenizer
from utils.system.errors import UserError


def with_mask(mask: str, **names: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(**names)
    tokenizer.add_special_tokens({"mask_token": mask})
    return tokenizer


@pytest.fixture
def reading(project, tmp_path):
    """A preprocessed BERT `Project` with augmented rows, a teacher with other tokens, and what asks for its rows."""
    steps = project("bert")
    steps.encoder = make_encoder(tmp_path / "student", "bert", with_mask("[MASK]"))
    teacher = make_encoder(tmp_path / "teacher", "roberta", with_mask("<mask>", cls="<s>", sep="</s>", pad="<pad>"))
    text = (steps.data / "train.txt").read_text()
    # The last row is a variant of an unlabelled one, of which two are new.
    (steps.data / "augmented.txt").write_text(text.replace("film", "[MASK]") + "[MASK] cast\t\n")
    (steps.data / "unlabelled.txt").write_text("cast\n" + text.split("\t")[0] + "\na [MASK] cast\nCast\n")
    assert "[MASK]" in (steps.data / "augmented.txt").read_text()
    assert steps.preprocess()[0] == 0
    own, other = load_tokenizer(steps.encoder, "--flag"), load_tokenizer(teacher, "--flag")

    def data() -> Data:
        return load_data(steps.data, own, 16)

    return SimpleNamespace(
        steps=steps,
        teacher=teacher,
        tokenizer=other,
        data=data,
        rows=lambda: rows_of_teacher(data(), own, other, 12),
        check=lambda: check_rows_of_teacher(data(), own, other, 12),
    )


@pytest.fixture
def tokenized(monkeypatch) -> list[str]:
    """The folders that were written."""
    names: list[str] = []
    write = preprocessing.tokenize_data

    def written(*arguments, **options):
        names.append(options["folder_name"])
        return write(*arguments, **options)

    monkeypatch.setattr("utils.data.teacher_rows.tokenize_data", written)
    return names


def table(folder: Path, split: str) -> list[dict]:
    return list(Dataset.from_file(str(folder / f"{split}.arrow")))


def preprocessed_apart(reading, *options: str) -> Path:
    """The tokenized folder that the older way makes: the files in a folder of the teacher's own."""
    folder = reading.steps.folder / "apart"
    shutil.copytree(reading.steps.data, folder, ignore=shutil.ignore_patterns("tokenized*"))
    if (folder / "augmented.txt").exists():
        text = (folder / "augmented.txt").read_text()
        (folder / "augmented.txt").write_text(text.replace("[MASK]", "<mask>"))
    config = reading.steps.folder / "apart.json"
    config.write_text('{"encoder_class": "roberta", "n_ctx": 12}')
    more = [f"--data_dir={folder}", f"--config={config}", f"--bert_model_name_or_path={reading.teacher}"]
    code, stderr = reading.steps.script("preprocess", *more, *options)
    assert code == 0, stderr
    return folder / "tokenized"


def test_the_rows_are_those_of_preprocess(reading):
    """With the teacher's mask where the student's stands, and only there."""
    rows = reading.rows()
    expected = preprocessed_apart(reading)
    assert rows.folder.parent == reading.steps.data and rows.folder.name.startswith("tokenized-")
    for split in ("train", "valid", "test", "augmented", "unlabelled"):
        assert list(rows.splits[split]) == table(expected, split)
    assert len(rows.splits["unlabelled"]) == 2
    mask = reading.tokenizer.mask_token_id
    assert not any(mask in ids for split in ("train", "unlabelled") for ids in rows.splits[split]["input_ids"])
    assert mask in rows.splits["augmented"][-1]["input_ids"]
    assert any(mask in ids for ids in rows.splits["augmented"]["input_ids"])
    assert max(len(ids) for ids in rows.splits["train"]["input_ids"]) == 12


def test_columns_are_read_as_preprocess_read_them(reading):
    data = reading.steps.data
    for split in ("train", "valid", "test"):
        lines = [line.split("\t") for line in (data / f"{split}.txt").read_text().splitlines()]
        with open(data / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["class", "review"], *([label, text] for text, label in lines)])
        (data / f"{split}.txt").unlink()
    columns = ["--text_column=review", "--label_column=class"]
    assert reading.steps.preprocess(*columns)[0] == 0
    expected = preprocessed_apart(reading, *columns)
    assert list(reading.rows().splits["train"]) == table(expected, "train")
    path = data / "tokenized/meta.json"
    meta = json.loads(path.read_text())
    del meta["columns"]
    path.write_text(json.dumps(meta))
    for folder in data.glob("tokenized-*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"does not say which columns of train.csv.*run preprocess.py again"):
        reading.check()


def test_other_columns_of_the_same_files_are_other_rows(reading):
    data = reading.steps.data
    for split in ("train", "valid", "test"):
        (data / f"{split}.txt").unlink()
        (data / f"{split}.csv").write_text("one,two,label\na film,a plot,positive\na cast,not a cast,negative\n")
    for column, text in (("one", "a film"), ("two", "a plot")):
        assert reading.steps.preprocess(f"--text_column={column}")[0] == 0
        assert reading.tokenizer.decode(reading.rows().splits["train"][0]["input_ids"][1:-1]) == text


def test_rows_are_made_once(reading, tokenized):
    before = snapshot(reading.steps.data)
    rows = reading.rows()
    after = snapshot(reading.steps.data)
    assert all(after[name] == content for name, content in before.items())
    again = reading.rows()
    assert len(tokenized) == 1 and again.fingerprint == rows.fingerprint
    # With its folder, nobody needs the texts.
    (reading.steps.data / "test.txt").unlink()
    reading.check()
    shutil.rmtree(rows.folder)
    with pytest.raises(UserError, match=r"test.txt cannot be read"):
        reading.check()


@pytest.mark.parametrize("change", ["text", "damaged"])
def test_rows_are_made_again(reading, tokenized, change):
    rows = reading.rows()
    logits = [rows.folder / f"teacher-a-cpu-no-{split}-0.safetensors" for split in ("train", "valid")]
    for path in logits:
        path.write_bytes(b"kept")
    if change == "text":
        text = reading.steps.data / "train.txt"
        text.write_text(text.read_text() + "a fine film\tpositive\n")
        assert reading.steps.preprocess()[0] == 0
    else:
        (rows.folder / "train.arrow").write_bytes(b"nonsense")
    again = reading.rows()
    assert len(tokenized) == 2
    assert [row["label"] for row in again.splits["train"]] == [row["label"] for row in reading.data().splits["train"]]
    # What the teacher said of the split that is as it was stays.
    assert [path.exists() for path in logits] == [False, True]


def test_stopped_while_tokenizing_nothing_is_half(reading, monkeypatch):
    before = snapshot(reading.steps.data)
    count = 0
    merge = preprocessing._merge

    def stop_at_the_second(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        merge(*arguments)

    monkeypatch.setattr(preprocessing, "_merge", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        reading.rows()
    assert snapshot(reading.steps.data) == before
    rows = reading.rows()
    assert list(rows.splits["train"]) == table(preprocessed_apart(reading), "train")
