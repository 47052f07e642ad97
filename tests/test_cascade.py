"""cascade.py puts models together, says what that gives, and refuses what cannot work."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from cascade_folder import write_cascade
from conftest import fails, make_tokenizer, snapshot
from reference_model import LABELS, Reference, change_config, of_texts, random_texts

import utils.system.bars
from utils.measuring.engines import cascade_engine, onnx_size
from utils.predictor import Predictor

TEXTS = [text for text in random_texts(150) if text]


@pytest.fixture
def stages(trained) -> list[str]:
    """A teacher, and one layer of it."""
    assert trained.prune("--keep_layers=0", out="small")[0] == 0
    for source in ("small", "teacher"):
        code, stderr = trained.quantize("--fp32", f"--output_dir={trained.folder}/models/{source}", source=source)
        assert code == 0, stderr
    return [f"{trained.folder}/models/{source}" for source in ("small", "teacher")]


def test_the_whole_way(trained, stages, milliseconds):
    """From two models to one folder, which every script opens and which says of itself what it does."""
    out = trained.folder / "models/cascade"
    arguments = [*stages, f"--data_dir={trained.data}", f"--output_dir={out}", "--num_threads=1"]
    code, stderr = trained.script("cascade", *arguments, "--max_asked=0.5")
    assert code == 0 and "[Chosen] : small " in stderr, stderr
    names = {path.name for path in out.iterdir()}
    files = {"config.json", "README.md", "frontier.json", "frontier.png", "frontier.svg"}
    assert names == {*files, "predictor", "requirements.txt", "stage-0", "stage-1"}
    config = json.loads((out / "config.json").read_text())
    (first, last), asked = config["fastformers"]["cascade"], config["fastformers"]["asked"]
    assert 0 <= asked <= 0.5 and 0 <= first["threshold"] <= 1 and last["threshold"] == 0 and first["temperature"] > 0
    assert config["id2label"] == {"0": "negative", "1": "positive"} and config["fastformers"]["n_ctx"] == 16

    # On valid, what was chosen.
    frontier = json.loads((out / "frontier.json").read_text())
    rows = [line.split("\t") for line in (trained.data / "valid.txt").read_text().splitlines()]
    predictor = Predictor(out, 1)
    predictions = [predictor.predict(text) for text, _ in rows]
    accuracy = np.mean([prediction.label == label for prediction, (_, label) in zip(predictions, rows, strict=True)])
    assert frontier["chosen"]["accuracy"] == pytest.approx(accuracy)
    assert predictor.asked_share == pytest.approx(asked) == pytest.approx(1 - frontier["chosen"]["shares"][0])
    assert list(frontier["models"]) == ["small", "teacher"] and frontier["frontier"]

    # On test, the same of every script, where either stage answers a half.
    rows = [line.split("\t") for line in (trained.data / "test.txt").read_text().splitlines()]
    set_threshold(out, 0.0)
    sure = [
        max(predictor.probabilities.values()) for predictor in Predictor(out, 1).predict_batch([one for one, _ in rows])
    ]
    set_threshold(out, float(np.mean(sorted(sure)[11:13])))
    predictor = Predictor(out, 1)
    right = sum(predictor.predict(text).label == label for text, label in rows)
    result = trained.folder / "result.json"
    assert predictor.answered == [12, 12]
    for options in ([], ["--batch_size=7"], ["--num_instances=1"]):
        code, stderr = trained.evaluate(
            "--enable_ort", f"--onnx_path={out}", f"--output_json={result}", "--num_threads=1", *options
        )
        assert code == 0, stderr
        assert json.loads(result.read_text())["num_correct"] == right
    assert json.loads(result.read_text())["model_bytes"] == sum(onnx_size(stage)[1] for stage in stages)
    options = ["--rung", "teacher", "pytorch", f"{trained.folder}/teacher"]
    for engine in ("onnx", "onnx_instances"):
        options += ["--rung", engine, engine, str(out)]
    code, stderr = trained.script("report", *trained.common(), *options, "--output_dir=ladder", "--num_threads=1")
    assert code == 0, stderr
    rungs = json.loads((trained.folder / "ladder/ladder.json").read_text())["rungs"]
    assert [rung["num_correct"] for rung in rungs[1:]] == [right, right]
    assert [rung["step"] for rung in rungs] == [True, False, False]
    fails(
        trained.evaluate("--enable_ort", f"--onnx_path={out}", "--use_fixed_seq_length"),
        "cascade", "leave out --use_fixed_seq_length",
    )  # fmt: skip
    # Written again, over the older one, with another aim.
    code, stderr = trained.script("cascade", *arguments, "--max_asked=0")
    assert code == 0 and json.loads((out / "config.json").read_text())["fastformers"]["asked"] == 0


def set_threshold(folder: Path, threshold: float) -> None:
    own = json.loads((folder / "config.json").read_text())["fastformers"]
    own["cascade"][0]["threshold"] = threshold
    change_config(folder, fastformers=own)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> list[Reference]:
    folder = tmp_path_factory.mktemp("references")
    return [
        Reference(folder / "small", "bert", num_hidden_layers=1),
        Reference(folder / "large", "bert", num_hidden_layers=5, hidden_size=64, intermediate_size=256),
    ]


@pytest.fixture
def folders(references, tmp_path) -> list[Path]:
    """A small model and a large one, to spoil; and valid.txt, whose labels are nine of ten times the large one's."""
    (tmp_path / "data").mkdir()
    answers = [prediction.label for prediction in Predictor(references[1].folder, 1).predict_batch(TEXTS)]
    answers = [LABELS[(LABELS.index(label) + 1) % 3] if i % 10 == 0 else label for i, label in enumerate(answers)]
    lines = [f"{text}\t{label}\n" for text, label in zip(TEXTS, answers, strict=True)]
    (tmp_path / "data/valid.txt").write_text("".join(lines), encoding="utf-8")
    return [shutil.copytree(one.folder, tmp_path / name) for one, name in zip(references, ("a", "b"), strict=True)]


