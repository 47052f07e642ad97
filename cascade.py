"""A fast model that asks a slow one: answer easy texts with the first stage, and the rest with the next.

    python cascade.py runs/demo/models/pruned-small runs/demo/models/teacher --data_dir=data/movie-reviews \\
        --max_accuracy_drop=0.01 --output_dir=runs/demo/models/cascade

Takes two or more folders of quantize.py, fastest first, and writes one that predict.py, evaluate.py and report.py open
like any other. A stage answers the texts of which its answer's probability is above its threshold, after a temperature
that is fitted on valid; the last stage answers the others. To a stage's logits those of the stages before it are added,
with a weight that is fitted on valid, too: together they are right more often than the last of them alone.

A text with any number of labels goes on when a stage is not sure of one of them, and an answer is right where all of
its labels are; each stage's probabilities are taken as they are. Models of scores make no cascade: a score says nothing
of how sure it is.

Every stage runs over the rows of valid, one at a time, in turns. Thresholds are then chosen for all stages together, by
the accuracy to be expected: how probable it is, by what all stages say of a row, that the answer is right. There are
four aims, and a stage without which the cascade is better is left out. --max_accuracy_drop=0.01 takes the fastest
cascade that loses at most 0.01 of the last model's accuracy in 95 % of the bootstrap's resamples of valid: on average
it loses less. --max_asked=0.2 takes the most accurate that passes on at most a fifth of the rows, --target_speedup=3
the most accurate that is three times as fast as the last model, --max_slowdown=2 the most accurate that takes at most
twice as long as the first. Where the data folder holds a file of texts without labels, unlabelled.txt, .csv, .tsv,
.jsonl or .parquet, they say how many answers differ from the last model's.
Several aims, and a folder for each in the same order, make several cascades of what was measured once.

Into --output_dir go the stages' folders, config.json, a model card, and the frontier, that is all cascades than which
none is as accurate and faster, as frontier.json, .png and .svg.
"""

import argparse
import hashlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path

import utils.system.environment  # isort: skip  # noqa: F401

import numpy as np

from utils.arguments import (
    add_column_options,
    add_text_options,
    fraction,
    nonnegative_float,
    positive_float,
    positive_int,
    script_parser,
    text_columns,
)
from utils.data.labels import several_labels
from utils.data.texts import UNLABELLED, Columns, labelled_texts, split_path
from utils.data.texts_to_label import has_columns, read_columns
from utils.export.cascade_dir import check_cascade_dirs, write_cascade_dir
from utils.measuring.calibration import cascade_logits, cascade_weights, pooled_probabilities
from utils.measuring.picture import frontier_figure
from utils.measuring.thresholds import (
    Candidate,
    Results,
    StageResults,
    candidates,
    cascades,
    check_order,
    choose,
    frontier,
    single_models,
)
from utils.measuring.timing import aligned_table, evenly_spaced, timed_in_turns
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from utils.predictor.cpus import usable_cpus
from utils.predictor.folder import StageFolder, check_stages_fit, is_cascade, read_stages
from utils.predictor.lines import read_lines
from utils.predictor.model import Predictor, confidence
from utils.predictor.tokens import Text, TokenRow
from utils.system.bars import progress_bar
from utils.system.cli import run_script
from utils.system.errors import UserError
from utils.system.machine import describe_machine
from utils.training.metrics import given_labels

logger = logging.getLogger(__name__)

MOST_UNLABELLED = 5_000  # rows, the first ones
SHOWN = 15  # rows of the frontier's table

# What a cascade is to reach: how its number is read, and what is taken.
AIMS: dict[str, tuple[Callable[[str], float], str]] = {
    "max_accuracy_drop": (nonnegative_float, "accuracy that it may cost, of 1; then fastest"),
    "max_asked": (fraction, "share of rows to pass on; then the most accurate"),
    "target_speedup": (positive_float, "over the last model; then the most accurate"),
    "max_slowdown": (positive_float, "mean time, of the first model's; then the most accurate"),
}

# Of every cascade, and each model alone, by its stages' numbers: temperature and weight of each, as `cascade_weights`.
Weights = dict[tuple[int, ...], list[tuple[float, float]]]


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("stages", metavar="MODEL_DIR", nargs="+", help="two or more model folders, fastest first")
    add_text_options(parser)
    add_column_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir", action="append", required=True, help="folder for the cascade; given again, for the next one"
    )
    group = parser.add_argument_group("aim (one of them; of several cascades, one for each, in the same order)")
    for name, (kind, text) in AIMS.items():
        group.add_argument(f"--{name}", dest="aims", action="append", type=aim(name, kind), metavar="NUMBER", help=text)
    group = parser.add_argument_group("hardware")
    group.add_argument("--num_threads", type=positive_int, default=usable_cpus(), help="CPU threads of each stage")
    args = parser.parse_args()
    if not args.aims:
        parser.error(f"one of the arguments {' '.join(f'--{name}' for name in AIMS)} is required")
    return args


