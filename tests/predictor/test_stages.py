"""A cascade's folder labels texts as its stages, one after the other, would in PyTorch; and says what is wrong."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cascade_folder import expected, write_cascade
from conftest import ROOT, make_tokenizer
from reference_model import LABELS, Reference, change_config, random_texts

import utils.predictor.model
from utils.predictor import Predictor
from utils.system.errors import UserError
from utils.system.files import file_hash

TEXTS = [*random_texts(60), "", "great " * 40, ("the plot", "it is bad")]
TEMPERATURES = [3.0, 0.5, 0.7]
WEIGHTS = [0.5, 0.8]  # of what the stages before say


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> list[Reference]:
    """Two that share a tokenizer, and one with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("references")
    other = make_tokenizer(cls="<s>", sep="</s>", pad="<pad>")
    other.add_tokens(["good film"])
    return [
        Reference(folder / "small", "bert", num_hidden_layers=1),
        Reference(folder / "medium", "distilbert"),
        Reference(folder / "large", "bert", other, num_hidden_layers=3),
    ]


@pytest.fixture(scope="module")
def thresholds(references) -> list[float]:
    """So that the first stage answers three fifths of the texts, the second a half of what it would be asked."""
    chosen = []
    for reference, temperature, share in zip(references, TEMPERATURES, (0.4, 0.5), strict=False):
        confidence = sorted(max(expected([reference], [temperature], [], [], text)[2]) for text in TEXTS)
        i = int(share * len(confidence))
        chosen.append((confidence[i] + confidence[i + 1]) / 2)
    return chosen


@pytest.fixture(scope="module")
def cascade(references, thresholds, tmp_path_factory):
    return write_cascade(tmp_path_factory.mktemp("cascade") / "model", references, TEMPERATURES, thresholds, WEIGHTS)


@pytest.fixture
def copy(cascade, tmp_path):
    """A cascade's folder to spoil."""
    return shutil.copytree(cascade, tmp_path / "copy")


@pytest.mark.parametrize("batch_size", [None, 1, 3, 16])
def test_the_stage_that_is_sure_answers(references, cascade, thresholds, batch_size):
    predictor = Predictor(cascade, 1)
    if batch_size is None:
        predictions = [predictor.predict(*((text,) if isinstance(text, str) else text)) for text in TEXTS]
    else:
        predictions = predictor.predict_batch(TEXTS, batch_size)
    counts = [0, 0, 0]
    for text, prediction in zip(TEXTS, predictions, strict=True):
        stage, label, probabilities = expected(references, TEMPERATURES, thresholds, WEIGHTS, text)
        assert (prediction.stage, prediction.label) == (stage, label)
        assert list(prediction.probabilities.values()) == pytest.approx(probabilities, abs=1e-5)
        counts[stage] += 1
    assert min(counts) > 3
    assert predictor.answered == counts
    assert predictor.asked_share == pytest.approx(1 - counts[0] / len(TEXTS))


def test_a_model_alone_has_no_stage(references):
    predictor = Predictor(references[0].folder, 1)
    assert predictor.predict("good").stage is None and not predictor.is_cascade
    assert predictor.predict_batch(["good", "bad"])[1].stage is None
    assert (predictor.answered, predictor.asked_share) == ([3], 0.0)


def test_nothing_asked_yet(cascade):
    predictor = Predictor(cascade, 1)
    assert predictor.predict_batch([]) == [] and predictor.asked_share == 0.0


def test_tokenized_once_where_stages_share_a_tokenizer(references, thresholds, tmp_path, monkeypatch):
    calls, tokenize = [], utils.predictor.model.tokenize

    def spy(tokenizers, texts, n_ctx):
        calls.append(len(texts))
        return tokenize(tokenizers, texts, n_ctx)

    monkeypatch.setattr(utils.predictor.model, "tokenize", spy)
    small, medium, large = references
    shared = Predictor(write_cascade(tmp_path / "shared", [small, medium], [1, 1], [1.0]), 1)
    shared.predict_batch(TEXTS)
    assert calls == [len(TEXTS)] and shared.answered == [0, len(TEXTS)]
    calls.clear()
    own = Predictor(write_cascade(tmp_path / "own", [small, large], [3, 1], [thresholds[0]]), 1)
    own.predict_batch(TEXTS)
    assert calls == [len(TEXTS), own.answered[1]] and 0 < own.answered[1] < len(TEXTS)


def test_the_next_stage_reads_what_is_left_in_full_batches(references, tmp_path, monkeypatch):
    """Not batch by batch of the first stage."""
    predictor = Predictor(write_cascade(tmp_path / "two", references[:2], [1, 1], [1.0]), 1)
    shapes = []
    for stage in predictor._stages:
        logits = stage.logits
        monkeypatch.setattr(
            stage, "logits", lambda rows, logits=logits: shapes.append([len(ids) for ids, _ in rows]) or logits(rows)
        )
    predictor._stages[0].threshold = 0.0
    predictor.run(predictor.encode(["a"] * 5 + ["a film"] * 2), [], 4)
    assert shapes == [[3] * 4, [3], [4] * 2]
    shapes.clear()
    predictor._stages[0].threshold = 1.0
    predictor.run(predictor.encode(["a"] * 5 + ["a film"] * 2), [], 4)
    assert shapes == [[3] * 4, [3], [4] * 2] * 2


