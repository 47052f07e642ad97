"""A model as a function from a text to its logits, in two steps: tokenizing, and what follows.

As in `utils.measuring.engines`, a process that runs an ONNX file imports no PyTorch.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from utils.measuring.engines import Engine, onnx_engine, open_predictor, predictor_logits
from utils.predictor.tokens import Text, TokenRow, prepare_tokenizer, tokenize


class TextEngine(NamedTuple):
    """A model that reads texts."""

    encode: Callable[[Text], Any]  # from a text to what `run` takes
    run: Callable[[Any], np.ndarray]  # to logits [1, labels]


class TimedLogits(NamedTuple):
    """Logits [1, labels] of a text, and how many milliseconds they took from token ids on."""

    logits: np.ndarray
    ids_ms: float


def timed_logits(engine: TextEngine, text: Text) -> TimedLogits:
    """Tokenize a text and run the model on it."""
    inputs = engine.encode(text)
    start = time.perf_counter()
    logits = engine.run(inputs)
    return TimedLogits(logits, (time.perf_counter() - start) * 1000)


def text_engine(run: Engine, tokenizer: Tokenizer, n_ctx: int, pad_token_id: int, is_padded: bool) -> TextEngine:
    """Put a tokenizer before an engine that takes batches of token ids.

    Args:
        n_ctx: texts with more tokens are truncated.
        is_padded: whether shorter ones are padded to `n_ctx`.
    """
    tokenizers = prepare_tokenizer(tokenizer)
    width = n_ctx if is_padded else 0

    def encode(text: Text) -> dict[str, np.ndarray]:
        return _batch_of_one(tokenize(tokenizers, [text], n_ctx)[0], pad_token_id, width)

    return TextEngine(encode, run)


def open_text_engine(
    path: str | Path, num_threads: int, labels: list[str], tokenizer: str, n_ctx: int
) -> Callable[[Text], TimedLogits]:
    """What `timed_logits` says of each text, by an ONNX file or a folder that quantize.py or cascade.py wrote.

    Takes only what can be pickled, for a process of its own; else as `onnx_text_engine`.
    """
    engine = onnx_text_engine(path, num_threads, labels, tokenizer, n_ctx)
    return lambda text: timed_logits(engine, text)


def onnx_text_engine(path: str | Path, num_threads: int, labels: list[str], tokenizer: str, n_ctx: int) -> TextEngine:
    """Open an ONNX file, or a folder that quantize.py or cascade.py wrote.

    Args:
        labels: the data set's, in the order of their ids.
        tokenizer, n_ctx: of an ONNX file, its tokenizer as JSON and its longest row; a folder has its own.

    Raises:
        UserError: the file or folder is missing or damaged, or its labels are not the data set's.
    """
    if not Path(path).is_dir():
        run = onnx_engine(path, num_threads, len(labels))
        return text_engine(run, Tokenizer.from_str(tokenizer), n_ctx, 0, is_padded=False)
    predictor = open_predictor(path, num_threads, labels)
    return TextEngine(
        lambda text: (predictor.encode([text]), [text]),
        lambda inputs: predictor_logits(predictor, inputs[0], inputs[1], 1),
    )


def _batch_of_one(row: TokenRow, pad_token_id: int, width: int) -> dict[str, np.ndarray]:
    """A row as int64 arrays [1, tokens], padded to `width` tokens if that is more."""
    ids, types = row
    padding = max(0, width - len(ids))
    return {
        "input_ids": np.array([[*ids, *[pad_token_id] * padding]], dtype=np.int64),
        "attention_mask": np.array([[1] * len(ids) + [0] * padding], dtype=np.int64),
        "token_type_ids": np.array([[*types, *[0] * padding]], dtype=np.int64),
    }
