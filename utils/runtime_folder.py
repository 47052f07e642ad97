"""What a folder to deploy says of itself, and checks that its files are what it says.

Two kinds: a model's, by quantize.py, and a cascade's, by cascade.py, which holds a model's folder for each stage.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from tokenizers import Tokenizer

from utils.system.errors import UserError, first_line
from utils.system.placeholders import check_fetched

GRAPH, UNPADDED_GRAPH, WEIGHTS, TOKENIZER = "model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json"
AGAIN = "write it again with quantize.py"
CASCADE_AGAIN = "write it again with cascade.py"
NOT_ONE = "name a folder that quantize.py --output_dir wrote"


class ModelFolder(NamedTuple):
    """A folder of one model."""

    path: Path
    labels: list[str]  # in the order of their ids
    n_ctx: int
    texts_a_row: int | None  # 1, or 2 for pairs; None where it does not say
    hashes: dict[str, str]  # SHA-256 of every other file that is needed, by its name

    @property
    def graph(self) -> Path:
        """The graph of rows without padding, where there is one, or the one for all."""
        return self.path / (UNPADDED_GRAPH if UNPADDED_GRAPH in self.hashes else GRAPH)

    @property
    def tokenization(self) -> tuple[str, int]:
        """What decides the tokens of a text: folders in which this is the same share them."""
        return self.hashes[TOKENIZER], self.n_ctx


class StageFolder(NamedTuple):
    """A model, and when its answer counts: its logits are divided by `temperature`, and the most probable label's
    probability must then be above `threshold`. The last one always answers, with 0."""

    model: ModelFolder
    temperature: float
    threshold: float


def read_stages(path: str | Path) -> tuple[list[StageFolder], bool]:
    """The stages of a cascade, or the one of a model's folder, every file checked; and whether it is a cascade.

    Raises:
        UserError: a file is missing, damaged or of another model, or what it says is impossible.
    """
    folder = Path(path)
    config = _read_json(folder / "config.json")
    own = config["fastformers"] if isinstance(config["fastformers"], dict) else {}
    stages = own.get("cascade")
    if stages is None:
        return [StageFolder(_read_model(folder, config), 1.0, 0.0)], False
    return _read_cascade(folder, stages, own.get("files")), True


def is_cascade(path: str | Path) -> bool:
    """Tell whether a folder is a cascade's; False for a file, and for any other folder."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return "cascade" in config["fastformers"]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        UserError: it is none.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise UserError(f"{path} is not a usable tokenizer ({first_line(error)}): {AGAIN}") from error


def _read_cascade(folder: Path, stages: Any, hashes: Any) -> list[StageFolder]:
    path = folder / "config.json"
    if not isinstance(stages, list) or not stages or not isinstance(hashes, dict):
        raise UserError(f"{path}: fastformers.cascade must list the stages, and files their hashes: {CASCADE_AGAIN}")
    read: list[StageFolder] = []
    for number, stage in enumerate(stages):
        entry: dict[str, Any] = stage if isinstance(stage, dict) else {}
        name, temperature, threshold = entry.get("folder"), entry.get("temperature"), entry.get("threshold")
        if not isinstance(name, str) or Path(name).name != name or f"{name}/config.json" not in hashes:
            raise UserError(f"{path}: stage {number} must name a folder in this one: {CASCADE_AGAIN}")
        if not _is_number(temperature) or not 0 < temperature < float("inf"):
            raise UserError(f"{path}: stage {number} has temperature {temperature!r}, not above 0: {CASCADE_AGAIN}")
        if not _is_number(threshold) or not 0 <= threshold <= 1:
            raise UserError(f"{path}: stage {number} has threshold {threshold!r}, not from 0 to 1: {CASCADE_AGAIN}")
        _check_file(folder / name / "config.json", hashes[f"{name}/config.json"], CASCADE_AGAIN)
        model = _read_model(folder / name, _read_json(folder / name / "config.json"))
        is_last = number == len(stages) - 1
        read.append(StageFolder(model, float(temperature), 0.0 if is_last else float(threshold)))
    check_stages_fit([stage.model for stage in read])
    return read


def check_stages_fit(models: list[ModelFolder]) -> None:
    """Check that models have the same labels in the same order, and take as many texts a row.

    Raises:
        UserError: they do not; names the folders.
    """
    first = models[0]
    for other in models[1:]:
        if other.labels != first.labels:
            order = " in another order" if sorted(other.labels) == sorted(first.labels) else ""
            raise UserError(
                f"{other.path} has other labels than {first.path}{order} ({_few(other.labels)}; {_few(first.labels)}): "
                "use models that were trained on the same data set"
            )
        if None not in (other.texts_a_row, first.texts_a_row) and other.texts_a_row != first.texts_a_row:
            raise UserError(
                f"{other.path} takes {other.texts_a_row} text(s) a row but {first.path} takes {first.texts_a_row}: use "
                "models that were trained on the same data set"
            )


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)


def _few(labels: list[str]) -> str:
    return ", ".join(labels[:4]) + ", ..." * (len(labels) > 4)


def _read_json(path: Path) -> dict:
    check_fetched(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {NOT_ONE}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {AGAIN}") from error
    if not isinstance(config, dict) or "fastformers" not in config:
        raise UserError(f"{path} does not belong to a model folder: {NOT_ONE}")
    return config


def _read_model(folder: Path, config: dict) -> ModelFolder:
    path = folder / "config.json"
    names = config.get("id2label")
    values = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else []
    labels = [label for label in values if isinstance(label, str)]
    if not values or len(set(labels)) < len(values):
        raise UserError(f"{path}: id2label must name every id from 0 on, each differently: {AGAIN}")
    own = config["fastformers"] if isinstance(config["fastformers"], dict) else {}
    n_ctx, texts_a_row, hashes = own.get("n_ctx"), own.get("texts"), own.get("files")
    if not isinstance(hashes, dict) or not {GRAPH, TOKENIZER} <= hashes.keys():
        raise UserError(f"{path}: fastformers.files must list {GRAPH} and {TOKENIZER}: {AGAIN}")
    if any(Path(name).name != name for name in hashes):
        raise UserError(f"{path}: fastformers.files must be names of files in this folder: {AGAIN}")
    positions = config.get("max_position_embeddings")
    if type(n_ctx) is not int or n_ctx < 4 or (isinstance(positions, int) and n_ctx > positions):
        raise UserError(
            f"{path}: fastformers.n_ctx is {n_ctx!r}, below 4 or more than the model has positions: {AGAIN}"
        )
    if texts_a_row not in (None, 1, 2):
        raise UserError(f"{path}: fastformers.texts is {texts_a_row!r}, neither 1 nor 2: {AGAIN}")
    for name, sha256 in hashes.items():
        _check_file(folder / name, sha256)
    return ModelFolder(folder, labels, n_ctx, texts_a_row, hashes)


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