def test_threads_of_each_stage(cascade):
    threads = [
        stage.session.get_session_options().intra_op_num_threads for stage in Predictor(cascade, [1, 3, 2])._stages
    ]
    assert threads == [1, 3, 2]
    for counts, message in (([1, 2], "has 2 numbers but .* 3 stage"), ([1, 0, 1], "give 1 or more"), (0, "give 1")):
        with pytest.raises(UserError, match=message):
            Predictor(cascade, counts)


def test_threads_share_one_cascade(cascade):
    predictor = Predictor(cascade, 1)
    texts = random_texts(200)
    alone = [predictor.predict(text)[:1] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [prediction[:1] for prediction in pool.map(predictor.predict, texts)] == alone
        list(pool.map(predictor.predict_batch, [texts] * 8))
    assert sum(predictor.answered) == 200 * 10 and [count % 10 for count in predictor.answered] == [0, 0, 0]


def spoil_stages(copy, **keys) -> None:
    own = json.loads((copy / "config.json").read_text())["fastformers"]
    own["cascade"][0] |= keys
    change_config(copy, fastformers=own)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"threshold": 1.5}, "threshold 1.5, not from 0 to 1"),
        ({"threshold": -0.1}, "threshold -0.1, not from 0 to 1"),
        ({"threshold": float("nan")}, "threshold nan, not from 0 to 1"),
        ({"threshold": "0.5"}, "threshold '0.5', not from 0 to 1"),
        ({"threshold": True}, "threshold True, not from 0 to 1"),
        ({"threshold": None}, "threshold None, not from 0 to 1"),
        ({"temperature": 0}, "temperature 0, not above 0"),
        ({"temperature": None}, "temperature None, not above 0"),
        ({"temperature": float("inf")}, "temperature inf, not above 0"),
        ({"previous_weight": -0.1}, "previous_weight -0.1, not 0 or more"),
        ({"previous_weight": float("nan")}, "previous_weight nan, not 0 or more"),
        ({"previous_weight": "1"}, "previous_weight '1', not 0 or more"),
        ({"previous_weight": 1}, "previous_weight 1, but there is none before it"),
        ({"folder": "../stage-0"}, "must name a folder in this one"),
        ({"folder": "stage-7"}, "must name a folder in this one"),
        ({"folder": 0}, "must name a folder in this one"),
    ],
)
def test_spoiled_stages(copy, keys, part):
    spoil_stages(copy, **keys)
    with pytest.raises(UserError, match=f"config.json: stage 0 .*{part}.*: write it again with cascade.py$"):
        Predictor(copy, 1)


@pytest.mark.parametrize("stages", [[], {}, "stage-0", [1, 2]])
def test_stages_that_are_none(copy, stages):
    own = json.loads((copy / "config.json").read_text())["fastformers"]
    change_config(copy, fastformers=own | {"cascade": stages})
    with pytest.raises(UserError, match="config.json: .*cascade.py$"):
        Predictor(copy, 1)


@pytest.mark.parametrize(
    "name", ["stage-0/config.json", "stage-1/model.onnx", "stage-2/model.weights", "stage-2/tokenizer.json"]
)
@pytest.mark.parametrize("spoil", ["missing", "truncated"])
def test_damaged_stage(copy, name, spoil):
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if spoil == "truncated":
        (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name} .*: write it again with (cascade|quantize).py$"):
        Predictor(copy, 1)


def test_stages_of_other_labels(copy):
    """Whole, and each as the cascade lists it."""
    change_config(copy / "stage-1", id2label={str(i): label for i, label in enumerate(reversed(LABELS))})
    own = json.loads((copy / "config.json").read_text())["fastformers"]
    own["files"]["stage-1/config.json"] = file_hash(copy / "stage-1/config.json")
    change_config(copy, fastformers=own)
    with pytest.raises(UserError, match="stage-1 has other labels than .*stage-0 in another order"):
        Predictor(copy, 1)


def test_a_stage_of_another_cascade(references, copy, tmp_path):
    """Which is whole, but not what was measured."""
    shutil.rmtree(copy / "stage-0")
    shutil.copytree(references[1].folder, copy / "stage-0")
    with pytest.raises(UserError, match="stage-0/config.json is damaged or of another model: .*cascade.py$"):
        Predictor(copy, 1)


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_predict_py_says_which_stage_answered(references, cascade, thresholds, form):
    texts = [text for text in random_texts(20) if text]
    command = [sys.executable, str(ROOT / "predict.py"), str(cascade), f"--format={form}", "--num_threads=1,2,1"]
    done = subprocess.run(command, input="\n".join(texts).encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for line, text in zip(done.stdout.decode().splitlines(), texts, strict=True):
        stage, label, probabilities = expected(references, TEMPERATURES, thresholds, WEIGHTS, text)
        if form == "jsonl":
            row = json.loads(line)
            assert list(row) == ["label", "probabilities", "stage"] and (row["label"], row["stage"]) == (label, stage)
        else:
            assert line.split("\t")[0] == label
            assert float(line.split("\t")[1]) == pytest.approx(max(probabilities), abs=1e-5)
