"""predict.py --output: the answers of Predictor, the same bytes however many processes there are and wherever it was
stopped, and one sentence for what cannot be."""

import contextlib
import csv
import os
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from cascade_folder import write_cascade
from conftest import fails, snapshot
from reference_model import Reference, of_texts, random_texts

from utils import label_files
from utils.data import row_chunks
from utils.predictor import Predictor
from utils.predictor.cpus import allowed_cores
from utils.system import pinned

TEXTS = random_texts(100)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return of_texts(Reference(tmp_path_factory.mktemp("bert"), "bert").folder, 1)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cascade")
    references = [Reference(folder / name, "bert", num_hidden_layers=i) for i, name in enumerate("ab", start=1)]
    first = Predictor(references[0].folder, 1).predict_batch(TEXTS)
    threshold = statistics.median(max(each.probabilities.values()) for each in first)
    return write_cascade(folder / "model", references, [1.0, 1.0], [threshold])


@pytest.fixture
def label(script, tmp_path, monkeypatch):
    """Label rows.parquet, 100 texts in chunks of 16: `label(model, "--num_instances=2")`."""
    cores = allowed_cores()
    monkeypatch.setattr(pinned, "allowed_cores", lambda: [cores[0], cores[-1]])
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 16)
    pa.parquet.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "rows.parquet")

    def run(model: Path, *options: str, output: str = "out.parquet"):
        return script("predict", model, "--input=rows.parquet", f"--output={output}", *options)

    return run


class Counter:
    """How many chunks each run has labelled, and after how many the next one is to be stopped by Ctrl-C."""

    def __init__(self):
        self.counts: list[int] = []
        self.stop = 1000

    def map_in_instances(self, open_function, items, num_instances):
        self.counts.append(0)
        with contextlib.closing(pinned.map_in_instances(open_function, items, num_instances)) as results:
            for result in results:
                if self.counts[-1] == self.stop:
                    raise KeyboardInterrupt
                self.counts[-1] += 1
                yield result


