"""Export a checkpoint as a fused ONNX graph, and quantize that to int8 for CPUs.

    python quantize.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_output_dir=bert-checkpoint-pruned --model_path=pytorch-model-pruned.pt \\
        --onnx_path=pytorch-model-pruned.onnx --quantized_onnx_path=pytorch-model-pruned.int8.onnx

Both files take input_ids, attention_mask and, for BERT and ELECTRA, token_type_ids (int64, [batch, sequence]), and give
logits; any onnxruntime runs them. The fp32 graph's logits are compared with PyTorch's on rows of all lengths, alone
and in padded batches: where they differ by more than 0.0001 nothing is written. Prints size, largest difference and
accuracy on valid.txt of both; the int8 one's accuracy is what rounding costs. Make the file for the kind
of CPU that will run it: --target_cpu=avx2 is safe on every x86 CPU, avx512_vnni rounds less.
"""

import argparse
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import onnx
from tqdm import tqdm

from utils.arguments import add_checkpoint_options, add_data_options, script_parser
from utils.checkpoint import load_tokenizer
from utils.cli import UserError, run
from utils.config import load_config
from utils.data import Data, collate, lengths, load_data
from utils.engines import Engine, onnx_engine, pytorch_engine
from utils.files import atomic_file, check_output_file
from utils.model import load_model
from utils.onnx_graph import build_graph
from utils.quantization import WEIGHT_BITS, compare_logits, quantize_int8

logger = logging.getLogger(__name__)

COMPARED_ROWS = 128
PADDED_BATCH = 8
MAX_FP32_DIFFERENCE = 1e-4


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    add_checkpoint_options(parser)
    parser.add_argument("--onnx_path", required=True, help="write the fp32 graph to this file")
    parser.add_argument("--quantized_onnx_path", required=True, help="write the int8 graph to this file")
    parser.add_argument(
        "--target_cpu", choices=["auto", *WEIGHT_BITS], default="auto",
        help="CPU that will run the int8 graph; auto is this machine's",
    )  # fmt: skip
    return parser.parse_args()


def comparison_batches(data: Data, pad_token_id: int) -> list[dict[str, np.ndarray]]:
    """Rows of evenly spread lengths from valid, topped up from train: each alone, then all in padded batches."""
    singles, padded = [], []
    missing = COMPARED_ROWS
    for split in (data.splits["valid"], data.splits["train"]):
        by_length = np.argsort(lengths(split), kind="stable")
        rows = by_length[np.unique(np.linspace(0, len(by_length) - 1, min(missing, len(by_length))).astype(int))]
        missing -= len(rows)
        singles += [collate(split, rows[i : i + 1], pad_token_id) for i in range(len(rows))]
        # Strided, so that short and long rows share a batch.
        step = -(-len(rows) // PADDED_BATCH)
        padded += [collate(split, rows[i::step], pad_token_id) for i in range(step)]
    return singles + padded


def accuracy(run_graph: Engine, split: datasets.Dataset, pad_token_id: int, name: str) -> float:
    """Share of a split's rows, run one by one as a service would, that the graph labels right."""
    right = 0
    for i in tqdm(range(len(split)), desc=f"accuracy of {name}", unit="row", disable=None):
        batch = collate(split, np.array([i]), pad_token_id)
        right += int(run_graph(batch).argmax() == batch["labels"][0])
    return right / len(split)


def main() -> None:
    args = parse_args()
    if Path(args.onnx_path).resolve() == Path(args.quantized_onnx_path).resolve():
        raise UserError("--onnx_path and --quantized_onnx_path are the same file: name two")
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_output_dir, "--bert_output_dir")
    data = load_data(args.data_dir, tokenizer, config.n_ctx)
    check_output_file(args.onnx_path, "--onnx_path")
    check_output_file(args.quantized_onnx_path, "--quantized_onnx_path")
    model = load_model(args.bert_output_dir, "--bert_output_dir", config, data.labels, args.model_path)

    valid, pad_token_id = data.splits["valid"], tokenizer.pad_token_id
    batches = comparison_batches(data, pad_token_id)
    run_model = pytorch_engine(model)
    expected = [run_model(batch) for batch in tqdm(batches, desc="PyTorch", unit="batch", disable=None)]
    with atomic_file(args.onnx_path) as fp32_path, atomic_file(args.quantized_onnx_path) as int8_path:
        onnx.save(build_graph(model), fp32_path)
        quantize_int8(fp32_path, int8_path, args.target_cpu)
        for name, shown, path in [("fp32", args.onnx_path, fp32_path), ("int8", args.quantized_onnx_path, int8_path)]:
            run_graph = onnx_engine(path, os.cpu_count(), len(data.labels))
            difference = compare_logits(run_graph, expected, batches)
            # Not `>`: a NaN must fail too.
            if name == "fp32" and not difference <= MAX_FP32_DIFFERENCE:
                raise UserError(
                    f"the fp32 graph's logits differ from PyTorch's by {difference:.2g}, "
                    f"more than {MAX_FP32_DIFFERENCE}, so nothing was written: "
                    f"check that --bert_output_dir={args.bert_output_dir} holds finite weights"
                )
            right = accuracy(run_graph, valid, pad_token_id, name)
            logger.info(
                "[%s] : %.1f MB, largest logit difference from PyTorch %.2g, accuracy on valid.txt %.4f, %s",
                name, os.path.getsize(path) / 1e6, difference, right, shown,
            )  # fmt: skip


if __name__ == "__main__":
    run(main)
