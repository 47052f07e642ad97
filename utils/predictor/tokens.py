"""Texts to token ids: faster than the tokenizer's own truncation and normalization, and to the same ids."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CHARACTERS_A_TOKEN = 64  # of a text with more than this for each token of n_ctx, only its beginning is tokenized
# What these make of a text up to a space does not depend on what follows; the pre-tokenizers split at every space.
LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"}
SPLITTING_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
WORD = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")  # what BERT's pre-tokenizer splits printable ASCII into
WORDS_KEPT, LONGEST_KEPT = 50_000, 32  # words whose tokens are remembered, some 15 MB, and characters of one

Text = str | tuple[str, str]
TokenRow = tuple[list[int], list[int]]  # token ids and token type ids: each [tokens]


class Words(NamedTuple):
    """Words whose tokens are known, what tokenizes others, and the special tokens before and after a text."""

    known: dict[str, list[int]]
    tokenizer: Tokenizer
    before: list[int]
    after: list[int]


class Tokenizers(NamedTuple):
    """A tokenizer that neither pads nor truncates, and what is known of it."""

    full: Tokenizer
    without_normalizer: Tokenizer | None  # where the normalizer is BERT's: for texts of printable ASCII
    lowercase: bool  # whether those are lowered first
    added_tokens: list[str]  # in lower case; a text in which one of them may occur needs `full`
    splits_at_spaces: bool  # so that a very long text may be cut at one
    words: Words | None  # of BERT's kind, for single texts of printable ASCII


def prepare_tokenizer(tokenizer: Tokenizer) -> Tokenizers:
    """Turn off a tokenizer's padding and truncation, in place, for `tokenize`.

    Truncating pairs, it would keep every combination of the parts cut off: its memory grows with the square of their
    length. BERT's normalizer takes half of the time, and all that it does to printable ASCII is to lower its case.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = tokenizer.normalizer
    # Normalized tokens are looked for in the normalized text, as what the normalizer makes of them; others in the text.
    added_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if normalizer is not None:
        added_tokens += [normalizer.normalize_str(token) for token in added_tokens]
    splits_at_spaces = _splits_at_spaces(tokenizer) and not any(" " in token for token in added_tokens)
    added_tokens = sorted({token.lower() for token in added_tokens})
    if not isinstance(normalizer, BertNormalizer):
        return Tokenizers(tokenizer, None, False, added_tokens, splits_at_spaces, None)
    without_normalizer = Tokenizer(tokenizer.model)
    without_normalizer.pre_tokenizer = tokenizer.pre_tokenizer
    without_normalizer.post_processor = tokenizer.post_processor
    words = _no_words_yet(without_normalizer)
    return Tokenizers(tokenizer, without_normalizer, normalizer.lowercase, added_tokens, splits_at_spaces, words)