@pytest.fixture
def counter(monkeypatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(label_files, "map_in_instances", counter.map_in_instances)
    return counter


def test_the_answers_of_predictor(label, model, tmp_path):
    assert label(model, "--quiet") == (0, "")
    rows = pa.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    predictor = Predictor(model, 1)
    for start in range(0, len(TEXTS), 16):
        for row, expected in zip(rows[start:], predictor.predict_batch(TEXTS[start : start + 16]), strict=False):
            assert (row["id"], row["text"]) == (rows.index(row), TEXTS[row["id"]])
            assert (row["label"], row["probability"]) == (expected.label, expected.probabilities[expected.label])
    assert len(rows) == 100 and set(rows[0]) == {"id", "text", "label", "probability"}


def test_a_cascade_and_unsure_answers(label, cascade, tmp_path):
    code, stderr = label(cascade, "--min_probability=0.7", "--prefix=my_", "--num_instances=2", output="new/out.csv")
    assert code == 0 and "100 rows" in stderr, stderr
    with open(tmp_path / "new/out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = Predictor(cascade, 1).predict_batch(TEXTS)
    for row, prediction in zip(rows, expected, strict=True):
        probability = prediction.probabilities[prediction.label]
        assert (row["my_label"], row["my_stage"]) == (prediction.label, str(prediction.stage))
        assert float(row["my_probability"]) == pytest.approx(probability, abs=1e-6)
        assert row["my_sure"] == str(probability >= 0.7)
    assert {row["my_stage"] for row in rows} == {"0", "1"} and {row["my_sure"] for row in rows} == {"True", "False"}


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl"])
def test_the_same_bytes_wherever_it_was_stopped(label, model, tmp_path, counter, output):
    """And with any number of instances; no chunk is labelled again."""
    assert label(model, "--num_instances=2", output=output)[0] == 0
    whole = (tmp_path / output).read_bytes()
    (tmp_path / output).write_text("an older file")
    before = set(snapshot(tmp_path))
    for counter.stop, more in ((2, ["--num_instances=2"]), (3, ["--min_probability=0.5", "--prefix=x"]), (1, [])):
        code, stderr = label(model, *more, output=output)
        assert code == 130 and stderr.endswith("stopped: run the same command again\n")
        assert set(snapshot(tmp_path)) - before == {f"{output}.unfinished"}
        assert (tmp_path / output).read_text() == "an older file"
    with open(tmp_path / f"{output}.unfinished", "a") as file:
        file.write('["chunk 6", "0')  # as a kill leaves it
    code, stderr = label(model, "--resume=always", output=output)
    assert code == 0 and "6 parts are done" in stderr, stderr
    assert counter.counts == [7, 2, 3, 1, 1]
    assert (tmp_path / output).read_bytes() == whole
    assert set(snapshot(tmp_path)) == before


def test_an_unfinished_run_of_something_else(label, model, cascade, tmp_path, counter):
    counter.stop = 2
    label(model)
    before = snapshot(tmp_path)
    fails(label(cascade), "MODEL_DIR is", "in the unfinished run", "--overwrite")
    fails(label(model, "--text_column=id"), "--text_column is ['id'] but ['text']", "--overwrite")
    assert snapshot(tmp_path) == before
    pa.parquet.write_table(pa.table({"text": ["other"]}), tmp_path / "rows.parquet")
    fails(label(model), "--input is", "--overwrite")
    counter.stop = 1000
    assert label(model, "--overwrite")[0] == 0
    assert pa.parquet.read_table(tmp_path / "out.parquet")["text"].to_pylist() == ["other"]
    fails(label(model, "--resume=always"), "--resume=always but", "out.parquet.unfinished is not there")


BAD_INPUTS = {
    "labelled.txt": (b"a film\ngood\tgood\n", ["labelled.txt, line 2", "labelled file"]),
    "rows.txt": (b'{"text": "a"}\n', ["rows.txt, line 1 is a JSON object", ".jsonl"]),
    "table.txt": (b"id,text\n1,a\n", ["table.txt, line 1", "names of columns", ".csv"]),
    "utf16.txt": ("a\n".encode("utf-16"), ["utf16.txt, line 1: not UTF-8 but UTF-16"]),
    "late.jsonl": (b'{"text": "a"}\n' * 40 + b'{"text": null}\n', ["late.jsonl, line 41: 'text' is null"]),
    "taken.csv": (b"text,label\na,1\n", ["taken.csv, line 1", "'label' already", "--prefix"]),
    "pair.csv": (b"text\na\n", ["pair.csv: the model takes one text", "--text_column=COLUMN"], "--text_column=a,b"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(script, model, tmp_path, name):
    """Said before anything is labelled or written."""
    content, parts, *options = BAD_INPUTS[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out.jsonl").write_text("an older file")
    before = snapshot(tmp_path)
    fails(script("predict", model, f"--input={name}", "--output=out.jsonl", *options), *parts)
    assert snapshot(tmp_path) == before


def test_bad_options(script, model, tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.csv").mkdir()
    given = ["predict", model, "--input=t.csv"]
    fails(script("predict", model, "--output=o.csv"), "--output needs a file", "--input")
    fails(script("predict", model, "--output=o.csv", "--input=pipe"), "pipe cannot be read", "read twice")
    fails(script("predict", model, "--output=o.csv", "--input=no.csv"), "no.csv cannot be read", "No such file")
    fails(script(*given, "--output=pipe"), "--output pipe is a device or a pipe")
    fails(script(*given, "--output=folder.csv"), "--output folder.csv is a folder")
    fails(script(*given, "--output=t.csv"), "--output t.csv is the input")
    fails(script(*given, "--output=o.csv", "--num_instances=1000"), "--num_instances=1000", "lower")
    fails(script(*given, "--output=o.csv", "--format=jsonl"), "--format is of no use with --output")
    fails(script(*given, "--prefix=a"), "--prefix is of no use without --output")
    fails(script("predict", tmp_path, "--input=t.csv", "--output=o.csv"), "config.json")
    assert not list(tmp_path.glob("o.csv*"))
