"""Accuracy, latency and throughput on test.txt, of a PyTorch checkpoint, or of what quantize.py or cascade.py wrote.

    python evaluate.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_output_dir=bert-checkpoint-teacher --model_path=pytorch-model-teacher.pt
    python evaluate.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_output_dir=bert-checkpoint-pruned --enable_ort --onnx_path=pytorch-model-pruned.int8.onnx --num_threads=2

Times the model alone, batch by batch: no tokenizing, no loading, and a warm-up that is not counted. Latencies are those
of one batch, one row by default. --use_fixed_seq_length pads every row to n_ctx, the naive way, for comparison, and
--torch_int8 quantizes the checkpoint's Linear layers as PyTorch itself does.

The calibration error says how far a probability can be trusted: 0.02 means that, of the answers with probability 0.9,
about 88 or 92 % are right; "by chance" is what exact probabilities would show on as many rows. The Brier score, from 0
to 2, is less where more answers are right and sure. Where rows have any number of labels, these are F1, subset accuracy
and mean average precision; of scores, correlations and errors, and of pairs that share first texts NDCG@10 and MRR.

A cascade is timed from text, as its models may have tokenizers of their own.

--num_instances fills a CPU of many cores: so many processes, each pinned to --num_threads cores of its own, share the
rows, and the throughput is that of all together, from the moment when every one is warmed up to the end of the last.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np

from utils.arguments import add_checkpoint_options, add_data_options, add_device_option, positive_int, script_parser
from utils.data.tables import Data, batches_by_length, collate, columns_of, lengths, load_data, row_labels
from utils.data.texts import labelled_texts, split_path
from utils.measuring.engines import Engine, checkpoint_bytes, folder_thresholds, onnx_size, open_onnx, open_pytorch
from utils.measuring.instances import serve
from utils.measuring.results import (
    multi_label_result,
    regression_result,
    report_lines,
    result_lines,
    single_label_result,
)
from utils.measuring.timing import WARMUP_BATCHES, latency_summary, timed
from utils.models.checkpoint import check_labels, check_task, load_hub_config, load_tokenizer
from utils.models.config import MULTI_LABEL, SINGLE_LABEL, TASKS, Config, load_config
from utils.predictor.cpus import usable_cpus
from utils.predictor.folder import is_cascade
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.files import check_output_file, write_json
from utils.system.machine import describe_machine
from utils.training.metrics import tuned_thresholds

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_data_options(parser)
    add_checkpoint_options(group)
    group.add_argument(
        "--onnx_path",
        help="ONNX file or folder made from this checkpoint, or a cascade's folder, with --enable_ort; without, none",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--output_json", help="file for all of the result; without it, it is shown only")
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--enable_ort", action="store_true", help="run --onnx_path with ONNX Runtime; without it, PyTorch runs"
    )
    group.add_argument(
        "--torch_int8", action="store_true", help="quantize the Linear layers in PyTorch, on the CPU; without it, fp32"
    )
    group.add_argument(
        "--tune_thresholds",
        action="store_true",
        help="for multi_label: choose the probability above which each label is given by its F1 on valid.txt; without "
        "it, those that the model folder holds, else 0.5",
    )
    group.add_argument("--split", choices=["test", "valid"], default="test", help="rows to measure on")
    group.add_argument("--batch_size", type=positive_int, default=1, help="rows a batch")
    group.add_argument(
        "--use_fixed_seq_length",
        action="store_true",
        help="pad every row to n_ctx; without it, to the longest row of its batch",
    )
    group = add_device_option(parser)
    group.add_argument(
        "--num_threads",
        type=positive_int,
        help="CPU threads of the model, of each instance (default: its share of the CPUs that this process may use)",
    )
    group.add_argument("--num_instances", type=positive_int, default=1, help="processes that share the rows")
    args = parser.parse_args()
    if args.num_threads is None:
        args.num_threads = max(1, usable_cpus() // args.num_instances)
    return args


def check_engine_options(args: argparse.Namespace) -> None:
    """Check the options that choose the engine against one another.

    Raises:
        UserError: they do not go together.
    """
    if args.enable_ort != bool(args.onnx_path):
        raise UserError("--enable_ort and --onnx_path go together: give both or neither")
    if args.torch_int8 and args.enable_ort:
        raise UserError(
            "--torch_int8 is for PyTorch: leave it out, and give an int8 file of quantize.py as --onnx_path"
        )
    if args.use_fixed_seq_length and args.enable_ort and is_cascade(args.onnx_path):
        raise UserError(
            f"{args.onnx_path} is a cascade, which runs every row at its own length: leave out --use_fixed_seq_length"
        )
    needs_cpu = args.torch_int8 or args.num_instances > 1
    if needs_cpu and not args.enable_ort and choose_device(args.device) != "cpu":
        flag = "--torch_int8" if args.torch_int8 else "--num_instances"
        raise UserError(f"{flag} is for the CPU only: add --device=cpu")


def engine_opener(args: argparse.Namespace, config: Config, labels: list[str]) -> Callable[[], Engine]:
    """What the command line asks to be measured, still to be opened, in this process or in others.

    Raises:
        UserError: the checkpoint of an ONNX file is missing, or its labels are not `labels`.
    """
    if args.enable_ort:
        hub_config = load_hub_config(args.bert_output_dir, "--bert_output_dir", config)
        check_labels(hub_config, labels, args.bert_output_dir, "--bert_output_dir")
        check_task(hub_config, config.task, f"--bert_output_dir={args.bert_output_dir}")
        check_folder_task(args.onnx_path, config.task)
        has_padding = args.batch_size > 1 or args.use_fixed_seq_length
        return partial(open_onnx, args.onnx_path, args.num_threads, labels, has_padding)
    device = choose_device(args.device)
    return partial(
        open_pytorch, args.bert_output_dir, config, labels, args.model_path, device, args.num_threads, args.torch_int8
    )


def batches_of(
    args: argparse.Namespace, config: Config, data: Data, split: str, pad_token_id: int
) -> tuple[list[np.ndarray], list[dict]]:
    """The indices of each batch's rows, and what the engine takes: tokens, or of a cascade texts."""
    rows = data.splits[split]
    width = config.n_ctx if args.use_fixed_seq_length else None
    # Single rows come as they stand; larger batches hold rows of about the same length.
    order = [np.array([row]) for row in range(len(rows))]
    if args.batch_size > 1:
        order = batches_by_length(lengths(rows), args.batch_size)
    if args.enable_ort and is_cascade(args.onnx_path):
        texts = [text for text, _ in labelled_texts(split_path(Path(args.data_dir), split), columns_of(data))]
        return order, [{"texts": [texts[row] for row in indices]} for indices in order]
    return order, [collate(rows, indices, pad_token_id, width) for indices in order]


