"""A model folder labels texts as PyTorch does, from any thread, and says what is wrong with it."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import make_tokenizer, write_texts
from reference_model import FILES, LABELS, N_CTX, Reference, change_config, of_texts, random_texts, seal

from utils.predictor.model import Predictor, load_session
from utils.system.errors import UserError

TEXTS = ["a good film", "", "the movie was very dull", "a good film", ("the plot", "it is bad"), "great " * 40]
TEXTS += [("a film " * 20, "fine"), ("", "bad"), "A GREAT cast ! unknown", ("good", "great " * 40), "film"]


@pytest.fixture(scope="module", params=sorted(FILES))
def reference(request, tmp_path_factory) -> Reference:
    """BERT with a graph of its own for rows without padding; DistilBERT, which has no token types, without one."""
    return Reference(tmp_path_factory.mktemp(request.param), request.param)


def expect(prediction, probabilities: list[float]) -> None:
    assert list(prediction.probabilities) == LABELS
    assert list(prediction.probabilities.values()) == pytest.approx(probabilities, abs=1e-5)
    assert prediction.label == LABELS[probabilities.index(max(probabilities))]


def test_the_labels_differ(reference):
    predictions = Predictor(reference.folder, 1).predict_batch(random_texts(200))
    assert len({prediction.label for prediction in predictions}) > 1


def test_single_texts_and_pairs(reference):
    predictor = Predictor(reference.folder, num_threads=1)
    for text in TEXTS:
        texts = (text,) if isinstance(text, str) else text
        expect(predictor.predict(*texts), reference.probabilities(text))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_keep_the_order(reference, batch_size):
    # More than one pool of batches, each text twice.
    texts = (TEXTS + random_texts(120)) * 2
    predictions = Predictor(str(reference.folder)).predict_batch(texts, batch_size)
    assert len(predictions) == len(texts)
    for text, prediction in zip(texts, predictions, strict=True):
        expect(prediction, reference.probabilities(text))


def test_batches_hold_rows_of_one_length(reference, monkeypatch):
    predictor = Predictor(reference.folder, 1)
    (stage,) = predictor._stages
    shapes, logits = [], stage.logits

    def spy(rows):
        shapes.append((len(rows), {len(ids) for ids, _ in rows}))
        return logits(rows)

    monkeypatch.setattr(stage, "logits", spy)
    predictor.predict_batch(["good"] * 5 + ["a film"] * 3, batch_size=4)
    assert shapes == [(4, {3}), (1, {3}), (3, {4})]


def test_other_sequences(bert):
    predictor = Predictor(bert.folder, 1)
    assert predictor.predict_batch([]) == []
    assert [p.label for p in predictor.predict_batch(("good", "bad"))] == [
        predictor.predict("good").label, predictor.predict("bad").label
    ]  # fmt: skip


def test_truncates_at_n_ctx(bert):
    predictor = Predictor(bert.folder, 1)
    cut = " ".join(["good"] * (N_CTX - 2))
    assert predictor.predict(cut + " bad bad bad") == predictor.predict(cut)
    assert predictor.predict(cut[:-5] + " bad") != predictor.predict(cut)


def test_threads_of_the_model(bert, monkeypatch):
    monkeypatch.setattr("utils.predictor.cpus.usable_cpus", lambda: 6)
    for num_threads, expected in ((None, 6), (2, 2)):
        options = Predictor(bert.folder, num_threads).session.get_session_options()
        assert options.intra_op_num_threads == expected


def test_threads_share_one_predictor(reference):
    predictor = Predictor(reference.folder, num_threads=1)
    texts = random_texts(400)
    expected = [predictor.predict(text).label for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [prediction.label for prediction in pool.map(predictor.predict, texts)] == expected
        batches = list(pool.map(predictor.predict_batch, [texts] * 8))
    assert all([prediction.label for prediction in batch] == expected for batch in batches)


@pytest.mark.parametrize(
    "text", ["", " ", "good " * 20_000, "g" * 100_000, "\U0001f642 good", "go\0od", "\0", "[SEP] [PAD]"]
)
def test_odd_texts_get_a_label(reference, text, capfd):
    predictor = Predictor(reference.folder, 1)
    assert predictor.predict(text).label in LABELS
    assert [prediction.label in LABELS for prediction in predictor.predict_batch([text, (text, text)])] == [True] * 2
    assert capfd.readouterr() == ("", "")


BAD_TEXTS = [None, 5, b"good", ["a", "b"], ("a",), ("a", "b", "c"), (), ("a", None), "\ud800", ("a", "x\udfff")]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=ascii)
def test_bad_texts(bert, text):
    predictor = Predictor(bert.folder, 1)
    with pytest.raises(ValueError, match="^text 1 .*: (give a str|decode)"):
        predictor.predict(text)
    with pytest.raises(ValueError, match="^text 2 .*: (give a str|decode)"):
        predictor.predict_batch(["good", text])
    assert predictor.predict("good").label in LABELS


@pytest.mark.parametrize("pair", [5, b"b", ("b",), "\ud800"], ids=ascii)
def test_bad_second_text(bert, pair):
    with pytest.raises(ValueError, match="^text 1 "):
        Predictor(bert.folder, 1).predict("good", pair)


@pytest.mark.parametrize("texts", ["good", b"good", None, 5, {"good"}, iter(["good"])], ids=lambda x: type(x).__name__)
def test_a_batch_that_is_no_list(bert, texts):
    with pytest.raises(ValueError, match="give a list"):
        Predictor(bert.folder, 1).predict_batch(texts)


def test_bad_numbers(bert):
    with pytest.raises(ValueError, match="batch_size is 0"):
        Predictor(bert.folder, 1).predict_batch(["good"], batch_size=0)
    with pytest.raises(ValueError, match="num_threads is -1"):
        Predictor(bert.folder, -1)


@pytest.mark.parametrize(
    ("count", "right", "wrong", "message"),
    [
        (1, "a good film", ("a good film", "it is bad"), "text 1 is a pair but .* one text"),
        (2, ("a good film", "it is bad"), "a good film", "text 1 is not a pair but .* pairs of texts"),
    ],
)
def test_a_model_of_one_text_takes_no_pair(bert, copy, count, right, wrong, message):
    """Nor the other way round: the probabilities would be of something else."""
    predictor = Predictor(of_texts(copy, count), 1)
    expect(predictor.predict_batch([right])[0], bert.probabilities(right))
    for ask in (lambda: predictor.predict_batch([wrong]), lambda: predictor.encode([wrong])):
        with pytest.raises(UserError, match=message):
            ask()
    with pytest.raises(UserError, match=message):
        predictor.predict(*((wrong,) if isinstance(wrong, str) else wrong))
    for text in (right, wrong):
        expect(Predictor(of_texts(copy, None), 1).predict_batch([text])[0], bert.probabilities(text))


def test_quantize_says_what_the_model_takes(project):
    steps = project()
    for count in (1, 2):
        write_texts(steps.data, pairs=count == 2)
        for code, stderr in (
            steps.preprocess(), steps.train("--epoch=1"),
            steps.quantize("--fp32", f"--output_dir={steps.folder}/model", source="teacher"),
        ):  # fmt: skip
            assert code == 0, stderr
        assert Predictor(steps.folder / "model", 1).texts_a_row == count


@pytest.mark.parametrize("spoil", ["missing", "empty", "truncated", "flipped"])
@pytest.mark.parametrize("name", FILES["bert"])
def test_damaged_files(copy, name, spoil):
    path = copy / name
    content = bytearray(path.read_bytes())
    if spoil == "missing":
        path.unlink()
    elif spoil == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if spoil == "truncated" else 0])
    with pytest.raises(UserError, match=f"{name} .*: write it again with quantize.py$"):
        Predictor(copy, 1)


LAYOUTS = ["in one folder", "a folder each", "only the weights"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_are_links_into_a_store(bert, copy, tmp_path, layout):
    """By their content's hash, as DVC, git-annex and the Hugging Face hub keep them."""
    for path in list(copy.iterdir()):
        if layout != "only the weights" or path.name == "model.weights":
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            stored = tmp_path / "store" / (digest[:2] if layout != "in one folder" else "") / digest[2:]
            stored.parent.mkdir(parents=True, exist_ok=True)
            path.rename(stored)
            path.symlink_to(os.path.relpath(stored, copy))
    predictor = Predictor(copy, 1)
    for text in TEXTS[:4]:
        expect(predictor.predict(text), bert.probabilities(text))


