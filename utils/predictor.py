"""Label texts with the model in this file's folder, which quantize.py or cascade.py of FastFormers wrote.

    python my-model/predictor.py < texts.txt

Each line of standard input is a text, or text_a<TAB>text_b where the model was trained on pairs, in UTF-8. Each gets a
line on standard output: label<TAB>probability, or, as jsonl, {"label": ..., "probabilities": {...}} with every label's,
of a cascade also {"stage": ...}, the number of the model that answered, from 0. A line is answered before the next one
is read; --batch_size=64 reads and answers 64 at a time, which is faster. With --min_probability=0.8 each line says
further whether the label's probability is at least that: sure or unsure, or, as jsonl, {"sure": true} or false.
Where a text has any number of labels they are joined by |, as are their probabilities; jsonl has {"labels": [...]} as
well. A model of scores writes these, with tabs between, or {"score": ...}, of several {"scores": {...}}.

From Python, with this folder in sys.path, or with a copy of this file and Predictor("my-model"):

    from predictor import Predictor
    Predictor().predict("a fine film").label

Needs what requirements.txt names: onnxruntime, tokenizers and numpy. An import changes nothing in the program that does
it, and leaves onnxruntime to the first Predictor: a process forked after onnxruntime was imported hangs at its end.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

if TYPE_CHECKING:
    import onnxruntime

GRAPH, UNPADDED_GRAPH, WEIGHTS, TOKENIZER = "model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json"
AGAIN, CASCADE_AGAIN = "write it again with quantize.py", "write it again with cascade.py"
MULTI_LABEL = "multi_label_classification"
NOT_ONE = "name a folder that quantize.py --output_dir wrote"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md

POOL_BATCHES = 64  # whose tokens `predict_batch` holds at once, however many texts there are
CHARACTERS_A_TOKEN = 64  # of a text with more than this for each token of n_ctx, only its beginning is tokenized
# What these make of a text up to a space does not depend on what follows; the pre-tokenizers split at every space.
LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"}
SPLITTING_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
WORD = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")  # what BERT's pre-tokenizer splits printable ASCII into
WORDS_KEPT, LONGEST_KEPT = 50_000, 32  # words whose tokens are remembered, some 15 MB, and characters of one
HEADER_NAMES = {"text", "sentence", "label"}
UTF8 = "save the text as UTF-8"

Text = str | tuple[str, str]
TokenRow = tuple[list[int], list[int]]  # token ids and token type ids: each [tokens]


class UserError(ValueError):
    """A mistake the user can mend: one sentence naming the file, line or flag, and the mend."""


class Prediction(NamedTuple):
    """The most probable label, the probability of every label in the order of their ids, and the stage that answered.

    Stages are those of a cascade, from 0; with a single model, `stage` is None. Of a model that gives a text any number
    of labels, `labels` are those of a probability above their threshold, and `label` is these in one text. Of a model
    of scores, there are `scores` by their names, and nothing else; `score` is the first of them.
    """

    label: str
    probabilities: dict[str, float]
    stage: int | None = None
    labels: list[str] | None = None
    scores: dict[str, float] | None = None

    @property
    def score(self) -> float:
        if self.scores is None:
            raise UserError("the model gives labels, not scores: read label and probabilities")
        return next(iter(self.scores.values()))


class Predictor:
    """Labels texts with a folder that quantize.py or cascade.py wrote; any number of threads may share one.

    `labels` are in the order of their ids. `texts_a_row` is 1, or 2 for a model of pairs, and it takes no other; None
    in a folder that does not say. `session` is the graph's, of a cascade the first stage's. Only rows of the same
    number of tokens run together, so that nothing is padded or masked. Every error is a `UserError`, a ValueError.
    """

    def __init__(self, model_dir: str | Path | None = None, num_threads: int | Sequence[int] | None = None) -> None:
        """Check and open a folder, where None the one that this file is in.

        Args:
            num_threads: CPU threads of the model, or of each stage; where None, as many as this process may use CPUs.

        Raises:
            UserError: a file is missing, damaged or of another model, or num_threads is below 1 or not as many numbers
                as there are stages.
        """
        model_dir = own_folder() if model_dir is None else model_dir
        folders, self.is_cascade = read_stages(model_dir)
        counts = [num_threads] * len(folders) if num_threads is None or isinstance(num_threads, int) else num_threads
        if any(count is not None and count < 1 for count in counts):
            raise UserError(f"num_threads is {num_threads}: give 1 or more")
        if len(counts) != len(folders):
            raise UserError(f"num_threads has {len(counts)} numbers but {model_dir} has {len(folders)} stage(s)")
        self.labels, self.texts_a_row = folders[0].model.labels, folders[0].model.texts_a_row
        self.problem_type, self.separator = folders[0].model.problem_type, folders[0].model.separator
        self._stages = [_Stage(stage, count or usable_cpus()) for stage, count in zip(folders, counts, strict=True)]
        self.session = self._stages[0].session
        self.thresholds = np.array([stage.thresholds for stage in self._stages])  # of any number of labels
        self._answered, self._lock = [0] * len(folders), threading.Lock()

    @property
    def answered(self) -> list[int]:
        """How many rows each stage has answered since the start."""
        with self._lock:
            return list(self._answered)

    @property
    def asked_share(self) -> float:
        """The share of these that the first stage was not sure of: where it rises, the texts have changed."""
        first, *others = self.answered
        return sum(others) / max(1, first + sum(others))

    def predict(self, text: str, text_pair: str | None = None) -> Prediction:
        """Label one text, or one pair of texts; what is longer than the model's n_ctx is truncated.

        Raises:
            UserError: as `encode`.
        """
        texts = [text if text_pair is None else (text, text_pair)]
        return self._predictions(*self.run(self.encode(texts), texts, 1))[0]

    def predict_batch(self, texts: Sequence[Text], batch_size: int = 16) -> list[Prediction]:
        """Label many texts or pairs, in their order, up to `batch_size` of equal length at a time.

        Raises:
            UserError: `texts` is not a list or the like, batch_size is below 1, or as `encode`.
        """
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise UserError(f"the texts are a {type(texts).__name__}: give a list, or use predict for a single text")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give 1 or more")
        self._check(texts)
        predictions, step = [], POOL_BATCHES * batch_size
        for pool in (list(texts[start : start + step]) for start in range(0, len(texts), step)):
            predictions += self._predictions(*self.run(self._stages[0].encode(pool), pool, batch_size))
        return predictions

    def rank(self, query: str, passages: Sequence[str], batch_size: int = 16) -> list[tuple[int, float]]:
        """The number of each passage, from 0, and its score with the query, the highest first.

        Raises:
            UserError: the model does not give pairs a score, or as `predict_batch`.
        """
        if self.problem_type != "regression" or len(self.labels) > 1 or self.texts_a_row == 1:
            raise UserError("the model does not give a pair of texts a score, by which passages could be ranked")
        if isinstance(passages, str):
            raise UserError("the passages are one str: give a list")
        predictions = self.predict_batch([(query, passage) for passage in passages], batch_size)
        scores = [(number, prediction.score) for number, prediction in enumerate(predictions)]
        return sorted(scores, key=lambda each: -each[1])

    def encode(self, texts: list[Text]) -> list[TokenRow]:
        """Tokenize texts and pairs, each at its own length, truncated to n_ctx; of a cascade, for its first stage.

        Raises:
            UserError: one is neither a str nor a tuple of two, or not the one of them that the model takes, or holds a
                lone surrogate.
        """
        self._check(texts)
        return self._stages[0].encode(texts)

    def run(self, rows: list[TokenRow], texts: list[Text], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Run the model, or the stages, each on the rows that those before are not sure of.

        Args:
            rows: tokens of the first stage.
            texts: of the same rows; read only where a stage has another tokenizer than the one before.

        Returns:
            The logits of the stage that answered, divided by its temperature, with those of the stages before it added
            by their weight, float32 [rows, labels]; and this stage, int [rows].
        """
        logits = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        stages = np.zeros(len(rows), dtype=np.int64)
        left, last = list(range(len(rows))), len(self._stages) - 1
        for number, stage in enumerate(self._stages):
            if number and stage.tokenization != self._stages[number - 1].tokenization:
                own = dict(zip(left, stage.encode([texts[i] for i in left]), strict=True))
                rows = [own.get(i, row) for i, row in enumerate(rows)]
            unsure: list[int] = []
            for batch in _batches_of_one_length(rows, left, batch_size):
                scores = stage.logits([rows[i] for i in batch])
                if stage.previous_weight:
                    scores = scores + stage.previous_weight * logits[batch]
                logits[batch] = scores
                if number < last:
                    sure = confidence(scores, self.problem_type, stage.thresholds).tolist()
                    unsure += [i for i, share in zip(batch, sure, strict=True) if not share > stage.threshold]
            with self._lock:
                self._answered[number] += len(left) - len(unsure)
            if not unsure:
                break
            stages[unsure] = number + 1
            left = unsure
        return logits, stages

    def _check(self, texts: Sequence[Text]) -> None:
        for number, text in enumerate(texts, start=1):
            parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
            if self.texts_a_row and len(parts) != self.texts_a_row:
                kind, form = ("a pair", "one text") if self.texts_a_row == 1 else ("not a pair", "pairs of texts")
                raise UserError(
                    f"text {number} is {kind} but the model was trained on rows of {form}: give it the same"
                )
            for part in parts:
                if not isinstance(part, str):
                    kind = type(part).__name__
                    raise UserError(f"text {number} is or holds a {kind}: give a str, or a tuple of two str for a pair")
                try:
                    part.encode()
                except UnicodeEncodeError as error:
                    raise UserError(
                        f"text {number} holds the lone surrogate {part[error.start]!r}, which is no character: "
                        "decode the text again with errors='replace'"
                    ) from error

    def _predictions(self, logits: np.ndarray, stages: np.ndarray) -> list[Prediction]:
        numbers = stages.tolist() if self.is_cascade else [None] * len(stages)
        if self.problem_type == "regression":
            scores = [dict(zip(self.labels, row, strict=True)) for row in logits.tolist()]
            return [Prediction("", {}, scores=own) for own in scores]
        if self.problem_type == MULTI_LABEL:
            return [self._several(*each) for each in zip(sigmoid(logits), stages.tolist(), numbers, strict=True)]
        return [
            Prediction(self.labels[best], dict(zip(self.labels, row, strict=True)), number)
            for best, row, number in zip(logits.argmax(1).tolist(), softmax(logits).tolist(), numbers, strict=True)
        ]

    def _several(self, row: np.ndarray, stage: int, number: int | None) -> Prediction:
        """The prediction of a row by the probability of every label, [labels]."""
        given = row > self._stages[stage].thresholds
        labels = [label for label, is_given in zip(self.labels, given.tolist(), strict=True) if is_given]
        return Prediction(
            self.separator.join(labels), dict(zip(self.labels, row.tolist(), strict=True)), number, labels
        )


