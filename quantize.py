"""Export a checkpoint to ONNX and quantize it to int8: the fastest way whose accuracy holds.

    python quantize.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_output_dir=bert-checkpoint-pruned --model_path=pytorch-model-pruned.pt --output_dir=model

Writes a fused graph for the encoder families in configs/, and torch.onnx's for any other encoder. Its logits are
compared with PyTorch's on rows of all lengths, alone and in padded batches: where they differ by more than 0.0001
nothing is written. Then every int8 recipe is measured on valid.txt, row by row: latency on this machine, and accuracy.
The fastest whose accuracy is at most --max_accuracy_drop below that of fp32 is written. Of those within 10 % of its
latency, which is noise, the smallest file counts, and of those within 5 % of its size how close the logits are to
fp32's. Where none is accurate enough, fp32 is written. For other tasks than one label a text, macro F1 or Pearson's
correlation takes the place of accuracy, and --max_metric_drop says how much of it may be lost.

The table also says how far the probabilities can be trusted (expected calibration error and Brier score, of valid, less
is better) and how many of the answers are others than fp32's. --calibrate multiplies each text's logits by a number
that grows with the distance of the two largest, so that the probabilities fit valid best; answers stay as they are.

--tune_thresholds chooses, for a model that gives a text any number of labels, the probability above which each is
given, by its F1 on valid; --output_dir then keeps them. Without it a label is given above 0.5.

--output_dir takes all that prediction needs, see predict.py. --quantized_onnx_path and --onnx_path write the chosen and
the fp32 graph alone, each to one file that takes input_ids, attention_mask and, where the model has two token types,
token_type_ids (int64, [batch, sequence]) and gives logits; any onnxruntime runs them. Make them for the kind of CPU
that will run them: --target_cpu=avx2 is safe on every x86 CPU, avx512_vnni rounds less.

Stopped or killed, the same command continues where it was.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np
import onnx
from transformers import PreTrainedModel

from utils.arguments import (
    add_checkpoint_options,
    add_data_options,
    add_resume_options,
    begin_journal,
    nonnegative_float,
    script_parser,
)
from utils.data.tables import Data, collate, columns_of, load_data, row_labels, single_rows
from utils.export.calibrated import scale_logits
from utils.export.fused import build_graph
from utils.export.graph import NotFusable
from utils.export.int8 import WEIGHT_BITS, calibrate, candidates_for, detect_cpu, quantize_int8
from utils.export.model_dir import write_model_dir
from utils.export.plain import Graphs, export_plain, open_graph, quantize_plain, to_fp16
from utils.export.runtime import check_model_dir
from utils.export.verify import comparison_batches, largest_difference, pytorch_logits
from utils.measuring.calibration import brier_score, expected_calibration_error, fit_logit_scale
from utils.measuring.timing import aligned_table, evenly_spaced, timed_in_turns
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import fingerprint, load_model
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL, load_config
from utils.models.families import FAMILIES, in_table
from utils.predictor.cpus import usable_cpus
from utils.predictor.folder import GRAPH, UNPADDED_GRAPH
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.files import atomic_file, check_output_file
from utils.system.journal import Cached, unfinished_path
from utils.system.machine import describe_machine
from utils.training.metrics import NAMES, given_labels, main_measure, measure, tuned_thresholds

logger = logging.getLogger(__name__)

CALIBRATION_ROWS = 256
MAX_DROP = 0.005
EQUAL_LATENCY = 1.1  # times the fastest's: two runs differ by as much on a shared machine
EQUAL_SIZE = 1.05  # times the smallest's


class VersionResult(NamedTuple):
    """What was measured of one version of the model."""

    accuracy: float  # on valid; of other tasks than one label a text, their main measure
    p50: float  # milliseconds of one row
    drift: float  # mean distance from fp32's logits
    megabytes: float
    calibration_error: float | None = None  # expected calibration error on valid, where a text has one label
    brier: float | None = None  # Brier score on valid, likewise
    flips: int | None = None  # rows of valid whose answer is not fp32's
    logit_scale: tuple[float, float] = (1.0, 0.0)  # what logits are to be multiplied by, as of `fit_logit_scale`
    thresholds: np.ndarray | None = None  # the probability above which each label is given, where they are tuned


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_checkpoint_options(add_data_options(parser))
    group = parser.add_argument_group("output (at least one)")
    group.add_argument("--output_dir", help="self-contained model folder, for predict.py; without it there is none")
    group.add_argument(
        "--single_file",
        action="store_true",
        help="put the weights of --output_dir into model.onnx; without it, they are in a file of their own, which "
        "model.onnx shares with model.unpadded.onnx, the faster graph for rows without padding, then left out",
    )
    group.add_argument("--onnx_path", help="file for the fp32 graph; without it there is none")
    group.add_argument("--quantized_onnx_path", help="file for the chosen graph; without it there is none")
    group = parser.add_argument_group("which graph")
    drop = group.add_mutually_exclusive_group()
    drop.add_argument(
        "--max_accuracy_drop",
        type=nonnegative_float,
        help=f"accuracy on valid.txt that int8 may cost, of 1 (default: {MAX_DROP})",
    )
    drop.add_argument(
        "--max_metric_drop",
        type=nonnegative_float,
        help=f"the same of the task's main measure: accuracy, macro F1 or Pearson's correlation (default: {MAX_DROP})",
    )
    group.add_argument(
        "--tune_thresholds",
        action="store_true",
        help="for multi_label: choose the probability above which each label is given by its F1 on valid.txt; without "
        "it, 0.5",
    )
    group.add_argument(
        "--target_cpu",
        choices=["auto", *WEIGHT_BITS],
        default="auto",
        help="CPU that will run the int8 graph; auto is this machine's",
    )
    precision = group.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp32", action="store_true", help="--output_dir takes the fp32 graph; without it, the chosen one"
    )
    precision.add_argument(
        "--fp16", action="store_true", help="--output_dir takes an fp16 graph, for GPUs; without it, the chosen one"
    )
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="scale each text's logits so that probabilities fit valid.txt; without it, logits are PyTorch's",
    )
    add_resume_options(parser, training=False)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Find mistakes before the long work.

    Raises:
        UserError: no output is named, two are the same, or one cannot be written.
    """
    files = {"--onnx_path": args.onnx_path, "--quantized_onnx_path": args.quantized_onnx_path}
    files = {flag: path for flag, path in files.items() if path}
    if not files and not args.output_dir:
        raise UserError("nothing to write: name --output_dir, --onnx_path or --quantized_onnx_path")
    if (args.fp32 or args.fp16 or args.single_file) and not args.output_dir:
        raise UserError("--fp32, --fp16 and --single_file say what --output_dir takes: name it as well")
    if len({Path(path).resolve() for path in files.values()}) < len(files):
        raise UserError("--onnx_path and --quantized_onnx_path are the same file: name two")
    for flag, path in files.items():
        check_output_file(path, flag)
    if args.output_dir:
        check_model_dir(args.output_dir, "--output_dir")


