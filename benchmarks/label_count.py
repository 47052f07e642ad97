"""What more labels cost: the int8 graph of 3 layers of 384 with 28 labels, against the same with 2.

    python benchmarks/label_count.py

Weights are random, which does not change the time. A row of 25 tokens is run alone, the two graphs in turns. The result
is results/label_count.json; the last line says whether the target is met.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.targets import at_most, print_targets, write_results
from utils.arguments import positive_int, script_parser
from utils.export.fused import build_graph
from utils.export.int8 import CANDIDATES, WEIGHT_BITS, detect_cpu, quantize_int8
from utils.predictor.cpus import usable_cpus
from utils.predictor.model import load_session
from utils.system.bars import progress_bar
from utils.system.cli import run_script

LABELS, TOKENS, WARM_UP = (2, 28), 25, 50
MOST_TIMES = 1.03


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--turns", type=positive_int, default=100, help="turns of 20 rows each")
    return parser.parse_args()


def open_graph(num_labels: int) -> onnxruntime.InferenceSession:
    shape = BertConfig(
        hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536, num_labels=num_labels
    )
    torch.manual_seed(0)
    graph = build_graph(BertForSequenceClassification(shape).eval(), masked=False)
    int8 = quantize_int8(graph, CANDIDATES["dynamic, per channel"], WEIGHT_BITS[detect_cpu()])
    return load_session(int8.SerializeToString(), usable_cpus())


def main() -> None:
    args = parse_args()
    sessions = {num_labels: open_graph(num_labels) for num_labels in LABELS}
    ids = np.random.default_rng(0).integers(1000, 30000, (1, TOKENS))
    row = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    times: dict[int, list[float]] = {num_labels: [] for num_labels in LABELS}
    for turn in progress_bar(range(args.turns), desc="turns"):
        for num_labels in LABELS if turn % 2 else LABELS[::-1]:
            for repeat in range(-5 if turn else -WARM_UP, 20):
                start = time.perf_counter()
                sessions[num_labels].run(None, row)
                if repeat >= 0:
                    times[num_labels].append(1000 * (time.perf_counter() - start))
    p50 = {num_labels: float(np.median(each)) for num_labels, each in times.items()}
    targets = [at_most("time_of_28_labels_of_that_of_2", p50[28] / p50[2], MOST_TIMES)]
    write_results("label_count.json", {"p50_ms": p50}, targets)
    print(f"p50 ms: {p50[2]:.3f} with 2 labels, {p50[28]:.3f} with 28")
    print_targets(targets)


if __name__ == "__main__":
    run_script(main)
