"""predict.py labels files and standard input, refuses what its model was not made for, and needs no PyTorch."""

import json
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from reference_model import LABELS, of_texts, random_texts


def predict_py(*arguments: object, text: bytes = b"") -> subprocess.CompletedProcess:
    """predict.py in a process of its own, `text` on its standard input."""
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, check=False)


def test_tsv(bert):
    # A BOM, either line end, an empty line, spaces around, none at the end.
    text = "\ufeffa good film\r\n\nthe plot \t it is bad\n  film  \ndull".encode()
    done = predict_py(bert.folder, text=text)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert len(rows) == 5
    for row, read in zip(rows, ["a good film", "", ("the plot", "it is bad"), "film", "dull"], strict=True):
        expected = bert.probabilities(read)
        assert row[0] == LABELS[expected.index(max(expected))]
        assert float(row[1]) == pytest.approx(max(expected), abs=1e-5)


def test_jsonl_of_a_file_in_batches(bert, tmp_path):
    texts = random_texts(20)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    done = predict_py(bert.folder, f"--input={tmp_path / 'texts.txt'}", "--format=jsonl", "--batch_size=8")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(row) for row in rows] == [["label", "probabilities"]] * 20
    for row, text in zip(rows, texts, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(bert.probabilities(text), abs=1e-5)
        assert row["probabilities"][row["label"]] == max(row["probabilities"].values())
    assert "así así" in done.stdout.decode()


def test_files_by_their_ending(bert, copy, tmp_path):
    """The labels of a CSV file's texts, not of its lines."""
    texts = random_texts(20)
    (tmp_path / "tickets.csv").write_text("queue,body\n" + "".join(f'good,"{text}, film"\n' for text in texts))
    done = predict_py(of_texts(copy, 1), f"--input={tmp_path / 'tickets.csv'}", "--text_column=body", "--format=jsonl")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, text in zip(rows, texts, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(bert.probabilities(f"{text}, film"), abs=1e-5)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"a good film\tgood\n", ["standard input, line 1", "'good'", "labelled"]),
        (b'{"text": "a good film"}\n', ["standard input, line 1", "JSON", ".jsonl"]),
        (b"text,queue\na good film,1\n", ["standard input, line 1", "columns", ".csv"]),
        (b"a good film\na\tb\n", ["standard input, line 2", "a tab"]),
    ],
)
def test_files_that_are_given_as_lines(copy, content, parts):
    done = predict_py(of_texts(copy, 1), "--batch_size=9", text=content)
    assert (done.returncode, done.stdout) == (2, b"")
    stderr = done.stderr.decode()
    assert stderr.startswith("predict.py: error: ") and stderr.count("\n") == 1
    assert all(part in stderr for part in parts), stderr


@pytest.mark.parametrize(
    ("redirection", "part"),
    [(">&-", "standard output is closed"), ("<&-", "standard input is closed"), ("> /dev/full", "disk is full")],
)
def test_closed_or_full(bert, redirection, part):
    if redirection.endswith("full") and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    command = f'"{sys.executable}" "{ROOT}/predict.py" "{bert.folder}" {redirection}'
    done = subprocess.run(command, shell=True, input=b"good\n", capture_output=True, check=False)
    stderr = done.stderr.decode()
    assert done.returncode == 2 and part in stderr and "Traceback" not in stderr and stderr.count("\n") == 1, stderr


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_unsure_answers_are_marked(bert, form):
    texts = random_texts(20)
    expected = [max(bert.probabilities(text)) for text in texts]
    limit = round(sorted(expected)[10] - 1e-3, 4)
    done = predict_py(bert.folder, f"--min_probability={limit}", f"--format={form}", text="\n".join(texts).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    sure = [json.loads(line)["sure"] if form == "jsonl" else line.split("\t")[2] == "sure" for line in lines]
    assert sure == [probability >= limit for probability in expected] and 5 < sum(sure) < 15


def test_a_probability_that_is_none(bert):
    for value in ("1.5", "-0.1", "nan", "high"):
        done = predict_py(bert.folder, f"--min_probability={value}", text=b"good")
        assert (done.returncode, done.stdout) == (2, b"") and b"--min_probability" in done.stderr


def test_no_input_no_output(bert):
    done = predict_py(bert.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_needs_neither_torch_nor_transformers(bert):
    code = (
        "import runpy, sys; runpy.run_path('predict.py', run_name='__main__'); "
        "heavy = {'torch', 'transformers', 'onnx', 'datasets', 'huggingface_hub', 'pyarrow'}; "
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bert.folder)], cwd=ROOT, input=b"good\n", capture_output=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"\n")


def test_a_line_is_answered_before_the_next(bert):
    command = [sys.executable, str(ROOT / "predict.py"), str(bert.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        for line in (b"a good film\n", b"bad\n"):
            process.stdin.write(line)
            assert select.select([process.stdout], [], [], 60)[0], "no answer"
            assert process.stdout.readline().count(b"\t") == 1
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_reader_that_stops(bert, tmp_path):
    (tmp_path / "texts.txt").write_text("good\n" * 5_000)
    command = [sys.executable, str(ROOT / "predict.py"), str(bert.folder), f"--input={tmp_path / 'texts.txt'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"good\ncaf\xe9\n", ["texts.txt, line 2", "UTF-8"]),
        (b"good\nfilm\na\tb\tc\n", ["texts.txt, line 3", "3 columns"]),
        (None, ["texts.txt cannot be read", "--input"]),
    ],
)
def test_bad_input_of_the_script(script, bert, tmp_path, content, parts):
    if content is not None:
        (tmp_path / "texts.txt").write_bytes(content)
    code, stderr = script("predict", bert.folder, "--input=texts.txt")
    assert code == 2 and stderr.startswith("predict.py: error: ") and stderr.count("\n") == 1
    assert all(part in stderr for part in parts), stderr


def test_bad_folder_of_the_script(script, tmp_path):
    (tmp_path / "texts.txt").write_text("good\n")
    code, stderr = script("predict", tmp_path, "--input=texts.txt")
    assert code == 2 and stderr.count("\n") == 1 and "config.json" in stderr
