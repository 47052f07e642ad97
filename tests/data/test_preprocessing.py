"""From text files to tokenized tables."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import fails, make_tokenizer, write_texts
from data_files import write_rows

from utils.data.preprocessing import tokenize_data
from utils.data.tables import lengths, load_data


def tokenize(folder, n_ctx: int = 16):
    tokenizer = make_tokenizer()
    tokenize_data(folder, tokenizer, n_ctx, lambda rows, total, split: iter(rows))
    return load_data(folder, tokenizer, n_ctx)


def test_rows_round_trip(tmp_path):
    data = tokenize(write_texts(tmp_path))
    assert data.labels == ["negative", "positive"]
    assert (tmp_path / "label.txt").read_text() == "negative\npositive\n"
    tokenizer = make_tokenizer()
    for i, line in enumerate((tmp_path / "train.txt").read_text().splitlines()):
        text, label = line.split("\t")
        row = data.splits["train"][i]
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == text
        assert data.labels[row["label"]] == label


def test_number_labels_are_in_numeric_order(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a\t10\nb\t9\nc\t2\n")
    assert tokenize(tmp_path).labels == ["2", "9", "10"]


def test_truncates_to_n_ctx(tmp_path):
    data = tokenize(write_texts(tmp_path), n_ctx=6)
    assert lengths(data.splits["train"]).max() == 6
    longest = int(lengths(data.splits["train"]).argmax())
    assert data.splits["train"][longest]["input_ids"][-1] == make_tokenizer().sep_token_id


def test_any_number_of_processes_makes_the_same_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.preprocessing.CHUNK", 10)
    tokenizer, tables = make_tokenizer(), []
    for count in (1, 3):
        folder = write_texts(tmp_path / str(count))
        tokenize_data(folder, tokenizer, 16, lambda rows, total, split: iter(rows), count)
        tables.append([(folder / f"tokenized/{split}.arrow").read_bytes() for split in ("train", "valid", "test")])
    assert tables[0] == tables[1]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_other_formats(project, suffix):
    """The same tables as from text, and models that say the labels; quotes and commas are nothing special."""
    steps = project()
    texts = ['a "good" film', "a film, not good", "good", "bad"]
    rows = [{"id": i, "body": text, "stars": i % 2} for i, text in enumerate(texts)]
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").write_text("".join(f"{row['body']}\t{row['stars']}\n" for row in rows))
    assert steps.preprocess()[0] == 0
    expected = (steps.data / "tokenized/train.arrow").read_bytes()
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").unlink()
        write_rows(steps.data / f"{split}{suffix}", rows)
    code, stderr = steps.preprocess("--text_column=body", "--label_column=stars")
    assert code == 0, stderr
    assert (steps.data / "tokenized/train.arrow").read_bytes() == expected
    assert (steps.data / "label.txt").read_text() == "0\n1\n"
    assert steps.train("--epoch=1")[0] == 0
    fails(steps.preprocess(), f"train{suffix}", "'text', only 'id', 'body', 'stars'", "--text_column")
    fails(steps.preprocess("--text_column=body", "--label_column=mark"), "'mark'", "--label_column")
    fails(steps.preprocess("--text_column=a,b,c"), "--text_column=a,b,c")
    (steps.data / "train.txt").write_text("a film\t0\n")
    fails(steps.preprocess("--text_column=body", "--label_column=stars"), "both train.txt and train" + suffix)
    (steps.data / "train.txt").unlink()
    (steps.data / f"train{suffix}").write_bytes(b'"broken')
    fails(steps.preprocess("--text_column=body", "--label_column=stars"), f"train{suffix}")


def test_class_names_become_the_models_labels(project):
    steps = project()
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = pa.table({"text": ["a good film", "a bad film"] * 4, "label": [1, 0] * 4})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").unlink()
        pa.parquet.write_table(table, steps.data / f"{split}.parquet")
    assert steps.preprocess()[0] == 0
    assert load_data(steps.data, make_tokenizer(), 16).labels == ["bad", "good"]
    assert steps.train("--epoch=1")[0] == 0
    config = json.loads((steps.folder / "teacher/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


def test_words_that_are_unknown_are_said(project):
    steps = project()
    code, stderr = steps.preprocess()
    assert code == 0 and "are unknown" not in stderr
    for split, words in (("valid", "ein film sehr gut"), ("test", "a film sehr gut")):
        (steps.data / f"{split}.txt").write_text(f"{words}\tpositive\n")
    code, stderr = steps.preprocess()
    assert code == 0
    assert "[valid] : 75.0 % of the tokens are unknown" in stderr and steps.encoder in stderr
    assert stderr.count("are unknown") == 1, "half of the words is not most of them"


def test_what_makes_accuracy_mislead_is_said(project):
    steps = project()
    many = "a film that is not " + "very " * 20 + "good\tpositive\n"
    (steps.data / "train.txt").write_text(many * 9 + "bad\tnegative\n")
    code, stderr = steps.preprocess()
    assert code == 0
    assert "90.0 % of train is positive" in stderr and "macro F1" in stderr
    assert "[train] : 9 rows, 90.0 %, fill all 16 tokens" in stderr and "n_ctx" in stderr
