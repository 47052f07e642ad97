"""The rungs of a ladder: each engine's model, opened, and all of them timed side by side."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, BertConfig

from utils.data.tables import Data, collate
from utils.data.texts import Columns, read_rows, split_path
from utils.measuring.engines import Engine, checkpoint_bytes, onnx_size, open_onnx, pytorch_engine
from utils.measuring.instances import serve
from utils.measuring.ladder import Measurement
from utils.measuring.timing import timed_in_turns
from utils.models.classifier import load_model
from utils.models.config import Config
from utils.predictor import is_cascade
from utils.system.errors import UserError, first_line

logger = logging.getLogger(__name__)

SERVED_LEAST, SERVED_MOST = 3, 10  # how often several instances serve all rows, by the number of turns
WARMUP = 20  # rows that each instance runs before
BASELINE_EVERY = 20


@dataclass(frozen=True)
class Setting:
    """What the rungs of a ladder have in common."""

    config: Config
    data: Data
    columns: Columns  # of the data folder's text files
    pad_token_id: int
    num_threads: int


@dataclass(frozen=True)
class Rung:
    """A model that is ready to be timed, and its size."""

    run: Callable[[Any], np.ndarray]  # from what `make_input` gives to logits, float [1, labels]
    make_input: Callable[[int], Any]  # from the number of a row of test
    parameters: int
    model_bytes: int
    is_step: bool = True  # of the ladder; if not, something to compare it with
    has_random_weights: bool = False  # its logits then mean nothing
    every: int = 1  # the steps in which it goes through the rows, where it is too slow for all of them
    open_instance: Callable[[], Engine] | None = None  # where several processes share the rows


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
    """Time every rung on all rows of test, one row at a time, taking turns; a rung that fails leaves the others alone.

    Several instances serve all rows between these turns, `SERVED_LEAST` to `SERVED_MOST` times.
    """
    num_rows = len(setting.data.splits["test"])
    no_logits = np.full((1, len(setting.data.labels)), np.nan)
    results: dict[int, Measurement | Failure] = {i: rung for i, rung in enumerate(rungs) if isinstance(rung, Failure)}
    opened = {i: rung for i, rung in enumerate(rungs) if isinstance(rung, Rung)}
    served: dict[int, list] = {i: [] for i, rung in opened.items() if rung.open_instance}
    batches = {i: [opened[i].make_input(row) for row in range(num_rows)] for i in served}

    def guarded(i: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns; nothing from a rung's first failure on."""
        if i in results:
            return None
        try:
            return work(*arguments)
        except Exception as error:  # whatever a library provokes
            results[i] = _failure(error)
            return None

    def run_guarded(i: int, inputs: Any) -> np.ndarray:
        logits = guarded(i, opened[i].run, inputs)
        return no_logits if logits is None else logits

    def serve_share(turn: int, turns: int) -> None:
        repeats = min(max(turns, SERVED_LEAST), SERVED_MOST)
        for _ in range((turn + 1) * repeats // turns - turn * repeats // turns):
            for i, repeat in served.items():
                repeat.append(guarded(i, serve, opened[i].open_instance, batches[i], WARMUP, setting.num_threads, 1))

    runs: list[Callable[[Any], np.ndarray]] = [partial(run_guarded, i) for i in opened]
    inputs, every = [rung.make_input for rung in opened.values()], [rung.every for rung in opened.values()]
    if opened:
        all_logits, all_milliseconds = timed_in_turns(runs, inputs, num_rows, every, between=serve_share)
    for position, (i, rung) in enumerate(opened.items()):
        if i in results:
            continue
        logits = None if rung.has_random_weights else all_logits[position]
        if i in served:
            _, milliseconds, seconds = zip(*served[i], strict=True)
            results[i] = Measurement(logits, list(milliseconds), list(seconds))
        else:
            results[i] = Measurement(logits, all_milliseconds[position])
    return [results[i] for i in range(len(rungs))]


def _single_row(setting: Setting, row: int, width: int | None = None) -> dict[str, np.ndarray]:
    """A row of test as a batch of its own, padded to `width` tokens."""
    return collate(setting.data.splits["test"], np.array([row]), setting.pad_token_id, width)


def _open_checkpoint(path: str, setting: Setting, is_padded: bool) -> Rung:
    model = load_model(path, "--rung", setting.config, setting.data.labels)
    width = setting.config.n_ctx if is_padded else None
    make_input = partial(_single_row, setting, width=width)
    return Rung(pytorch_engine(model), make_input, model.num_parameters(), checkpoint_bytes(path))


def _open_graph(path: str, setting: Setting, has_instances: bool) -> Rung:
    labels = setting.data.labels
    run = open_onnx(path, setting.num_threads, labels)
    open_instance = partial(open_onnx, path, 1, labels) if has_instances else None
    size, is_step = onnx_size(path), not is_cascade(path)
    return Rung(run, partial(_single_row, setting), *size, is_step=is_step, open_instance=open_instance)


def _open_bert_base(path: str, setting: Setting) -> Rung:
    """BERT-base's shape, padded to n_ctx: time does not depend on its weights, which are random."""
    n_ctx = setting.config.n_ctx
    shape = BertConfig(num_labels=len(setting.data.labels), max_position_embeddings=max(512, n_ctx))
    model = AutoModelForSequenceClassification.from_config(shape).eval()

    def make_input(row: int) -> dict[str, np.ndarray]:
        batch = _single_row(setting, row, n_ctx)
        # Token ids of another vocabulary may be larger than its own.
        return batch | {"input_ids": batch["input_ids"] % shape.vocab_size}

    parameters = model.num_parameters()
    return Rung(
        pytorch_engine(model),
        make_input,
        parameters,
        4 * parameters,
        is_step=False,
        has_random_weights=True,
        every=BASELINE_EVERY,
    )


def _open_linear(path: str, setting: Setting) -> Rung:
    """TF-IDF and logistic regression from text to label: of words and pairs of words or, where these do not repeat from
    text to text, as in Chinese, of one to three characters."""
    data_dir = setting.data.folder.parent
    rows = {split: list(read_rows(split_path(data_dir, split), setting.columns)) for split in ("train", "test")}
    texts = {split: [" ".join(parts) for parts, _ in rows[split]] for split in rows}
    grams: dict[str, Any] = {"ngram_range": (1, 2)} if words_repeat(texts["train"]) else CHARACTER_GRAMS
    vectorizer = TfidfVectorizer(**grams, sublinear_tf=True, min_df=2)
    model = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000))
    model.fit(texts["train"], [label for _, label in rows["train"]])
    order = [list(model.classes_).index(label) for label in setting.data.labels]
    parameters = model[-1].coef_.size
    return Rung(
        lambda text: model.predict_proba([text])[:, order],
        texts["test"].__getitem__,
        parameters,
        8 * parameters,
        is_step=False,
    )


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
}


def _failure(error: Exception) -> Failure:
    logger.debug("a rung failed", exc_info=error)
    return Failure(
        first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    )
