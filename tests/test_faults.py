"""A sample of `make faults`."""

import os
import subprocess
import sys

from conftest import ROOT


def test_nothing_is_lost():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "faults", "--short"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