def aim(name: str, kind: Callable[[str], float]) -> Callable[[str], tuple[str, float]]:
    """An argparse type: one of `AIMS`, with its number."""

    @wraps(kind)  # whose name argparse says where it refuses a value
    def parse(text: str) -> tuple[str, float]:
        return name, kind(text)

    return parse


def open_models(paths: list[str], num_threads: int) -> tuple[list[StageFolder], list[Predictor]]:
    """The folders of the stages, and the models.

    Raises:
        UserError: there are fewer than two, one is named twice, or is damaged or no model's, or they do not fit, or
            give scores.
    """
    if len(paths) < 2:
        raise UserError(f"a cascade of {paths[0]} alone: name two or more folders, fastest first")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"the stages {', '.join(paths)} are not all different: name each folder once")
    for path in paths:
        if is_cascade(path):
            raise UserError(f"{path} is a cascade itself: name the folders of its stages")
    folders = [read_stages(path)[0][0] for path in paths]
    check_stages_fit([folder.model for folder in folders])
    if folders[0].model.problem_type == TASKS[REGRESSION]:
        raise UserError(
            f"{paths[0]} gives scores, which do not say how sure they are, so that no cascade can be made of it: use "
            "one of the models alone"
        )
    return folders, [Predictor(path, num_threads) for path in paths]


def read_valid(data_dir: Path, columns: Columns, labels: list[str]) -> tuple[list[Text], np.ndarray]:
    """The texts of valid, and their labels as of `answer_ids`, int [rows].

    Raises:
        UserError: as `read_rows`, or a label is not one of `labels`, or all rows have the same.
    """
    path = split_path(data_dir, "valid")
    rows = labelled_texts(path, columns)
    own_labels = [
        several_labels(label, columns, f"{path}, row {number}") if columns.task == MULTI_LABEL else [label]
        for number, (_, label) in enumerate(rows, start=1)
    ]
    for number, own in enumerate(own_labels, start=1):
        if unknown := [label for label in own if label not in labels]:
            raise UserError(
                f"{path}, row {number}: the models have no label {unknown[0]!r}, they have {', '.join(labels[:4])}"
                f"{', ...' * (len(labels) > 4)}: name the data set that they were trained on"
            )
    if len({label for _, label in rows}) == 1:
        raise UserError(f"{path} has rows of one label only, {rows[0][1]!r}: it needs some of each")
    given = np.array([[label in own for label in labels] for own in own_labels])
    return [text for text, _ in rows], answer_ids(given)


def answer_ids(given: np.ndarray) -> np.ndarray:
    """A number for each row's labels, int [rows]: the same for the same ones. Of one label it is its id.

    Args:
        given: which labels a row has, bool [rows, labels].
    """
    ids = given.argmax(1)
    for row in np.flatnonzero(given.sum(1) != 1).tolist():
        # Behind those of the single labels, whatever rows are numbered together.
        ids[row] = given.shape[1] + int.from_bytes(hashlib.blake2b(given[row].tobytes(), digest_size=7).digest())
    return ids


def read_unlabelled(data_dir: Path, columns: Columns, model: Predictor) -> list[Text]:
    """The first `MOST_UNLABELLED` texts without labels; none where the data folder has no such file."""
    path = split_path(data_dir, UNLABELLED)
    if not path.exists():
        return []
    if has_columns(path):
        return list(itertools.islice(read_columns(path, columns.texts, model.texts_a_row), MOST_UNLABELLED))
    with open(path, "rb") as file:
        texts = read_lines(file, str(path), columns.texts, model.texts_a_row, model.labels)
        return list(itertools.islice(texts, MOST_UNLABELLED))


def measure_stages(models: list[Predictor], texts: list[Text]) -> tuple[list[np.ndarray], np.ndarray]:
    """Every stage's logits [rows, labels], and its milliseconds of each row, float [stages, rows]."""
    rows = [model.encode(texts) for model in models]
    engines: list[Callable] = [partial(stage_logits, model) for model in models]
    logits, milliseconds = timed_in_turns(engines, [own.__getitem__ for own in rows], len(texts))
    return logits, np.array([np.concatenate(turns) for turns in milliseconds])


