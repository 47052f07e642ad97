"""Threads are as many as the process may use CPUs: by its affinity, and by the quota of its cgroup, v1 and v2."""

import importlib
import os
import subprocess
import sys

import onnx
import pytest
from conftest import ROOT

from utils.predictor.cpus import allowed_cores, cgroup_quota

CPU = "sys/fs/cgroup/cpu,cpuacct"


def v1(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {}, float("inf")),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        (
            "0::/a/b\n",
            {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "5000 10000\n"},
            0.5,
        ),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "20 10\n", "sys/fs/cgroup/a/cpu.max": "50 10\n"}, 2),
        # That of another process.
        ("0::/a\n", {"sys/fs/cgroup/b/cpu.max": "10 10\n", "sys/fs/cgroup/a/cpu.max": "70 10\n"}, 7),
        ("4:memory:/a\n3:cpu,cpuacct:/a\n", v1(f"{CPU}/a", "-1") | v1(CPU, "300000"), 3),
        ("3:cpu,cpuacct:/a/b\n0::/\n", v1(f"{CPU}/a", "25000", "50000") | v1(f"{CPU}/a/b", "8"), 8e-5),
        # The path is the host's, but the tree begins at the container's own.
        ("3:cpu:/docker/ab12\n", v1("sys/fs/cgroup/cpu", "200000"), 2),
        ("4:memory:/a\n", v1(CPU, "100000"), float("inf")),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "damaged\n"}, float("inf")),
        # A folder without such a file does not hide those above it.
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "50 10\n"}, 5),
    ],
)
def test_quota(tmp_path, cgroup, files, quota):
    for name, content in ({"proc/self/cgroup": cgroup} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroup_quota(tmp_path) == pytest.approx(quota)


def test_without_cgroups(tmp_path):
    assert cgroup_quota(tmp_path) == float("inf")


def in_a_process(code: str, core: int | None = None) -> str:
    command = [sys.executable, "-c", code]
    pin = None if core is None else lambda: os.sched_setaffinity(0, [core])
    return subprocess.run(command, cwd=ROOT, preexec_fn=pin, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("quota", "count"), [(0.2, 1), (1.0, 1), (1.9, 1), (2.0, 2), (3.7, 3), (8.0, 4)])
def test_the_smaller_of_affinity_and_quota(quota, count):
    """Rounded down, and at least 1; of 4 cores."""
    code = (
        f"import utils.predictor.cpus as c; c.cgroup_quota = lambda: {quota}; c.allowed_cores = lambda: [0, 2, 4, 6]; "
    )
    assert in_a_process(code + "print(c.usable_cpus())") == str(count)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins a process to a core, as taskset does")
def test_one_core():
    core = allowed_cores()[-1]
    code = "import utils.predictor.cpus as c; print(c.usable_cpus(), c.allowed_cores())"
    assert in_a_process(code, core) == f"1 [{core}]"


ONE_MODEL = ["--config=c", "--data_dir=d", "--bert_output_dir=b"]


@pytest.mark.parametrize(
    ("script", "arguments", "threads"),
    [
        ("predict", ["model"], 6),
        ("evaluate", ONE_MODEL, 6),
        ("evaluate", [*ONE_MODEL, "--num_instances=2"], 3),
        ("evaluate", [*ONE_MODEL, "--num_instances=7"], 1),
        ("cascade", ["a", "b", "--data_dir=d", "--output_dir=o", "--max_asked=1"], 6),
        ("report", ["--config=c", "--data_dir=d", "--rung", "a", "b", "c", "--output_dir=o"], 6),
    ],
)
def test_default_of_num_threads(script, arguments, threads, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr("utils.predictor.cpus.usable_cpus", lambda: 6)
    monkeypatch.setattr(module, "usable_cpus", lambda: 6, raising=False)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    assert module.parse_args().num_threads == threads


DEFAULTS = """
import importlib, sys
from utils.export import plain
counts = []
for line in {commands!r}:
    sys.argv = line.split()
    counts.append(importlib.import_module(sys.argv[0].removesuffix(".py")).parse_args().num_threads)
plain.onnx_engine = lambda graph, num_threads, num_labels: num_threads
graph = type("Graph", (), {{"SerializeToString": lambda self: b""}})()
print(*counts, plain.open_graph(graph, 2))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins a process to a core, as taskset does")
def test_every_script_takes_what_it_may_use():
    """Of quantize.py, the graphs that it measures."""
    one_model = " ".join(ONE_MODEL)
    commands = ["predict.py m", f"evaluate.py {one_model}", "cascade.py a b --data_dir=d --output_dir=o --max_asked=1"]
    commands.append("report.py --config=c --data_dir=d --rung a b c --output_dir=o")
    assert in_a_process(DEFAULTS.format(commands=commands), allowed_cores()[-1]) == "1 1 1 1 1"


def test_graphs_of_quantize_use_all(monkeypatch):
    from utils.export import plain

    monkeypatch.setattr(plain, "usable_cpus", lambda: 6)
    monkeypatch.setattr(plain, "onnx_engine", lambda graph, num_threads, num_labels: num_threads)
    assert plain.open_graph(onnx.ModelProto(), 2) == 6
