"""Memory that is freed is kept for the next step."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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