def in_row_order(outputs: list[np.ndarray], order: list[np.ndarray]) -> np.ndarray:
    """The logits of batches, float32 [rows, labels], in the order of the split's rows."""
    together = np.concatenate(outputs)
    logits = np.empty(together.shape, dtype=np.float32)
    logits[np.concatenate(order)] = together
    return logits


def thresholds_to_use(
    args: argparse.Namespace, config: Config, data: Data, pad_token_id: int, open_engine: Callable[[], Engine]
) -> np.ndarray | None:
    """The probability above which each label is given, [labels], for the task multi_label; None for 0.5.

    Raises:
        UserError: thresholds are asked for but the task is another; or as `folder_thresholds`.
    """
    if args.tune_thresholds and config.task != MULTI_LABEL:
        raise UserError(f"--tune_thresholds is for the task multi_label, and this one is {config.task}: leave it out")
    if not args.tune_thresholds:
        return folder_thresholds(args.onnx_path) if args.onnx_path and config.task == MULTI_LABEL else None
    order, batches = batches_of(args, config, data, "valid", pad_token_id)
    outputs, _, _ = time_batches(open_engine, batches, args.num_instances, args.num_threads)
    return tuned_thresholds(in_row_order(outputs, order), row_labels(data.splits["valid"]))


def result_of(
    args: argparse.Namespace, data: Data, logits: np.ndarray, thresholds: np.ndarray | None
) -> tuple[dict, dict]:
    """The numbers and the tables of `utils.measuring.results` for the task."""
    true = row_labels(data.splits[args.split])
    if data.task == SINGLE_LABEL:
        return single_label_result(logits, true, data.labels)
    if data.task == MULTI_LABEL:
        return multi_label_result(logits, true, data.labels, thresholds)
    queries = None
    path = split_path(Path(args.data_dir), args.split)
    if data.texts_a_row == 2 and path.exists():
        queries = [text[0] for text, _ in labelled_texts(path, columns_of(data))]
    return regression_result(logits, true, data.labels, queries)


