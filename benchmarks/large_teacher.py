"""The recipe with a teacher of BERT-large's shape: does it run, in how much memory, and how long does a step take?

    python -m benchmarks.large_teacher --data_dir=data/sst2

Weights are random, as none of that size may be at hand: memory and time do not depend on them, accuracy does and is not
looked at. The real scripts fine-tune a teacher of 24 layers of 1,024 and distill it into 4 of its layers, and into 4
layers of 512, with every loss that fits: 24 layers are mapped to 4, states through a projection, relations between 16
and 8 heads. A few steps of 16 rows, fp32 or bf16 as train.py chooses.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoTokenizer, BertConfig

from benchmarks.targets import at_least, print_targets, write_results
from utils.arguments import script_parser
from utils.data.texts import SPLITS, read_rows, split_path
from utils.system.cli import run_script

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/config-bert-cls.json"
ROWS = {"train": 96, "valid": 16, "test": 16}
BATCH = 16
SHAPES = {
    "bert-large": dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096),
    "small": dict(num_hidden_layers=4, hidden_size=512, num_attention_heads=8, intermediate_size=2048),
}


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="data folder; its first rows are used")
    parser.add_argument("--bert_model_name_or_path", default="embeddings/all-MiniLM-L6-v2", help="for its tokenizer")
    return parser.parse_args()


def prepare(folder: Path, data_dir: Path, name_or_path: str) -> None:
    """Random encoders of all shapes, and a small data set."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    for name, shape in SHAPES.items():
        AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    for split in SPLITS:
        rows = islice(read_rows(split_path(data_dir, split)), ROWS[split])
        lines = ["\t".join([*texts, label]) + "\n" for texts, label in rows]
        (folder / "data" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def peak_memory_of(name: str, *options: str) -> float:
    """Run one of the scripts; returns the most memory it held, in MB.

    Raises:
        CalledProcessError: it failed.
    """
    process = psutil.Popen([sys.executable, str(ROOT / f"{name}.py"), *options])
    peak = 0
    while process.poll() is None:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, name)
    return peak / 1e6


def seconds_a_step(log_dir: Path) -> float:
    """The median time between two steps, by the log that training wrote."""
    events = EventAccumulator(str(log_dir))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("train/loss")]
    return statistics.median(after - before for before, after in pairwise(times))


def main() -> None:
    args = parse_args()
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="large-teacher-") as name:
        folder = Path(name)
        prepare(folder, Path(args.data_dir), args.bert_model_name_or_path)
        common = [f"--config={CONFIG}", f"--data_dir={folder / 'data'}"]
        training = ["--epoch=1", f"--batch_size={BATCH}", "--overwrite"]

        def measured(script: str, out: str, *options: str) -> None:
            paths = [f"--bert_output_dir={folder / out}", f"--save_path={folder / out}.pt"]
            memory = peak_memory_of(script, *common, *paths, f"--log_dir={folder / out}-log", *training, *options)
            found[out] = {"peak_mb": memory, "seconds_a_step": seconds_a_step(folder / f"{out}-log")}
            print(f"{out}: {memory:.0f} MB, {found[out]['seconds_a_step']:.2f} s a step of {BATCH} rows", flush=True)

        peak_memory_of("preprocess", *common, f"--bert_model_name_or_path={folder / 'bert-large'}")
        measured("train", "teacher", f"--bert_model_name_or_path={folder / 'bert-large'}")
        kept = [f"--bert_output_dir={folder / 'teacher'}", "--keep_layers=5,11,17,23"]
        peak_memory_of("prune", *common, *kept, f"--bert_output_dir_pruned={folder / 'start'}")
        teacher = [f"--teacher_config={CONFIG}", f"--teacher_bert_model_name_or_path={folder / 'teacher'}"]
        teacher += [f"--teacher_model_path={folder / 'teacher.pt'}"]
        losses = ["--state_loss_ratio=1", "--state_layers=all", "--relation_loss_ratio=1", "--label_ratio=0.5"]
        equal_heads = ["--att_loss_ratio=1", "--teacher_layers=5,11,17,23"]
        start, small = (f"--bert_model_name_or_path={folder / name}" for name in ("start", "small"))
        measured("fastformers", "logits alone", *teacher, start)
        measured("fastformers", "all losses", *teacher, *losses, *equal_heads, start)
        measured("fastformers", "narrower student", *teacher, *losses, small)
    targets = [at_least("large_teacher_trainings_that_ran", len(found), 4)]
    settings = {"shapes": SHAPES, "rows": ROWS, "batch_size": BATCH}
    write_results("large_teacher.json", {"settings": settings, "trainings": found}, targets)
    print(json.dumps(found, indent=2))
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
