"""Predictor: labels texts with a folder that quantize.py or cascade.py wrote."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from . import cpus
from .errors import UserError, check_fetched, first_line
from .folder import AGAIN, TOKENIZER, WEIGHTS, StageFolder, own_folder, read_stages
from .tokens import Text, TokenRow, prepare_tokenizer, tokenize

if TYPE_CHECKING:
    import onnxruntime

MULTI_LABEL = "multi_label_classification"
POOL_BATCHES = 64  # whose tokens `predict_batch` holds at once, however many texts there are


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
        """Check and open a folder, where None the one that this package is in.

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
        self._stages = [
            _Stage(stage, count or cpus.usable_cpus()) for stage, count in zip(folders, counts, strict=True)
        ]
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
