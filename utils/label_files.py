"""Label the rows of a file in several processes, into a file: predict.py --output.

Each chunk of rows is labelled by itself, so that its answers depend neither on how many processes there are nor on
where a run was stopped. Finished chunks are kept in OUTPUT.unfinished.
"""

import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.labelled_files import check_form, check_rows, open_output
from utils.data.row_chunks import Chunk, RowFile, read_chunks
from utils.predictor.folder import ModelFolder, StageFolder, read_stages
from utils.predictor.model import Predictor, sigmoid, softmax
from utils.predictor.tokens import Text
from utils.system.bars import progress_bar
from utils.system.errors import UserError
from utils.system.files import atomic_file, check_output_file, file_hash
from utils.system.journal import Cached, cached_in, unfinished_path
from utils.system.pinned import check_cores, map_in_instances

logger = logging.getLogger(__name__)

BATCH_SIZE = 16  # rows of one length that run together
# What a row is answered: the id of its label, that label's probability, and the stage of a cascade.
ANSWER = np.dtype([("label", "<u4"), ("probability", "<f4"), ("stage", "u1")])
ONE_LABEL, SCORES = "single_label_classification", "regression"


def label_file(
    model_dir: str,
    path: Path,
    output: Path,
    columns: tuple[str, ...],
    num_instances: int,
    min_probability: float | None = None,
    prefix: str = "",
    resume: str = "auto",
    overwrite: bool = False,
) -> int:
    """Write the rows of a file to `output`, with the columns label and probability, and stage of a cascade, and sure
    with `min_probability`; returns how many rows.

    Args:
        columns: of the text, or of the two texts of a pair.
        num_instances: processes of one thread.
        prefix: put before the names of the added columns.
        resume, overwrite: as `cached_in`.

    Raises:
        UserError: a row is not as the model needs it, the output cannot be written, or as `cached_in`. All rows are
            read before the first is labelled.
    """
    check_cores(num_instances, 1)
    check_output_file(output, "--output")
    _check_input(path, output)
    stages, is_cascade = read_stages(model_dir)
    labels = stages[0].model.labels
    types = {prefix + name: kind for name, kind in _added_columns(stages, is_cascade, min_probability).items()}
    file = RowFile(path, columns, stages[0].model.texts_a_row, labels, tuple(types))
    num_rows = _count_rows(file, output)
    flags = {
        "MODEL_DIR": file_hash(Path(model_dir) / "config.json")[:16],  # which has the hashes of its other files
        "--input": file_hash(path)[:16],
        "--text_column": columns,
    }
    cached = cached_in(unfinished_path(output), flags, resume, overwrite)
    answer_type = _answer_type(stages[0].model)
    labelled = _labelled_chunks(read_chunks(file), cached, partial(open_model, model_dir), num_instances, answer_type)
    with (
        closing(labelled),
        progress_bar(total=num_rows, unit="row") as bar,
        atomic_file(output) as temporary,
        open_output(temporary, output.suffix.lower(), file, types) as append,
    ):
        for chunk, answers in labelled:
            values = _values(stages, answers, is_cascade, min_probability)
            append(chunk.rows, dict(zip(types, values, strict=True)))
            bar.update(len(chunk.texts))
    unfinished_path(output).unlink(missing_ok=True)
    logger.info("[Labelled] : %d rows, written to %s", num_rows, output)
    return num_rows


def _added_columns(stages: list[StageFolder], is_cascade: bool, min_probability: float | None) -> dict[str, type]:
    """The columns that are added, and their types: of several labels both label and probability are joined in a text.

    Raises:
        UserError: answers are to be marked as sure, but the model gives scores.
    """
    model = stages[0].model
    if model.problem_type == SCORES:
        if min_probability is not None:
            raise UserError(
                "--min_probability is for labels, and this model gives scores, which have none: leave it out"
            )
        name = "score" if len(model.labels) == 1 else None
        return {name or label: float for label in model.labels}
    types: dict[str, type] = {"label": str, "probability": float if model.problem_type == ONE_LABEL else str}
    types |= {"stage": int} if is_cascade else {}
    return types | ({} if min_probability is None else {"sure": bool})


