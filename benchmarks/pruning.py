"""Ways to prune one checkpoint without training, over a range of budgets: accuracy, int8 latency, seconds.

    python -m benchmarks.pruning --config=configs/config-bert-cls.json --data_dir=data/movie-reviews \\
        --bert_output_dir=runs/demo/teacher --student_dir=runs/demo/student \\
        --textpruner_python=.venv-textpruner/bin/python

Every way keeps the same fraction of the layers' multiply-adds; benchmarks/README.md says what each does. Then come the
steps that train or time: see benchmarks/pruning_steps.py. Needs an otherwise idle machine. Finished parts are kept in
--work_dir, and an interrupted run continues. The results are results/pruning.json, .csv and .png; the last lines say
which targets are met.
"""

import argparse
import copy
import csv
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from benchmarks.pruning_steps import measure_steps
from benchmarks.targets import RESULTS, at_least, at_most, print_targets, write_results
from utils.arguments import add_data_options, script_parser
from utils.data.tables import Data, lengths, load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import load_config
from utils.models.families import layer_shapes
from utils.pruning.budget import NEURON_STEP, Shapes, fit_macs, layer_macs, uniform
from utils.pruning.latency_budget import measure_latencies, narrow_copy
from utils.pruning.narrow import narrow_layer
from utils.pruning.recipe import Ranking, prune_layers, rank, sample_batches
from utils.pruning.recovery import recover
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.files import atomic_file, write_json
from utils.training.scoring import evaluate_logits, predict

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
METHODS = ("random", "magnitude", "first order, uniform", "first order, uneven", "Fisher, uneven")
RECOVERED = ", recovered"
OURS, PEER = "Fisher, uneven" + RECOVERED, "TextPruner"
# In the order of what would be missed most in an interrupted run.
ORDER = (OURS, PEER, *METHODS, *(method + RECOVERED for method in METHODS[::-1]))
# The --importance of a method, by what its name begins with.
IMPORTANCE = {"random": "random", "magnitude": "magnitude", "first order": "first_order", "Fisher": "fisher"}
ROWS = 2048


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--bert_output_dir", required=True, help="checkpoint folder of the model to prune")
    parser.add_argument("--student_dir", required=True, help="checkpoint folder of its student, for the later steps")
    parser.add_argument("--textpruner_python", help="Python of a virtual environment with TextPruner; else left out")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmarks/pruning"), help="for finished parts")
    parser.add_argument("--seed", type=int, default=42, help="seed of the choice of rows, and of random pruning")
    return parser.parse_args()


def macs_fraction(model: PreTrainedModel, shapes: Shapes, length: float) -> float:
    """Fraction of the multiply-adds of all layers of `model` that layers of these shapes do."""
    costs = list(zip(*layer_macs(model, length), strict=True))
    pruned, whole = (
        sum(heads * head + neurons * neuron for (heads, neurons), (head, neuron) in zip(each, costs, strict=True))
        for each in (shapes, layer_shapes(model))
    )
    return pruned / whole


def uniform_sizes(model: PreTrainedModel, fraction: float, length: float) -> tuple[int, int]:
    """Heads and neurons to keep in every layer, for `fraction` of the multiply-adds; all layers are alike."""
    head, neuron = map(sum, layer_macs(model, length))
    num_heads, num_neurons = layer_shapes(model)[0]
    heads = max(1, round(fraction * num_heads))
    neurons = (fraction * (num_heads * head + num_neurons * neuron) - heads * head) / neuron
    return heads, min(num_neurons, max(1, round(neurons / NEURON_STEP)) * NEURON_STEP)