def check_task(args: argparse.Namespace, task: str) -> None:
    """Check that the options are for this task, and put in how much its measure may drop where none says so.

    Raises:
        UserError: one is not; names it.
    """
    if args.tune_thresholds and task != MULTI_LABEL:
        raise UserError(f"--tune_thresholds is for the task multi_label, and this one is {task}: leave it out")
    if args.calibrate and task != SINGLE_LABEL:
        mend = "tune thresholds instead, with --tune_thresholds" if task == MULTI_LABEL else "leave it out"
        raise UserError(f"--calibrate is for the task single_label, and this one is {task}: {mend}")
    if args.max_accuracy_drop is not None and task != SINGLE_LABEL:
        name = NAMES[main_measure(task)]
        raise UserError(f"--max_accuracy_drop is for the task single_label: give --max_metric_drop, of the {name}")
    if args.max_accuracy_drop is None and args.max_metric_drop is None:
        setattr(args, "max_accuracy_drop" if task == SINGLE_LABEL else "max_metric_drop", MAX_DROP)


def export(model: PreTrainedModel) -> Graphs:
    """The model's fp32 graphs: `GRAPH` and, where fused, `UNPADDED_GRAPH`.

    Raises:
        UserError: as `export_plain`, or the model is a decoder.
    """
    reason = f"the family {model.config.model_type!r} is not one of {', '.join(FAMILIES)}"
    if model.config.model_type in FAMILIES:
        reason = "this ALBERT has more than one layer of weights (num_hidden_groups, inner_group_num)"
    if in_table(model.config):
        try:
            return {GRAPH: build_graph(model), UNPADDED_GRAPH: build_graph(model, masked=False)}
        except NotFusable as error:
            reason = str(error)
    logger.warning(
        "[Export] : %s, so nothing is fused beyond what onnxruntime finds itself: every row is computed in every "
        "layer, and padding is masked even where there is none",
        reason,
    )
    return {GRAPH: export_plain(model)}


