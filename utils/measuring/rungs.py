"""The rungs of a ladder: each engine's model, opened, and all of them timed side by side, from text."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from utils.measuring.engines import checkpoint_bytes, onnx_size, pytorch_engine
from utils.measuring.instances import serve
from utils.measuring.ladder import Measurement
from utils.measuring.text_engines import (
    TextEngine,
    TimedLogits,
    onnx_text_engine,
    open_text_engine,
    text_engine,
    timed_logits,
)
from utils.measuring.timing import timed_in_turns
from utils.models.checkpoint import config_of_checkpoint, load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from utils.predictor.folder import is_cascade
from utils.predictor.tokens import Text
from utils.system.errors import UserError, first_line

logger = logging.getLogger(__name__)

SERVED_LEAST, SERVED_MOST = 3, 10  # how often several instances serve all rows, by the number of turns
WARMUP = 20  # rows that each instance runs before
BASELINE_EVERY = 20


@dataclass(frozen=True)
class Setting:
    """What the rungs of a ladder have in common."""

    texts: list[Text]  # of test
    train_texts: list[Text]
    train_labels: np.ndarray  # as of `utils.data.tables.row_labels`
    labels: list[str]  # in the order of their ids
    n_ctx: int
    tokenizer: PreTrainedTokenizerFast  # of ONNX files and of random weights; every folder has its own
    num_threads: int
    task: str = SINGLE_LABEL


@dataclass(frozen=True)
class Rung:
    """A model that is ready to be timed, and its size."""

    engine: TextEngine
    parameters: int
    model_bytes: int
    is_step: bool = True  # of the ladder; if not, something to compare it with
    has_random_weights: bool = False  # its logits then mean nothing
    reads_tokens: bool = True
    every: int = 1  # the steps in which it goes through the rows, where it is too slow for all of them
    open_instance: Callable[[], Callable[[Text], TimedLogits]] | None = None  # where several processes share the rows


class Failure(NamedTuple):
    """Why a rung could not be opened or run."""

    reason: str


def open_rung(engine: str, path: str, setting: Setting) -> Rung | Failure:
    """Open a rung's model.

    Args:
        engine: a key of `OPENERS`.
        path: a checkpoint folder, an ONNX file, or a folder that quantize.py or cascade.py wrote, as the engine has it.

    Returns:
        The model, or why the engine cannot be used on this data set.

    Raises:
        UserError: the engine is unknown, or the path holds no such model: mistakes that are mended at once.
    """
    if engine not in OPENERS:
        raise UserError(f"--rung: unknown engine {engine!r}: choose one of {', '.join(OPENERS)}")
    try:
        return OPENERS[engine](path, setting)
    except UserError:
        raise
    except Exception as error:  # whatever a library says of data that it cannot use
        return _failure(error)


def measure_rungs(rungs: list[Rung | Failure], setting: Setting) -> list[Measurement | Failure]:
    """Time every rung on all rows of test, one text at a time, taking turns; a rung that fails leaves the others alone.

    Several instances serve all rows between these turns, `SERVED_LEAST` to `SERVED_MOST` times.
    """
    texts, no_logits = setting.texts, np.full((1, len(setting.labels)), np.nan)
    results: dict[int, Measurement | Failure] = {i: rung for i, rung in enumerate(rungs) if isinstance(rung, Failure)}
    opened = {i: rung for i, rung in enumerate(rungs) if isinstance(rung, Rung)}
    served: dict[int, list] = {i: [] for i, rung in opened.items() if rung.open_instance}
    times = {i: np.zeros(2) for i in opened}  # milliseconds of all texts from token ids on, and from text

    def guarded(i: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns; nothing from a rung's first failure on."""
        if i in results:
            return None
        try:
            return work(*arguments)
        except Exception as error:  # whatever a library provokes
            results[i] = _failure(error)
            return None

    def run_guarded(i: int, text: Text) -> np.ndarray:
        start = time.perf_counter()
        timed = guarded(i, timed_logits, opened[i].engine, text)
        if timed is None:
            return no_logits
        times[i] += timed.ids_ms, (time.perf_counter() - start) * 1000
        return timed.logits

    def serve_share(turn: int, turns: int) -> None:
        repeats = min(max(turns, SERVED_LEAST), SERVED_MOST)
        for _ in range((turn + 1) * repeats // turns - turn * repeats // turns):
            for i, repeat in served.items():
                repeat.append(guarded(i, serve, opened[i].open_instance, texts, WARMUP, setting.num_threads, 1))

    if opened:
        runs: list[Callable[[Any], np.ndarray]] = [partial(run_guarded, i) for i in opened]
        every = [rung.every for rung in opened.values()]
        inputs: list[Callable[[int], Any]] = [texts.__getitem__] * len(runs)
        all_logits, all_milliseconds = timed_in_turns(runs, inputs, len(texts), every, between=serve_share)
    for position, (i, rung) in enumerate(opened.items()):
        if i in results:
            continue
        logits = None if rung.has_random_weights else all_logits[position]
        if i in served:
            outputs, milliseconds, seconds = zip(*served[i], strict=True)
            ids_ms = sum(timed.ids_ms for repeat in outputs for timed in repeat)
            share = ids_ms / sum(each.sum() for each in milliseconds)
            results[i] = Measurement(logits, list(milliseconds), list(seconds), share)
        else:
            share = times[i][0] / times[i][1]
            results[i] = Measurement(
                logits, all_milliseconds[position], tokens_share=share if rung.reads_tokens else None
            )
    return [results[i] for i in range(len(rungs))]


def _open_checkpoint(path: str, setting: Setting, is_padded: bool) -> Rung:
    config = config_of_checkpoint(path, "--rung", setting.n_ctx, setting.task)
    model = load_model(path, "--rung", config, setting.labels)
    tokenizer = load_tokenizer(path, "--rung")
    run = pytorch_engine(model)
    engine = text_engine(run, tokenizer.backend_tokenizer, config.n_ctx, tokenizer.pad_token_id, is_padded)
    return Rung(engine, model.num_parameters(), checkpoint_bytes(path))


def _open_graph(path: str, setting: Setting, has_instances: bool) -> Rung:
    options = (setting.labels, setting.tokenizer.backend_tokenizer.to_str(), setting.n_ctx)
    engine = onnx_text_engine(path, setting.num_threads, *options)
    open_instance = partial(open_text_engine, path, 1, *options) if has_instances else None
    return Rung(engine, *onnx_size(path), is_step=not is_cascade(path), open_instance=open_instance)


def _open_bert_base(path: str, setting: Setting) -> Rung:
    """BERT-base's shape, padded to n_ctx: time does not depend on its weights, which are random."""
    n_ctx, tokenizer = setting.n_ctx, setting.tokenizer
    shape = BertConfig(num_labels=len(setting.labels), max_position_embeddings=max(512, n_ctx))
    model = AutoModelForSequenceClassification.from_config(shape).eval()
    run_model = pytorch_engine(model)

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        # Token ids of another vocabulary may be larger than its own.
        return run_model(batch | {"input_ids": batch["input_ids"] % shape.vocab_size})

    parameters = model.num_parameters()
    return Rung(
        text_engine(run, tokenizer.backend_tokenizer, n_ctx, tokenizer.pad_token_id, is_padded=True),
        parameters,
        4 * parameters,
        is_step=False,
        has_random_weights=True,
        every=BASELINE_EVERY,
    )


def _open_linear(path: str, setting: Setting) -> Rung:
    """TF-IDF and logistic regression, of scores ridge regression: of words and pairs of words or, where these do not
    repeat from text to text, as in Chinese, of one to three characters."""
    texts = [_joined(text) for text in setting.train_texts]
    grams: dict[str, Any] = {"ngram_range": (1, 2)} if words_repeat(texts) else CHARACTER_GRAMS
    vectorizer = TfidfVectorizer(**grams, sublinear_tf=True, min_df=2)
    model = make_pipeline(vectorizer, LINEAR_MODELS[setting.task]())
    model.fit(texts, setting.train_labels)
    if setting.task == REGRESSION:
        engine = TextEngine(_joined, lambda text: model.predict([text]).reshape(1, -1))
        return Rung(engine, model[-1].coef_.size, 8 * model[-1].coef_.size, is_step=False, reads_tokens=False)
    if setting.task == MULTI_LABEL:  # as logits
        parameters = sum(one.coef_.size for one in model[-1].estimators_)
        engine = TextEngine(_joined, lambda text: log_odds(model.predict_proba([text])))
    else:
        parameters = model[-1].coef_.size
        engine = TextEngine(_joined, lambda text: model.predict_proba([text]))
    return Rung(engine, parameters, 8 * parameters, is_step=False, reads_tokens=False)


def _open_model2vec(path: str, setting: Setting) -> Rung:
    """Static embeddings and a classifier on them, a folder that model2vec's `StaticModelPipeline` saved."""
    try:
        from model2vec.inference import StaticModelPipeline
    except ImportError:
        raise UserError("--rung: the engine model2vec is not installed: run `pip install model2vec`") from None
    if setting.task != SINGLE_LABEL:
        raise UserError("--rung: the engine model2vec is for one label a text: leave it out")
    if not (Path(path) / "model.safetensors").is_file():
        raise UserError(f"--rung: {path} holds no model.safetensors: give a folder that model2vec saved")
    pipeline = StaticModelPipeline.from_pretrained(path)
    known = [] if pipeline.classes_ is None else [str(label) for label in pipeline.classes_]
    if sorted(known) != sorted(setting.labels):
        raise UserError(f"--rung: {path} gives the labels {', '.join(known)}: give a model with the data set's")
    columns = [known.index(label) for label in setting.labels]
    engine = TextEngine(_joined, lambda text: pipeline.predict_proba([text])[:, columns])
    arrays = [pipeline.model.embedding, *(array for layer in pipeline.head.layers for array in vars(layer).values())]
    sizes = sum(array.size for array in arrays), sum(array.nbytes for array in arrays)
    return Rung(engine, *sizes, is_step=False, reads_tokens=False)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """The logits whose sigmoids probabilities are."""
    inside = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside))