def stage_logits(model: Predictor, row: TokenRow) -> np.ndarray:
    """A model's logits [1, labels] of one row."""
    return model.run([row], [], 1)[0]


def fitted_weights(logits: list[np.ndarray], true: np.ndarray, task: str) -> Weights:
    """The temperatures and weights of every cascade's stages, and of each model alone, as of `cascade_weights`.

    Where a text has any number of labels, whose thresholds go by the probabilities as they are, nothing is changed.
    """
    every = [*((number,) for number in range(len(logits))), *cascades(len(logits))]
    if task != SINGLE_LABEL:
        return {members: [(1.0, 0.0)] * len(members) for members in every}
    return {members: cascade_weights([logits[number] for number in members], true) for members in every}


def stage_results(
    models: list[Predictor],
    logits: list[np.ndarray],
    weights: Weights,
    milliseconds: np.ndarray,
    right: Callable[[np.ndarray], np.ndarray],
) -> Results:
    """What the stages of every cascade, and each model alone, say of rows.

    Args:
        logits: of each model, [rows, labels].
        milliseconds: of each model, [models, rows].
        right: gives the probability that answers, int [rows], are right.
    """
    results = {}
    for members, own_weights in weights.items():
        sure, answers = [], []
        combined = cascade_logits([logits[number] for number in members], own_weights)
        for model, scores in zip([models[number] for number in members], combined, strict=True):
            sure.append(confidence(scores, model.problem_type, model.thresholds[0]))
            several = model.problem_type == TASKS[MULTI_LABEL]
            answers.append(answer_ids(given_labels(scores, model.thresholds[0])) if several else scores.argmax(1))
        right_answers = np.array([right(own) for own in answers])
        results[members] = StageResults(np.array(sure), np.array(answers), milliseconds[list(members)], right_answers)
    return results


def unlabelled_results(models: list[Predictor], texts: list[Text], weights: Weights) -> Results | None:
    """As `stage_results`, without times; None where there are no texts."""
    if not texts:
        return None
    logits = [
        model.run(model.encode(texts), [], 16)[0] for model in progress_bar(models, desc="unlabelled", unit="stage")
    ]
    zeros = np.zeros((len(models), len(texts)))
    return stage_results(models, logits, weights, zeros, right=lambda answers: zeros[0])