@pytest.mark.parametrize("name", [*FILES["bert"], "config.json"])
def test_files_that_were_not_fetched(copy, name):
    path = copy / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(UserError, match=f"{name} is a Git-LFS pointer.*git lfs pull"):
        Predictor(copy, 1)
    path.unlink()
    path.symlink_to("../annex/objects/MD5-1")
    with pytest.raises(UserError, match=f"{name} is a link to ../annex/objects/MD5-1, .*git annex get"):
        Predictor(copy, 1)


@pytest.mark.parametrize("name", ["model.unpadded.onnx", "model.weights"])
def test_a_graph_without_its_folder_that_was_not_fetched(copy, name):
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=f"{name} is a Git-LFS pointer"):
        load_session(copy / "model.unpadded.onnx", 1)


def test_tokenizer_of_another_model(copy):
    make_tokenizer(cls="<s>", sep="</s>", pad="<pad>").save_pretrained(copy)
    with pytest.raises(UserError, match="tokenizer.json is damaged or of another model"):
        Predictor(copy, 1)


@pytest.mark.parametrize("name", ["model.unpadded.onnx", "tokenizer.json"])
def test_unusable_files_with_the_right_hash(copy, name):
    (copy / name).write_text("no such thing")
    seal(copy, FILES["bert"])
    with pytest.raises(UserError, match=f"{name} is not a usable .*quantize.py$"):
        Predictor(copy, 1)