class _Stage:
    """An opened model, and when its answer counts."""

    def __init__(self, folder: StageFolder, num_threads: int) -> None:
        model, path = folder.model, folder.model.path
        self.temperature, self.threshold = folder.temperature, folder.threshold
        self.previous_weight = folder.previous_weight
        self.tokenization, self.n_ctx, self.thresholds = model.tokenization, model.n_ctx, np.array(model.thresholds)
        try:
            self.tokenizers = prepare_tokenizer(Tokenizer.from_file(str(path / TOKENIZER)))
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(f"{path / TOKENIZER} is not a usable tokenizer ({first_line(error)}): {AGAIN}") from error
        self.session = load_session(model.graph, num_threads)
        self.inputs = [node.name for node in self.session.get_inputs()]
        num_labels, num_logits = len(model.labels), self.session.get_outputs()[0].shape[-1]
        if num_logits != num_labels:
            raise UserError(
                f"{path / 'config.json'}: id2label has {num_labels} labels but {model.graph.name} gives {num_logits} "
                f"logits: {AGAIN}"
            )

    def encode(self, texts: list[Text]) -> list[TokenRow]:
        return tokenize(self.tokenizers, texts, self.n_ctx)

    def logits(self, rows: list[TokenRow]) -> np.ndarray:
        """Logits divided by the temperature, float32 [rows, labels], of rows that have the same number of tokens."""
        feed = {"input_ids": np.array([ids for ids, _ in rows], dtype=np.int64)}
        if "attention_mask" in self.inputs:
            feed["attention_mask"] = np.ones_like(feed["input_ids"])
        if "token_type_ids" in self.inputs:
            feed["token_type_ids"] = np.array([types for _, types in rows], dtype=np.int64)
        logits = self.session.run(["logits"], feed)[0]
        return logits if self.temperature == 1 else logits / self.temperature


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [rows, labels] of logits."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of every label where a text has any number of them, [rows, labels]."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def confidence(logits: np.ndarray, problem_type: str, thresholds: np.ndarray) -> np.ndarray:
    """How sure answers are, [rows]: the probability of the most probable label.

    Of any number of labels that of the least sure one: how far its probability is from its threshold, on a scale from
    0.5, at the threshold, to 1.
    """
    if problem_type != MULTI_LABEL:
        return 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)  # softmax's maximum
    away = sigmoid(logits) - thresholds
    return (0.5 + 0.5 * np.where(away > 0, away / (1 - thresholds), -away / thresholds)).min(1)


