"""The tables of docs/results.md: SST-2's ladder, as report.py measured it, and the accuracy of every row that
benchmarks/sst2.sh has scored; the latter into results/sst2/accuracy.json as well.

    python -m benchmarks.sst2_table
"""

import json
import re
import statistics
from pathlib import Path

from benchmarks.targets import at_least, print_targets
from utils.measuring.ladder import markdown_table, rung_from_json
from utils.system.files import atomic_file, write_json

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "results/sst2/accuracy"

# name of benchmarks/sst2.sh: what it is, and what the recipe that this project follows published of its models
COMPARED = {
    "larger": ("larger teacher: MPNet, 12 layers of 768", "-"),
    "alone": ("6 layers, trained on the labels alone", "0.9116"),
    "teacher": ("teacher: 6 layers, taught by the larger one, with augmented rows", "-"),
    "teacher-plain": ("the same without augmented rows", "-"),
    "labels": ("student of 3 layers, trained on the labels alone", "0.8693"),
    "soft-by-loss": ("distilled: soft cross-entropy, best by loss", "0.8863"),
    "soft": ("distilled: soft cross-entropy, best by accuracy", "0.8869"),
    "mse": ("distilled: MSE of the logits, best by accuracy", "0.8929"),
    "mse-then-labels": ("the same, then trained on the labels", "-"),
    "states": ("distilled: MSE of the teacher's logits and hidden states", "later 0.9072"),
    "states-then-labels": ("the same, then trained on the labels", "-"),
    "augmented": ("MSE of logits and hidden states, then the same with variants of sentences", "later 0.9149"),
    "augmented-then-labels": ("the same, then trained on the labels", "-"),
    "augmented-then-larger": ("or then taught the larger teacher's logits, with the same variants", "-"),
    "augmented-at-once": ("MSE of logits and hidden states, with variants of all rows", "-"),
    "augmented-logits": ("distilled: MSE of the larger teacher's logits, with augmented rows", "-"),
    "mse-of-alone": ("distilled: MSE, from the 6 layers trained on the labels alone", "-"),
    "texts-6": ("6 layers, taught by the larger teacher, with unlabelled texts", "-"),
    "texts-3": ("3 layers, taught by the larger teacher, with unlabelled texts", "later 0.9149"),
    "texts-2": ("2 layers of 4 heads and 128 neurons, the same", "-"),
    "more-texts-6": ("the 6 layers, then taught with texts of long reviews, too", "-"),
    "more-texts-3": ("3 layers of these, the same", "-"),
    "more-texts-2": ("2 layers of 4 heads and 128 neurons of these, the same", "-"),
    "few-larger": ("1,000 labels: the larger teacher", "-"),
    "few-alone": ("1,000 labels: its student of 3 layers, from the same rows", "-"),
    "few-texts": ("1,000 labels: the same with the other rows' texts", "-"),
    "few-three-6": ("1,000 labels: 6 layers, taught by the mean of three larger teachers, with these texts", "-"),
    "few-three-3": ("1,000 labels: 3 layers of these, the same", "-"),
    "few-self": ("1,000 labels: a larger teacher that learnt these three's answers to these texts", "-"),
    "few-self-6": ("1,000 labels: 6 layers, taught by this one, with these texts", "-"),
    "few-self-3": ("1,000 labels: 3 layers of these, the same", "-"),
}
# 3 layers of the plain encoder, taught by the larger teacher where nothing else is said.
STEPS = {
    "steps-train": "`train.txt` alone",
    "steps-augmented": "and a variant of each row",
    "steps-texts": "and 74,320 sentences of critics",
    "steps-texts-of-6-layers": "the same, taught by 6 layers that were trained on the labels alone",
    "steps-other-texts": "and 61,713 sentences of long film reviews",
    "steps-other-domains": "and 13,098 tweets, product reviews and editorials",
}
ABLATIONS = {
    "short": "MSE, layers 1, 3, 5 of 6, taught by the larger teacher, no dropout",
    "frozen": "with embeddings frozen",
    "dropout": "with dropout 0.1",
    "soft-1": "soft cross-entropy",
    "soft-4": "soft cross-entropy at temperature 4",
    "label-mix": "MSE and half the labels' cross-entropy",
    "layers-0.2.4": "layers 0, 2, 4",
    "layers-0.1.2": "layers 0, 1, 2",
    "layers-3.4.5": "layers 3, 4, 5",
    "untuned": "layers 1, 3, 5 of the encoder before it was fine-tuned",
    "short-of-6-layers": "MSE, taught by the 6 layers it starts from",
    "short-states": "the same, and hidden states of all layers",
    "relations": "MSE of the 6 layers' logits, and MiniLMv2's relations",
}
THEIR_TEACHER = 42  # the seed of the teacher that all students with hidden states learn from
AS_GOOD_AS_TEACHER = ["augmented-then-labels", "augmented-then-larger"]
TARGETS = {"teacher": 0.9116, "states": 0.9050, "augmented-then-labels": 0.9149, "augmented-then-larger": 0.9149}
TARGETS |= {"texts-6": 0.930, "texts-3": 0.922, "texts-2": 0.908, "more-texts-6": 0.930, "more-texts-2": 0.908}


