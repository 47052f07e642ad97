"""The program of docs/batch.md on Ray, with two actors: the rows that predict.py writes. Of `make test-slow`."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import ROOT
from reference_model import Reference, of_texts, random_texts

PYTHON = ROOT / ".venv-ray/bin/python"


@pytest.fixture(scope="module")
def python_with_ray() -> Path:
    """Of .venv-ray, which is made where it is not there."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", PYTHON.parents[1]], check=True)
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    installed = subprocess.run(
        [*install, "-r", ROOT / "tests/requirements-ray.txt"], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"Ray cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return PYTHON


@pytest.mark.slow
def test_ray_labels_as_predict_does(python_with_ray, script, tmp_path):
    bert = Reference(tmp_path / "bert", "bert")
    texts = random_texts(40_000)
    pa.parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "rows.parquet")
    code, stderr = script("predict", of_texts(bert.folder, 1), "--input=rows.parquet", "--output=out.parquet")
    assert code == 0, stderr
    worker = [python_with_ray, ROOT / "benchmarks/ray_worker.py", bert.folder, "rows.parquet", "labelled", "2"]
    done = subprocess.run(
        worker, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "labelled").glob("*.parquet"))) > 1
    theirs = pa.parquet.read_table(tmp_path / "labelled").sort_by("id")
    ours = pa.parquet.read_table(tmp_path / "out.parquet")
    assert theirs.select(["id", "text", "label"]) == ours.select(["id", "text", "label"])
    assert theirs["probability"].to_pylist() == pytest.approx(ours["probability"].to_pylist(), abs=1e-6)
