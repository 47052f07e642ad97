"""Rows a second from file to file: predict.py --output and Ray Data, against as many processes with texts in memory.

    python3 -m venv .venv-ray && .venv-ray/bin/pip install -r tests/requirements-ray.txt
    python -m benchmarks.label_files runs/demo/models/pruned-small --data_dir=data/movie-reviews

The texts of train.txt are repeated, in Parquet with a number a row. Each rate is of --num_rounds runs, in turns, each
from the start of its process (of Ray: once its cluster is up) to the whole file. Memory is what the process and its
instances hold, without the files that the system caches. predict.py is killed --num_kills times at random and
continued, and must write the same bytes. Without .venv-ray, Ray is left out. Finished measurements are kept in
--work_dir, and an interrupted run continues. The result is results/label_files.json; the last lines say which targets
are met. Linux only.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet

from benchmarks.scale import held_mb
from benchmarks.targets import at_least, at_most, print_targets, write_results
from utils.arguments import positive_int, script_parser
from utils.data.texts import NAMES, read_rows, split_path
from utils.measuring.instances import serve
from utils.predictor import Predictor
from utils.predictor.cpus import usable_cpus
from utils.system.cli import run_script
from utils.system.files import file_hash, write_json
from utils.system.journal import unfinished_path

ROOT = Path(__file__).resolve().parent.parent
RAY_PYTHON, RAY_WORKER = ROOT / ".venv-ray/bin/python", ROOT / "benchmarks/ray_worker.py"
SMALL_SHARE = 0.2  # of the rows, for memory
TEXTS_A_CALL = 8192  # of predict_batch
NEEDED_RATE, NEEDED_RAY_RATE, MOST_GROWTH = 0.9, 0.85, 1.1


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model folder")
    parser.add_argument("--data_dir", required=True, help="folder with train.txt, whose texts are repeated")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("runs/benchmarks/label_files"), help="for what is finished"
    )
    parser.add_argument("--rows", type=positive_int, default=1_000_000, help="rows of the file")
    parser.add_argument(
        "--num_instances", type=positive_int, default=usable_cpus(), help="processes of one thread each"
    )
    parser.add_argument("--num_rounds", type=positive_int, default=2, help="runs of each")
    parser.add_argument("--num_kills", type=positive_int, default=5, help="times that predict.py is killed")
    return parser.parse_args()


def write_rows(path: Path, data_dir: str, num_rows: int) -> None:
    """A Parquet file of numbers and texts."""
    texts = [" ".join(parts) for parts, _ in read_rows(split_path(Path(data_dir), "train"), NAMES)]
    repeated = list(itertools.islice(itertools.cycle(texts), num_rows))
    parquet.write_table(pa.table({"id": range(num_rows), "text": repeated}), path)


def open_predict_batch(model_dir: str) -> Callable[[dict], np.ndarray]:
    """`Predictor.predict_batch` as an engine of `serve`."""
    predictor = Predictor(model_dir, num_threads=1)
    return lambda batch: np.array([len(predictor.predict_batch(batch["texts"]))])


def rate_in_memory(args: argparse.Namespace, path: Path) -> dict:
    """Rows a second of Predictor.predict_batch on texts in memory."""
    texts = parquet.read_table(path)["text"].to_pylist()
    batches = [{"texts": texts[start : start + TEXTS_A_CALL]} for start in range(0, len(texts), TEXTS_A_CALL)]
    _, _, seconds = serve(partial(open_predict_batch, args.model_dir), batches, 1, args.num_instances, 1)
    return {"rows_per_s": len(texts) / seconds}


def command(args: argparse.Namespace, path: Path, output: Path) -> list[str]:
    return [
        sys.executable, str(ROOT / "predict.py"), args.model_dir, f"--input={path}", f"--output={output}",
        f"--num_instances={args.num_instances}",
    ]  # fmt: skip


def rate_of_file(args: argparse.Namespace, path: Path, output: Path) -> dict:
    """Rows a second of predict.py from its start to its end, and the most that it and its instances held."""
    start, most = time.perf_counter(), 0.0
    with subprocess.Popen(command(args, path, output)) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            most = max(most, held_mb(process) + sum(map(held_mb, process.children())))
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    if running.returncode:
        raise RuntimeError(f"predict.py failed on {path}")
    num_rows = parquet.read_metadata(output).num_rows
    return {"rows_per_s": num_rows / seconds, "seconds": seconds, "held_mb": most, "hash": file_hash(output)}


def killed_runs(args: argparse.Namespace, path: Path, output: Path, seconds: float) -> dict:
    """Kill predict.py at random times, each after what the one before left, and let the last run end.

    Args:
        seconds: what a run takes that is not killed.
    """
    output.unlink(missing_ok=True)
    unfinished_path(output).unlink(missing_ok=True)
    generator = random.Random(0)
    shares = [generator.uniform(0.2, 1.8) for _ in range(args.num_kills)]
    for share in shares:
        with subprocess.Popen(command(args, path, output)) as running:
            time.sleep(0.9 * seconds * share / sum(shares))  # together less than a whole run
            running.kill()
        if running.returncode == 0 or output.exists():
            raise RuntimeError("predict.py ended before it was killed")
    subprocess.run(command(args, path, output), check=True)
    return {"num_kills": args.num_kills, "hash": file_hash(output)}


def rate_of_ray(args: argparse.Namespace, path: Path, output: Path, own: Path) -> dict:
    """Rows a second of Ray Data with as many actors, and how many rows it labels in another way than predict.py."""
    shutil.rmtree(output, ignore_errors=True)
    done = subprocess.run(
        [str(RAY_PYTHON), str(RAY_WORKER), args.model_dir, str(path), str(output), str(args.num_instances)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = float(done.stdout.splitlines()[-1])
    theirs = parquet.read_table(output).sort_by("id")
    ours = parquet.read_table(own, columns=["id", "label", "probability"])
    same = np.array(theirs["label"]) == np.array(ours["label"])
    distance = np.abs(np.array(theirs["probability"]) - np.array(ours["probability"])).max()
    if theirs["id"] != ours["id"]:
        raise RuntimeError(f"{output} has other rows than {own}")
    rate = {"rows_per_s": len(same) / seconds, "other_labels": int((~same).sum())}
    return rate | {"largest_difference_of_a_probability": float(distance)}


def main() -> None:
    args = parse_args()
    work_dir: Path = args.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    big, small = work_dir / f"rows-{args.rows}.parquet", work_dir / f"rows-{int(SMALL_SHARE * args.rows)}.parquet"
    output, with_ray = work_dir / "labelled.parquet", RAY_PYTHON.exists()

    def measured(name: str, measure: Callable, *arguments: object) -> dict:
        path = work_dir / f"{name}-{args.rows}.json"
        if not path.exists():
            write_json(path, measure(args, *arguments))
            print(name, path.read_text(encoding="utf-8").replace("\n", ""), flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    if not big.exists():
        write_rows(small, args.data_dir, int(SMALL_SHARE * args.rows))
        write_rows(big, args.data_dir, args.rows)
    results: dict[str, list[dict]] = {"memory": [], "file": [], "ray": []}
    for i in range(args.num_rounds):
        results["memory"].append(measured(f"memory-{i}", rate_in_memory, big))
        results["file"].append(measured(f"file-{i}", rate_of_file, big, output))
        if with_ray:
            results["ray"].append(measured(f"ray-{i}", rate_of_ray, big, work_dir / "ray", output))
    small_result = measured("file-small", rate_of_file, small, work_dir / "small.parquet")
    whole = results["file"][0]
    killed = measured("killed", killed_runs, big, work_dir / "killed.parquet", whole["seconds"])

    rates = {name: sum(run["rows_per_s"] for run in runs) / max(1, len(runs)) for name, runs in results.items()}
    targets = [
        at_least("file_rows_per_s_of_those_in_memory", rates["file"] / rates["memory"], NEEDED_RATE),
        at_most("held_mb_of_those_at_a_fifth_of_the_rows", whole["held_mb"] / small_result["held_mb"], MOST_GROWTH),
        at_least(f"same_bytes_after_{killed['num_kills']}_kills", float(killed["hash"] == whole["hash"]), 1.0),
    ]
    if with_ray:
        other_labels = max(run["other_labels"] for run in results["ray"])
        targets.append(at_least("ray_rows_per_s_of_those_in_memory", rates["ray"] / rates["memory"], NEEDED_RAY_RATE))
        targets.append(at_most("rows_that_ray_labels_otherwise", float(other_labels), 0.0))
    everything = {"runs": results, "small": small_result, "killed": killed, "rows": args.rows}
    write_results("label_files.json", everything, targets)
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
