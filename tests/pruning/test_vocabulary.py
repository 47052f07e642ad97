"""A pruned vocabulary tokenizes the data set as before, can still spell any text, and changes no logit."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_model, make_tokenizer
from tokenizers import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForSequenceClassification,
    CamembertTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import Config
from utils.pruning.vocabulary import prune_embeddings, smaller_tokenizer

CORPUS = ["the unbelievable film was unbelievably good", "a filmmaker believes in making films"] * 3
OTHER = ["rerunning an ordinary thriller about thrills", "ordinary runners ran"] * 3


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(CORPUS + OTHER, vocab_size=400, show_progress=False)
    backend = Tokenizer.from_str(tokenizer.to_str())
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def bpe() -> PreTrainedTokenizerFast:
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(CORPUS + OTHER, vocab_size=500, show_progress=False, special_tokens=special)
    backend = Tokenizer.from_str(tokenizer.to_str())
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def unigram(kind=XLMRobertaTokenizer) -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa and CamemBERT have it: pieces in the order of their ids, the special tokens among them."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>")
    trained.train_from_iterator(CORPUS + OTHER, trainer)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind is CamembertTokenizer:
        special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"] if piece[0] not in special]
    return kind(vocab=[*((token, 0.0) for token in special), *pieces, ("<mask>", 0.0)])


def camembert() -> PreTrainedTokenizerFast:
    return unigram(CamembertTokenizer)


@pytest.mark.parametrize("make", [wordpiece, bpe, unigram, camembert])
def test_texts_are_tokenized_as_before(make):
    whole = make()
    used = np.unique(np.concatenate(whole(CORPUS)["input_ids"]))
    smaller, old_ids = smaller_tokenizer(whole, used)
    assert set(used) <= set(old_ids) and len(smaller) == len(old_ids) < len(whole)
    for text in CORPUS:
        assert [old_ids[i] for i in smaller(text)["input_ids"]] == whole(text)["input_ids"]
        assert smaller.convert_ids_to_tokens(smaller(text)["input_ids"]) == whole.tokenize(
            text, add_special_tokens=True
        )
    assert smaller.pad_token_id == old_ids.index(whole.pad_token_id)
    # What is left out is spelled.
    spelled = smaller("thriller")["input_ids"]
    assert smaller.unk_token_id not in spelled and len(spelled) > len(whole("thriller")["input_ids"])


def test_special_tokens_of_several_processors_in_a_row():
    whole = bpe()
    template = processors.TemplateProcessing("</s> $A <s>", None, [("<s>", 0), ("</s>", 2)])
    whole.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    used = np.unique(np.concatenate([[1], *whole(CORPUS)["input_ids"]]))[::-1]  # in another order than before
    smaller, old_ids = smaller_tokenizer(whole, used)
    assert len(smaller) < len(whole)
    assert [[old_ids[i] for i in ids] for ids in smaller(CORPUS)["input_ids"]] == whole(CORPUS)["input_ids"]


@pytest.mark.parametrize("padding", [2, None])
def test_special_ids_of_the_model_get_their_new_numbers(padding):
    model = make_model("bert", AutoModelForSequenceClassification, vocab_size=30)
    embeddings = model.bert.embeddings.word_embeddings
    embeddings.padding_idx, model.config.bos_token_id, model.config.eos_token_id = padding, 7, 9
    old_ids = [0, 2, 3, 7, 8]
    prune_embeddings(model, old_ids, make_tokenizer())
    kept = model.bert.embeddings.word_embeddings
    assert torch.equal(kept.weight, embeddings.weight[old_ids]) and kept.weight.requires_grad
    assert kept.padding_idx == (None if padding is None else 1)
    assert model.config.bos_token_id == 3 and model.config.eos_token_id is None and model.config.vocab_size == 5


def test_unigrams_best_split_stays_the_best():
    """Of random pieces with many equal scores, in texts with unknown characters, some of which are spelled in bytes."""
    generator = random.Random(0)
    for turn in range(60):
        pieces = {"".join(generator.choices("abcd▁é", k=generator.randint(1, 4))): 0.0 for _ in range(80)}
        vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        vocabulary += [(piece, -generator.randint(1, 9) / 2) for piece in pieces]
        byte_fallback = turn % 2 == 0
        if byte_fallback:
            vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
        backend = Tokenizer(models.Unigram(vocabulary, 3, byte_fallback))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        whole = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        texts = ["".join(generator.choices("abcdéx ", k=12)) for _ in range(20)]
        smaller, old_ids = smaller_tokenizer(whole, np.unique(np.concatenate(whole(texts)["input_ids"])))
        assert [[old_ids[i] for i in ids] for ids in smaller(texts)["input_ids"]] == whole(texts)["input_ids"]
        assert len(smaller) < len(whole)


def test_an_unknown_character_counts_as_before():
    """Less than the piece of lowest score, which these texts do not have."""
    scores = {"za": -15.0, "abcdef": -3.0, "qq": -200.0} | dict.fromkeys("bcdef", -15.0)
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + list(scores.items())
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(vocabulary, 3)), **names)
    texts = ["zabcdef", "abcdef"]
    assert whole.tokenize(texts[0]) == ["za", *"bcdef"]
    smaller, _ = smaller_tokenizer(whole, np.unique(np.concatenate(whole(texts)["input_ids"])))
    assert [smaller.tokenize(text) for text in texts] == [whole.tokenize(text) for text in texts]


@pytest.mark.parametrize(
    ("family", "make"), [("bert", wordpiece), ("xlm-roberta", unigram), ("camembert", camembert), ("modernbert", bpe)]
)
def test_predictions_stay_the_same_to_the_bit(family, make, project, tmp_path):
    steps = project(family)
    tokenizer = make()
    steps.encoder = make_encoder(tmp_path / "encoder", family, tokenizer)
    lines = [f"{text}\t{i % 2}\n" for i, text in enumerate(CORPUS)]
    for split in ("train", "valid", "test"):
        (steps.data / f"{split}.txt").write_text("".join(lines))
    for step in (steps.preprocess, steps.train, lambda: steps.prune("--prune_vocabulary")):
        code, stderr = step()
        assert code == 0, stderr
    size = json.loads((tmp_path / "pruned/config.json").read_text())["vocab_size"]
    assert size < len(tokenizer)
    outputs = []
    for folder in ("teacher", "pruned"):
        model = load_model(str(tmp_path / folder), "--flag", Config(family, 16), ["0", "1"])
        batch = load_tokenizer(str(tmp_path / folder), "--flag")(CORPUS, padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs.append(model(**batch).logits)
    assert torch.equal(*outputs)
    # The data set must be tokenized again.
    code, stderr = steps.evaluate(source="pruned")
    assert code == 2 and "preprocess.py" in stderr
    steps.encoder = str(tmp_path / "pruned")
    assert steps.preprocess()[0] == 0
    code, stderr = steps.quantize(f"--output_dir={tmp_path}/model")
    assert code == 0, stderr
