"""Texts to token ids, on `tokenizers` alone: faster than its own truncation and normalization, and to the same ids."""

import json
import re
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

Text = str | tuple[str, str]
# Token ids and token type ids: each [tokens].
TokenRow = tuple[list[int], list[int]]

# Of a text with more characters than this for each token of n_ctx, only its beginning is tokenized.
CHARACTERS_A_TOKEN = 64
# What these make of a text up to a space does not depend on what follows; the pre-tokenizers split at every space.
LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"}
SPLITTING_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}


class Tokenizers(NamedTuple):
    """A tokenizer that neither pads nor truncates, and what is known of it."""

    full: Tokenizer
    without_normalizer: Tokenizer | None  # where the normalizer is BERT's: for texts of printable ASCII
    lowercase: bool  # whether those are lowered first
    added_tokens: list[str]  # in lower case; a text in which one of them may occur needs `full`
    splits_at_spaces: bool  # so that a very long text may be cut at one


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
        return Tokenizers(tokenizer, None, False, added_tokens, splits_at_spaces)
    without_normalizer = Tokenizer(tokenizer.model)
    without_normalizer.pre_tokenizer = tokenizer.pre_tokenizer
    without_normalizer.post_processor = tokenizer.post_processor
    return Tokenizers(tokenizer, without_normalizer, normalizer.lowercase, added_tokens, splits_at_spaces)


def tokenize(tokenizers: Tokenizers, texts: list[Text], n_ctx: int) -> list[TokenRow]:
    """Tokenize texts and pairs, each at its own length, truncated to n_ctx tokens, the longer text of a pair first."""
    rows: dict[int, TokenRow] = {}
    beginnings: dict[int, Text] = {}
    if tokenizers.splits_at_spaces:
        longest = 2 * CHARACTERS_A_TOKEN * n_ctx
        for i, text in enumerate(texts):
            if len(text) > longest and isinstance(text, str) and (beginning := _beginning(text, longest)):
                beginnings[i] = beginning
    if beginnings:
        for i, row in zip(beginnings, _tokenize_whole(tokenizers, list(beginnings.values()), n_ctx), strict=True):
            if len(row[0]) == n_ctx:  # else it has fewer tokens than were expected of so many characters
                rows[i] = row
    others = [i for i in range(len(texts)) if i not in rows]
    rows |= zip(others, _tokenize_whole(tokenizers, [texts[i] for i in others], n_ctx), strict=True)
    return [rows[i] for i in range(len(texts))]


def _tokenize_whole(tokenizers: Tokenizers, texts: list[Text], n_ctx: int) -> list[TokenRow]:
    plain: dict[int, Text] = {}
    others: dict[int, Text] = {}
    for i, text in enumerate(texts):
        if isinstance(text, str) and _is_plain(text, tokenizers):
            plain[i] = text.lower() if tokenizers.lowercase else text
        else:
            others[i] = text
    rows: dict[int, TokenRow] = {}
    for tokenizer, part in ((tokenizers.without_normalizer, plain), (tokenizers.full, others)):
        if tokenizer and part:
            for i, encoding in zip(part, _encodings(tokenizer, list(part.values())), strict=True):
                rows[i] = _truncated(encoding, n_ctx)
    return [rows[i] for i in range(len(texts))]


def _beginning(text: str, longest: int) -> str | None:
    """The first characters of a text, about half of `longest`, to the end of a word; None where there is no such end.

    Not for pairs: which of the two texts has more tokens decides how both are truncated.
    """
    # Not within several spaces, which some tokenizers take together.
    end = re.compile(r"\w(?= )").search(text, longest // 2, longest)
    return text[: end.end()] if end else None


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    normalizers = _components(tokenizer.normalizer, "normalizers")
    pre_tokenizers = _components(tokenizer.pre_tokenizer, "pretokenizers")
    return (
        all(component["type"] in LOCAL_NORMALIZERS for component in normalizers)
        and bool(pre_tokenizers)
        and pre_tokenizers[0]["type"] in SPLITTING_PRE_TOKENIZERS
        # Both have an option not to split.
        and pre_tokenizers[0].get("use_regex", True)
        and pre_tokenizers[0].get("split", True)
    )


def _components(component: Any, of_sequence: str) -> list[dict]:
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    return settings[of_sequence] if settings["type"] == "Sequence" else [settings]


def _is_plain(text: str, tokenizers: Tokenizers) -> bool:
    if tokenizers.without_normalizer is None or not text.isascii() or not text.isprintable():
        return False
    lowered = text.lower()
    return not any(token in lowered for token in tokenizers.added_tokens)


def _encodings(tokenizer: Tokenizer, texts: list[Text]) -> list[Encoding]:
    if len(texts) > 1:
        return tokenizer.encode_batch_fast(texts)
    # A single text should not wait for other threads to wake up.
    return [tokenizer.encode(texts[0]) if isinstance(texts[0], str) else tokenizer.encode(*texts[0])]


def _truncated(encoding: Encoding, n_ctx: int) -> TokenRow:
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) > n_ctx:
        positions = remaining_tokens(encoding.sequence_ids, n_ctx)
        ids, types = [ids[i] for i in positions], [types[i] for i in positions]
    return ids, types


def remaining_tokens(sequence_ids: list[int | None], n_ctx: int) -> list[int]:
    """Positions that remain of a longer row, as tokenizers truncates by default: the longer text of a pair first.

    Args:
        sequence_ids: 0 or 1, the text that each token comes from; None for special tokens, which all remain.
    """
    counts = [sequence_ids.count(0), sequence_ids.count(1)]
    room = n_ctx - sequence_ids.count(None)
    shorter = 1 if counts[0] > counts[1] else 0
    left = [room, room]
    left[shorter] = min(counts[shorter], room // 2)
    left[1 - shorter] -= left[shorter]
    positions = []
    for position, text in enumerate(sequence_ids):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            positions.append(position)
    return positions