def _batches_of_one_length(rows: list[TokenRow], indices: list[int], batch_size: int) -> Iterator[list[int]]:
    """`indices` in batches of rows that have the same number of tokens."""
    by_length: dict[int, list[int]] = {}
    for index in indices:
        by_length.setdefault(len(rows[index][0]), []).append(index)
    for same in by_length.values():
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def load_session(graph: str | Path | bytes, num_threads: int) -> onnxruntime.InferenceSession:
    """Open a graph, a file or the bytes of one, for CPU inference with `num_threads` threads.

    Raises:
        UserError: the file is missing or damaged, or is not a graph that onnxruntime can run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    name, source, weights = "the graph", graph, None
    if not isinstance(graph, bytes):
        name, source, weights = str(graph), str(graph), Path(graph).parent / WEIGHTS
        check_fetched(Path(graph))
        if not Path(graph).is_file():
            raise UserError(f"{name} is not a file: write the graph with quantize.py, or check the path")
    try:
        if weights and weights.is_file() and weights.resolve().parent != Path(name).resolve().parent:
            # onnxruntime refuses weights in another folder than the graph, links followed, as DVC, git-annex and the
            # Hugging Face hub's cache keep them: it gets them as memory.
            content, source = weights.read_bytes(), Path(name).read_bytes()
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [content], [len(content)])
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises whatever the bytes provoke
        if weights:
            check_fetched(weights)
        raise UserError(f"{name} is not a usable ONNX graph ({first_line(error)}): {AGAIN}") from error


# What a folder says of itself.


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
    """The folder that this file is in; where it is a link from a folder that holds no model, the file's real one."""
    folder = Path(__file__).absolute().parent
    return folder if (folder / "config.json").exists() else Path(__file__).resolve().parent


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


