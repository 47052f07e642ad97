"""Distillation in examples a second: the published way, Hugging Face's Trainer, and fastformers.py.

    python -m benchmarks.training --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_output_dir=runs/sst2/teacher --student_dir=runs/sst2/student-start

The same student learns the logits of the same teacher on the same rows, in processes of their own, in turns:

- published: every row padded to n_ctx, fp32, the teacher asked in every step; all its steps are alike, so that it gets
  a fifth of the timed steps of the others
- trainer: Trainer with that loss, rows grouped by length, bf16 where the CPU has it, fused AdamW
- ours: fastformers.py --dropout=0, as `make ladder` runs it, and the time in which it asks the teacher once, spread
  over 4 epochs, as there; ours_with_dropout: without that option

Needs an otherwise idle machine. The result is results/training.json; the last lines say which targets are met.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.targets import at_least, print_targets, write_results
from utils.arguments import add_data_options, positive_int, script_parser
from utils.data.tables import collate, lengths, load_data, shuffled_batches
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model, model_inputs, set_dropout
from utils.models.config import load_config
from utils.system.cli import run_script
from utils.system.devices import has_bf16, make_accelerator
from utils.training.distillation import LossWeights, distillation_losses
from utils.training.loop import Settings, train
from utils.training.losses import logits_mse
from utils.training.scoring import predict

WAYS = ("published", "trainer", "ours_with_dropout", "ours")
BATCH, EPOCHS, WARMUP_STEPS = 64, 4, 2
LR = 1e-4


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--bert_output_dir", required=True, help="checkpoint folder of the teacher")
    parser.add_argument("--student_dir", required=True, help="checkpoint folder that the student starts from")
    parser.add_argument("--steps", type=positive_int, default=40, help="timed steps of each turn")
    parser.add_argument("--turns", type=positive_int, default=3, help="turns of each way")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a single turn's process
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple:
    """The teacher, the student, and as many rows of train as are timed."""
    config = load_config(args.config)
    data = load_data(args.data_dir, load_tokenizer(args.bert_output_dir, "--bert_output_dir"), config.n_ctx)
    rows = BATCH * (args.steps + WARMUP_STEPS)
    few = {"train": data.splits["train"].select(range(rows)), "valid": data.splits["valid"].select(range(BATCH))}
    data = replace(data, splits=few)
    teacher = load_model(args.bert_output_dir, "--bert_output_dir", config, data.labels)
    student = load_model(args.student_dir, "--student_dir", config, data.labels, new_head=True)
    return config, data, teacher, student


def time_published(args: argparse.Namespace) -> float:
    """Seconds of a step."""
    config, data, teacher, student = load(args)
    train_split, pad = data.splits["train"], student.config.pad_token_id
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR)
    student.train()
    seconds = []
    steps = math.ceil(args.steps / 5)
    for indices in shuffled_batches(lengths(train_split), BATCH, seed=0)[: steps + WARMUP_STEPS]:
        start = time.perf_counter()
        batch = collate(train_split, indices, pad, config.n_ctx)
        with torch.no_grad():
            wanted = teacher(**model_inputs(teacher, batch)).logits
        logits_mse(student(**model_inputs(student, batch)).logits, wanted).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return sum(seconds[WARMUP_STEPS:]) / steps


def time_trainer(args: argparse.Namespace) -> float:
    """Seconds of a step."""
    _, data, teacher, student = load(args)
    ends: list[float] = []

    class DistillationTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs.pop("labels")
            with torch.no_grad():
                wanted = teacher(**inputs).logits
            return logits_mse(model(**inputs).logits, wanted).mean()

        def training_step(self, *arguments, **options):
            ends.append(time.perf_counter())
            return super().training_step(*arguments, **options)

    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    tokenizer.model_max_length = 512
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=BATCH, max_steps=args.steps + WARMUP_STEPS,
            learning_rate=LR, optim="adamw_torch_fused", bf16=has_bf16("cpu"), report_to=[], save_strategy="no",
            train_sampling_strategy="group_by_length", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=student, args=options, train_dataset=data.splits["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        trainer.train()
    ends.append(time.perf_counter())
    return (ends[-1] - ends[WARMUP_STEPS]) / args.steps


def time_ours(args: argparse.Namespace, dropout: bool) -> float:
    """Seconds of a step, evaluation on a batch of rows and a share of labelling by the teacher included."""
    _, data, teacher, student = load(args)
    if not dropout:
        set_dropout(student, 0.0)
    accelerator = make_accelerator("cpu", "auto")
    start = time.perf_counter()
    wanted = predict(teacher, data.splits["train"], accelerator, "teacher")
    labelling = (time.perf_counter() - start) / (args.steps + WARMUP_STEPS)
    weights = LossWeights("mse", 1.0, 0.0, 0.0, "mse", "ends", 0.0, 0.0)
    row_losses = distillation_losses(teacher, student, wanted, len(wanted), weights, [])
    starts: list[float] = []

    def noted_losses(*arguments):
        starts.append(time.perf_counter())
        return row_losses(*arguments)

    settings = Settings(lr=LR, epochs=1, batch_size=BATCH, measure="loss", seed=0)
    train(student, data, noted_losses, settings, accelerator, save=lambda model: None)
    return (time.perf_counter() - starts[WARMUP_STEPS]) / args.steps + labelling / EPOCHS


def measure(way: str) -> float:
    """Seconds of a step, from a process of its own, which is this script with the same options."""
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], f"--way={way}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse_args()
    if args.way:
        if args.way.startswith("ours"):
            print(time_ours(args, dropout=args.way == "ours_with_dropout"))
        else:
            print({"published": time_published, "trainer": time_trainer}[args.way](args))
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(args.turns):
        for way in WAYS:
            seconds[way].append(measure(way))
            print(f"turn {turn + 1}, {way}: {BATCH / seconds[way][-1]:.1f} examples/s", flush=True)
    rate = {way: BATCH / statistics.median(found) for way, found in seconds.items()}
    needs = {"published": 20, "trainer": 1.5}
    targets = [at_least(f"ours_vs_{way}", rate["ours"] / rate[way], times) for way, times in needs.items()]
    settings = {"batch_size": BATCH, "steps": args.steps, "bf16": has_bf16("cpu"), "epochs": EPOCHS}
    found = {"settings": settings, "seconds_a_step": seconds, "examples_per_s": rate}
    write_results("training.json", found, targets)
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