def _logistic_regression() -> LogisticRegression:
    return LogisticRegression(C=10.0, max_iter=1000)


LINEAR_MODELS: dict[str, Callable[[], Any]] = {
    SINGLE_LABEL: _logistic_regression,
    MULTI_LABEL: lambda: OneVsRestClassifier(_logistic_regression()),
    REGRESSION: lambda: Ridge(alpha=1.0),
}


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else " ".join(text)


CHARACTER_GRAMS = {"analyzer": "char", "ngram_range": (1, 3)}


def words_repeat(texts: list[str]) -> bool:
    """Tell whether words are found in more than one of the texts, as they are where spaces separate words.

    Of 30 sentences of English, two fifths of the words are; of a thousand, four fifths. A quarter must be.
    """
    words_of = TfidfVectorizer().build_analyzer()
    counts = Counter(word for text in texts for word in set(words_of(text))).values()
    return 4 * sum(count for count in counts if count > 1) > sum(counts)


OPENERS: dict[str, Callable[[str, Setting], Rung]] = {
    "pytorch_fixed": partial(_open_checkpoint, is_padded=True),
    "pytorch": partial(_open_checkpoint, is_padded=False),
    "onnx": partial(_open_graph, has_instances=False),
    "onnx_instances": partial(_open_graph, has_instances=True),
    "bert_base": _open_bert_base,
    "linear": _open_linear,
    "model2vec": _open_model2vec,
}


def _failure(error: Exception) -> Failure:
    logger.debug("a rung failed", exc_info=error)
    return Failure(
        first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    )
