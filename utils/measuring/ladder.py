"""The rungs of a ladder: what each costs against the first one and the one before, as a table."""

import numpy as np

from utils.measuring.timing import aligned_table, latency_summary

QUERIES = 100e6  # that the price is for


def measured_rung(
    name: str, logits: np.ndarray | None, true: np.ndarray, milliseconds: list[np.ndarray], seconds: list[float] | None
) -> dict:
    """One rung's accuracy, latency and speed.

    Args:
        logits: [rows, labels]; None where its weights are random.
        true: the label id of every row of the test set.
        milliseconds: latencies of single rows, turn by turn.
        seconds: what all rows took on the clock, once for each repeat, where several processes shared them.
    """
    all_ms = np.concatenate(milliseconds)
    mean_ms = [float(turn.mean()) for turn in milliseconds]
    if seconds:
        mean_ms = [1000 * each / len(true) for each in seconds]
    correct = None if logits is None else int((logits.argmax(-1) == true).sum())
    return {
        "name": name,
        "accuracy": None if correct is None else correct / len(true),
        "num_correct": correct,
        "num_examples": len(true),
        "latency_ms": latency_summary(all_ms),
        "ms_a_row": float(np.median(mean_ms)) if seconds else float(all_ms.mean()),
        "ms_a_row_of_turns": mean_ms,
    }


def compared(rungs: list[dict], baseline: dict | None, usd_per_hour: float) -> None:
    """Add to each rung, in place, its seconds for the test set, its speed-ups and its price.

    The speed-up's range is that of single turns, each against the first rung's turn on the same rows.

    Args:
        baseline: a rung that is no step of the ladder, to compare all with; it may be one of `rungs`.
    """
    first, before = rungs[0]["ms_a_row"], None
    for rung in rungs:
        own = rung["ms_a_row"]
        rung["seconds"] = own * rung["num_examples"] / 1000
        rung["speedup"] = first / own
        turns, first_turns = rung["ms_a_row_of_turns"], rungs[0]["ms_a_row_of_turns"]
        if len(turns) != len(first_turns):  # several instances, which repeat all rows
            first_turns = [first] * len(turns)
        speedups = [one / other for one, other in zip(first_turns, turns, strict=True)]
        rung["speedup_range"] = [min(speedups), max(speedups)]
        rung["step_speedup"] = before / own if before and rung["step"] else None
        rung["speedup_vs_baseline"] = baseline["ms_a_row"] / own if baseline else None
        rung["usd_per_100m"] = usd_per_hour * own * QUERIES / 3.6e6
        before = own if rung["step"] else before


def _cells(rung: dict, baseline: bool) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    low, high = rung["speedup_range"]
    latency = rung["latency_ms"]
    cells = [
        rung["name"],
        shown(rung["accuracy"], "{:.4f}"),
        f"{rung['seconds']:.2f}",
        f"{rung['speedup']:.1f}x",
        f"{low:.1f}-{high:.1f}",
        shown(rung["step_speedup"], "{:.2f}x"),
        f"{latency['p50']:.2f}",
        f"{latency['p99']:.2f}",
        f"{rung['usd_per_100m']:.2f}",
        shown(rung["parameters"], "{:,.0f}"),
        f"{rung['model_bytes'] / 1e6:.1f}",
    ]
    return cells + [shown(rung["speedup_vs_baseline"], "{:.0f}x")] * baseline


def _header(baseline: bool) -> list[str]:
    header = ["rung", "accuracy", "seconds", "speed-up", "range", "step", "p50 ms", "p99 ms", "USD/100M", "parameters"]
    return [*header, "MB", *["vs BERT-base"] * baseline]


def text_table(rungs: list[dict], baseline: bool) -> str:
    """The rungs as aligned text; with the speed-up over a baseline where `compared` had one."""
    return aligned_table(_header(baseline), [_cells(rung, baseline) for rung in rungs])


def markdown_table(rungs: list[dict], baseline: bool) -> str:
    """The rungs as a Markdown table."""
    header = _header(baseline)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(_cells(rung, baseline) for rung in rungs)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