def probability_right(logits: list[np.ndarray], true: np.ndarray, task: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function of answers, int [rows], that says how probable it is, by all models together, that they are right.

    Of several labels a row it is what was seen, 0 or 1.
    """
    if task != SINGLE_LABEL:
        return lambda answers: (answers == true).astype(np.float64)
    probabilities = pooled_probabilities(np.array(logits), true)
    return lambda answers: probabilities[np.arange(len(true)), answers]


def asked_stages(one: Candidate) -> list[tuple[int, float]]:
    """The numbers of a cascade's stages, and their thresholds, the last one's 0.

    A stage whose threshold is 0 answers all that it is asked: those behind it, but the second, are left out.
    """
    thresholds = [*one.thresholds, 0.0]
    return list(zip(one.members, thresholds, strict=True))[: max(2, thresholds.index(0.0) + 1)]


def stage_names(one: Candidate, names: list[str]) -> str:
    """The stages of a cascade, with their thresholds, as text."""
    *others, (last, _) = asked_stages(one)
    return "".join(f"{names[number]} {threshold:.4f} > " for number, threshold in others) + names[last]


def table(names: list[str], shown: list[Candidate], chosen: Candidate, accuracy: str) -> str:
    """Models alone and cascades as aligned text; `accuracy` is what it is called."""
    rows = [
        [
            stage_names(one, names),
            " ".join(f"{100 * share:.0f}" for share in one.shares[: len(asked_stages(one))]),
            f"{one.accuracy:.4f}",
            f"{one.expected:.4f}",
            "-".join(f"{limit:.3f}" for limit in one.accuracy_range),
            f"{one.difference:+.4f}",
            f"{one.lowest_difference:+.4f}",
            "" if one.disagreement is None else f"{100 * one.disagreement:.1f}",
            f"{one.mean_ms:.3f}",
            f"{one.p50_ms:.3f}",
            f"{one.p99_ms:.3f}",
            "*" * (one == chosen),
        ]
        for one in shown
    ]
    header = ["stages, with thresholds", "% answered", accuracy, "expected", "95 % range", "difference", "at least"]
    return aligned_table([*header, "% changed", "mean ms", "p50 ms", "p99 ms", "chosen"], rows)


def sentences(chosen: Candidate, singles: list[Candidate], names: list[str], num_rows: int) -> tuple[str, str | None]:
    """What was chosen and how sure it is; and, where one model alone does as well, that it does."""
    last = singles[-1]
    rule = (
        f"{stage_names(chosen, names)}: on {num_rows} rows of valid {100 * chosen.asked:.1f} % are passed on, accuracy "
        f"{chosen.accuracy:.4f} ({chosen.difference:+.4f} against {names[-1]}, in 95 % of the resamples at least "
        f"{chosen.lowest_difference:+.4f}), {last.mean_ms / chosen.mean_ms:.2f} times as fast as {names[-1]}"
    )
    for name, single in zip(names, singles, strict=True):
        if single.expected >= chosen.expected and single.mean_ms <= chosen.mean_ms:
            return rule, (
                f"{name} alone ({single.expected:.4f}, {single.mean_ms:.3f} ms) is as accurate and as fast as this "
                f"cascade ({chosen.expected:.4f}, {chosen.mean_ms:.3f} ms)"
            )
    return rule, None


def write_result(
    path: str,
    stages: list[StageFolder],
    measured: list[Candidate],
    singles: list[Candidate],
    chosen: Candidate,
    names: list[str],
    machine: dict[str, object],
    num_rows: int,
) -> None:
    """Print the frontier, say what was chosen, and write the cascade's folder."""
    best = frontier(measured)
    thinned = {best[i] for i in evenly_spaced(SHOWN, len(best))} | {chosen}
    accuracy = "subset accuracy" if stages[0].model.problem_type == TASKS[MULTI_LABEL] else "accuracy"
    text = table(names, [*singles, *sorted(thinned, key=lambda one: one.mean_ms)], chosen, accuracy)
    print(text)
    rule, alone_is_enough = sentences(chosen, singles, names, num_rows)
    logger.info("[Chosen] : %s", rule)
    if alone_is_enough:
        logger.warning("[Not worth it] : %s", alone_is_enough)
    unused = [name for number, name in enumerate(names) if number not in dict(asked_stages(chosen))]
    if unused:
        logger.info("[Left out] : %s, without which it is better", ", ".join(unused))
    alone = {name: asdict(one) for name, one in zip(names, singles, strict=True)}
    details = {"chosen": asdict(chosen), "models": alone, "frontier": [asdict(one) for one in best]}
    points = [(name, one.mean_ms, 100 * one.expected) for name, one in zip(names, singles, strict=True)]
    line = [(one.mean_ms, 100 * one.expected) for one in best]
    figure = frontier_figure(points, line, (chosen.mean_ms, 100 * chosen.expected), f"expected {accuracy}")
    origin = {"machine": machine, "rows": num_rows, "asked": chosen.asked}
    write_cascade_dir(path, stages, origin, rule, text, details, figure)


def main() -> None:
    args = parse_args()
    data_dir = Path(args.data_dir)
    if len(args.output_dir) != len(args.aims):
        raise UserError(
            f"--output_dir is given {len(args.output_dir)} time(s) but an aim {len(args.aims)}: give one folder for "
            "each aim, in the same order"
        )
    check_cascade_dirs(args.output_dir, args.stages, "--output_dir")
    folders, models = open_models(args.stages, args.num_threads)
    task = {problem_type: name for name, problem_type in TASKS.items()}[models[0].problem_type]
    columns = text_columns(args, task)
    names = [folder.model.path.name for folder in folders]
    texts, true = read_valid(data_dir, columns, models[0].labels)
    unlabelled_texts = read_unlabelled(data_dir, columns, models[0])

    logits, milliseconds = measure_stages(models, texts)
    weights = fitted_weights(logits, true, task)
    results = stage_results(models, logits, weights, milliseconds, probability_right(logits, true, task))
    singles = single_models(results, true)
    for warning in check_order(names, singles):
        logger.warning("[Order] : %s", warning)
    measured = candidates(results, true, unlabelled_results(models, unlabelled_texts, weights))
    choices = [choose(measured, singles[-1].mean_ms, **{name: number}) for name, number in args.aims]

    machine = describe_machine() | {"num_threads": args.num_threads}
    for output_dir, chosen in zip(args.output_dir, choices, strict=True):
        stages = [
            StageFolder(folders[number].model, temperature, threshold, previous_weight)
            for (number, threshold), (temperature, previous_weight) in zip(
                asked_stages(chosen), weights[chosen.members], strict=False
            )  # the weights of stages that are never asked are left over
        ]
        write_result(output_dir, stages, measured, singles, chosen, names, machine, len(true))


if __name__ == "__main__":
    run_script(main)
