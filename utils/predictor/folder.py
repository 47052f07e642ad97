"""What a folder of quantize.py or cascade.py says of itself, every file checked."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError, check_fetched, first_line

GRAPH, UNPADDED_GRAPH, WEIGHTS, TOKENIZER = "model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json"
AGAIN, CASCADE_AGAIN = "write it again with quantize.py", "write it again with cascade.py"
NOT_ONE = "name a folder that quantize.py --output_dir wrote"


class ModelFolder(NamedTuple):
    """A folder of one model."""

    path: Path
    labels: list[str]  # in the order of their ids
    n_ctx: int
    texts_a_row: int | None  # 1, or 2 for pairs; None where it does not say
    hashes: dict[str, str]  # SHA-256 of every other file that is needed, by its name
    problem_type: str = "single_label_classification"  # transformers' name of the task
    thresholds: tuple[float, ...] = ()  # of any number of labels: the probability above which each is given
    separator: str = "|"  # between these labels in one text

    @property
    def graph(self) -> Path:
        """The graph of rows without padding, where there is one, or the one for all."""
        return self.path / (UNPADDED_GRAPH if UNPADDED_GRAPH in self.hashes else GRAPH)

    @property
    def tokenization(self) -> tuple[str, int]:
        """What decides the tokens of a text: folders in which this is the same share them."""
        return self.hashes[TOKENIZER], self.n_ctx


class StageFolder(NamedTuple):
    """A model, and when its answer counts.

    Its logits are divided by `temperature`, and those of the stage before it, which came about likewise, are added,
    times `previous_weight`. The most probable label's probability must then be above `threshold`; the last one always
    answers, with 0.
    """

    model: ModelFolder
    temperature: float = 1.0
    threshold: float = 0.0
    previous_weight: float = 0.0


def own_folder() -> Path:
    """The folder that holds this package; where that is a link from elsewhere, the one that holds the real package."""
    folder = Path(__file__).absolute().parents[1]
    return folder if (folder / "config.json").exists() else Path(__file__).resolve().parents[1]


def read_stages(path: str | Path) -> tuple[list[StageFolder], bool]:
    """The stages of a cascade, or the one of a model's folder, every file checked; and whether it is a cascade.

    Raises:
        UserError: a file is missing, damaged or of another model, or what it says is impossible.
    """
    folder = Path(path)
    config, own = _read_config(folder)
    if "cascade" not in own:
        return [StageFolder(_read_model(folder))], False
    path, stages, hashes = folder / "config.json", own["cascade"], own.get("files")
    if not isinstance(stages, list) or not stages or not isinstance(hashes, dict):
        raise UserError(f"{path}: fastformers.cascade must list the stages, and files their hashes: {CASCADE_AGAIN}")
    read: list[StageFolder] = []
    for number, stage in enumerate(stages):
        entry: Any = stage if isinstance(stage, dict) else {}
        name, temperature, threshold = entry.get("folder"), entry.get("temperature"), entry.get("threshold")
        weight = entry.get("previous_weight", 0)
        fault = ""
        if not isinstance(name, str) or Path(name).name != name or f"{name}/config.json" not in hashes:
            fault = "must name a folder in this one"
        elif type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
            fault = f"has temperature {temperature!r}, not above 0"
        elif type(threshold) not in (int, float) or not 0 <= threshold <= 1:
            fault = f"has threshold {threshold!r}, not from 0 to 1"
        elif type(weight) not in (int, float) or not 0 <= weight < float("inf"):
            fault = f"has previous_weight {weight!r}, not 0 or more"
        elif weight and not number:
            fault = f"has previous_weight {weight!r}, but there is none before it"
        if fault:
            raise UserError(f"{path}: stage {number} {fault}: {CASCADE_AGAIN}")
        _check_file(folder / name / "config.json", hashes[f"{name}/config.json"], CASCADE_AGAIN)
        is_last = number == len(stages) - 1
        read.append(StageFolder(_read_model(folder / name), temperature, 0.0 if is_last else threshold, weight))
    check_stages_fit([stage.model for stage in read])
    return read, True


def is_cascade(path: str | Path) -> bool:
    """Tell whether a folder is a cascade's; False for a file, and for any other folder."""
    try:
        return "cascade" in _read_config(Path(path))[1]
    except UserError:
        return False