def check_fetched(path: Path) -> None:
    """Check that a path is not the placeholder of one that has not been fetched; it may be missing altogether.

    Raises:
        UserError: it is a Git-LFS pointer, or a link to what is not there, as of git-annex and DVC.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {path.readlink()}, which is not there: fetch that file with the tool that made the "
            "link (`git annex get`, `dvc pull`)"
        )
    with contextlib.suppress(OSError), open(path, "rb") as file:  # of an error the caller tells
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository")


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


# Texts to token ids: faster than the tokenizer's own truncation and normalization, and to the same ids.


class Words(NamedTuple):
    """Words whose tokens are known, what tokenizes others, and the special tokens before and after a text."""

    known: dict[str, list[int]]
    tokenizer: Tokenizer
    before: list[int]
    after: list[int]


class Tokenizers(NamedTuple):
    """A tokenizer that neither pads nor truncates, and what is known of it."""

    full: Tokenizer
    without_normalizer: Tokenizer | None  # where the normalizer is BERT's: for texts of printable ASCII
    lowercase: bool  # whether those are lowered first
    added_tokens: list[str]  # in lower case; a text in which one of them may occur needs `full`
    splits_at_spaces: bool  # so that a very long text may be cut at one
    words: Words | None  # of BERT's kind, for single texts of printable ASCII


def prepare_tokenizer(tokenizer: Tokenizer) -> Tokenizers:
    """Turn off a tokenizer's padding and truncation, in place, for `tokenize`.

    Truncating pairs, it would keep every combination of the parts cut off: its memory grows with the square of their
    length. BERT's normalizer takes half of the time, and all that it does to printable ASCII is to lower its case.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = tokenizer.normalizer
    # Normalized tokens are looked for in the normalized text, as what the normalizer makes of them; others in the text.
    added_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if normalizer is not None:
        added_tokens += [normalizer.normalize_str(token) for token in added_tokens]
    splits_at_spaces = _splits_at_spaces(tokenizer) and not any(" " in token for token in added_tokens)
    added_tokens = sorted({token.lower() for token in added_tokens})
    if not isinstance(normalizer, BertNormalizer):
        return Tokenizers(tokenizer, None, False, added_tokens, splits_at_spaces, None)
    without_normalizer = Tokenizer(tokenizer.model)
    without_normalizer.pre_tokenizer = tokenizer.pre_tokenizer
    without_normalizer.post_processor = tokenizer.post_processor
    words = _no_words_yet(without_normalizer)
    return Tokenizers(tokenizer, without_normalizer, normalizer.lowercase, added_tokens, splits_at_spaces, words)


