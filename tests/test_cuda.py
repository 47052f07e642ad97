"""On a CUDA device: the same results as on the CPU, in every precision; a run that is continued; what cannot work.

Skipped where there is none, or where PyTorch has another build.
"""

import json
import os
import signal

import pytest
import torch
from conftest import ROOT, torchrun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

# Dropout draws other numbers on another device. Sums there come in no fixed order, so nothing is the same to the bit.
STEPS = ["--epoch=3", "--dropout=0", "--state_loss_ratio=1"]


def weights(project, out: str) -> dict[str, torch.Tensor]:
    found = torch.load(project.folder / f"{out}.pt", weights_only=True)
    return {name: value for name, value in found.items() if not name.endswith("key.bias")}  # which have no effect


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-4), ("fp16", 0.02), ("bf16", 0.05)])
def test_a_student_learns_what_it_learns_on_the_cpu(trained, precision, tolerance):
    assert trained.distill(*STEPS, out="cpu")[0] == 0
    code, stderr = trained.distill(*STEPS, "--device=cuda", f"--precision={precision}", out="cuda")
    assert code == 0 and f"cuda, {precision}" in stderr, stderr
    assert_close(weights(trained, "cpu"), weights(trained, "cuda"), tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_that_was_stopped_goes_on(trained, at_step, precision):
    """To the same weights, and in fp16 with the same scale of the gradients."""
    options = [*STEPS, "--device=cuda", f"--precision={precision}"]
    assert trained.distill(*options, out="whole")[0] == 0
    at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, stderr = trained.distill(*options, out="other")
    assert code == 143, stderr
    code, stderr = trained.distill(*options, "--resume=always", out="other")
    assert code == 0 and "[Resume]" in stderr, stderr
    assert_close(weights(trained, "whole"), weights(trained, "other"), 1e-3)


def test_every_step_of_the_recipe(trained):
    """From a training on the device to pruned models and their scores, which are those of the CPU."""
    code, stderr = trained.train("--device=auto", "--precision=auto", out="cuda")
    assert code == 0 and "cuda, bf16" in stderr, stderr
    code, stderr = trained.prune("--target_macs=0.5", "--device=cuda", source="cuda", out="pruned")
    assert code == 0, stderr
    scores = []
    for device in ("cpu", "cuda"):
        path = trained.folder / f"{device}.json"
        code, stderr = trained.evaluate(f"--device={device}", f"--output_json={path}", source="pruned")
        assert code == 0, stderr
        scores.append(json.loads(path.read_text())["accuracy"])
    assert scores[0] == scores[1] > 0.5


def in_processes(project, count: int, *options: str) -> tuple[int, str]:
    """The exit code of train.py in so many processes, and what it said."""
    command = [*project.common(), f"--bert_model_name_or_path={project.encoder}", "--epoch=1", "--batch_size=16"]
    command += [f"--bert_output_dir={project.folder / 'run'}", f"--save_path={project.folder / 'run.pt'}"]
    agent = torchrun(ROOT / "train.py", *command, *options, agent=("--standalone", f"--nproc_per_node={count}"))
    said, _ = agent.communicate(timeout=120)
    return agent.returncode, said


def test_a_process_of_a_launcher_for_each_gpu(trained):
    count = torch.cuda.device_count()
    code, said = in_processes(trained, count, "--device=cuda")
    assert code == 0 and f"cuda:0, bf16, {count} process(es)" in said, said


def test_more_processes_than_gpus(trained):
    """One sentence, and how to go on."""
    count = torch.cuda.device_count() + 1
    code, said = in_processes(trained, count, "--device=cuda")
    assert code != 0 and f"{count} processes but {count - 1} GPU" in said, said
    code, said = in_processes(trained, count, "--device=cpu")
    assert code == 0, said