def _no_words_yet(tokenizer: Tokenizer) -> Words | None:
    """To remember words in; None where tokens may not be those of the words that `WORD` finds, one after the other."""
    model = tokenizer.model
    if not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) or not isinstance(model, WordPiece):
        return None
    if model.max_input_chars_per_word < LONGEST_KEPT:
        return None
    encoding = tokenizer.encode("a")
    is_special = encoding.special_tokens_mask
    if any(encoding.type_ids) or is_special.count(0) != 1:
        return None
    before, after = encoding.ids[: is_special.index(0)], encoding.ids[is_special.index(0) + 1 :]
    return Words({}, tokenizer, before, after)


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether what comes before a space has the same tokens whatever follows it."""
    normalizers = _components(tokenizer.normalizer, "normalizers")
    first, *_ = _components(tokenizer.pre_tokenizer, "pretokenizers") or [{"type": None}]
    is_local = all(component["type"] in LOCAL_NORMALIZERS for component in normalizers)
    # Some have an option not to split.
    splits = first["type"] in SPLITTING_PRE_TOKENIZERS and first.get("use_regex", True) and first.get("split", True)
    return is_local and splits


def _components(component: Any, of_sequence: str) -> list[dict]:
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    return settings[of_sequence] if settings["type"] == "Sequence" else [settings]


def tokenize(tokenizers: Tokenizers, texts: Sequence[Text], n_ctx: int) -> list[TokenRow]:
    """Tokenize texts and pairs, each at its own length, truncated to n_ctx tokens, the longer text of a pair first."""
    longest = 2 * CHARACTERS_A_TOKEN * n_ctx
    if len(texts) == 1 and tokenizers.words and len(texts[0]) <= longest and _is_plain(texts[0], tokenizers):
        return [_word_by_word(tokenizers.words, texts[0].lower() if tokenizers.lowercase else texts[0], n_ctx)]
    whole = dict(enumerate(texts))
    rows: dict[int, TokenRow] = {}
    if tokenizers.splits_at_spaces:
        beginnings = {i: _beginning(text, longest) for i, text in whole.items() if len(text) > longest}
        cut = _tokenize(tokenizers, {i: text for i, text in beginnings.items() if text is not None}, n_ctx)
        # Else it has fewer tokens than were expected of so many characters.
        rows = {i: row for i, row in cut.items() if len(row[0]) == n_ctx}
    rows |= _tokenize(tokenizers, {i: text for i, text in whole.items() if i not in rows}, n_ctx)
    return [rows[i] for i in whole]


def _beginning(text: Text, longest: int) -> str | None:
    """The first characters of a text, about half of `longest`, to the end of a word; None where there is no such end.

    Not of pairs: which of the two texts has more tokens decides how both are truncated.
    """
    if not isinstance(text, str):
        return None
    # Not within several spaces, which some tokenizers take together.
    end = re.compile(r"\w(?= )").search(text, longest // 2, longest)
    return text[: end.end()] if end else None


def _tokenize(tokenizers: Tokenizers, texts: dict[int, Text], n_ctx: int) -> dict[int, TokenRow]:
    plain = {i: text for i, text in texts.items() if _is_plain(text, tokenizers)}
    others = {i: text for i, text in texts.items() if i not in plain}
    if tokenizers.lowercase:
        plain = {i: text.lower() for i, text in plain.items()}
    rows = {}
    for tokenizer, part in ((tokenizers.without_normalizer, list(plain.items())), (tokenizers.full, [*others.items()])):
        if tokenizer and len(part) == 1:  # which should not wait for other threads to wake up
            [(i, text)] = part
            rows[i] = _truncated(tokenizer.encode(*([text] if isinstance(text, str) else text)), n_ctx)
        elif tokenizer and part:
            encodings = tokenizer.encode_batch_fast([text for _, text in part])
            rows |= {i: _truncated(encoding, n_ctx) for (i, _), encoding in zip(part, encodings, strict=True)}
    return rows


def _word_by_word(words: Words, text: str, n_ctx: int) -> TokenRow:
    """The tokens of a plain text: in a third of the time, where its words have been met before."""
    ids = words.before[:]
    for word in WORD.findall(text):
        ids += words.known.get(word) or _new_word(word, words)
    ids[n_ctx - len(words.after) :] = words.after
    return ids, [0] * len(ids)


def _new_word(word: str, words: Words) -> list[int]:
    """The tokens of a word, which are remembered unless it is long."""
    # WordPiece takes the longest piece first, so one of the vocabulary is a token: faster than to tokenize it.
    number = words.tokenizer.token_to_id(word) if len(word) <= LONGEST_KEPT else None
    tokens = words.tokenizer.encode(word, add_special_tokens=False).ids if number is None else [number]
    if len(word) <= LONGEST_KEPT:
        if len(words.known) >= WORDS_KEPT:
            words.known.clear()
        words.known[word] = tokens
    return tokens


def _is_plain(text: Text, tokenizers: Tokenizers) -> TypeGuard[str]:
    if tokenizers.without_normalizer is None or not isinstance(text, str):
        return False
    if not (text.isascii() and text.isprintable()):
        return False
    lowered = text.lower()
    return not any(token in lowered for token in tokenizers.added_tokens)


def _truncated(encoding: Encoding, n_ctx: int) -> TokenRow:
    """As tokenizers truncates by default: the longer text of a pair first, and no special token."""
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) <= n_ctx:
        return ids, types
    sources = encoding.sequence_ids  # 0 or 1, the text that each token comes from; None for special tokens
    counts, room = [sources.count(0), sources.count(1)], n_ctx - sources.count(None)
    shorter = 1 if counts[0] > counts[1] else 0
    left = [room, room]  # tokens of each text that remain
    left[shorter] = min(counts[shorter], room // 2)
    left[1 - shorter] -= left[shorter]
    positions = []
    for position, text in enumerate(sources):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            positions.append(position)
    return [ids[i] for i in positions], [types[i] for i in positions]