@pytest.fixture
def run(script, folders, tmp_path):
    """cascade.py on `folders`, or on others."""

    def run_cascade(*options: str, stages: list | None = None, aim: str = "--max_accuracy_drop=0.5", out: str = "out"):
        paths = [str(path) for path in (folders if stages is None else stages)]
        return script("cascade", *paths, "--data_dir=data", f"--output_dir={out}", "--num_threads=1", aim, *options)

    return run_cascade


def chosen() -> dict:
    return json.loads(Path("out/frontier.json").read_text())["chosen"]


def test_aims(run, folders):
    code, stderr = run(aim="--max_asked=0.3")
    assert code == 0 and 0.1 < 1 - chosen()["shares"][0] <= 0.3, stderr
    few = chosen()["accuracy"]
    code, stderr = run(aim="--max_asked=0.9")
    assert code == 0 and chosen()["accuracy"] > few, stderr
    code, stderr = run(aim="--target_speedup=1.2")
    models = json.loads(Path("out/frontier.json").read_text())["models"]
    assert code == 0 and chosen()["mean_ms"] * 1.2 <= models["b"]["mean_ms"], stderr
    code, stderr = run(aim="--max_accuracy_drop=0.2")
    assert code == 0 and chosen()["lowest_difference"] >= -0.2, stderr
    before = snapshot(Path())
    fails(run(aim="--target_speedup=1000"), "--target_speedup=1000", "times as fast")
    assert snapshot(Path()) == before


def test_several_aims(run, folders, milliseconds):
    """Each gets the cascade that it gets alone; where one cannot be reached, none is written."""
    for number, aim in enumerate(("--max_asked=0.3", "--target_speedup=1.2")):
        assert run(aim=aim, out=f"alone-{number}")[0] == 0
    options = ["--target_speedup=1.2", "--output_dir=out-1"]
    code, stderr = run(*options, aim="--max_asked=0.3", out="out-0")
    assert code == 0 and stderr.count("[Chosen]") == 2, stderr
    alone = [json.loads(Path(f"alone-{number}/config.json").read_text()) for number in (0, 1)]
    assert alone == [json.loads(Path(f"out-{number}/config.json").read_text()) for number in (0, 1)]
    assert alone[0]["fastformers"]["asked"] != alone[1]["fastformers"]["asked"]
    before = snapshot(Path())
    fails(run("--target_speedup=1000", "--output_dir=new"), "--target_speedup=1000", "times as fast")
    assert snapshot(Path()) == before


