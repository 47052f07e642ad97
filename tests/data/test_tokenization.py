"""The short ways of tokenizing give what the tokenizer itself gives."""

import random

import pytest
from conftest import WORDS
from tokenizers import BertWordPieceTokenizer, Tokenizer

from utils.data.tokenization import prepare_tokenizer, tokenize

CHARACTERS = [chr(code) for code in range(128)] + ["é", "İ", "ß", "\u0301", "中", "\u200b", "🙂"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(lowercase: bool) -> Tokenizer:
    tokens = dict.fromkeys([*SPECIAL, *WORDS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)])
    made = BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=lowercase)
    return Tokenizer.from_str(made.to_str())


def plain(encodings: list) -> list[tuple[list[int], list[int]]]:
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


@pytest.mark.parametrize("lowercase", [True, False])
def test_plain_texts_need_no_normalizer(lowercase):
    pieces = [*WORDS, *SPECIAL, *CHARACTERS, "Film", " ", "  ", "\t", "don't", "##a", "[", "a_b"]
    generator = random.Random(0)
    texts = ["".join(generator.choices(pieces, k=generator.randint(0, 12))) for _ in range(2000)]
    texts += [" ".join(generator.choices(WORDS, k=5)).title() for _ in range(100)]
    prepared = prepare_tokenizer(wordpiece(lowercase))
    assert prepared.plain is not None
    expected = plain(wordpiece(lowercase).encode_batch(texts))
    assert tokenize(prepared, texts, 10_000) == expected
    assert [tokenize(prepared, [text], 10_000)[0] for text in texts[:200]] == expected[:200]


def test_truncation_is_the_tokenizers_own():
    pairs = [("good " * a, "bad " * b) for a in range(12) for b in range(12)]
    texts = [*pairs, *(first for first, _ in pairs)]
    for n_ctx in range(4, 12):
        own = wordpiece(lowercase=True)
        own.enable_truncation(n_ctx)
        assert tokenize(prepare_tokenizer(wordpiece(lowercase=True)), texts, n_ctx) == plain(own.encode_batch(texts))


def test_long_pairs_take_little_memory():
    """The tokenizer's own truncation would take gigabytes."""
    text = "good " * 20_000
    [(ids, types)] = tokenize(prepare_tokenizer(wordpiece(lowercase=True)), [(text, text)], 16)
    assert len(ids) == 16 and sum(types) == 8