def int8_candidates(graphs: Graphs, data: Data, pad_token_id: int, bits: int, cached: Cached) -> dict[str, Graphs]:
    """Every int8 version of the fp32 graphs, by the name of its recipe."""
    if UNPADDED_GRAPH not in graphs:
        return {"dynamic, per channel": {GRAPH: quantize_plain(graphs[GRAPH], bits)}}
    train = data.splits["train"]
    rows = evenly_spaced(CALIBRATION_ROWS, len(train))

    def measured_ranges() -> dict:
        bar = progress_bar(rows, desc="calibrate", unit="row")
        return calibrate(graphs[UNPADDED_GRAPH], (collate(train, np.array([row]), pad_token_id) for row in bar))

    ranges = cached("ranges", measured_ranges)
    return {
        name: {file: quantize_int8(graph, recipe, bits, ranges) for file, graph in graphs.items()}
        for name, recipe in candidates_for(graphs[GRAPH]).items()
    }


def measure_versions(
    versions: dict[str, Graphs], data: Data, pad_token_id: int, cached: Cached, tune_thresholds: bool, fit_scale: bool
) -> dict[str, VersionResult]:
    """Run every version, on this machine, over valid, one row at a time; the first one is fp32."""
    valid = data.splits["valid"]
    engines = [open_graph(graphs.get(UNPADDED_GRAPH, graphs[GRAPH]), len(data.labels)) for graphs in versions.values()]
    inputs = [single_rows(valid, pad_token_id)] * len(engines)
    logits, milliseconds = timed_in_turns(engines, inputs, len(valid), cached=cached)
    return {
        name: VersionResult(
            **quality(scores, logits[0], data, tune_thresholds, fit_scale),
            p50=float(np.median(np.concatenate(latencies))),
            drift=float(np.abs(scores - logits[0]).mean()),
            megabytes=graphs[GRAPH].ByteSize() / 1e6,
        )
        for (name, graphs), scores, latencies in zip(versions.items(), logits, milliseconds, strict=True)
    }


def quality(
    logits: np.ndarray, fp32_logits: np.ndarray, data: Data, tune_thresholds: bool, fit_scale: bool
) -> dict[str, Any]:
    """What a `VersionResult` says of a version's answers on valid; both logits are [rows, outputs]."""
    true, main = row_labels(data.splits["valid"]), main_measure(data.task)
    if data.task == REGRESSION:
        return {"accuracy": measure(main, logits, true)}
    if data.task == MULTI_LABEL:
        thresholds = tuned_thresholds(logits, true) if tune_thresholds else None
        of_fp32 = tuned_thresholds(fp32_logits, true) if tune_thresholds else None
        differ = given_labels(logits, thresholds) != given_labels(fp32_logits, of_fp32)
        accuracy, flips = measure(main, logits, true, thresholds), int(differ.any(-1).sum())
        return {"accuracy": accuracy, "flips": flips, "thresholds": thresholds}
    return {
        "accuracy": measure(main, logits, true),
        "calibration_error": expected_calibration_error(logits, true),
        "brier": brier_score(logits, true),
        "flips": int((logits.argmax(-1) != fp32_logits.argmax(-1)).sum()),
        "logit_scale": fit_logit_scale(logits, true) if fit_scale else (1.0, 0.0),
    }


def choose(results: dict[str, VersionResult], max_accuracy_drop: float) -> str:
    """The name of the version to write; "fp32", the first, is always accurate enough."""
    enough = results["fp32"].accuracy - max_accuracy_drop
    accurate = {name: result for name, result in results.items() if result.accuracy >= enough}
    fastest = min(result.p50 for result in accurate.values())
    fast = {name: result for name, result in accurate.items() if result.p50 <= EQUAL_LATENCY * fastest}
    smallest = min(result.megabytes for result in fast.values())
    small = [name for name, result in fast.items() if result.megabytes <= EQUAL_SIZE * smallest]
    return min(small, key=lambda name: fast[name].drift)


def calibrated(graphs: Graphs, logit_scale: tuple[float, float]) -> Graphs:
    """A version of the model whose logits are scaled."""
    return {file: scale_logits(graph, *logit_scale) for file, graph in graphs.items()}


def table(results: dict[str, VersionResult], chosen: str, accuracy: str = "accuracy") -> str:
    """The versions as aligned text; `accuracy` is what the task's main measure is called."""
    columns: dict[str, Callable[[VersionResult], str]] = {
        accuracy: lambda result: f"{result.accuracy:.4f}",
        "ECE": lambda result: shown_number(result.calibration_error, ".4f"),
        "Brier": lambda result: shown_number(result.brier, ".4f"),
        "flips": lambda result: shown_number(result.flips, "d"),
        "logit drift": lambda result: f"{result.drift:.4f}",
        "p50 ms": lambda result: f"{result.p50:.3f}",
        "MB": lambda result: f"{result.megabytes:.1f}",
    }
    # Some tasks have no such numbers.
    columns = {name: cell for name, cell in columns.items() if any(map(cell, results.values()))}
    rows = [
        [name, *(cell(result) for cell in columns.values()), "*" * (name == chosen)] for name, result in results.items()
    ]
    return aligned_table(["version", *columns, "chosen"], rows)