def test_logits_that_are_added_up(run, folders, monkeypatch):
    """The folder answers as was measured, with the weights that were fitted."""
    monkeypatch.setattr("cascade.cascade_weights", lambda logits, true: [(0.5, 0.0), (0.8, 1.5)][: len(logits)])
    code, stderr = run(aim="--max_asked=0.6")
    assert code == 0, stderr
    stages = json.loads(Path("out/config.json").read_text())["fastformers"]["cascade"]
    assert [(stage["temperature"], stage["previous_weight"]) for stage in stages] == [(0.5, 0.0), (0.8, 1.5)]
    rows = [line.split("\t") for line in Path("data/valid.txt").read_text(encoding="utf-8").splitlines()]
    answers = [
        [one.label for one in Predictor(path, 1).predict_batch([text for text, _ in rows])] for path in ("out", "b")
    ]
    accuracy, of_last = (np.mean([label == row[1] for label, row in zip(own, rows, strict=True)]) for own in answers)
    assert chosen()["accuracy"] == pytest.approx(accuracy)
    assert chosen()["difference"] == pytest.approx(accuracy - of_last)


def test_one_model_is_as_good(run, folders, milliseconds):
    """The same twice: the second adds nothing."""
    shutil.copytree(folders[1], "again")
    code, stderr = run(stages=[folders[1], "again"], aim="--max_accuracy_drop=1")
    assert code == 0 and "[Not worth it] : b alone" in stderr, stderr
    code, stderr = run(aim="--max_asked=0.6")
    assert code == 0 and "Not worth it" not in stderr, stderr
    code, stderr = run(aim="--max_asked=0.85")
    expected = json.loads(Path("out/frontier.json").read_text())["models"]["b"]["expected"]
    assert code == 0 and f"[Not worth it] : b alone ({expected:.4f}, 4.000 ms)" in stderr, stderr


def test_a_stage_that_is_never_asked(run, folders, milliseconds):
    """The third is the second again, and slower: no text goes on to it, so it is not in the folder."""
    shutil.copytree(folders[1], "again")
    milliseconds.append(16.0)
    code, stderr = run(stages=[*folders, "again"], aim="--target_speedup=5")
    assert code == 0 and "[Left out] : again, without" in stderr and "> again" not in stderr, stderr
    assert chosen()["members"] == [0, 1, 2] and chosen()["shares"][1] > 0 == chosen()["shares"][2]
    assert sorted(path.name for path in Path("out").glob("stage-*")) == ["stage-0", "stage-1"]
    predictor = Predictor("out", 1)
    predictions = predictor.predict_batch(TEXTS)
    assert predictor.asked_share == pytest.approx(1 - chosen()["shares"][0])
    assert {prediction.stage for prediction in predictions} == {0, 1}


@pytest.mark.parametrize("name", ["unlabelled.txt", "unlabelled.csv"])
def test_unlabelled_texts(run, name):
    """Say how many answers change."""
    lines = [f"{text}\n" for text in TEXTS] * 3
    Path("data", name).write_text("".join(["text\n"] * name.endswith(".csv") + lines), encoding="utf-8")
    code, stderr = run(aim="--max_asked=0.5")
    assert code == 0, stderr
    answers = [[one.label for one in Predictor(folder, 1).predict_batch(TEXTS)] for folder in ("out", "b")]
    changed = np.mean([one != other for one, other in zip(*answers, strict=True)])
    assert chosen()["disagreement"] == pytest.approx(changed, abs=0.01) and 0.02 < changed < 0.5


def test_a_stage_that_is_slower_and_worse(run, folders, milliseconds):
    milliseconds[:] = [2.0, 1.0]
    before = snapshot(Path())
    fails(run(), "a (0.", "2.000 ms) is slower and less accurate than b (0.", "1.000 ms)", "leave it out")
    assert snapshot(Path()) == before
    code, stderr = run(stages=folders[::-1])
    assert code == 0 and "[Order] : b (0." in stderr and "give the fastest first" in stderr, stderr


def test_ctrl_c_at_work(run, monkeypatch):
    monkeypatch.setattr(utils.system.bars, "tqdm", lambda *_, **options: signal.raise_signal(signal.SIGINT))
    before = snapshot(Path())
    code, stderr = run()
    assert code == 130 and stderr.splitlines()[-1].startswith("cascade.py: stopped") and "Traceback" not in stderr
    assert snapshot(Path()) == before


def set_labels(folder: Path, labels: list[str]) -> None:
    change_config(folder, id2label={str(i): label for i, label in enumerate(labels)})


