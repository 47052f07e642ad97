"""A checkpoint's tokenizer is the one that its files describe, and fits its model; what is made up is refused."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import WORDS, fails, make_encoder, make_tokenizer, snapshot
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from utils.models.checkpoint import load_tokenizer, tokenizer_fingerprint
from utils.system.errors import UserError

CASED = "The Film was Good and Great but Bad the film was good"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_config(folder: Path, family: str, **keys: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, **keys}))


def wordpiece(folder: Path, lowercase: bool) -> BertWordPieceTokenizer:
    """A trained vocabulary, and a BERT of its size, as vocab.txt and config.json in `folder`."""
    trained = BertWordPieceTokenizer(lowercase=lowercase)
    trained.train_from_iterator([CASED] * 5, vocab_size=200, show_progress=False)
    write_config(folder, "bert", vocab_size=trained.get_vocab_size())
    trained.save_model(str(folder))
    return trained


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_no_script_makes_up_a_vocabulary(trained, left):
    """transformers' own would be of 5 special tokens: every word unknown."""
    for folder in ("encoder", "teacher"):
        if folder == "encoder":
            shutil.copytree(trained.encoder, trained.folder / folder)
        for name in set(TOKENIZER_FILES) - set(left):
            (trained.folder / folder / name).unlink(missing_ok=True)
    before = snapshot(trained.folder)
    trained.encoder = str(trained.folder / "encoder")
    runs = [trained.preprocess(), trained.train(out="other"), trained.evaluate(), trained.distill(out="other")]
    runs += [trained.prune("--keep_layers=0"), trained.quantize(source="teacher")]
    runs.append(
        trained.script("augment_data", f"--data_dir={trained.data}", f"--bert_model_name_or_path={trained.encoder}")
    )
    for result in runs:
        fails(result, "no vocabulary", "tokenizer.json", "copy")
        assert "preprocess.py again" not in result[1]
    assert snapshot(trained.folder) == before


@pytest.mark.parametrize(
    "family", ["roberta", "distilbert", "electra", "mpnet", "albert", "xlm-roberta", "deberta-v2", "modernbert", "gpt2"]
)
def test_no_family_has_a_vocabulary_without_a_file(tmp_path, family):
    write_config(tmp_path, family)
    with pytest.raises(UserError, match="no vocabulary"):
        load_tokenizer(str(tmp_path), "--flag")


def test_merges_are_not_made_up(tmp_path):
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([CASED.lower()] * 5, vocab_size=400, special_tokens=special, show_progress=False)
    trained.save_model(str(tmp_path))
    write_config(tmp_path, "roberta", vocab_size=trained.get_vocab_size(), pad_token_id=1)
    assert load_tokenizer(str(tmp_path), "--flag").tokenize("the film") == ["the", "Ġfilm"]
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt"):
        load_tokenizer(str(tmp_path), "--flag")


def test_cased_vocabulary_keeps_its_case(tmp_path):
    trained = wordpiece(tmp_path / "cased", lowercase=False)
    for name in (None, "tokenizer.json"):  # vocab.txt alone, then both
        if name:
            trained.save(str(tmp_path / "cased" / name))
        tokenizer = load_tokenizer(str(tmp_path / "cased"), "--flag")
        ids = [tokenizer.cls_token_id, *trained.encode("The Film was good").ids, tokenizer.sep_token_id]
        assert tokenizer("The Film was good")["input_ids"] == ids, name
        # And for who loads it without us.
        tokenizer.save_pretrained(tmp_path / "saved")
        write_config(tmp_path / "saved", "bert")
        plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert plain("The Film was good")["input_ids"] == ids, name
        assert "token_type_ids" in plain("The")


def test_case_that_is_set_is_obeyed(tmp_path):
    wordpiece(tmp_path, lowercase=False)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(str(tmp_path), "--flag").tokenize("The Film") == ["the", "film"]


def test_uncased_vocabulary_is_still_lowered(tmp_path):
    wordpiece(tmp_path, lowercase=True)
    assert load_tokenizer(str(tmp_path), "--flag").tokenize("The Film") == ["the", "film"]