def _no_words_yet(tokenizer: Tokenizer) -> Words | None:
    """To remember words in; None where tokens may not be those of the words that `WORD` finds, one after the other."""
    model = tokenizer.model
    if not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) or not isinstance(model, WordPiece):
        return None
    if model.max_input_chars_per_word < LONGEST_KEPT:
        return None
    encoding = tokenizer.encode("a")
    is_special = encoding.special_tokens_mask
    if any(encoding.type_ids) or is_special.count(0) != 1:
        return None
    before, after = encoding.ids[: is_special.index(0)], encoding.ids[is_special.index(0) + 1 :]
    return Words({}, tokenizer, before, after)


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether what comes before a space has the same tokens whatever follows it."""
    normalizers = _components(tokenizer.normalizer, "normalizers")
    first, *_ = _components(tokenizer.pre_tokenizer, "pretokenizers") or [{"type": None}]
    is_local = all(component["type"] in LOCAL_NORMALIZERS for component in normalizers)
    # Some have an option not to split.
    splits = first["type"] in SPLITTING_PRE_TOKENIZERS and first.get("use_regex", True) and first.get("split", True)
    return is_local and splits


def _components(component: Any, of_sequence: str) -> list[dict]:
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    return settings[of_sequence] if settings["type"] == "Sequence" else [settings]


def tokenize(tokenizers: Tokenizers, texts: Sequence[Text], n_ctx: int) -> list[TokenRow]:
    """Tokenize texts and pairs, each at its own length, truncated to n_ctx tokens, the longer text of a pair first."""
    longest = 2 * CHARACTERS_A_TOKEN * n_ctx
    if len(texts) == 1 and tokenizers.words and len(texts[0]) <= longest and _is_plain(texts[0], tokenizers):
        return [_word_by_word(tokenizers.words, texts[0].lower() if tokenizers.lowercase else texts[0], n_ctx)]
    whole = dict(enumerate(texts))
    rows: dict[int, TokenRow] = {}
    if tokenizers.splits_at_spaces:
        beginnings = {i: _beginning(text, longest) for i, text in whole.items() if len(text) > longest}
        cut = _tokenize(tokenizers, {i: text for i, text in beginnings.items() if text is not None}, n_ctx)
        # Else it has fewer tokens than were expected of so many characters.
        rows = {i: row for i, row in cut.items() if len(row[0]) == n_ctx}
    rows |= _tokenize(tokenizers, {i: text for i, text in whole.items() if i not in rows}, n_ctx)
    return [rows[i] for i in whole]


def _beginning(text: Text, longest: int) -> str | None:
    """The first characters of a text, about half of `longest`, to the end of a word; None where there is no such end.

    Not of pairs: which of the two texts has more tokens decides how both are truncated.
    """
    if not isinstance(text, str):
        return None
    # Not within several spaces, which some tokenizers take together.
    end = re.compile(r"\w(?= )").search(text, longest // 2, longest)
    return text[: end.end()] if end else None


def _tokenize(tokenizers: Tokenizers, texts: dict[int, Text], n_ctx: int) -> dict[int, TokenRow]:
    plain = {i: text for i, text in texts.items() if _is_plain(text, tokenizers)}
    others = {i: text for i, text in texts.items() if i not in plain}
    if tokenizers.lowercase:
        plain = {i: text.lower() for i, text in plain.items()}
    rows = {}
    for tokenizer, part in ((tokenizers.without_normalizer, list(plain.items())), (tokenizers.full, [*others.items()])):
        if tokenizer and len(part) == 1:  # which should not wait for other threads to wake up
            [(i, text)] = part
            rows[i] = _truncated(tokenizer.encode(*([text] if isinstance(text, str) else text)), n_ctx)
        elif tokenizer and part:
            encodings = tokenizer.encode_batch_fast([text for _, text in part])
            rows |= {i: _truncated(encoding, n_ctx) for (i, _), encoding in zip(part, encodings, strict=True)}
    return rows


def _word_by_word(words: Words, text: str, n_ctx: int) -> TokenRow:
    """The tokens of a plain text: in a third of the time, where its words have been met before."""
    ids = words.before[:]
    for word in WORD.findall(text):
        ids += words.known.get(word) or _new_word(word, words)
    ids[n_ctx - len(words.after) :] = words.after
    return ids, [0] * len(ids)


def _new_word(word: str, words: Words) -> list[int]:
    """The tokens of a word, which are remembered unless it is long."""
    # WordPiece takes the longest piece first, so one of the vocabulary is a token: faster than to tokenize it.
    number = words.tokenizer.token_to_id(word) if len(word) <= LONGEST_KEPT else None
    tokens = words.tokenizer.encode(word, add_special_tokens=False).ids if number is None else [number]
    if len(word) <= LONGEST_KEPT:
        if len(words.known) >= WORDS_KEPT:
            words.known.clear()
        words.known[word] = tokens
    return tokens


def _is_plain(text: Text, tokenizers: Tokenizers) -> TypeGuard[str]:
    if tokenizers.without_normalizer is None or not isinstance(text, str):
        return False
    if not (text.isascii() and text.isprintable()):
        return False
    lowered = text.lower()
    return not any(token in lowered for token in tokenizers.added_tokens)


def _truncated(encoding: Encoding, n_ctx: int) -> TokenRow:
    """As tokenizers truncates by default: the longer text of a pair first, and no special token."""
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) <= n_ctx:
        return ids, types
    sources = encoding.sequence_ids  # 0 or 1, the text that each token comes from; None for special tokens
    counts, room = [sources.count(0), sources.count(1)], n_ctx - sources.count(None)
    shorter = 1 if counts[0] > counts[1] else 0
    left = [room, room]  # tokens of each text that remain
    left[shorter] = min(counts[shorter], room // 2)
    left[1 - shorter] -= left[shorter]
    positions = []
    for position, text in enumerate(sources):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            positions.append(position)
    return [ids[i] for i in positions], [types[i] for i in positions]


# How many CPUs this process may use, which in a container or under taskset is not what the machine has.


def usable_cpus() -> int:
    """The number of CPUs that this process may use, at least 1: by its affinity, and by the quota of its cgroup.

    A quota is rounded down: a thread more would use it up early, and then all of them wait for the next period.
    """
    return max(1, int(min(len(allowed_cores()), cgroup_quota())))


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cgroup_quota(root: Path = Path("/")) -> float:
    """The CPUs' time that this process's cgroup may use, in CPUs; infinite where nothing limits it.

    Of nested cgroups the tightest counts. Version 2 says "quota period" in cpu.max, version 1 has a file for each
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).

    Args:
        root: folder that holds proc/ and sys/.
    """
    quotas = [float("inf")]
    for folder in _cgroup_folders(root):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            # Most folders have no such file; without a limit, version 2 says max and version 1 -1.
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                quotas.append(int(quota) / int(period) if int(quota) > 0 else float("inf"))
    return min(quotas)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Folders of the cgroups that may limit this process's CPU time, from its own up; not all of them need be there.

    A container may see the host's paths, but only the part of the tree from its own cgroup on.
    """
    memberships: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # not Linux
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    for membership in memberships:
        _, controllers, own = membership.split(":", 2)  # version 2 has no controllers
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            folder = top / own.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each == top or top in each.parents)