def test_an_unlisted_graph_is_not_opened(copy):
    # Left behind by an older export: nothing vouches for it.
    (copy / "model.unpadded.onnx").write_text("old")
    seal(copy, ["model.onnx", "tokenizer.json"])
    assert Predictor(copy, 1).predict("good").label in LABELS


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"id2label": {"0": "bad", "2": "good"}}, "id2label must name every id"),
        ({"id2label": {"0": "bad", "1": "bad", "2": "good"}}, "id2label must name every id"),
        ({"id2label": {"0": "bad", "1": None, "2": "good"}}, "id2label must name every id"),
        ({"id2label": {}}, "id2label must name every id"),
        ({"id2label": ["bad", "good"]}, "id2label must name every id"),
        ({"id2label": {"0": "bad", "1": "good"}}, "2 labels but model.unpadded.onnx gives 3 logits"),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "4 labels but model.unpadded.onnx gives 3 logits"),
        ({"fastformers": None}, "must list model.onnx and tokenizer.json"),
        ({"fastformers": {"n_ctx": 16, "files": {"model.onnx": "0"}}}, "must list model.onnx and tokenizer.json"),
        ({"fastformers": {"n_ctx": 65, "files": {"model.onnx": "0", "tokenizer.json": "0"}}}, "n_ctx is 65"),
        ({"fastformers": {"n_ctx": 16, "files": {"model.onnx": "0", "tokenizer.json": "0", "../x": "0"}}}, "names of"),
        ({"fastformers": {"n_ctx": "16", "files": {"model.onnx": "0", "tokenizer.json": "0"}}}, "n_ctx is '16'"),
        ({"fastformers": {"n_ctx": 16, "texts": 3, "files": {"model.onnx": "0", "tokenizer.json": "0"}}}, "texts is 3"),
    ],
)
def test_spoiled_config(copy, keys, part):
    change_config(copy, **keys)
    with pytest.raises(UserError, match=f"config.json.*{part}.*quantize.py$"):
        Predictor(copy, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_damaged_config(copy, content):
    (copy / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json .*quantize.py"):
        Predictor(copy, 1)


def test_folders_that_quantize_did_not_write(made, tmp_path, bert):
    for folder in (tmp_path / "nowhere", tmp_path, made["bert"] / "encoder", bert.folder / "model.onnx"):
        with pytest.raises(UserError, match="config.json .*: name a folder that quantize.py --output_dir wrote"):
            Predictor(folder, 1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat(reference):
    predictor = Predictor(reference.folder, num_threads=1)

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    texts = random_texts(2_500)
    for text in texts[:500]:
        predictor.predict(text)
    predictor.predict_batch(texts[:500])
    before = resident_mb()
    for text in texts[500:]:
        predictor.predict(text)
    predictor.predict_batch(texts[500:])
    assert resident_mb() - before < 5
