"""Which device and precision are taken, and that memory that is freed is kept for the next step."""

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from utils.system.devices import choose_device, make_accelerator, wait_for_everyone
from utils.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_first_that_is_there(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == expected
    assert choose_device("cpu") == "cpu"
    for device, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert choose_device(device) == device
        else:
            with pytest.raises(UserError, match=f"--device={device}"):
                choose_device(device)


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [("auto", True, "bf16"), ("auto", False, "no"), ("fp32", True, "no"), ("bf16", False, "bf16")],
)
def test_auto_takes_the_precision_that_the_hardware_has(monkeypatch, precision, has_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator("cpu", precision)
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", expected)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="--precision=fp16"):
        make_accelerator("cpu", "fp16")


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--device=cuda: 2 processes but 1 GPU\(s\)"):
        make_accelerator("auto", "fp32")


def test_processes_on_the_cpu_wait_without_a_gpu(monkeypatch):
    """Accelerate's own way names one wherever PyTorch sees any, and fails where there are more processes."""
    calls = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda *given, **named: calls.append((given, named)))
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    wait_for_everyone(accelerator)
    assert calls == [((), {})]
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, wait_for_everyone=lambda: None)
    wait_for_everyone(accelerator)
    assert len(calls) == 1


FAULTS = """
import resource
import torch
from utils.system.devices import keep_freed_memory
{call}
for _ in range(20):
    torch.zeros(16_000_000)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_pages_are_not_asked_for_again():
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, cwd=ROOT).stdout)
        for call in ("", "keep_freed_memory()")
    ]
    assert faults[1] < faults[0] / 10, faults
