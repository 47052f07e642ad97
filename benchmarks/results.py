"""From raw measurements to the table and the targets."""

import json
import re
import statistics
from pathlib import Path

import numpy as np

from benchmarks.backends import BACKENDS
from benchmarks.targets import at_least, at_most
from utils.measuring.timing import aligned_table

OURS = "ours_int8"
PEERS = [engine for engine in BACKENDS if not engine.startswith("ours")]
PATHS = ("graph", "text", "by_hand")
# Times the fastest peer: text p50, graph p50, throughput; of models of at most 3 layers, and of more.
FASTER = (2.5, 1.5, 1.7), (2.0, 1.5, 1.5)
# A peer may be this much less accurate than ours and still count.
ACCURACY_MARGIN = 0.003


def layer_shapes(checkpoint: str | Path) -> list[tuple[int, int, int]]:
    """(hidden size, attention width, FFN neurons) of every layer, from the header of model.safetensors."""
    with open(Path(checkpoint) / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {}
    for name, tensor in header.items():
        if match := re.search(r"layer\.(\d+)\.(attention\.self\.query|intermediate\.dense)\.weight$", name):
            shapes[int(match[1]), match[2]] = tensor["shape"]
    layers = []
    for i in sorted({i for i, _ in shapes}):
        width, hidden = shapes[i, "attention.self.query"]
        layers.append((hidden, width, shapes[i, "intermediate.dense"][0]))
    return layers


def count_macs(layers: list[tuple[int, int, int]], num_labels: int, length: int) -> int:
    """Multiply-accumulates that our graph does for one row of `length` tokens.

    The last layer is worked out for the first token only, even keys and values: nothing reads the others. Its scores,
    which are few, are left out.
    """
    macs = 0
    for hidden, width, neurons in layers[:-1]:
        macs += length * (hidden * 3 * width + width * hidden + 2 * hidden * neurons) + 2 * length**2 * width
    hidden, width, neurons = layers[-1]
    macs += 4 * hidden * width + 2 * hidden * neurons
    return macs + hidden * hidden + hidden * num_labels


def latency_results(rounds: list[dict]) -> dict:
    """One engine's latencies, from what each of its processes measured: {path: [rows]} in milliseconds, and counts."""
    results = {}
    for path in PATHS:
        pooled = np.concatenate([measured[path] for measured in rounds])
        results[path] = {
            "mean_ms": float(pooled.mean()),
            "p50_ms": float(np.percentile(pooled, 50)),
            "p99_ms": float(np.percentile(pooled, 99)),
            "p50_ms_of_processes": [float(np.percentile(measured[path], 50)) for measured in rounds],
        }
    # The three paths must agree, or a path measures something else.
    counts = ("right_graph", "right", "right_by_hand")
    results["num_correct_by_path"] = {path: rounds[0][name] for path, name in zip(PATHS, counts, strict=True)}
    return results


def throughput_results(rounds: list[dict]) -> dict:
    """One engine's examples a second: the median over processes for each configuration, and the best of them.

    Args:
        rounds: {"2x1": {"8": {"text": rate, "graph": rate}}}: instances x threads, then batch size.
    """
    rates = {
        path: {
            f"{shape}, batch {size}": statistics.median(measured[shape][size][path] for measured in rounds)
            for shape in rounds[0]
            for size in rounds[0][shape]
        }
        for path in ("text", "graph")
    }
    return {
        path: {"per_s": max(each.values()), "at": max(each, key=lambda name: each[name]), "all": each}
        for path, each in rates.items()
    }


def gemm_results(rounds: list[dict], ours: dict, latencies: list[dict], macs: np.ndarray, all_macs: np.ndarray) -> dict:
    """The int8 peak of this machine in operations a second, and what share of it ours_int8 reaches.

    Args:
        rounds: {"1x2": {matrix shape: rate}}, the instances' rates added up.
        ours: ours_int8's throughput results.
        latencies: ours_int8's latencies, a process each.
        macs, all_macs: of every timed row and of every row, without padding.
    """
    rates = {
        f"{shape}, {matrix}": max(measured[shape][matrix] for measured in rounds)
        for shape in rounds[0]
        for matrix in rounds[0][shape]
    }
    peak = max(rates.values())
    row_ms = np.median([measured["graph"] for measured in latencies], axis=0)
    return {
        "peak_per_s": peak,
        "at": max(rates, key=rates.__getitem__),
        "all": rates,
        "fraction_batch_1": float(2 * macs.sum() / (row_ms.sum() / 1000) / peak),
        "fraction_best": float(2 * all_macs.mean() * ours["graph"]["per_s"] / peak),
        "best_at": ours["graph"]["at"],
    }


def million_results(measured: dict) -> dict:
    """Memory of one process over very many predictions, and its growth after the first sample."""
    samples = [sample["rss_mb"] for sample in measured["samples"]]
    return measured | {"rss_growth_mb": max(samples) - samples[0]}


def table(engines: dict[str, dict]) -> str:
    """All engines as aligned text."""
    header = [
        "engine",
        "accuracy",
        "graph p50",
        "p99",
        "text p50",
        "p99",
        "processes",
        "by hand p50",
        "examples/s",
        "at",
        "graph/s",
        "at",
        "MB",
        "RSS MB",
        "cold s",
    ]
    rows = []
    for name, engine in engines.items():
        spread = engine["text"]["p50_ms_of_processes"]
        best = engine["throughput"]
        rows.append(
            [
                name,
                f"{engine['accuracy']:.4f}",
                *(f"{engine[path][key]:.2f}" for path in ("graph", "text") for key in ("p50_ms", "p99_ms")),
                f"{min(spread):.2f}-{max(spread):.2f}",
                f"{engine['by_hand']['p50_ms']:.2f}",
                f"{best['text']['per_s']:.0f}",
                best["text"]["at"],
                f"{best['graph']['per_s']:.0f}",
                best["graph"]["at"],
                f"{engine['disk_mb']:.1f}",
                f"{engine['peak_rss_mb']:.0f}",
                f"{engine['cold_start_s']:.2f}",
            ]
        )
    return aligned_table(header, rows)


def targets(engines: dict[str, dict], gemm: dict, million: dict | None, num_layers: int) -> list[dict]:
    """Every target's name, what was measured (None: nothing to measure it by), what it needs, and whether it is met."""
    text, graph, throughput = FASTER[num_layers > 3]
    ours = engines[OURS]
    eligible = [engines[name] for name in PEERS if name in engines]
    eligible = [peer for peer in eligible if peer["accuracy"] >= ours["accuracy"] - ACCURACY_MARGIN]
    # Without all peers there is no fastest one.
    complete = eligible and all(name in engines for name in PEERS)

    def faster(path: str) -> float | None:
        return min(peer[path]["p50_ms"] for peer in eligible) / ours[path]["p50_ms"] if complete else None

    rate = ours["throughput"]["text"]["per_s"]
    rates = [peer["throughput"]["text"]["per_s"] for peer in eligible]
    peak = at_least("gemm_peak_fraction", gemm["fraction_best"], 0.60)
    return [
        at_least("text_p50_vs_fastest_peer", faster("text"), text),
        at_least("graph_p50_vs_fastest_peer", faster("graph"), graph),
        at_least("throughput_vs_fastest_peer", rate / max(rates) if complete else None, throughput),
        # More than the whole peak means that the peak was measured on a busy machine.
        peak if gemm["fraction_best"] <= 1 else peak | {"met": False},
        at_least("cold_start_vs_transformers_pipeline", engines["pytorch"]["cold_start_s"] / ours["cold_start_s"], 15),
        at_most("peak_rss_mb", ours["peak_rss_mb"], 120),
        at_most("million_rss_growth_mb", million["rss_growth_mb"] if million else None, 2),
    ]
