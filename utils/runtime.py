"""Run a written ONNX graph on a CPU, and label texts with a model folder of quantize.py.

Needs requirements-runtime.txt alone: torch and transformers are never imported here.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from utils.data.tokenization import Text, TokenRow, prepare_tokenizer, tokenize
from utils.system.cpus import usable_cpus
from utils.system.errors import UserError, first_line
from utils.system.placeholders import check_fetched

GRAPH, UNPADDED_GRAPH, WEIGHTS, TOKENIZER = "model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json"
AGAIN = "write it again with quantize.py"
NOT_ONE = "name a folder that quantize.py --output_dir wrote"
# `predict_batch` holds the tokens of this many batches at once, however many texts there are.
POOL_BATCHES = 64


class Prediction(NamedTuple):
    """The most probable label, and the probability of every label in the order of their ids."""

    label: str
    probabilities: dict[str, float]


class Predictor:
    """Labels texts with a folder that `quantize.py --output_dir` wrote.

        predictor = Predictor("my-model")
        predictor.predict("a fine film").label

    `labels` are in the order of their ids, `session` is the graph's. Only rows of the same number of tokens run
    together, so that nothing is padded or masked. Nothing changes after the start: any number of threads may share one
    predictor. `texts_a_row` is 1, or 2 for a model of pairs, and it takes no other; None in a folder that does not say.

    Every error is a `UserError`, which is a ValueError.
    """

    def __init__(self, model_dir: str | Path, num_threads: int | None = None) -> None:
        """Check and open the folder.

        Args:
            num_threads: CPU threads of the model; where None, as many as this process may use CPUs.

        Raises:
            UserError: a file is missing, damaged or of another model, or num_threads is below 1.
        """
        if num_threads is not None and num_threads < 1:
            raise UserError(f"num_threads is {num_threads}: give 1 or more")
        folder = Path(model_dir)
        self.labels, self._n_ctx, self.texts_a_row, hashes = _read_config(folder / "config.json")
        for name, sha256 in hashes.items():
            _check_file(folder / name, sha256)
        self._tokenizers = prepare_tokenizer(_read_tokenizer(folder / TOKENIZER))
        graph = folder / (UNPADDED_GRAPH if UNPADDED_GRAPH in hashes else GRAPH)
        self.session = load_session(graph, num_threads or usable_cpus())
        inputs = [node.name for node in self.session.get_inputs()]
        self._takes_mask, self._takes_types = "attention_mask" in inputs, "token_type_ids" in inputs
        num_logits = self.session.get_outputs()[0].shape[-1]
        if num_logits != len(self.labels):
            raise UserError(
                f"{folder / 'config.json'}: id2label has {len(self.labels)} labels but {graph.name} gives {num_logits} "
                f"logits: {AGAIN}"
            )

    def predict(self, text: str, text_pair: str | None = None) -> Prediction:
        """Label one text, or one pair of texts; what is longer than the model's n_ctx is truncated.

        Raises:
            UserError: a text is not a str, or holds a lone surrogate, or the model takes pairs and this is none, or the
                other way round.
        """
        return self._label(self.encode([text if text_pair is None else (text, text_pair)]))[0]

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
            predictions += self._label_pool(texts[start : start + POOL_BATCHES * batch_size], batch_size)
        return predictions

    def encode(self, texts: list[Text]) -> list[TokenRow]:
        """Tokenize texts and pairs, each at its own length, truncated to the model's n_ctx.

        Raises:
            UserError: one is neither a str nor a tuple of two, or not the one of them that the model takes, or holds a
                lone surrogate.
        """
        for number, text in enumerate(texts, start=1):
            _check_text(text, number, self.texts_a_row)
        return tokenize(self._tokenizers, texts, self._n_ctx)

    def logits(self, rows: list[TokenRow]) -> np.ndarray:
        """Logits, float32 [rows, labels], of rows that have the same number of tokens."""
        ids = np.array([ids for ids, _ in rows], dtype=np.int64)
        feed = {"input_ids": ids}
        if self._takes_mask:
            feed["attention_mask"] = np.ones_like(ids)
        if self._takes_types:
            feed["token_type_ids"] = np.array([types for _, types in rows], dtype=np.int64)
        return self.session.run(["logits"], feed)[0]

    def _label(self, rows: list[TokenRow]) -> list[Prediction]:
        logits = self.logits(rows)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = (exponentials / exponentials.sum(1, keepdims=True)).tolist()
        best = logits.argmax(1).tolist()
        return [
            Prediction(self.labels[i], dict(zip(self.labels, row, strict=True)))
            for i, row in zip(best, probabilities, strict=True)
        ]

    def _label_pool(self, texts: list[Text], batch_size: int) -> list[Prediction]:
        rows = tokenize(self._tokenizers, texts, self._n_ctx)
        by_length: dict[int, list[int]] = {}
        for index, (ids, _) in enumerate(rows):
            by_length.setdefault(len(ids), []).append(index)
        predictions: dict[int, Prediction] = {}
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                predictions |= zip(batch, self._label([rows[index] for index in batch]), strict=True)
        return [predictions[index] for index in range(len(texts))]


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


def _read_config(path: Path) -> tuple[list[str], int, int | None, dict[str, str]]:
    """The labels in the order of their ids, n_ctx, texts a row, and every other file's name and SHA-256."""
    check_fetched(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {NOT_ONE}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {AGAIN}") from error
    if not isinstance(config, dict) or "fastformers" not in config:
        raise UserError(f"{path} does not belong to a model folder: {NOT_ONE}")
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
    return labels, n_ctx, texts_a_row, hashes


def _check_file(path: Path, sha256: str) -> None:
    # Before anything parses it: damaged weights or another model's tokenizer would give wrong labels without an error.
    check_fetched(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {AGAIN}") from error
    if digest != sha256:
        raise UserError(f"{path} is damaged or of another model: {AGAIN}")


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise UserError(f"{path} is not a usable tokenizer ({first_line(error)}): {AGAIN}") from error


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