def shown_number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def folder_facts(
    args: argparse.Namespace, data: Data, result: VersionResult, version: str, machine: dict[str, object]
) -> dict:
    """What the config.json of --output_dir says of how the model was made, and of how it is to be used."""
    facts: dict[str, Any] = {"n_ctx": load_config(args.config).n_ctx, "version": version, "machine": machine}
    if data.texts_a_row:
        facts["texts"] = data.texts_a_row
    if args.calibrate:
        facts["logit_scale"] = result.logit_scale
    if data.task == MULTI_LABEL:
        facts["label_separator"] = columns_of(data).separator
    if result.thresholds is not None:
        facts["thresholds"] = dict(zip(data.labels, result.thresholds.tolist(), strict=True))
    return facts


def main() -> None:
    args = parse_args()
    check_args(args)
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    check_task(args, config.task)
    data = load_data(args.data_dir, tokenizer, config.n_ctx, task=config.task)
    model = load_model(args.bert_output_dir, "--bert_output_dir", config, data.labels, args.model_path, "eager")
    pad_token_id, num_labels = tokenizer.pad_token_id, len(data.labels)

    output = args.output_dir or args.quantized_onnx_path or args.onnx_path
    machine = describe_machine()
    contents = {"--data_dir": data.fingerprint, "--bert_output_dir": fingerprint(model), "--model_path": ""}
    # Latencies of two machines, numbers of threads, or versions of onnxruntime are not to be mixed.
    measured_on = {name: machine[name] for name in ("cpu", "cores", "onnxruntime")} | {"threads": usable_cpus()}
    cached = begin_journal(args, output, contents | measured_on)

    fp32 = export(model)
    batches = comparison_batches(data, pad_token_id)
    unit = 1.0 if data.scale is None else data.scale[1]
    logits = cached("pytorch", partial(pytorch_logits, model, fp32, batches, num_labels, unit))
    expected = [np.array(rows, dtype=np.float32) for rows in logits]
    versions = {"fp32": fp32}
    if args.quantized_onnx_path or (args.output_dir and not args.fp32 and not args.fp16):
        bits = WEIGHT_BITS[detect_cpu() if args.target_cpu == "auto" else args.target_cpu]
        versions |= int8_candidates(fp32, data, pad_token_id, bits, cached)
    results = measure_versions(versions, data, pad_token_id, cached, args.tune_thresholds, args.calibrate)
    chosen = choose(results, args.max_metric_drop if args.max_accuracy_drop is None else args.max_accuracy_drop)
    if chosen == "fp32" and len(versions) > 1:
        logger.warning("[int8] : no int8 version is both faster and accurate enough: fp32 takes its place")
    kind = "fp32" if args.fp32 else "fp16" if args.fp16 else chosen
    if kind == "fp16":
        versions[kind] = {file: to_fp16(graph) for file, graph in fp32.items()}
    for name in {chosen, kind} - {"fp32"}:
        difference = largest_difference(versions[name], batches, expected, num_labels, unit)
        if not np.isfinite(difference):
            unfinished_path(output).unlink()
            raise UserError(f"the {name} graph gives logits that are no numbers, so nothing was written: use --fp32")
        logger.info("[Chosen] : %s, largest logit difference from PyTorch %.2g", name, difference)
    shown = table(results, chosen, NAMES[main_measure(config.task)])
    print(shown)

    if args.calibrate:
        scales = {name: results[name if name in results else "fp32"].logit_scale for name in {"fp32", chosen, kind}}
        versions |= {name: calibrated(versions[name], scale) for name, scale in scales.items()}
        logger.info("[Calibrated] : logits of %s x (%.4f + %.4f x margin), fitted on valid.txt", kind, *scales[kind])
    for path, graph in [(args.onnx_path, versions["fp32"][GRAPH]), (args.quantized_onnx_path, versions[chosen][GRAPH])]:
        if path:
            with atomic_file(path) as temporary:
                onnx.save(graph, temporary)
    if args.output_dir:
        origin = folder_facts(args, data, results[kind if kind in results else "fp32"], kind, machine)
        write_model_dir(args.output_dir, versions[kind], tokenizer, model.config, origin, shown, args.single_file)
    unfinished_path(output).unlink()


if __name__ == "__main__":
    run_script(main)