def check_folder_task(path: str, task: str) -> None:
    """Check that a folder of quantize.py, if it is one, is for this task.

    Raises:
        UserError: it is for another.
    """
    config = Path(path) / "config.json"
    own = json.loads(config.read_text(encoding="utf-8")).get("problem_type") if config.is_file() else None
    if own not in (None, TASKS[task]):
        raise UserError(f'{path} is for {own} but the config says "task": "{task}": write its task there')


def time_batches(
    open_engine: Callable[[], Engine], batches: list[dict], num_instances: int, num_threads: int
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Run every batch once: the outputs, the latency of each in milliseconds, and how long all took in milliseconds.

    One instance's total is the sum of its latencies; that of several is their time on the clock.

    Raises:
        UserError: the engine cannot be opened or run, or there are too few cores.
    """
    if num_instances > 1:
        outputs, milliseconds, seconds = serve(open_engine, batches, WARMUP_BATCHES, num_instances, num_threads)
        return outputs, milliseconds, seconds * 1000
    engine = open_engine()
    bar = progress_bar(batches, desc="evaluate", unit="batch")
    outputs, milliseconds = timed(engine, bar, warmup=batches[:WARMUP_BATCHES])
    return outputs, milliseconds, float(milliseconds.sum())


def model_bytes(args: argparse.Namespace) -> int:
    """Size of the model's weights on disk."""
    if args.onnx_path:
        return onnx_size(args.onnx_path)[1]
    return os.path.getsize(args.model_path) if args.model_path else checkpoint_bytes(args.bert_output_dir)


def log_result(result: dict, task: str) -> None:
    """Write the result in the form that the recipe's users read."""
    latency = result["latency_ms"]
    for line in result_lines(task, result):
        logger.info("%s", line)
    elapsed = result["elapsed_ms"]
    logger.info("[Elapsed Time] : %.2fms, %.4fms on average", elapsed, elapsed / result["num_examples"])
    percentiles = ", ".join(f"{name} {latency[name]:.4f}ms" for name in ("p50", "p90", "p99"))
    logger.info("[Latency] : %s a batch of %d", percentiles, result["batch_size"])
    instances = f", {result['num_instances']} instances of {result['num_threads']} thread(s) together"
    shown = instances if result["num_instances"] > 1 else ""
    logger.info("[Throughput] : %.1f examples/s%s", result["throughput_per_s"], shown)
    for line in report_lines(result):
        logger.info("%s", line)


def main() -> None:
    args = parse_args()
    check_engine_options(args)
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    data = load_data(args.data_dir, tokenizer, config.n_ctx, task=config.task)
    if args.output_json:
        check_output_file(args.output_json, "--output_json")
    open_engine = engine_opener(args, config, data.labels)

    thresholds = thresholds_to_use(args, config, data, tokenizer.pad_token_id, open_engine)
    order, batches = batches_of(args, config, data, args.split, tokenizer.pad_token_id)
    outputs, milliseconds, elapsed_ms = time_batches(open_engine, batches, args.num_instances, args.num_threads)
    rows = data.splits[args.split]
    scores, tables = result_of(args, data, in_row_order(outputs, order), thresholds)
    result = scores | {
        "num_examples": len(rows),
        "latency_ms": latency_summary(milliseconds),
        "elapsed_ms": elapsed_ms,
        "throughput_per_s": len(rows) / elapsed_ms * 1000,
        "split": args.split,
        "engine": "onnxruntime" if args.enable_ort else "pytorch_int8" if args.torch_int8 else "pytorch",
        "num_threads": args.num_threads,
        "num_instances": args.num_instances,
        "batch_size": args.batch_size,
        "fixed_seq_length": config.n_ctx if args.use_fixed_seq_length else None,
        "model_bytes": model_bytes(args),
        "labels": data.labels,
        "machine": describe_machine(),
        **tables,
    }
    log_result(result, config.task)
    if args.output_json:
        write_json(args.output_json, result)


if __name__ == "__main__":
    run_script(main)
