"""The rungs of a ladder: what each costs against the first one and the one before, as a table."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.measuring.timing import aligned_table, latency_summary
from utils.training.metrics import NAMES, measure

QUERIES = 100e6  # that the price is for


class Measurement(NamedTuple):
    """What was measured of a rung."""

    logits: np.ndarray | None  # [rows, labels]; None where its weights are random
    milliseconds: list[np.ndarray]  # latencies of single rows, turn by turn
    seconds: list[float] | None = None  # what all rows took, once for each repeat, where several processes shared them
    tokens_share: float | None = None  # of the time, what passes from token ids on; None where there are none


@dataclass(frozen=True)
class MeasuredRung:
    """One rung's score, latency and speed. The names are the keys of ladder.json, where `score` has its measure's."""

    name: str
    score: float | None
    num_correct: int | None
    num_examples: int
    latency_ms: dict[str, float]
    ms_a_row: float
    ms_a_row_of_turns: list[float]
    ms_a_row_from_tokens: float | None
    parameters: int
    model_bytes: int
    engine: str
    step: bool  # of the ladder; if not, something to compare it with
    measure: str  # of `utils.training.metrics`


@dataclass(frozen=True)
class ComparedRung(MeasuredRung):
    """The same, with its seconds for the test set, its speed-ups and its price."""

    seconds: float
    speedup: float
    speedup_range: list[float]  # of single turns, each against the first rung's turn on the same rows
    step_speedup: float | None
    speedup_vs_baseline: float | None
    usd_per_100m: float


def measured_rung(
    name: str,
    measurement: Measurement,
    true: np.ndarray,
    *,
    engine: str,
    step: bool,
    parameters: int,
    model_bytes: int,
    chosen: str = "accuracy",
    thresholds: np.ndarray | None = None,
) -> MeasuredRung:
    """Sum up what was measured of a rung.

    Args:
        true: the labels of every row of the test set, as of `utils.data.tables.row_labels`.
        chosen, thresholds: of `utils.training.metrics.measure`.
    """
    logits, milliseconds, seconds, tokens_share = measurement
    all_ms = np.concatenate(milliseconds)
    mean_ms = [float(turn.mean()) for turn in milliseconds]
    if seconds:
        mean_ms = [1000 * each / len(true) for each in seconds]
    correct = int((logits.argmax(-1) == true).sum()) if logits is not None and true.ndim == 1 else None
    ms_a_row = float(np.median(mean_ms)) if seconds else float(all_ms.mean())
    return MeasuredRung(
        name=name,
        score=None if logits is None else measure(chosen, logits, true, thresholds),
        num_correct=correct,
        num_examples=len(true),
        latency_ms=latency_summary(all_ms),
        ms_a_row=ms_a_row,
        ms_a_row_of_turns=mean_ms,
        ms_a_row_from_tokens=None if tokens_share is None else ms_a_row * tokens_share,
        parameters=parameters,
        model_bytes=model_bytes,
        engine=engine,
        step=step,
        measure=chosen,
    )


def compared(rungs: list[MeasuredRung], baseline: MeasuredRung | None, usd_per_hour: float) -> list[ComparedRung]:
    """Compare each rung with the first one, with the step before, and with a baseline.

    Args:
        baseline: a rung that is no step of the ladder, to compare all with; it may be one of `rungs`.
    """
    comparisons = []
    first, before = rungs[0], None
    for rung in rungs:
        own, turns, first_turns = rung.ms_a_row, rung.ms_a_row_of_turns, first.ms_a_row_of_turns
        if len(turns) != len(first_turns):  # several instances, which repeat all rows
            first_turns = [first.ms_a_row] * len(turns)
        speedups = [one / other for one, other in zip(first_turns, turns, strict=True)]
        comparisons.append(
            ComparedRung(
                **vars(rung),
                seconds=own * rung.num_examples / 1000,
                speedup=first.ms_a_row / own,
                speedup_range=[min(speedups), max(speedups)],
                step_speedup=before / own if before and rung.step else None,
                speedup_vs_baseline=baseline.ms_a_row / own if baseline else None,
                usd_per_100m=usd_per_hour * own * QUERIES / 3.6e6,
            )
        )
        before = own if rung.step else before
    return comparisons


def rung_as_json(rung: ComparedRung) -> dict[str, Any]:
    """What ladder.json says of a rung: its score under the name of the measure."""
    values = {rung.measure if key == "score" else key: value for key, value in asdict(rung).items() if key != "measure"}
    if rung.measure != "accuracy":
        del values["num_correct"]
    return values


def rung_from_json(values: dict[str, Any]) -> ComparedRung:
    """The rung of which `rung_as_json` says this."""
    (measure,) = values.keys() & NAMES.keys()
    others = {key: value for key, value in values.items() if key != measure}
    return ComparedRung(**({"num_correct": None} | others), score=values[measure], measure=measure)


def _cells(rung: ComparedRung, baseline: bool) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    low, high = rung.speedup_range
    cells = [
        rung.name,
        shown(rung.score, "{:.4f}"),
        f"{rung.seconds:.2f}",
        f"{rung.speedup:.1f}x",
        f"{low:.1f}-{high:.1f}",
        shown(rung.step_speedup, "{:.2f}x"),
        f"{rung.latency_ms['p50']:.2f}",
        f"{rung.latency_ms['p99']:.2f}",
        shown(rung.ms_a_row_from_tokens, "{:.2f}"),
        f"{rung.usd_per_100m:.2f}",
        shown(rung.parameters, "{:,.0f}"),
        f"{rung.model_bytes / 1e6:.1f}",
    ]
    return cells + [shown(rung.speedup_vs_baseline, "{:.0f}x")] * baseline


def _header(measure: str, baseline: bool) -> list[str]:
    header = ["rung", NAMES[measure], "seconds", "speed-up", "range", "step", "p50 ms", "p99 ms", "from tokens, ms"]
    return [*header, "USD/100M", "parameters", "MB", *["vs BERT-base"] * baseline]


def text_table(rungs: list[ComparedRung], baseline: bool, failures: list[tuple[str, str]]) -> str:
    """The rungs as aligned text, with the speed-up over a baseline where `compared` had one.

    Args:
        failures: name and reason of each rung that failed; a row each, below the others.
    """
    rows = [_cells(rung, baseline) for rung in rungs]
    reasons = [f"{name}  failed: {reason}" for name, reason in failures]
    return "\n".join([aligned_table(_header(rungs[0].measure, baseline), rows), *reasons])


def markdown_table(rungs: list[ComparedRung], baseline: bool, failures: list[tuple[str, str]]) -> str:
    """As `text_table`, in Markdown."""
    header = _header(rungs[0].measure, baseline)
    empty = [""] * (len(header) - 2)
    rows = [_cells(rung, baseline) for rung in rungs]
    rows += [[name, f"failed: {reason}".replace("|", r"\|"), *empty] for name, reason in failures]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