def test_bad_input(run, folders, references):
    first, second = folders
    set_labels(first, LABELS)
    shutil.copytree(second, "other")
    write_cascade(Path("cascade"), references, [1, 1], [0.5])
    cases = {
        "alone": (lambda: run(stages=[first]), ["a alone: name two or more folders"]),
        "twice": (lambda: run(stages=[second, second]), ["not all different"]),
        "nested": (lambda: run(stages=[first, "cascade"]), ["cascade is a cascade itself: name the folders of its"]),
        "nowhere": (lambda: run(stages=[first, "nowhere"]), ["nowhere/config.json cannot be read"]),
        "data": (lambda: run("--data_dir=nowhere"), ["nowhere/valid.txt"]),
        "output": (lambda: run(out="a"), ["--output_dir=a", "stage", "name another folder"]),
        "below": (lambda: run(out="a/x"), ["--output_dir=a/x", "stage", "name another folder"]),
        "above": (lambda: run(out="."), ["--output_dir=.", "stage", "name another folder"]),
        "others": (lambda: run(out="data"), ["--output_dir=data holds other files"]),
        "column": (lambda: run("--text_column=a,b,c"), ["--text_column=a,b,c"]),
    }
    before = snapshot(Path())
    for work, parts in cases.values():
        fails(work(), *parts)
    for aim in ("--max_asked=1.5", "--max_asked=-1", "--max_accuracy_drop=-0.1", "--target_speedup=0", "--quiet"):
        code, stderr = run(aim=aim)
        assert code == 2 and aim.split("=")[0].replace("quiet", "max_asked") in stderr and "Traceback" not in stderr
    fails(run("--max_asked=0.2"), "--output_dir is given 1 time(s) but an aim 2", "one folder for each aim")
    fails(run("--output_dir=out2"), "--output_dir is given 2 time(s) but an aim 1")
    for other in ("out", "out/below"):
        fails(run("--max_asked=0.2", f"--output_dir={other}"), f"--output_dir={other}", "the cascade out")
    assert snapshot(Path()) == before


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (["good", "así así", "bad"], ["b has other labels than", "in another order"]),
        (["bad", "so so", "good"], ["b has other labels than", "so so"]),
        (["bad", "good"], ["b has other labels than"]),
    ],
)
def test_stages_of_other_labels(run, folders, labels, parts):
    set_labels(folders[1], labels)
    before = snapshot(Path())
    fails(run(), *parts, "trained on the same data set")
    assert snapshot(Path()) == before


def test_a_damaged_stage(run, folders):
    weights = folders[1] / "model.weights"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = snapshot(Path())
    fails(run(), "model.weights is damaged", "quantize.py")
    assert snapshot(Path()) == before


def test_one_of_pairs(run, folders):
    of_texts(folders[0], 2), of_texts(folders[1], 1)
    fails(run(), "b takes 1 text(s) a row but", "a takes 2")
    of_texts(folders[1], 2)
    fails(run(), "text 1 is not a pair")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("good\tgood\nbad\tgood\n", ["valid.txt has rows of one label only, 'good'"]),
        (
            "good\tgood\nbad\thorrible\n",
            ["valid.txt, row 2: the models have no label 'horrible'", "bad, así así, good"],
        ),
        ("good\nbad\n", ["valid.txt, line 1", "no tab"]),
        ("", ["valid.txt is empty"]),
    ],
)
def test_a_data_set_that_does_not_fit(run, content, parts):
    Path("data/valid.txt").write_text(content, encoding="utf-8")
    before = snapshot(Path())
    fails(run(), *parts)
    assert snapshot(Path()) == before


def test_an_engine_of_what_does_not_fit(references, folders, tmp_path):
    folder = write_cascade(tmp_path / "cascade", references, [1, 1], [0.5])
    with pytest.raises(ValueError, match="has the labels bad, así así, good but the data set good, bad"):
        cascade_engine(folder, 1, ["good", "bad"])


def test_an_engine_of_stages_with_tokenizers_of_their_own(references, tmp_path):
    other = Reference(tmp_path / "other", "distilbert", make_tokenizer("<s>", "</s>", "<pad>"))
    folder = write_cascade(tmp_path / "two", [references[0], other], [1, 1], [0.5])
    predictor = Predictor(folder, 1)
    labels = [prediction.label for prediction in predictor.predict_batch(TEXTS)]
    logits = cascade_engine(folder, 1, LABELS)({"texts": TEXTS})
    assert [LABELS[best] for best in logits.argmax(1)] == labels and 0 < predictor.asked_share < 1