def _answer_type(model: ModelFolder) -> np.dtype:
    """What is kept of a row's answer: `ANSWER`, of several labels or scores the logits, and the stage."""
    if model.problem_type == ONE_LABEL:
        return ANSWER
    return np.dtype([("logits", "<f4", (len(model.labels),)), ("stage", "u1")])


def _values(
    stages: list[StageFolder], answers: np.ndarray, is_cascade: bool, min_probability: float | None
) -> list[list]:
    """The added columns of some rows, in the order of `_added_columns`."""
    model = stages[0].model
    if model.problem_type == SCORES:
        return answers["logits"].T.tolist()
    if model.problem_type == ONE_LABEL:
        values = [[model.labels[i] for i in answers["label"].tolist()], answers["probability"].tolist()]
        shares = answers["probability"].astype(float)
    else:
        probabilities = sigmoid(answers["logits"])
        given = probabilities > np.array([stage.model.thresholds for stage in stages])[answers["stage"]]
        rows = [np.flatnonzero(row).tolist() for row in given]
        values = [
            [model.separator.join(model.labels[i] for i in own) for own in rows],
            ["|".join(f"{row[i]:.6f}" for i in own) for own, row in zip(rows, probabilities.tolist(), strict=True)],
        ]
        shares = np.where(given, probabilities, 1 - probabilities).min(1).astype(float)
    values += [answers["stage"].tolist()] if is_cascade else []
    return values + ([] if min_probability is None else [(shares >= min_probability).tolist()])


def _check_input(path: Path, output: Path) -> None:
    reason = None
    if path.exists() and not path.is_file():  # opening a pipe would wait
        reason = "it is no file, but the rows are read twice"
    else:
        try:
            open(path, "rb").close()
        except OSError as error:
            reason = error.strerror
    if reason:
        raise UserError(f"{path} cannot be read ({reason}): name a file of texts with --input")
    if output.exists() and output.samefile(path):
        raise UserError(f"--output {output} is the input: name another file")


def _count_rows(file: RowFile, output: Path) -> int:
    """How many rows a file has, after all of them are checked."""
    check_form(file, output)
    num_rows = 0
    with progress_bar(desc="check", unit="row") as bar:
        for chunk in read_chunks(file):
            check_rows(chunk.rows, output)
            num_rows += len(chunk.texts)
            bar.update(len(chunk.texts))
    return num_rows


def open_model(model_dir: str) -> Callable[[list[Text]], np.ndarray]:
    """A function that labels texts with a model of one thread; its result is of the model's `_answer_type` [texts]."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in an instance's own process
    predictor, answer_type = Predictor(model_dir, num_threads=1), _answer_type(read_stages(model_dir)[0][0].model)

    def answer(texts: list[Text]) -> np.ndarray:
        logits, stages = predictor.run(predictor.encode(texts), texts, BATCH_SIZE)
        answers = np.empty(len(texts), dtype=answer_type)
        answers["stage"] = stages
        if answer_type == ANSWER:
            answers["label"], answers["probability"] = logits.argmax(1), softmax(logits).max(1)
        else:
            answers["logits"] = logits
        return answers

    return answer


def _labelled_chunks(
    chunks: Iterator[Chunk], cached: Cached, open_function: Callable, num_instances: int, answer_type: np.dtype
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Yield each chunk with its answers: those that are kept, and from the first that is not on, new ones."""
    answers: Any = None
    chunk: Any = None

    def answer_next() -> str:
        nonlocal answers, chunks
        if answers is None:
            ahead, chunks = itertools.tee(chunks)
            texts = (each.texts for each in itertools.chain([chunk], ahead))
            answers = map_in_instances(open_function, texts, num_instances)
        return next(answers).tobytes().hex()

    try:
        for number in itertools.count():
            if (chunk := next(chunks, None)) is None:
                return
            yield chunk, np.frombuffer(bytes.fromhex(cached(f"chunk {number}", answer_next)), dtype=answer_type)
    finally:
        if answers is not None:
            answers.close()
