"""Run a written ONNX graph on a CPU, and label texts with a model folder of quantize.py or a cascade of cascade.py.

Needs requirements-runtime.txt alone: torch and transformers are never imported here.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from utils.data.tokenization import Text, TokenRow, prepare_tokenizer, tokenize
from utils.runtime_folder import (
    AGAIN,
    GRAPH,
    TOKENIZER,
    UNPADDED_GRAPH,
    WEIGHTS,
    StageFolder,
    read_stages,
    read_tokenizer,
)
from utils.system.cpus import usable_cpus
from utils.system.errors import UserError, first_line
from utils.system.placeholders import check_fetched

__all__ = ["GRAPH", "TOKENIZER", "UNPADDED_GRAPH", "WEIGHTS", "Prediction", "Predictor", "load_session", "run_session"]

# `predict_batch` holds the tokens of this many batches at once, however many texts there are.
POOL_BATCHES = 64


class Prediction(NamedTuple):
    """The most probable label, the probability of every label in the order of their ids, and the stage that answered.

    Stages are those of a cascade, from 0; with a single model, `stage` is None.
    """

    label: str
    probabilities: dict[str, float]
    stage: int | None = None


class Predictor:
    """Labels texts with a folder that `quantize.py --output_dir` or `cascade.py` wrote.

        predictor = Predictor("my-model")
        predictor.predict("a fine film").label

    `labels` are in the order of their ids, `session` is the graph's, of a cascade the first stage's. Only rows of the
    same number of tokens run together, so that nothing is padded or masked. Nothing but the counts of `answered`
    changes after the start: any number of threads may share one predictor. `texts_a_row` is 1, or 2 for a model of
    pairs, and it takes no other; None in a folder that does not say.

    In a cascade the first stage reads all rows, and each further one those that the stages before are not sure of.

    Every error is a `UserError`, which is a ValueError.
    """

    def __init__(self, model_dir: str | Path, num_threads: int | Sequence[int] | None = None) -> None:
        """Check and open the folder.

        Args:
            num_threads: CPU threads of the model, or of each stage; where None, as many as this process may use CPUs.

        Raises:
            UserError: a file is missing, damaged or of another model, or num_threads is below 1 or not as many numbers
                as there are stages.
        """
        folders, self.is_cascade = read_stages(model_dir)
        counts = [num_threads] * len(folders) if num_threads is None or isinstance(num_threads, int) else num_threads
        if any(count is not None and count < 1 for count in counts):
            raise UserError(f"num_threads is {num_threads}: give 1 or more")
        if len(counts) != len(folders):
            raise UserError(f"num_threads has {len(counts)} numbers but {model_dir} has {len(folders)} stage(s)")
        self.labels, self.texts_a_row = folders[0].model.labels, folders[0].model.texts_a_row
        self._stages = [_Stage(stage, count or usable_cpus()) for stage, count in zip(folders, counts, strict=True)]
        self.session = self._stages[0].session
        self._answered, self._lock = [0] * len(folders), threading.Lock()

    @property
    def answered(self) -> list[int]:
        """How many rows each stage has answered since the start."""
        with self._lock:
            return list(self._answered)

    @property
    def asked_share(self) -> float:
        """The share of all rows since the start that the first stage was not sure of, from 0 to 1.

        Where it rises above what cascade.py measured, the texts have changed.
        """
        first, *others = self.answered
        return sum(others) / max(1, first + sum(others))

    @property
    def shares_tokens(self) -> bool:
        """Whether all stages read the same tokens of a text."""
        return len({stage.tokenization for stage in self._stages}) == 1

    def predict(self, text: str, text_pair: str | None = None) -> Prediction:
        """Label one text, or one pair of texts; what is longer than the model's n_ctx is truncated.

        Raises:
            UserError: a text is not a str, or holds a lone surrogate, or the model takes pairs and this is none, or the
                other way round.
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
        texts = list(texts)
        for number, text in enumerate(texts, start=1):
            _check_text(text, number, self.texts_a_row)
        predictions = []
        for start in range(0, len(texts), POOL_BATCHES * batch_size):
            pool = texts[start : start + POOL_BATCHES * batch_size]
            predictions += self._predictions(*self.run(self._stages[0].encode(pool), pool, batch_size))
        return predictions

    def encode(self, texts: list[Text]) -> list[TokenRow]:
        """Tokenize texts and pairs, each at its own length, truncated to the model's n_ctx; of a cascade, for its first
        stage.

        Raises:
            UserError: one is neither a str nor a tuple of two, or not the one of them that the model takes, or holds a
                lone surrogate.
        """
        for number, text in enumerate(texts, start=1):
            _check_text(text, number, self.texts_a_row)
        return self._stages[0].encode(texts)

    def run(self, rows: list[TokenRow], texts: list[Text], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Run the model, or the stages, each on the rows that those before are not sure of.

        Args:
            rows: tokens of the first stage.
            texts: of the same rows; read only where a stage has another tokenizer than the one before.

        Returns:
            The logits of the stage that answered, divided by its temperature, float32 [rows, labels]; and this stage,
            int [rows].
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
                logits[batch] = scores
                if number < last:
                    confidence = softmax(scores).max(1).tolist()
                    unsure += [i for i, share in zip(batch, confidence, strict=True) if not share > stage.threshold]
            with self._lock:
                self._answered[number] += len(left) - len(unsure)
            if not unsure:
                break
            stages[unsure] = number + 1
            left = unsure
        return logits, stages

    def _predictions(self, logits: np.ndarray, stages: np.ndarray) -> list[Prediction]:
        numbers = stages.tolist() if self.is_cascade else [None] * len(stages)
        return [
            Prediction(self.labels[best], dict(zip(self.labels, row, strict=True)), number)
            for best, row, number in zip(logits.argmax(1).tolist(), softmax(logits).tolist(), numbers, strict=True)
        ]


class _Stage:
    """An opened model, and when its answer counts."""

    def __init__(self, folder: StageFolder, num_threads: int) -> None:
        model = folder.model
        self.threshold, self.temperature = folder.threshold, folder.temperature
        self.tokenization, self.n_ctx = model.tokenization, model.n_ctx
        self.tokenizers = prepare_tokenizer(read_tokenizer(model.path / TOKENIZER))
        self.session = load_session(model.graph, num_threads)
        inputs = [node.name for node in self.session.get_inputs()]
        self.takes_mask, self.takes_types = "attention_mask" in inputs, "token_type_ids" in inputs
        num_logits = self.session.get_outputs()[0].shape[-1]
        if num_logits != len(model.labels):
            raise UserError(
                f"{model.path / 'config.json'}: id2label has {len(model.labels)} labels but {model.graph.name} gives "
                f"{num_logits} logits: {AGAIN}"
            )

    def encode(self, texts: list[Text]) -> list[TokenRow]:
        return tokenize(self.tokenizers, texts, self.n_ctx)

    def logits(self, rows: list[TokenRow]) -> np.ndarray:
        """Logits divided by the temperature, float32 [rows, labels], of rows that have the same number of tokens."""
        ids = np.array([ids for ids, _ in rows], dtype=np.int64)
        feed = {"input_ids": ids}
        if self.takes_mask:
            feed["attention_mask"] = np.ones_like(ids)
        if self.takes_types:
            feed["token_type_ids"] = np.array([types for _, types in rows], dtype=np.int64)
        logits = self.session.run(["logits"], feed)[0]
        return logits if self.temperature == 1 else logits / self.temperature


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [rows, labels] of logits."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


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
    name = "the graph" if isinstance(graph, bytes) else str(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source, weights = graph, []
    if not isinstance(graph, bytes):
        check_fetched(Path(graph))
        if not Path(graph).is_file():
            raise UserError(f"{name} is not a file: write the graph with quantize.py, or check the path")
        weights = _linked_weights(Path(graph))
        source = Path(graph).read_bytes() if weights else name
    try:
        for file, content in weights:
            options.add_external_initializers_from_files_in_memory([file], [content], [len(content)])
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises whatever the bytes provoke
        if not isinstance(graph, bytes):
            check_fetched(Path(graph).parent / WEIGHTS)
        raise UserError(
            f"{name} is not a usable ONNX graph ({first_line(error)}): write it again with quantize.py"
        ) from error


def run_session(session: onnxruntime.InferenceSession, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of a batch, float32 [rows, labels].

    Args:
        batch: int64 arrays [rows, tokens]: input_ids, attention_mask, token_type_ids. What the graph does not take is
            not passed, so any further keys do no harm.
    """
    return session.run(["logits"], {node.name: batch[node.name] for node in session.get_inputs()})[0]


def _linked_weights(graph: Path) -> list[tuple[str, bytes]]:
    """Name and content of a graph's weights where they are a link to another folder than the graph; else nothing.

    ONNX Runtime refuses weights that are not in the graph's own folder, links followed, as they are in the stores of
    DVC, git-annex and the Hugging Face hub: it gets them as memory instead.
    """
    weights = graph.parent / WEIGHTS
    if weights.is_file() and weights.resolve().parent != graph.resolve().parent:
        return [(WEIGHTS, weights.read_bytes())]
    return []


def _check_text(text: object, number: int, texts_a_row: int | None) -> None:
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    if texts_a_row and len(parts) != texts_a_row:
        kind, form = ("a pair", "one text") if texts_a_row == 1 else ("not a pair", "pairs of texts")
        raise UserError(f"text {number} is {kind} but the model was trained on rows of {form}: give it the same")
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
