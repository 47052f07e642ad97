"""The program of docs/batch.md, on Ray with two actors: the rows that predict.py writes.

Of `make test-slow`; an environment for it is made, and where that cannot be, the test is skipped.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import ROOT
from reference_model import Reference, of_texts, random_texts

from utils.export.runtime import copy_runtime

NUM_ROWS = 40_000


def python_with(name: str) -> Path:
    """The Python of .venv-NAME, with what tests/requirements-NAME.txt lists; made where it is not there."""
    python = ROOT / f".venv-{name}/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "-r"]
    installed = subprocess.run(
        [*install, ROOT / f"tests/requirements-{name}.txt"], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"{name} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture
def model(script, tmp_path) -> Path:
    """A model folder; beside it rows.parquet, and out.parquet, which predict.py has written."""
    folder = of_texts(Reference(tmp_path / "bert", "bert").folder, 1)
    copy_runtime(folder)
    table = pa.table({"id": range(NUM_ROWS), "text": random_texts(NUM_ROWS)})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    code, stderr = script("predict", folder, "--input=rows.parquet", "--output=out.parquet")
    assert code == 0, stderr
    return folder


def check_rows_of(command: list, folder: Path) -> None:
    """Run a program that writes labelled/: several files, and in them the rows of out.parquet."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "labelled").glob("*.parquet"))) > 1
    theirs = pa.parquet.read_table(folder / "labelled").sort_by("id")
    ours = pa.parquet.read_table(folder / "out.parquet")
    assert theirs.select(["id", "text", "label"]) == ours.select(["id", "text", "label"])
    assert theirs["probability"].to_pylist() == pytest.approx(ours["probability"].to_pylist(), abs=1e-6)


@pytest.mark.slow
def test_ray(model, tmp_path):
    worker = ROOT / "benchmarks/ray_worker.py"
    check_rows_of([python_with("ray"), worker, model, "rows.parquet", "labelled", "2"], tmp_path)
