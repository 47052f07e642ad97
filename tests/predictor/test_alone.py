"""The package predictor in a model folder needs the folder and its three packages, wherever they are, and no more."""

import ast
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cascade_folder import write_cascade
from conftest import ROOT
from reference_model import LABELS, Reference, change_config, random_texts

from utils.export.runtime import copy_runtime

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of Linux: see prctl(2) and capabilities(7)
TEXTS = ["a good film", "the plot\tit is bad", "", "schön ☺"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Reference:
    reference = Reference(tmp_path_factory.mktemp("bert"), "bert")
    copy_runtime(reference.folder)
    return reference


@pytest.fixture
def copy(bert, tmp_path) -> Path:
    """A model folder to change, with a space in its name."""
    return shutil.copytree(bert.folder, tmp_path / "my model")


def python(*arguments: object, folder: Path, text: str = "", **options) -> subprocess.CompletedProcess:
    """Python in `folder`, which cannot import this project."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, input=text.encode(), capture_output=True, check=False, **options
    )
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def expect(done: subprocess.CompletedProcess, bert: Reference) -> None:
    """The answers to `TEXTS`."""
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for line, text in zip(lines, TEXTS, strict=True):
        expected = bert.probabilities(tuple(text.split("\t")) if "\t" in text else text)
        label, probability = line.split("\t")
        assert label == LABELS[expected.index(max(expected))]
        assert float(probability) == pytest.approx(max(expected), abs=1e-5)


def label(model: Path, folder: Path, **options) -> subprocess.CompletedProcess:
    return python(model / "predictor", folder=folder, text="\n".join(TEXTS), **options)


def test_it_is_the_projects_own_package(copy):
    """Which imports nothing else of the project."""
    files = {path.name: path.read_bytes() for path in (ROOT / "utils/predictor").glob("*.py")}
    assert {path.name: path.read_bytes() for path in (copy / "predictor").iterdir()} == files
    assert (copy / "requirements.txt").read_bytes() == (ROOT / "requirements-runtime.txt").read_bytes()
    nodes = [node for code in files.values() for node in ast.walk(ast.parse(code))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    assert all(node.level <= 1 for node in nodes if isinstance(node, ast.ImportFrom))
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert packages == {"numpy", "onnxruntime", "tokenizers"}
    named = {line.partition(">")[0] for line in (copy / "requirements.txt").read_text().split()}
    assert named == packages


def test_from_another_folder(bert, copy, tmp_path):
    expect(label(copy, tmp_path), bert)
    expect(label(Path("."), copy), bert)


def test_the_same_as_predict_py(bert, copy, tmp_path):
    options = ["--format=jsonl", "--batch_size=2", "--num_threads=2", "--min_probability=0.5"]
    text = "\ufeff" + "\r\n".join(TEXTS)
    alone = python(copy / "predictor", *options, folder=tmp_path, text=text)
    ours = python(ROOT / "predict.py", bert.folder, *options, folder=tmp_path, text=text)
    assert (alone.returncode, alone.stderr, alone.stdout) == (0, "", ours.stdout)
    assert [list(json.loads(line)) for line in alone.stdout.splitlines()] == [["label", "probabilities", "sure"]] * 4


def test_labels_are_written_in_utf_8(copy, tmp_path):
    """Whatever the system's own encoding."""
    change_config(copy, id2label={str(i): f"schön {i}" for i in range(len(LABELS))})
    command, environment = [sys.executable, copy / "predictor"], os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, input=b"good\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.decode("utf-8").startswith("schön ")


def test_unpacked_elsewhere(bert, tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(bert.folder, "model")
    with tarfile.open(tmp_path / "model.tar") as tar:
        tar.extractall(tmp_path / "elsewhere", filter="data")
    expect(label(tmp_path / "elsewhere/model", tmp_path), bert)


IMPORT = """
import os, sys
sys.path.insert(0, {!r})
from predictor import Predictor
print(Predictor().predict('good').label, os.access(sys.path[0], os.W_OK))
"""


def without_rights_of_root() -> None:
    """To whom everything is writable."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def test_a_read_only_folder(bert, copy, tmp_path):
    for path in (*copy.rglob("*"), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = python("-c", IMPORT.format(str(copy)), folder=tmp_path, preexec_fn=without_rights_of_root)
    expect(label(copy, tmp_path, preexec_fn=without_rights_of_root), bert)
    copy.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    name, writable = done.stdout.rsplit(maxsplit=1)
    assert name in LABELS and writable == "False"
    assert not list(copy.rglob("__pycache__"))


@pytest.mark.parametrize("layout", ["store", "store of one folder", "folder", "predictor alone"])
def test_behind_links(bert, copy, tmp_path, layout):
    if layout == "folder":
        (tmp_path / "link").symlink_to(copy)
        copy = tmp_path / "link"
    elif layout == "predictor alone":  # it finds the folder that it belongs to
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/predictor").symlink_to(copy / "predictor")
        copy = tmp_path / "bin"
    else:
        for path in [path for path in copy.rglob("*") if path.is_file()]:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            stored = tmp_path / "store" / ("" if layout.endswith("folder") else digest[:2]) / digest[2:]
            stored.parent.mkdir(parents=True, exist_ok=True)
            path.rename(stored)
            path.symlink_to(os.path.relpath(stored, path.parent))
    expect(label(copy, tmp_path), bert)
    done = python("-c", IMPORT.format(str(copy)), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.rsplit(maxsplit=1)[0] in LABELS


def test_a_copy_in_an_application_that_has_a_package_utils(bert, copy, tmp_path):
    application = tmp_path / "application"
    (application / "utils").mkdir(parents=True)
    (application / "utils/__init__.py").write_text("own = 'mine'\n")
    shutil.copytree(copy / "predictor", application / "labels")
    (application / "main.py").write_text(
        "import utils, labels\n"
        f"predictor = labels.Predictor({str(copy)!r})\n"
        "print(utils.own, predictor.predict('a good film').label)\n"
        "try:\n    predictor.predict(5)\nexcept ValueError as error:\n    print(type(error).__module__, error)\n"
        "try:\n    labels.Predictor()\nexcept labels.UserError as error:\n    print(error)\n"
    )
    done = python("main.py", folder=application)
    assert (done.returncode, done.stderr) == (0, "")
    expected = bert.probabilities("a good film")
    lines = done.stdout.splitlines()
    assert lines[0] == f"mine {LABELS[expected.index(max(expected))]}"
    assert lines[1].startswith("labels.errors text 1 is or holds a int")
    assert "application/config.json cannot be read" in lines[2]


def test_of_a_cascade(bert, tmp_path):
    """The whole, and each stage by itself."""
    cascade = write_cascade(tmp_path / "cascade", [bert, bert], [1.0, 1.0], [0.5])
    done = python(cascade / "predictor", "--format=jsonl", folder=tmp_path, text="\n".join(random_texts(20)))
    assert (done.returncode, done.stderr) == (0, "")
    assert {json.loads(line)["stage"] for line in done.stdout.splitlines()} == {0, 1}
    expect(label(cascade / "stage-1", tmp_path), bert)


NOTHING_CHANGED = """
import logging, os, signal, sys, threading, warnings
import numpy, tokenizers  # libraries may do as they like

def state():
    signals = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    loggers = [(logging.root.level, logging.root.handlers, logging.root.disabled, logging.raiseExceptions)]
    return [
        sys.excepthook, sys.unraisablehook, threading.excepthook, signals, loggers, dict(os.environ), os.getcwd(),
        sys.path[:], sys.flags, threading.active_count(), str(warnings.filters), sys.stdout, sys.stderr,
    ]

sys.path.insert(0, {!r})
before = state()
import predictor
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
assert "onnxruntime" not in sys.modules
opened = predictor.Predictor(num_threads=1)
opened.predict_batch(["good", "bad"])
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
"""


def test_its_host_stays_as_it_is(copy, tmp_path):
    done = python("-c", NOTHING_CHANGED.format(str(copy)), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, sys
sys.path.insert(0, {!r})
import predictor
child = os.fork()
name = predictor.Predictor(num_threads=1).predict("good").label
if child:
    print(name, os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_after_the_import(copy, tmp_path):
    """As a server makes that loads its application first: each process then opens the model for itself, and ends."""
    done = python("-W", "ignore", "-c", FORK.format(str(copy)), folder=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] in LABELS and done.stdout.split()[1] == "0"


@pytest.mark.parametrize(
    ("text", "options", "part"),
    [
        ("good\nb\tc\td\n", [], "standard input, line 2: 3 columns"),
        ("text,label\ngood,1\n", [], "standard input, line 1: 'text,label' looks like the names of columns"),
        ("good\n", ["--num_threads=0"], "num_threads is 0"),
        ("good\n", ["--batch_size=0"], "--batch_size=0"),
        ("good\n", ["--min_probability=1.1"], "--min_probability=1.1"),
    ],
)
def test_mistakes(copy, tmp_path, text, options, part):
    done = python(copy / "predictor", *options, folder=tmp_path, text=text)
    assert done.returncode == 2 and done.stderr.startswith("predictor: error: "), done.stderr
    assert part in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("redirection", "part"), [(">&-", "standard output is"), ("<&-", "standard input is")])
def test_closed_streams(copy, redirection, part):
    command = f'"{sys.executable}" "{copy}/predictor" {redirection}'
    done = subprocess.run(command, shell=True, input=b"good\n", capture_output=True, check=False)
    stderr = done.stderr.decode()
    assert done.returncode == 2 and stderr.startswith(f"predictor: error: {part}") and stderr.count("\n") == 1, stderr


@pytest.mark.parametrize("name", ["model.weights", "tokenizer.json", "config.json"])
def test_a_damaged_folder(copy, tmp_path, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-9])
    done = label(copy, tmp_path)
    assert done.returncode == 2 and f"my model/{name} is damaged" in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_that_stops(copy, tmp_path):
    command = [sys.executable, str(copy / "predictor")]
    (tmp_path / "texts.txt").write_text("good\n" * 5_000)
    with (
        open(tmp_path / "texts.txt") as texts,
        subprocess.Popen(command, stdin=texts, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