def test_token_without_an_embedding(tmp_path):
    tokenizer = make_tokenizer()
    encoder = Path(make_encoder(tmp_path, "bert", tokenizer))
    load_tokenizer(str(encoder), "--flag")
    tokenizer.add_tokens(["covid19"])
    tokenizer.save_pretrained(encoder)
    with pytest.raises(UserError, match=f"'covid19' with the number {len(tokenizer) - 1}.* {len(tokenizer) - 1} embed"):
        load_tokenizer(str(encoder), "--flag")


@pytest.mark.parametrize(
    ("family", "size", "warned"),
    [("bert", 25, False), ("bert", 32, False), ("bert", 60, True), ("roberta", 1000, True)],
)
def test_embeddings_without_tokens(tmp_path, caplog, family, size, warned):
    """A vocabulary is often padded to a round number; many without a token are another model's."""
    encoder = make_encoder(tmp_path, family)
    write_config(tmp_path, family, vocab_size=size, pad_token_id=0)
    assert len(load_tokenizer(encoder, "--flag")) == len(WORDS) + 4 == 25
    assert (f"25 tokens but the model {size} embeddings" in caplog.text) == warned


def test_pad_token_of_another_model(tmp_path, caplog):
    for family in ("bert", "roberta", "mpnet"):
        make_encoder(tmp_path / family, family)
        config = json.loads((tmp_path / family / "config.json").read_text())
        write_config(tmp_path / family, family, **config | {"pad_token_id": 3})
    assert load_tokenizer(str(tmp_path / "bert"), "--flag").pad_token_id == 0  # padding is masked, whatever it is
    assert "pad_token_id 3" in caplog.text
    for family in ("roberta", "mpnet"):  # here positions depend on it
        with pytest.raises(UserError, match="pad_token_id 3"):
            load_tokenizer(str(tmp_path / family), "--flag")


def test_no_pad_token(project, tmp_path):
    """GPT-2's has none. The mend in the message does."""
    steps = project("bert")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [CASED.lower()] * 5, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    folder = tmp_path / "gpt2"
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=trained.get_vocab_size(),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        eos_token_id=0,
        bos_token_id=0,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    trained.save_model(str(folder))
    steps.encoder, steps.config = str(folder), str(tmp_path / "gpt2.json")
    (tmp_path / "gpt2.json").write_text('{"encoder_class": "gpt2", "n_ctx": 16}')
    fails(steps.preprocess(), "no pad token", '"pad_token": "<|endoftext|>"', "pad_token_id")
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>"}')
    assert steps.preprocess()[0] == 0
    fails(steps.train(), "pad_token_id")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"pad_token_id": 0}))
    assert steps.train()[0] == 0
    assert steps.evaluate()[0] == 0


@pytest.mark.parametrize(("family", "name"), [("xlm-roberta", "sentencepiece.bpe.model"), ("deberta-v2", "spm.model")])
def test_sentencepiece_model_alone(tmp_path, family, name):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"),
        model_prefix=str(tmp_path / "own"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    write_config(tmp_path / family, family, vocab_size=80, pad_token_id=1 if family == "xlm-roberta" else None)
    shutil.copy(tmp_path / "own.model", tmp_path / family / name)
    tokenizer = load_tokenizer(str(tmp_path / family), "--flag")
    text = "the film was good"
    assert tokenizer.tokenize(text) == own.encode(text, out_type=str) == ["▁the", "▁film", "▁was", "▁good"]
    if family == "xlm-roberta":  # fairseq's numbers: <s>, <pad>, </s> and <unk> come first, <unk> in the place of 0
        assert tokenizer(text)["input_ids"] == [0, *(i + 1 for i in own.encode(text)), 2]


@pytest.mark.parametrize("name", ["spm.model", "sentencepiece.bpe.model"])
def test_sentencepiece_model_without_the_package(tmp_path, monkeypatch, name):
    monkeypatch.setattr("utils.models.tokenizer._has_sentencepiece", lambda: False)
    write_config(tmp_path, "deberta-v2" if name == "spm.model" else "xlm-roberta")
    (tmp_path / name).write_bytes(b"\x00" * 2000)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(str(tmp_path), "--flag")


def test_checks_change_no_tokenizer(made):
    for family, folder in made.items():
        described = Tokenizer.from_file(str(folder / "encoder/tokenizer.json"))
        tokenizer = load_tokenizer(str(folder / "encoder"), "--flag")
        assert tokenizer("the Film was odd")["input_ids"] == described.encode("the Film was odd").ids, family
        assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make_tokenizer())