def prune(model: PreTrainedModel, method: str, fraction: float, rows: list[dict], ranking: Ranking) -> PreTrainedModel:
    """A pruned copy of `model`."""
    length = sum(float(batch["attention_mask"].sum()) for batch in rows) / sum(len(batch["labels"]) for batch in rows)
    if "uneven" in method:
        shapes = fit_macs(model, ranking.heads, ranking.neurons, fraction, length)
    else:
        shapes = uniform(layer_shapes(model), *uniform_sizes(model, fraction, length))
    pruned = copy.deepcopy(model)
    prune_layers(pruned, shapes, ranking)
    if method.endswith(RECOVERED):
        recover(pruned, model, rows)
    return pruned


def run_textpruner(args: argparse.Namespace, rows: list[dict]) -> dict[float, dict]:
    """What TextPruner keeps at every fraction: its `seconds`, and indices of `heads` and `neurons` of every layer."""
    batches = args.work_dir / "batches.jsonl"
    with open(batches, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({name: array.tolist() for name, array in batch.items()}) + "\n" for batch in rows)
    worker = Path(__file__).with_name("textpruner_worker.py")
    command = [args.textpruner_python, worker, args.bert_output_dir, batches, *map(str, FRACTIONS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return {choice["fraction"]: choice for choice in map(json.loads, done.stdout.splitlines())}


def prune_as(model: PreTrainedModel, choice: dict) -> PreTrainedModel:
    """A copy of `model` with the heads and neurons that TextPruner keeps."""
    pruned = copy.deepcopy(model)
    for index, parts in enumerate(zip(choice["heads"], choice["neurons"], strict=True)):
        narrow_layer(pruned, index, *map(torch.tensor, parts))
    return pruned


def measure_methods(args: argparse.Namespace, model: PreTrainedModel, data: Data, rows: list[dict]) -> list[dict]:
    """Accuracy on test.txt, shapes and seconds of every way and fraction; kept in work_dir one by one."""
    accelerator, test = make_accelerator("cpu", "fp32"), data.splits["test"]
    length = float(lengths(data.splits["train"]).mean())
    peer: dict[float, dict] = {}
    rankings: dict[str, tuple[Ranking, float]] = {}  # by importance, with the seconds it took
    results = []
    for method in ORDER:
        for fraction in FRACTIONS:
            path = args.work_dir / f"{method} {fraction}.json"
            if not path.exists():
                if method == PEER and not args.textpruner_python:
                    continue
                if method == PEER:
                    peer = peer or run_textpruner(args, rows)
                    pruned, seconds = prune_as(model, peer[fraction]), peer[fraction]["seconds"]
                else:
                    importance = next(IMPORTANCE[name] for name in IMPORTANCE if method.startswith(name))
                    if importance not in rankings:
                        rankings[importance] = in_seconds(rank, model, rows, importance, seed=args.seed)
                    ranking, rank_seconds = rankings[importance]
                    pruned, seconds = in_seconds(prune, model, method, fraction, rows, ranking)
                    seconds += rank_seconds
                accuracy = evaluate_logits(predict(pruned, test, accelerator, f"{method}, {fraction}"), test).score
                result = {"seconds": seconds, "accuracy": accuracy, "shapes": layer_shapes(pruned)}
                write_json(path, result | {"threads": torch.get_num_threads()})
                print(f"{method}, {fraction}: accuracy {accuracy:.4f}, {seconds:.0f} s", flush=True)
            result = json.loads(path.read_text(encoding="utf-8"))
            macs = macs_fraction(model, result["shapes"], length)
            results.append({"method": method, "fraction": fraction, "macs": macs, **result})
    return results


def in_seconds(function: Callable, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds it took."""
    start = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - start


def measure_shapes(args: argparse.Namespace, model: PreTrainedModel, data: Data, results: list[dict]) -> None:
    """Add to each result the latency of its int8 graph as a fraction of the whole model's, timed side by side."""
    for each in results:
        name = "-".join(f"{heads}x{neurons}" for heads, neurons in each["shapes"])
        path = args.work_dir / f"latency {name}.json"
        if not path.exists():
            whole, pruned = measure_latencies([model, narrow_copy(model, each["shapes"])], data.splits["valid"])
            write_json(path, pruned / whole)
        each["latency"] = json.loads(path.read_text(encoding="utf-8"))


def draw(results: list[dict], whole_accuracy: float, path: Path) -> None:
    """Accuracy against the fraction of multiply-adds, a line for each way."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(9, 6))
    for i, method in enumerate(METHODS):
        for name, style in ((method + RECOVERED, "o-"), (method, "o:")):
            points = sorted((each["fraction"], each["accuracy"]) for each in results if each["method"] == name)
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{i}", label=name)
    points = sorted((each["fraction"], each["accuracy"]) for each in results if each["method"] == PEER)
    if points:
        axes.plot(*zip(*points, strict=True), "s-", color="black", label=PEER)
    axes.axhline(whole_accuracy, color="grey", linewidth=1)
    axes.text(FRACTIONS[-1], whole_accuracy, "not pruned", color="grey", va="bottom")
    axes.set(xlabel="fraction of the layers' multiply-adds", ylabel="accuracy on test.txt, no training after pruning")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


def targets(results: list[dict], whole_accuracy: float, steps: dict[str, Any]) -> list[dict]:
    """Every target's name, what was measured (None: nothing), what it needs, and whether it is met."""
    by_name = {(each["method"], each["fraction"]): each for each in results}
    ours = by_name.get((OURS, 0.6))
    leads = {}
    for other in (PEER, "magnitude", "random"):
        margins = [
            by_name[OURS, fraction]["accuracy"] - by_name[other, fraction]["accuracy"]
            for fraction in FRACTIONS
            if (OURS, fraction) in by_name and (other, fraction) in by_name
        ]
        leads[other] = min(margins) if len(margins) == len(FRACTIONS) else None
    return [
        at_most("accuracy_lost_at_0.6_of_macs", whole_accuracy - ours["accuracy"] if ours else None, 0.01),
        at_most("seconds_at_0.6_of_macs", ours["seconds"] if ours else None, 180),
        *(at_least(f"smallest_lead_on_{other.lower()}", lead, 0.0) for other, lead in leads.items()),
        at_least("halved_student_accuracy_vs_teacher", steps.get("halved_accuracy"), 0.98),
        at_most("halved_student_latency_vs_whole", steps.get("halved_latency"), 0.65),
        at_most("latency_missed_at_target_0.5", steps.get("latency_missed"), 0.05),
        at_least("file_saved_by_vocabulary", steps.get("vocabulary_saved"), 1 / 3),
    ]


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    data = load_data(args.data_dir, load_tokenizer(args.bert_output_dir, "--bert_output_dir"), config.n_ctx)
    model = load_model(args.bert_output_dir, "--bert_output_dir", config, data.labels)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    train, test = data.splits["train"], data.splits["test"]
    rows = list(sample_batches(train, ROWS, model.config.pad_token_id, args.seed, "collate"))
    whole = evaluate_logits(predict(model, test, make_accelerator("cpu", "fp32"), "whole"), test).score
    pruned = measure_methods(args, model, data, rows)
    measure_shapes(args, model, data, pruned)
    steps = measure_steps(args.work_dir, args.config, args.data_dir, args.bert_output_dir, args.student_dir)

    target_rows = targets(pruned, whole, steps)
    settings = {"checkpoint": args.bert_output_dir, "data_dir": args.data_dir, "rows": ROWS, "seed": args.seed}
    content = {"settings": settings, "whole_accuracy": whole, "pruned": pruned, "steps": steps}
    write_results("pruning.json", content, target_rows)
    columns = ["method", "fraction", "macs", "accuracy", "latency", "seconds", "threads"]
    with atomic_file(RESULTS / "pruning.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(pruned)
    draw(pruned, whole, RESULTS / "pruning.png")
    print_targets(target_rows)


if __name__ == "__main__":
    run_script(main)
