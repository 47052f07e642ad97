"""How long a process of a model folder takes from its start to the first label, and how much memory.

    python benchmarks/cold_start.py runs/demo/models/pruned-small

Makes a fresh virtual environment with the folder's own requirements.txt alone, and in it starts the folder's
predictor ten times with one line on standard input. Linux only: it says what the peak of a process's memory was.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.targets import at_most, print_targets, write_results
from utils.arguments import positive_int, script_parser
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError

MOST_SECONDS, MOST_MB = 0.35, 120
TEXT = b"a gorgeous , witty , seductive movie .\n"


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model folder of quantize.py or cascade.py")
    parser.add_argument(
        "--num_processes", type=positive_int, default=10, help="processes to start, one after the other"
    )
    return parser.parse_args()


def make_environment(folder: Path, requirements: Path) -> Path:
    """A virtual environment with `requirements`; returns its Python."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/pip", "install", "-q", "-r", requirements], check=True)
    return folder / "bin/python"


def first_label(command: list[str]) -> tuple[float, float]:
    """Seconds from the start of a process to its first line of output, and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(TEXT)
    process.stdin.flush()
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    # Not of os.wait4, which counts what the process that started it had.
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    process.stdin.close()
    if process.wait() or not line or not peak:
        raise UserError(f"{command[1]} gave no label (exit code {process.returncode}): name a model folder")
    return seconds, int(peak[0]) * 1024 / 1e6


def main() -> None:
    args = parse_args()
    program = Path(args.model_dir) / "predictor"
    if not program.is_dir():
        raise UserError(f"{program} is not there: write the folder again with quantize.py or cascade.py")
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder), program.with_name("requirements.txt"))
        command = [str(python), str(program)]
        first_label(command)  # compiles the modules, and brings the files into memory
        runs = [first_label(command) for _ in progress_bar(range(args.num_processes), desc="start", unit="process")]
    seconds, megabytes = (statistics.median(each) for each in zip(*runs, strict=True))
    targets = [at_most("first_label_s", seconds, MOST_SECONDS), at_most("peak_rss_mb", megabytes, MOST_MB)]
    write_results("cold_start.json", {"runs": runs}, targets)
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