# The command line: lines of standard input to lines of standard output.


def read_lines(
    file: BinaryIO,
    path: str,
    columns: tuple[str, ...] = ("text",),
    texts_a_row: int | None = None,
    labels: Collection[str] = (),
) -> Iterator[Text]:
    """Yield the text of each line, or the pair with a tab between, trimmed as preprocess.py trims them.

    Args:
        path: how errors name the file.
        columns: names by which the header of a file with columns is known.
        texts_a_row: 1 or 2, as many as the model takes; None where that is not known.
        labels: the model's, by which a file with labels is known.

    Raises:
        UserError: a line is not UTF-8 or holds more or fewer texts than the model takes, or the file has labels or
            columns. Names `path` and the line.
    """
    if path.lower().endswith(".json"):
        raise UserError(f"{path}: write one JSON object a line, into a file that ends in .jsonl")
    for number, raw in enumerate(file, start=1):
        place = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            is_utf16 = number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            reason = "but UTF-16" if is_utf16 else f"({error.reason})"
            raise UserError(f"{place}: not UTF-8 {reason}: {UTF8}") from error
        if number == 1:
            _check_first_line(line, place, columns, is_last=not raw.endswith(b"\n"))
        texts = tuple(field.strip() for field in line.split("\t"))
        if len(texts) > (texts_a_row or 2) and texts[-1] in labels:
            raise UserError(
                f"{place}: {texts[-1]!r} after the tab is one of the model's labels, so this looks like a labelled "
                "file: give the texts alone"
            )
        if texts_a_row and len(texts) != texts_a_row:
            count = "no tab" if len(texts) == 1 else "a tab" if len(texts) == 2 else f"{len(texts)} columns"
            takes = "the model takes one text a line: write the line without tabs"
            takes = takes if texts_a_row == 1 else "the model takes two texts a line: write sentence_a<TAB>sentence_b"
            raise UserError(f"{place} has {count}: {takes}")
        if len(texts) > 2:
            raise UserError(f"{place}: {len(texts)} columns: each line is sentence or sentence_a<TAB>sentence_b")
        yield (texts[0], texts[1]) if len(texts) == 2 else texts[0]


