"""Rows a second and memory of preprocess.py at 10 thousand to 10 million rows, and what keeping a run costs a training.

    python -m benchmarks.scale --config=configs/config-bert-cls.json --data_dir=data/movie-reviews \\
        --bert_output_dir=runs/demo/teacher

The rows of train.txt are repeated. Memory is what the process itself holds, without the files that the system caches.
Sizes that are finished are kept in --work_dir, and an interrupted run continues. The result is results/scale.json; the
last lines say which targets are met. Linux only; the largest size takes 4 GB of disk, and minutes.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from benchmarks.targets import at_most, print_targets, write_results
from utils.arguments import add_data_options, positive_int, script_parser
from utils.data.tables import Data, collate, lengths, load_data, shuffled_batches
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, model_inputs
from utils.models.config import load_config
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.files import write_json
from utils.training.resume import Progress, UnfinishedRun, save_progress

ROOT = Path(__file__).resolve().parent.parent
SAVE_STEPS, TIMED_STEPS, TIMED_SAVES = 200, 20, 5
LARGEST_MB, LARGEST_SHARE = 1000.0, 0.03


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--bert_output_dir", required=True, help="checkpoint folder of a model to tokenize and train with"
    )
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmarks/scale"), help="for what is finished")
    parser.add_argument(
        "--rows", type=positive_int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000], help="sizes"
    )  # fmt: skip
    return parser.parse_args()


def held_mb(process: psutil.Process) -> float:
    """Memory of a process that no file on disk backs, in MB; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem"))]
    return sum(sizes) * 1024 / 1e6


def measure_size(args: argparse.Namespace, rows: int) -> dict:
    """Preprocess so many rows in a process of its own: seconds, rows a second, and the most memory it held."""
    lines = (Path(args.data_dir) / "train.txt").read_bytes().splitlines(keepends=True)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        with open(Path(folder) / "train.txt", "wb") as file:
            file.writelines(itertools.islice(itertools.cycle(lines), rows))
        for split in ("valid", "test"):
            shutil.copy(Path(args.data_dir) / f"{split}.txt", folder)
        command = [sys.executable, str(ROOT / "preprocess.py"), f"--config={args.config}", f"--data_dir={folder}"]
        start, most = time.perf_counter(), 0.0
        with subprocess.Popen([*command, f"--bert_model_name_or_path={args.bert_output_dir}"]) as running:
            process = psutil.Process(running.pid)
            while running.poll() is None:
                most = max(most, held_mb(process))
                time.sleep(0.1)
        seconds = time.perf_counter() - start
        if running.returncode:
            raise RuntimeError(f"preprocess.py failed at {rows} rows")
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds, "held_mb": most}


def measure_keeping(args: argparse.Namespace, data: Data) -> dict:
    """Seconds of a training step and of keeping the run, medians, and the share of the latter at every 200 steps."""
    model = load_model(args.bert_output_dir, "--bert_output_dir", load_config(args.config), data.labels)
    optimizer, accelerator = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), make_accelerator("cpu", "auto")
    train = data.splits["train"]
    steps, saves = [], []
    model.train()
    for indices in shuffled_batches(lengths(train), 64, seed=0)[:TIMED_STEPS]:
        start = time.perf_counter()
        batch = collate(train, indices, model.config.pad_token_id)
        with accelerator.autocast():
            logits = model(**model_inputs(model, batch)).logits
        F.cross_entropy(logits.float(), torch.as_tensor(batch["labels"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - start)
    run = UnfinishedRun(args.work_dir / "training.unfinished", SAVE_STEPS, {})
    for _ in range(TIMED_SAVES):
        start = time.perf_counter()
        save_progress(run, model, optimizer, accelerator, Progress())
        saves.append(time.perf_counter() - start)
    megabytes = run.path.stat().st_size / 1e6
    run.path.unlink()
    step, save = statistics.median(steps), statistics.median(saves)
    return {"step_s": step, "save_s": save, "megabytes": megabytes, "share": save / (SAVE_STEPS * step)}


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    sizes = []
    for rows in args.rows:
        path = args.work_dir / f"{rows}.json"
        if not path.exists():
            write_json(path, measure_size(args, rows))
        sizes.append(json.loads(path.read_text(encoding="utf-8")))
        print("{rows} rows: {seconds:.0f} s, {rows_per_s:.0f} rows/s, {held_mb:.0f} MB".format(**sizes[-1]), flush=True)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    keeping = measure_keeping(args, load_data(args.data_dir, tokenizer, load_config(args.config).n_ctx))
    print("a step {step_s:.2f} s, keeping the run {save_s:.2f} s for {megabytes:.0f} MB".format(**keeping))
    targets = [
        at_most(f"mb_held_at_{sizes[-1]['rows']}_rows", sizes[-1]["held_mb"], LARGEST_MB),
        at_most("keeping_the_run_share_of_training", keeping["share"], LARGEST_SHARE),
    ]
    write_results("scale.json", {"sizes": sizes, "keeping": keeping}, targets)
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
