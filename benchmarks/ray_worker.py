"""Runs the program of docs/batch.md on Ray, in an environment that has it; for label_files.py and tests/test_batch.py.

    PYTHONPATH=. .venv-ray/bin/python benchmarks/ray_worker.py MODEL_DIR rows.parquet OUTPUT_FOLDER NUM_ACTORS

Its last line is the seconds from the start of the reading to the end of the writing.
"""

import re
import sys
import time
from pathlib import Path

import ray

PAGE = Path(__file__).resolve().parent.parent / "docs/batch.md"


def main() -> None:
    model_dir, path, output, num_actors = sys.argv[1:]
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    for theirs, ours in (
        ("my-model", model_dir),
        ("tickets.parquet", path),
        ("labelled/", output),
        ("len(os.sched_getaffinity(0))", num_actors),
    ):
        assert code.count(theirs) == 1
        code = code.replace(theirs, ours)
    init, starts = ray.init, []

    def timed_init(**options) -> None:
        init(**options)
        starts.append(time.perf_counter())

    ray.init = timed_init
    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    print(time.perf_counter() - starts[0])


if __name__ == "__main__":
    main()