def _check_first_line(line: str, place: str, columns: tuple[str, ...], is_last: bool) -> None:
    """Find a file of another kind than plain lines, which would be labelled without a word."""
    if "\0" in line:
        raise UserError(f"{place}: holds NUL characters, as UTF-16 does: {UTF8}")
    if "\r" in line and is_last:
        raise UserError(f"{place}: the only line, as lines end in CR alone: save the text with LF or CRLF")
    with contextlib.suppress(json.JSONDecodeError):
        if line.startswith("{") and isinstance(json.loads(line), dict):
            raise UserError(f"{place} is a JSON object: put such lines into a file that ends in .jsonl, and name it")
    for separator, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        is_header = len(cells) > 1 and HEADER_NAMES.union(columns).intersection(cells)
        if is_header and not any(" " in cell for cell in cells):
            raise UserError(
                f"{place}: {line[:80]!r} looks like the names of columns: put such rows into a file that ends in "
                f"{suffix}, and name it"
            )


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """--format, --min_probability, --num_threads and --batch_size."""
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="form of the output lines")
    group.add_argument(
        "--min_probability",
        type=float,
        help="mark each answer as sure, of at least this probability, or unsure; without it, none is marked",
    )
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--num_threads",
        type=_thread_counts,
        default=usable_cpus(),
        help="CPU threads of the model; of a cascade's stages, such as 1,2, if they are to differ",
    )
    group.add_argument("--batch_size", type=int, default=1, help="lines read and answered at a time")