def read_scores() -> dict[str, dict[str, dict[int, float]]]:
    """{row: {split: {seed: accuracy}}} of all rows that are there."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for path in sorted(ROWS.glob("*.json")):
        name, split, _ = path.name.rsplit(".", 2)
        row, seed = name.rsplit("-", 1)
        accuracy = json.loads(path.read_text())["accuracy"]
        scores.setdefault(row, {}).setdefault(split, {})[int(seed)] = accuracy
    return scores


def shown(accuracies: dict[int, float]) -> str:
    """Mean and spread of seeds."""
    values = list(accuracies.values())
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def markdown(scores: dict) -> str:
    """The rows that are there, as two Markdown tables."""
    lines = ["| | published | valid | test | seeds |", "|---|---|---|---|---|"]
    for row, (what, published) in COMPARED.items():
        if row in scores:
            valid, test = scores[row]["valid"], scores[row]["test"]
            lines.append(f"| {what} | {published} | {shown(valid)} | {shown(test)} | {len(test)} |")
    for title, rows in (("2,100 steps, one seed", STEPS), ("2 epochs, one seed", ABLATIONS)):
        there = {row: what for row, what in rows.items() if row in scores}
        if there:
            lines += ["", f"| {title} | valid | test |", "|---|---|---|"]
        for row, what in there.items():
            lines.append(f"| {what} | {shown(scores[row]['valid'])} | {shown(scores[row]['test'])} |")
    return "\n".join(lines) + "\n"


def target(name: str, scores: dict, row: str, needs: float) -> dict:
    """Whether a row's mean test accuracy is what it is to be, of 3 seeds."""
    tests = list(scores[row]["test"].values())
    result = at_least(f"{name}_of_{len(tests)}_seeds", statistics.mean(tests), needs)
    return result | {"met": result["met"] and len(tests) >= 3}


def between_marks(text: str, name: str, table: str) -> str:
    """`text` with `table` in the place of what is between <!-- NAME --> and <!-- /NAME -->."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return marks.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", text)


def read_rungs() -> list[dict]:
    """The rungs of the ladder that report.py measured on SST-2."""
    return json.loads((ROOT / "results/sst2/ladder.json").read_text(encoding="utf-8"))["rungs"]


def ladder_table(rungs: list[dict]) -> str:
    """The ladder in Markdown."""
    return markdown_table([rung_from_json(rung) for rung in rungs], baseline=False, failures=[])


def ladder_targets(rungs: list[dict]) -> list[dict]:
    """FastFormers' own mark, 233.87 times as fast with 1.2 points lost, of a larger teacher at 0.9506."""
    (cascade,) = [rung for rung in rungs if rung["name"] == "cascade, which asks rarely"]
    marks = {"speedup": 233.87, "accuracy": 0.9386}
    return [at_least(f"cascade_{key}", cascade[key], needs) for key, needs in marks.items()]


def main() -> None:
    scores, rungs = read_scores(), read_rungs()
    table = markdown(scores)
    print(table)
    page = ROOT / "docs/results.md"
    with atomic_file(page) as temporary:
        text = between_marks(page.read_text(encoding="utf-8"), "ladder", ladder_table(rungs))
        temporary.write_text(between_marks(text, "accuracy", table), "utf-8")
    targets = [target(f"{row}_accuracy", scores, row, needs) for row, needs in TARGETS.items() if row in scores]
    teachers = scores.get("teacher", {}).get("test", {})
    bars = {"their_teacher": teachers[THEIR_TEACHER]} if THEIR_TEACHER in teachers else {}
    if teachers:
        bars["mean_teacher"] = statistics.mean(teachers.values())
    targets += [
        target(f"{row}_as_good_as_{bar}", scores, row, needs)
        for row in AS_GOOD_AS_TEACHER
        if row in scores
        for bar, needs in bars.items()
    ]
    if "mse" in scores:
        within = statistics.mean(scores["mse"]["test"].values()) - 0.01
        targets += [
            target(f"{row}_within_a_point_of_all_labels", scores, row, within)
            for row in ("few-texts", "few-three-3", "few-self-3")
            if row in scores
        ]
    targets += ladder_targets(rungs)
    # The machine, versions and commit of every row are in its own file.
    write_json(ROOT / "results/sst2/accuracy.json", {"accuracy": scores, "targets": targets})
    print_targets(targets)


if __name__ == "__main__":
    main()
