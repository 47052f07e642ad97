"""The short ways of tokenizing give what the tokenizer itself gives."""

import random

import pytest
from conftest import WORDS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from utils.predictor.tokens import _beginning, prepare_tokenizer, tokenize

CHARACTERS = [chr(code) for code in range(128)] + ["é", "İ", "ß", "\u0301", "中", "\u200b", "🙂"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(lowercase: bool) -> Tokenizer:
    tokens = dict.fromkeys([*SPECIAL, *WORDS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)])
    tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=lowercase)
    return Tokenizer.from_str(tokenizer.to_str())


def byte_level() -> Tokenizer:
    """As RoBERTa's and GPT-2's, with merges of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("f", "i"), ("fi", "l"), ("Ġ", "f"), ("o", "o"), ("Ġ", "Ġ"), (".", "Ċ")]
    tokens = [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def metaspace() -> Tokenizer:
    """As XLM-R's."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(c, -9.0) for c in ["▁", *CHARACTERS]]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((f"▁{word}", -5.0) for word in WORDS)], unk_id=1))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


KINDS = {
    "uncased WordPiece": lambda: wordpiece(True), "cased WordPiece": lambda: wordpiece(False),
    "byte-level BPE": byte_level, "Unigram": metaspace,
}  # fmt: skip


def plain(encodings: list) -> list[tuple[list[int], list[int]]]:
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


@pytest.mark.parametrize("lowercase", [True, False])
def test_plain_texts_need_no_normalizer(lowercase):
    pieces = [*WORDS, *SPECIAL, *CHARACTERS, "Film", " ", "  ", "\t", "don't", "##a", "[", "a_b"]
    generator = random.Random(0)
    texts = ["".join(generator.choices(pieces, k=generator.randint(0, 12))) for _ in range(2000)]
    texts += [" ".join(generator.choices(WORDS, k=5)).title() for _ in range(100)]
    prepared = prepare_tokenizer(wordpiece(lowercase))
    assert prepared.without_normalizer is not None
    expected = plain(wordpiece(lowercase).encode_batch(texts))
    assert tokenize(prepared, texts, 10_000) == expected
    for _ in range(2):  # in the second round all words have been met
        assert [tokenize(prepared, [text], 10_000)[0] for text in texts] == expected
    assert prepared.words and len(prepared.words.known) > 200


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_says_of_length_does_not_count(kind):
    configured = KINDS[kind]()
    configured.enable_truncation(4)
    configured.enable_padding(length=30)
    texts = ["good film", "a very good film it is not", ("good", "a dull film and bad")]
    expected = plain([KINDS[kind]().encode(*([text] if isinstance(text, str) else text)) for text in texts])
    assert tokenize(prepare_tokenizer(configured), texts, 100) == expected


def test_truncation_is_the_tokenizers_own():
    pairs = [("good " * a, "bad " * b) for a in range(12) for b in range(12)]
    texts = [*pairs, *(first for first, _ in pairs)]
    for n_ctx in range(4, 12):
        own = wordpiece(lowercase=True)
        own.enable_truncation(n_ctx)
        prepared, expected = prepare_tokenizer(wordpiece(lowercase=True)), plain(own.encode_batch(texts))
        assert tokenize(prepared, texts, n_ctx) == expected
        assert [tokenize(prepared, [text], n_ctx)[0] for text in texts] == expected


def test_words_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr("utils.predictor.tokens.WORDS_KEPT", 3)
    prepared, own = prepare_tokenizer(wordpiece(True)), wordpiece(True)
    texts = ["a good film !", "the plot", "x" * 33, "x" * 101, "a good film ! the", "é good", ""]
    for text in texts:
        assert tokenize(prepared, [text], 64) == plain([own.encode(text)])
        assert prepared.words and len(prepared.words.known) <= 3
    assert set(prepared.words.known) == {"!", "the"}


def test_only_the_words_of_berts_kind_are_remembered():
    """Where texts are split otherwise, or get other special tokens, the tokenizer does it."""
    others = [wordpiece(True) for _ in range(4)]
    others[0].pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    others[1].post_processor = processors.TemplateProcessing("[CLS]:1 $A:1", None, [("[CLS]", 2)])
    others[2].model = models.WordLevel(others[2].get_vocab(), unk_token="[UNK]")
    others[3].model = models.WordPiece(others[3].get_vocab(), unk_token="[UNK]", max_input_chars_per_word=3)
    for other in others:
        expected = plain([other.encode("A good, good film!")])
        prepared = prepare_tokenizer(other)
        assert prepared.words is None and tokenize(prepared, ["A good, good film!"], 64) == expected