def _thread_counts(text: str) -> int | list[int]:
    counts = [int(part) for part in text.split(",")]
    return counts if len(counts) > 1 else counts[0]


def output_line(prediction: Prediction, form: str, min_probability: float | None) -> str:
    """A prediction as a line of --format `form`, without its end."""
    if prediction.scores is not None:
        if form == "jsonl":
            one = len(prediction.scores) == 1
            values = {"score": prediction.score} if one else {"scores": prediction.scores}
            return json.dumps(values, ensure_ascii=False)
        return "\t".join(f"{score:.6f}" for score in prediction.scores.values())
    labels = [prediction.label] if prediction.labels is None else prediction.labels
    sure = None if min_probability is None else is_sure(prediction, min_probability)
    if form == "jsonl":
        values = prediction._asdict() | {"sure": sure}
        return json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)
    shares = "|".join(f"{prediction.probabilities[label]:.6f}" for label in labels)
    return f"{prediction.label}\t{shares}" + {None: "", True: "\tsure", False: "\tunsure"}[sure]


def is_sure(prediction: Prediction, min_probability: float) -> bool:
    """Whether the label has at least this probability; of any number of labels, whether that is so of each that is
    given, and all others have at most 1 less it."""
    if prediction.labels is None:
        return prediction.probabilities[prediction.label] >= min_probability
    return all(
        (share if label in prediction.labels else 1 - share) >= min_probability
        for label, share in prediction.probabilities.items()
    )


def print_predictions(
    predictor: Predictor, texts: Iterator[Text], form: str, min_probability: float | None, batch_size: int
) -> None:
    """Print a line for each text, as soon as its batch is labelled, until whoever reads them has had enough.

    Raises:
        UserError: min_probability is not from 0 to 1, batch_size is below 1, or as `predict_batch`.
    """
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise UserError(f"--min_probability={min_probability} is not from 0 to 1")
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} is below 1")
    if min_probability is not None and predictor.problem_type == "regression":
        raise UserError("--min_probability is for labels, and this model gives scores, which have none: leave it out")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the input, whatever the system's own
    try:
        while chunk := list(itertools.islice(texts, batch_size)):
            predictions = predictor.predict_batch(chunk, batch_size)
            print("\n".join(output_line(each, form, min_probability) for each in predictions), flush=True)
    except BrokenPipeError:  # as `head` does; Python flushes standard output once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_streams(reads_input: bool) -> None:
    """Check that there is a standard output and, where it is read, a standard input.

    Raises:
        UserError: one of them is closed.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed, so there is nowhere to write the labels: leave out >&-")
    if sys.stdin is None and reads_input:
        raise UserError("standard input is closed, so there is nothing to label: give texts with < FILE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_predict_options(parser)
    args = parser.parse_args()
    check_streams(reads_input=True)
    predictor = Predictor(num_threads=args.num_threads)
    lines = read_lines(sys.stdin.buffer, "standard input", (), predictor.texts_a_row, predictor.labels)
    print_predictions(predictor, lines, args.format, args.min_probability, args.batch_size)


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:  # of the system: such as a full disk
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
