"""The Makefile: what it refuses, before anything is installed or fetched."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

# In the place of python3: of another version, and venv is not installed but named.
OTHER_PYTHON = """#!/bin/sh
[ "$1" = -c ] || { echo "python3 $*" >&2; exit 3; }
exec PYTHON -c "import sys; sys.version_info = (3, MINOR, 0); exec(sys.argv[1])" "$2"
"""


def make(folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """In a folder that holds no more than the Makefile and the requirements."""
    for name in ("Makefile", "requirements.txt"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)
    variables = {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin"} | environment
    return subprocess.run(["make", *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("minor", "fits"), [(10, False), (11, True), (14, True), (15, False)])
def test_python_version(tmp_path, minor, fits):
    python3 = tmp_path / "python3"
    python3.write_text(OTHER_PYTHON.replace("PYTHON", shlex.quote(sys.executable)).replace("MINOR", str(minor)))
    python3.chmod(0o755)
    done = make(tmp_path, ".venv/installed")
    assert done.returncode != 0
    assert ("Python 3.11 to 3.14 is needed" in done.stderr) != fits
    assert ("python3 -m venv .venv" in done.stderr) == fits


@pytest.mark.parametrize("name", ["data/my tickets", "data/a:b", "data/100%", ""])
def test_names_that_make_cannot_read(tmp_path, name):
    if name:
        (tmp_path / name).mkdir(parents=True)
    done = make(tmp_path, "-n", "ladder", f"DATA={name}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"DATA={name}: give one folder, without spaces, colons and % signs in its name" in done.stderr


def test_no_such_folder(tmp_path):
    done = make(tmp_path, "-n", "ladder", "DATA=data/tickets")
    assert (done.returncode, done.stdout) == (2, "") and "DATA=data/tickets: there is no such folder" in done.stderr


def test_columns_are_not_the_terminals(tmp_path):
    """Which some shells export under the same name."""
    (tmp_path / "data/tickets").mkdir(parents=True)
    (tmp_path / "data/tickets/train.csv").touch()
    lines = make(tmp_path, "-n", "ladder", "DATA=data/tickets", COLUMNS="80").stdout.splitlines()
    (command,) = [line for line in lines if "preprocess.py" in line]
    assert command.rstrip().endswith("--bert_model_name_or_path=embeddings/all-MiniLM-L6-v2")
    lines = make(tmp_path, "-n", "ladder", "DATA=data/tickets", "COLUMNS=--label_column=queue").stdout.splitlines()
    assert [line.split()[1] for line in lines if "--label_column=queue" in line] == [
        "preprocess.py",
        "cascade.py",
        "report.py",
    ]


def commands(done: subprocess.CompletedProcess, script: str) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.replace("\\\n", " ").splitlines() if f" {script}" in line]


@pytest.mark.parametrize("name", ["unlabelled.txt", "unlabelled.jsonl", "unlabelled.soft.jsonl", "other.txt"])
def test_unlabelled_texts_are_learned_from_where_they_are_there(tmp_path, name):
    """By every student, and not by the teacher."""
    (tmp_path / "data/tickets").mkdir(parents=True)
    for each in ("train.txt", "train.soft.jsonl", name):
        (tmp_path / "data/tickets" / each).touch()
    done = make(tmp_path, "-n", "ladder", "DATA=data/tickets")
    assert len(commands(done, "fastformers.py")) == 3 and len(commands(done, "train.py")) == 1
    is_text = name in ("unlabelled.txt", "unlabelled.jsonl")
    assert all(("--unlabelled" in command) == is_text for command in commands(done, "fastformers.py"))
    assert not any("--unlabelled" in command for command in commands(done, "train.py"))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["demo"], "movie-reviews"),
        (["demo", "QUICK=1"], "movie-reviews-1000"),
        (["ladder", "DATA=data/movie-reviews"], "movie-reviews"),
    ],
)
def test_unlabelled_texts_are_fetched(tmp_path, arguments, name):
    """Even where the labelled ones are there, of an older version: data/fetch.py says what to do."""
    done = make(tmp_path, "-n", *arguments)
    assert len(commands(done, "data/fetch.py")) == 1
    assert all("--unlabelled" in command for command in commands(done, "fastformers.py"))
    (tmp_path / f"data/{name}").mkdir(parents=True)
    (tmp_path / f"data/{name}/train.txt").touch()
    assert len(commands(make(tmp_path, "-n", *arguments), "data/fetch.py")) == 1
    (tmp_path / f"data/{name}/unlabelled.txt").touch()
    assert not commands(make(tmp_path, "-n", *arguments), "data/fetch.py")


def test_a_larger_teacher_of_another_family(tmp_path):
    """It is trained, pruned and quantized with its own tokenizer and config, all others with the default ones."""
    (tmp_path / "data/tickets").mkdir(parents=True)
    for name in ("train.csv", "valid.csv", "test.csv", "augmented.txt", "unlabelled.txt", "label.txt"):
        (tmp_path / "data/tickets" / name).touch()
    (tmp_path / "embeddings/large").mkdir(parents=True)
    (tmp_path / "embeddings/large/config.json").write_text('{\n  "model_type": "mpnet"\n}')
    done = make(tmp_path, "-n", "ladder", "DATA=data/tickets", "TEACHER=large", "COLUMNS=--label_column=queue")
    for script in ("preprocess.py", "train.py", "prune.py", "quantize.py"):
        for command in commands(done, script):
            is_teachers = any(
                part in command for part in ("=embeddings/large", "/teacher --model", "/pruned-teacher --model")
            )
            assert ("config-mpnet-cls.json --data_dir=runs/tickets/teacher-data" in command) == is_teachers, command
            assert ("config-bert-cls.json --data_dir=data/tickets" in command) != is_teachers, command
    assert all("--calibrate" in command for command in commands(done, "quantize.py"))
    distilled = commands(done, "fastformers.py")
    assert len(distilled) == 4  # 6 layers, half of them, and two shapes of these
    assert not any("--teacher_data_dir" in command for command in distilled)
    assert all("=runs/tickets/teacher " in command and "--unlabelled" in command for command in distilled)
    (start,) = [command for command in commands(done, "prune.py") if "--keep_layers=1,3,5" in command]
    assert "--bert_output_dir=runs/tickets/assistant" in start
    stages = [f"runs/tickets/models/{name}" for name in ("pruned-small", "student", "assistant", "teacher")]
    (cascade,) = commands(done, "cascade.py")
    assert [part for part in cascade.split() if "/models/" in part and not part.startswith("--")] == stages
    (link,) = [line for line in done.stdout.splitlines() if line.startswith("ln -sf")]
    names = {part.rsplit("/", 1)[1] for part in link.split() if part.startswith(str(tmp_path))}
    assert names == {"train.csv", "valid.csv", "test.csv"}  # of others, fastformers.py changes the mask token


def test_the_demo_makes_variants_of_its_rows(tmp_path):
    """All students learn from them, once; the quick one has none, nor has a data set without AUGMENT."""
    (tmp_path / "data/tickets").mkdir(parents=True)
    (tmp_path / "data/tickets/train.csv").touch()
    done = make(tmp_path, "-n", "demo")
    (command,) = commands(done, "augment_data.py")
    assert "--data_dir=data/movie-reviews " in command and "--n_iter=2" in command
    students = commands(done, "fastformers.py")
    assert len(students) == 3 and all("--augmented --unlabelled" in command for command in students)
    assert [command.split("--epoch=")[1][0] for command in students] == ["1", "2", "2"]
    for arguments in (["demo", "QUICK=1"], ["ladder", "DATA=data/tickets"]):
        done = make(tmp_path, "-n", *arguments)
        assert not commands(done, "augment_data.py") and "--augmented" not in done.stdout


def test_variables_in_the_place_of_its_own(tmp_path):
    (tmp_path / "data/tickets").mkdir(parents=True)
    (tmp_path / "data/tickets/train.csv").touch()
    options = ["EPOCHS_student=7", "EPOCHS_small=5", "CASCADE_OPTIONS=--target_speedup=9", "STATIC=static"]
    done = make(tmp_path, "-n", "ladder", "DATA=data/tickets", "TEACHER=large", *options)
    epochs = {command.split("--save_path=")[1].split()[0]: command for command in commands(done, "fastformers.py")}
    assert "--epoch=5" in epochs["runs/tickets/pruned-small.pt"] and "--epoch=7" in epochs["runs/tickets/student.pt"]
    (command,) = commands(done, "cascade.py")
    aims = re.findall(r"(--(?:target_speedup|max_slowdown)=\S+) --output_dir=(\S+)", re.sub(r"\s+", " ", command))
    assert aims == [
        ("--max_slowdown=2.2", "runs/tickets/models/fast-cascade"),
        ("--target_speedup=9", "runs/tickets/models/cascade"),
    ]
    (report,) = commands(done, "report.py")
    assert all(f" onnx_instances {folder} " in report for _, folder in aims)
    assert " model2vec static " in report
    (report,) = commands(make(tmp_path, "-n", "ladder", "DATA=data/tickets"), "report.py")
    assert "model2vec" not in report


def test_the_task_of_the_config(tmp_path):
    """Thresholds are tuned for several labels, and a score is not asked on."""
    (tmp_path / "data/tickets").mkdir(parents=True)
    (tmp_path / "data/tickets/train.csv").touch()
    for task, cascades in (("multi_label", 1), ("regression", 0)):
        config = f"{task}.json"
        (tmp_path / config).write_text(json.dumps({"task": task}, indent=2))
        is_multi_label = task == "multi_label"
        done = make(tmp_path, "-n", "ladder", "DATA=data/tickets", f"CONFIG={config}", "AUGMENT=2")
        chosen = [*commands(done, "train.py"), *commands(done, "fastformers.py")]
        assert len(chosen) == 4
        assert all(("--measure=mean_average_precision" in line) == is_multi_label for line in chosen)
        tuned = [*commands(done, "quantize.py"), *commands(done, "report.py")]
        assert len(tuned) == 4 + is_multi_label
        assert all(("--tune_thresholds" in line) == is_multi_label for line in tuned)
        assert all("--calibrate" not in line for line in tuned)
        assert [f"--config={config}" in line for line in commands(done, "augment_data.py")] == [True]
        (report,) = commands(done, "report.py")
        assert len(commands(done, "cascade.py")) == cascades
        assert len(re.findall(r" runs/tickets/models/(?:fast-)?cascade ", report)) == 2 * cascades
        done = make(tmp_path, "-n", "ladder", "DATA=data/tickets", f"CONFIG={config}", "TEACHER=large")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"CONFIG={config}: its task is {task}: give TEACHER_CONFIG" in done.stderr


def test_no_option_of_another_task(tmp_path):
    (tmp_path / "data/tickets").mkdir(parents=True)
    (tmp_path / "data/tickets/train.csv").touch()
    done = make(tmp_path, "-n", "ladder", "DATA=data/tickets", "AUGMENT=2")
    assert len(commands(done, "cascade.py")) == 1
    assert "--measure" not in done.stdout and "--tune_thresholds" not in done.stdout
    assert ["--config" in line for line in commands(done, "augment_data.py")] == [False]