def test_long_pairs_take_little_memory():
    """The tokenizer's own truncation would take gigabytes."""
    text = "good " * 20_000
    [(ids, types)] = tokenize(prepare_tokenizer(wordpiece(lowercase=True)), [(text, text)], 16)
    assert len(ids) == 16 and sum(types) == 8


TOKENS = st.one_of(
    st.sampled_from(
        ["covid19", "COVID19", "New York", "naïve", "İ", "中文", "film", "Fil", "##a", ".", " x", "\u0301"]
    ),
    st.text(st.sampled_from("aAbBzéİß中 .#[]\u0301"), min_size=1, max_size=4).filter(str.strip),
)
FLAGS = st.fixed_dictionaries(
    dict.fromkeys(["normalized", "single_word", "lstrip", "rstrip", "special"], st.booleans())
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_added_tokens_are_found_as_transformers_finds_them(kind, data):
    """Whatever their case and the text's, normalized or not, alone or within words."""
    added = data.draw(st.lists(st.tuples(TOKENS, FLAGS), min_size=1, max_size=3))
    contents = [content for content, _ in added]
    piece = st.one_of(
        st.sampled_from([*contents, *map(str.upper, contents), *map(str.lower, contents), *map(str.title, contents)]),
        st.sampled_from([*WORDS[:4], "Film", "naive", "rises", " ", "  ", "[SEP]", "中", "é", ".", "a", "B"]),
    )
    texts = ["".join(pieces) for pieces in data.draw(st.lists(st.lists(piece, max_size=6), min_size=1, max_size=4))]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())
    tokenizer.add_tokens([AddedToken(content, **flags) for content, flags in added])
    try:
        expected = tokenizer(texts)["input_ids"]
    except BaseException as error:  # tokenizers itself fails with some texts beside tokens that take spaces along
        assume(type(error).__name__ != "PanicException")
        raise
    prepared = prepare_tokenizer(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    assert [ids for ids, _ in tokenize(prepared, texts, 10_000)] == expected


def test_an_added_token_in_another_case():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece(True))
    tokenizer.add_tokens(["covid19", "ABBA"])
    first = len(tokenizer) - 2
    prepared = prepare_tokenizer(tokenizer.backend_tokenizer)
    for text, number in (("Covid19", 0), ("COVID19", 0), ("covid19", 0), ("ABBA", 1), ("Abba", 1)):
        [(ids, _)] = tokenize(prepared, [f"film {text}"], 16)
        assert ids[2] == first + number and len(ids) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_very_long_text_the_beginning_is_enough(kind, monkeypatch):
    """The first n_ctx tokens are the same; where the beginning has fewer, the whole text is taken."""
    monkeypatch.setattr("utils.predictor.tokens.CHARACTERS_A_TOKEN", 1)
    generator = random.Random(0)
    pieces = [
        *WORDS,
        *CHARACTERS,
        " ",
        " ",
        " ",
        "  ",
        "   ",
        ".\n",
        "\n\n",
        " \n ",
        "\u200b" * 9,
        "don't",
        "1 2",
        "film ",
    ]
    texts = ["".join(generator.choices(pieces, k=generator.randint(0, 150))) for _ in range(400)]
    texts += [f"{'ab'[:i]}{' ' * count}" + "film " * 20 for count in range(1, 20) for i in (0, 1, 2)]
    texts += ["film" * 200, " " * 900, "\u0301" * 300 + " film" * 90, "\x00" * 900 + " film"]
    prepared, own = prepare_tokenizer(KINDS[kind]()), KINDS[kind]()
    assert prepared.splits_at_spaces
    assert sum(len(text) > 16 and _beginning(text, 16) is not None for text in texts) > 50
    for n_ctx in range(4, 12):
        own.enable_truncation(n_ctx)
        assert [ids for ids, _ in tokenize(prepared, texts, n_ctx)] == [row.ids for row in own.encode_batch(texts)]


def test_no_text_is_cut_within_an_added_token_or_without_splitting_at_spaces(monkeypatch):
    monkeypatch.setattr("utils.predictor.tokens.CHARACTERS_A_TOKEN", 1)
    tokenizer = wordpiece(True)
    tokenizer.add_tokens(["film a film"])
    prepared = prepare_tokenizer(tokenizer)
    assert not prepared.splits_at_spaces
    # Its beginning, "a a a film", would have 6 tokens, too.
    [(ids, _)] = tokenize(prepared, ["a a a film a film" + " a" * 50], 6)
    assert ids[4] == tokenizer.token_to_id("film a film") and len(ids) == 6
    tokenizer = metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not prepare_tokenizer(tokenizer).splits_at_spaces
    tokenizer.pre_tokenizer = None
    assert not prepare_tokenizer(tokenizer).splits_at_spaces