def check_stages_fit(models: list[ModelFolder]) -> None:
    """Check that models have the same labels in the same order, and take as many texts a row.

    Raises:
        UserError: they do not; names the folders.
    """
    first, same = models[0], "use models that were trained on the same data set"
    for other in models[1:]:
        if other.labels != first.labels:
            order = " in another order" if sorted(other.labels) == sorted(first.labels) else ""
            few = "; ".join(", ".join(m.labels[:4]) + ", ..." * (len(m.labels) > 4) for m in (other, first))
            raise UserError(f"{other.path} has other labels than {first.path}{order} ({few}): {same}")
        if None not in (other.texts_a_row, first.texts_a_row) and other.texts_a_row != first.texts_a_row:
            takes = f"takes {other.texts_a_row} text(s) a row but {first.path} takes {first.texts_a_row}"
            raise UserError(f"{other.path} {takes}: {same}")
        if other.problem_type != first.problem_type:
            raise UserError(
                f"{other.path} is for {other.problem_type} but {first.path} for {first.problem_type}: {same}"
            )


def _read_model(folder: Path) -> ModelFolder:
    config, own = _read_config(folder)
    names: Any = config.get("id2label")
    labels: list[Any] = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else []
    n_ctx, texts_a_row, hashes = own.get("n_ctx"), own.get("texts"), own.get("files")
    separator, thresholds = own.get("label_separator", "|"), own.get("thresholds")
    positions = config.get("max_position_embeddings")
    fault = ""
    if not labels or len({label for label in labels if isinstance(label, str)}) < len(labels):
        fault = "id2label must name every id from 0 on, each differently"
    elif not isinstance(hashes, dict) or not {GRAPH, TOKENIZER} <= hashes.keys():
        fault = f"fastformers.files must list {GRAPH} and {TOKENIZER}"
    elif any(Path(name).name != name for name in hashes):
        fault = "fastformers.files must be names of files in this folder"
    elif type(n_ctx) is not int or n_ctx < 4 or (isinstance(positions, int) and n_ctx > positions):
        fault = f"fastformers.n_ctx is {n_ctx!r}, below 4 or more than the model has positions"
    elif texts_a_row not in (None, 1, 2):
        fault = f"fastformers.texts is {texts_a_row!r}, neither 1 nor 2"
    elif not isinstance(separator, str) or not separator:
        fault = "fastformers.label_separator must be text"
    elif thresholds is not None and not _are_thresholds(thresholds, labels):
        fault = "fastformers.thresholds must have a number between 0 and 1 for each label"
    if fault:
        raise UserError(f"{folder / 'config.json'}: {fault}: {AGAIN}")
    for name, sha256 in hashes.items():
        _check_file(folder / name, sha256)
    problem_type = config.get("problem_type") or "single_label_classification"
    limits = tuple((thresholds or {}).get(label, 0.5) for label in labels)
    return ModelFolder(folder, labels, n_ctx, texts_a_row, hashes, problem_type, limits, separator)


def _are_thresholds(thresholds: Any, labels: list[str]) -> bool:
    return (
        isinstance(thresholds, dict)
        and thresholds.keys() == set(labels)
        and all(type(value) in (int, float) and 0 < value < 1 for value in thresholds.values())
    )


def _read_config(folder: Path) -> tuple[dict, Any]:
    """config.json, and the part of it, a dictionary, that quantize.py or cascade.py added."""
    path = folder / "config.json"
    check_fetched(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {NOT_ONE}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {AGAIN}") from error
    if not isinstance(config, dict) or "fastformers" not in config:
        raise UserError(f"{path} does not belong to a model folder: {NOT_ONE}")
    return config, config["fastformers"] if isinstance(config["fastformers"], dict) else {}


def _check_file(path: Path, sha256: str, mend: str = AGAIN) -> None:
    # Before anything parses it: damaged weights or another model's tokenizer would give wrong labels without an error.
    check_fetched(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {mend}") from error
    if digest != sha256:
        raise UserError(f"{path} is damaged or of another model: {mend}")
