"""Every encoder family in ours and in other libraries: is our graph exact, and how much faster is it?

    python -m benchmarks.families --data_dir=data/movie-reviews

Of each family one model of random weights: its base model's shape, half as wide, with 6 layers. Speed does not depend
on weights. Accuracy does, so what is compared is logits: the fp32 graphs' with PyTorch's, of rows alone and padded, of
the whole model and of one whose layers are pruned to different sizes. Rows are a real data set's, in tokens of a
vocabulary that is made from it.

Needs an otherwise idle machine, and Optimum and CTranslate2 in virtual environments of their own: benchmarks/README.md.
Measured from token ids to logits: one row at a time with --num_threads threads, engines in turns; and rows a second of
one process a CPU, each with one thread. Models are made once, and measurements kept, in --work_dir: an interrupted run
continues. The result is results/families.json and two tables; the last lines say which targets are met.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.backends import pad, read_rows
from benchmarks.measures import measure_latency, measure_throughput
from benchmarks.processes import (
    ROOT,
    Setup,
    Worker,
    make_models,
    prepare,
    read_partial,
    write_partial,
)
from benchmarks.targets import at_least, at_most, print_targets, write_results
from utils.arguments import positive_int, script_parser
from utils.data import texts
from utils.data.label_checks import read_labels
from utils.data.preprocessing import tokenize_data
from utils.export.fused import build_graph
from utils.export.verify import MAX_FP32_DIFFERENCE, largest_difference
from utils.measuring.engines import pytorch_engine
from utils.measuring.timing import aligned_table
from utils.models.families import FAMILIES, layer_shapes, takes_token_types
from utils.predictor.folder import GRAPH, UNPADDED_GRAPH
from utils.pruning.narrow import narrow_layer
from utils.system.cli import run_script
from utils.system.files import atomic_folder
from utils.system.machine import describe_machine

SHAPE = dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=6, intermediate_size=1536)
ROBERTA = SHAPE | dict(type_vocab_size=1, max_position_embeddings=514)
SHAPES: dict[str, dict] = {
    "bert": SHAPE,
    "roberta": ROBERTA,
    "electra": SHAPE | dict(embedding_size=384),
    "distilbert": dict(dim=384, n_heads=6, n_layers=6, hidden_dim=1536),
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": SHAPE | dict(max_position_embeddings=514),
    "albert": SHAPE | dict(embedding_size=128),
    "deberta-v2": SHAPE  # as v3
    | dict(relative_attention=True, share_att_key=True, pos_att_type="p2c|c2p", position_buckets=256)
    | dict(norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0),
    "modernbert": SHAPE | dict(intermediate_size=576),
}
# Numbered as RoBERTa's and MPNet's, whose code counts positions from padding's 1.
SPECIAL_TOKENS = {"cls": "[CLS]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
VOCABULARY, N_CTX = 8000, 100
NOISE = 0.05  # standard deviation that is added to every weight, so that all of them move the logits
COMPARED_ROWS, PADDED_BATCH = 100, 8
ROUNDS = 2

PEERS = ["pytorch", "optimum_fp32", "optimum_int8"]
CTRANSLATE2 = ("bert", "roberta", "distilbert", "xlm-roberta", "camembert")  # families that it can convert
FASTER = {"bert": 1.7}  # times Optimum's int8, one row at a time
FASTER |= dict.fromkeys(("mpnet", "xlm-roberta", "camembert", "albert", "deberta-v2", "modernbert"), 1.5)
MORE_ROWS = 1.3  # times Optimum's int8


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="folder with train, valid and test, single sentences")
    parser.add_argument("--families", default=",".join(FAMILIES), help="families to measure, by commas")
    parser.add_argument("--work_dir", default="runs/benchmarks/families", help="models and partial results")
    for peer in ("optimum", "ctranslate2"):
        python = f".venv-{peer}/bin/python"
        parser.add_argument(f"--{peer}_python", default=python, help=f"Python with requirements-{peer}.txt")
    parser.add_argument("--num_threads", type=positive_int, default=2, help="CPU threads of a row; and processes")
    parser.add_argument("--num_processes", type=positive_int, default=2, help="fresh processes of each engine")
    parser.add_argument("--num_rows", type=positive_int, default=200, help="rows of test that are timed alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the engines' order")
    parser.add_argument("--fresh", action="store_true", help="measure everything again; models are kept")
    args = parser.parse_args()
    args.work_dir, args.families, args.quick = Path(args.work_dir), args.families.split(","), False
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f"--families names {', '.join(sorted(unknown))}: choose of {', '.join(FAMILIES)}")
    return args


def make_data(folder: Path, data_dir: str) -> None:
    """The data set as text files, so that nothing is written to its own folder; a tokenizer for it; its tokens."""
    if folder.exists():
        return
    with atomic_folder(folder) as new:
        for split in texts.SPLITS:
            rows = texts.read_rows(texts.split_path(Path(data_dir), split))
            lines = ["\t".join([*row, label]) + "\n" for row, label in rows]
            (new / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        tokenizer = make_tokenizer(row[0] for row, _ in texts.read_rows(new / "train.txt"))
        tokenizer.save_pretrained(new / "tokenizer")
        tokenize_data(new, tokenizer, N_CTX, lambda rows, total, split: rows)


def make_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer made from texts, with BERT's template."""
    backend, special = BertWordPieceTokenizer(), list(SPECIAL_TOKENS.values())
    backend.train_from_iterator(lines, vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    ends = [(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    options = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()), **options)


def make_checkpoint(folder: Path, family: str, data_dir: Path, seed: int) -> None:
    """A classifier of random weights and its tokenizer, in `folder`."""
    if folder.exists():
        return
    ids = {f"{name}_token_id": i for i, name in enumerate(SPECIAL_TOKENS) if name in ("cls", "pad", "sep")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    labels = list(read_labels(data_dir)[0])
    numbers = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = AutoConfig.for_model(family, **SHAPES[family], **ids, **numbers, vocab_size=VOCABULARY)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += NOISE * torch.randn_like(parameter)
    with atomic_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(data_dir / "tokenizer")
        tokenizer.model_input_names = ["input_ids", "attention_mask"] + ["token_type_ids"] * takes_token_types(model)
        tokenizer.save_pretrained(new)
        # What transformers 5 calls it, 4 does not know.
        path = new / "tokenizer_config.json"
        path.write_text(path.read_text(encoding="utf-8").replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def prune_unevenly(model: PreTrainedModel, seed: int) -> None:
    """Leave every layer another number of heads and neurons, drawn, in place."""
    generator = torch.Generator().manual_seed(seed)
    for index, (num_heads, num_neurons) in enumerate(layer_shapes(model)):
        heads = torch.randperm(num_heads, generator=generator)[: 1 + (2 * index + 1) % num_heads]
        neurons = torch.randperm(num_neurons, generator=generator)[: num_neurons * (index + 3) // 10]
        narrow_layer(model, index, heads.sort().values, neurons.sort().values)


def exactness(setup: Setup, _: int, checkpoint: Path) -> dict[str, float]:
    """How far our fp32 graphs' logits are from PyTorch's, at most, whole and pruned; and how far PyTorch's spread."""
    rows = random.Random(setup.seed).sample(read_rows(str(setup.all_rows)), COMPARED_ROWS)
    batches = [pad([row]) for row in rows]
    batches += [pad(rows[start : start + PADDED_BATCH]) for start in range(0, len(rows), PADDED_BATCH)]
    result = {}
    for kind in ("whole", "pruned"):
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
        if kind == "pruned":
            prune_unevenly(model, setup.seed)
        engine = pytorch_engine(model)
        expected = [engine(batch) for batch in batches]
        graphs = {GRAPH: build_graph(model), UNPADDED_GRAPH: build_graph(model, masked=False)}
        result[kind] = largest_difference(graphs, batches, expected, setup.num_labels)
        result[f"{kind}_spread"] = float(np.concatenate(expected[: len(rows)]).std(0).mean())
    return result


def measure_rates(setup: Setup, number: int) -> dict[str, dict]:
    """Rows a second of one process a CPU, for every engine and batch size: {engine: {size: [a rate a round]}}."""
    order = random.Random(setup.seed * 1000 + number)
    rates: dict[str, dict[str, list[float]]] = {engine: {} for engine in setup.models}
    with ExitStack() as stack:
        workers = {
            engine: [stack.enter_context(Worker(setup, engine, cpu)) for cpu in setup.cpus] for engine in setup.models
        }
        for _ in range(ROUNDS):
            for engine in order.sample(list(workers), len(workers)):
                for size, measured in measure_throughput(workers[engine], "graph_throughput").items():
                    rates[engine].setdefault(size, []).append(measured["graph"])
    return rates


def measure_family(args: argparse.Namespace, family: str) -> dict:
    """All of one family's results."""
    work_dir = args.work_dir / family
    checkpoint, data_dir = work_dir / "checkpoint", args.work_dir / "data"
    make_checkpoint(checkpoint, family, data_dir, args.seed)
    config = ROOT / f"configs/config-{family}-cls.json"
    own = dict(work_dir=work_dir, bert_output_dir=str(checkpoint), config=str(config), data_dir=str(data_dir))
    args = argparse.Namespace(**vars(args) | own)
    setup = prepare(args)
    engines = [*PEERS, *(["ctranslate2_int8"] if family in CTRANSLATE2 else [])]
    # Random weights guess: their accuracy says nothing of a version.
    setup = make_models(args, setup, engines, ["--max_accuracy_drop=1"])
    measure_turn = partial(measure_latency, command="graph_latencies")
    latency = [kept(setup, "latency", number, measure_turn) for number in range(args.num_processes)]
    rates = kept(setup, "throughput", 0, measure_rates)
    return {
        "exactness": kept(setup, "exactness", 0, partial(exactness, checkpoint=checkpoint)),
        "engines": {engine: engine_results(setup, engine, latency, rates[engine]) for engine in setup.models},
    }


def kept(setup: Setup, name: str, number: int, measure: Callable[[Setup, int], dict]) -> dict:
    """A measurement, or what an earlier run kept of it."""
    value = read_partial(setup, name, number)
    if value is None:
        value = measure(setup, number)
        write_partial(setup, name, number, value)
    return value


def engine_results(setup: Setup, engine: str, latency: list[dict], rates: dict[str, list[float]]) -> dict:
    """One engine's numbers; its logits' mean distance from PyTorch's is `drift`."""
    rounds = [measured["latencies"] for measured in latency]
    of_processes = [float(np.percentile(measured[engine]["graph"], 50)) for measured in rounds]
    medians = {size: statistics.median(of_size) for size, of_size in rates.items()}
    logits, expected = (np.array(rounds[0][name]["logits"]) for name in (engine, "pytorch"))
    return {
        "p50_ms": float(np.percentile(np.concatenate([measured[engine]["graph"] for measured in rounds]), 50)),
        "p50_ms_of_processes": of_processes,
        "rows_per_s": max(medians.values()),
        "batch_size": int(max(medians, key=lambda size: medians[size])),
        "rows_per_s_by_batch_size": rates,
        "drift": float(np.abs(logits - expected).mean()),
        "disk_mb": setup.models[engine].num_bytes / 1e6,
        "versions": latency[0]["versions"][engine],
    }


def targets(family: str, result: dict) -> list[dict]:
    """What is asked of a family, and whether it is met."""
    exact, engines = result["exactness"], result["engines"]
    results = [at_most(f"{family}_fp32_logits_vs_pytorch", max(exact["whole"], exact["pruned"]), MAX_FP32_DIFFERENCE)]
    if "optimum_int8" in engines and family in FASTER:
        ours, optimum = engines["ours_int8"], engines["optimum_int8"]
        rate = ours["rows_per_s"] / optimum["rows_per_s"]
        results.append(at_least(f"{family}_p50_vs_optimum_int8", optimum["p50_ms"] / ours["p50_ms"], FASTER[family]))
        results.append(at_least(f"{family}_throughput_vs_optimum_int8", rate, MORE_ROWS))
    return results


def tables(families: dict[str, dict]) -> str:
    """All engines of all families, and how exact our fp32 graphs are."""
    rows = [
        [
            f"{family} {name}",
            f"{engine['p50_ms']:.2f}",
            f"{min(engine['p50_ms_of_processes']):.2f}-{max(engine['p50_ms_of_processes']):.2f}",
            f"{engine['rows_per_s']:.0f}",
            f"{engine['batch_size']}",
            f"{engine['disk_mb']:.1f}",
            f"{engine['drift']:.5f}",
        ]
        for family, result in families.items()
        for name, engine in result["engines"].items()
    ]
    first = aligned_table(["engine", "graph p50", "processes", "rows/s", "batch", "MB", "drift"], rows)
    rows = [
        [family, *(f"{result['exactness'][key]:.1e}" for key in ("whole", "pruned", "whole_spread"))]
        for family, result in families.items()
    ]
    return f"{first}\n\n{aligned_table(['fp32 vs PyTorch', 'whole', 'pruned', 'logits spread'], rows)}"


def main() -> None:
    args = parse_args()
    make_data(args.work_dir / "data", args.data_dir)
    families = {family: measure_family(args, family) for family in args.families}
    machine = describe_machine() | {"num_threads": args.num_threads}
    names = ("data_dir", "num_rows", "num_processes", "seed")
    settings = {name: getattr(args, name) for name in names} | {"shapes": SHAPES}
    lines = [target for family, result in families.items() for target in targets(family, result)]
    write_results("families.json", {"machine": machine, "settings": settings, "families": families}, lines)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(tables(families))
    print_targets(lines)


if __name__ == "__main__":
    run_script(main)
