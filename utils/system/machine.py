"""What a measurement was made on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "onnxruntime")


def describe_machine() -> dict[str, object]:
    """The processor, its cores, the system, the libraries' versions and this repository's commit."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        flags = fields.get("flags", "").split()
        widest = next((name for name in ("avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags), "")
        return f"{fields['model name']} ({widest})" if widest else fields["model name"]
    except (OSError, KeyError):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    root = Path(__file__).resolve().parent
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
