"""Texts to token ids, on `tokenizers` alone: faster than its own truncation and normalization, and to the same ids."""

from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

Text = str | tuple[str, str]
# Token ids and token type ids: each [tokens].
TokenRow = tuple[list[int], list[int]]


class Tokenizers(NamedTuple):
    """A tokenizer and, where it normalizes as BERT's does, one without that for texts which need `lower` at most."""

    whole: Tokenizer
    plain: Tokenizer | None
    lower: bool
    added_tokens: list[str]


def prepare_tokenizer(tokenizer: Tokenizer) -> Tokenizers:
    """Turn off a tokenizer's padding and truncation, in place, for `tokenize`.

    Truncating pairs, it would keep every combination of the parts cut off: its memory grows with the square of their
    length. BERT's normalizer takes half of the time, and all that it does to printable ASCII is to lower its case.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, BertNormalizer):
        return Tokenizers(tokenizer, None, False, [])
    plain = Tokenizer(tokenizer.model)
    plain.pre_tokenizer, plain.post_processor = tokenizer.pre_tokenizer, tokenizer.post_processor
    added_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return Tokenizers(tokenizer, plain, normalizer.lowercase, added_tokens)


def tokenize(tokenizers: Tokenizers, texts: list[Text], n_ctx: int) -> list[TokenRow]:
    """Tokenize texts and pairs, each at its own length, truncated to n_ctx tokens, the longer text of a pair first."""
    plain: dict[int, Text] = {}
    whole: dict[int, Text] = {}
    for i, text in enumerate(texts):
        if isinstance(text, str) and _is_plain(text, tokenizers):
            plain[i] = text.lower() if tokenizers.lower else text
        else:
            whole[i] = text
    rows: dict[int, TokenRow] = {}
    for tokenizer, part in ((tokenizers.plain, plain), (tokenizers.whole, whole)):
        if tokenizer and part:
            for i, encoding in zip(part, _encodings(tokenizer, list(part.values())), strict=True):
                rows[i] = _truncated(encoding, n_ctx)
    return [rows[i] for i in range(len(texts))]


def _is_plain(text: str, tokenizers: Tokenizers) -> bool:
    return (
        tokenizers.plain is not None
        and text.isascii()
        and text.isprintable()
        and not any(token in text for token in tokenizers.added_tokens)
    )


def _encodings(tokenizer: Tokenizer, texts: list[Text]) -> list[Encoding]:
    if len(texts) > 1:
        return tokenizer.encode_batch_fast(texts)
    # A single text should not wait for other threads to wake up.
    return [tokenizer.encode(texts[0]) if isinstance(texts[0], str) else tokenizer.encode(*texts[0])]


def _truncated(encoding: Encoding, n_ctx: int) -> TokenRow:
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) > n_ctx:
        kept = kept_tokens(encoding.sequence_ids, n_ctx)
        ids, types = [ids[i] for i in kept], [types[i] for i in kept]
    return ids, types


def kept_tokens(sequence_ids: list[int | None], n_ctx: int) -> list[int]:
    """Positions that remain of a longer row, as tokenizers truncates by default: the longer text of a pair first.

    Args:
        sequence_ids: 0 or 1, the text that each token comes from; None for special tokens, which are all kept.
    """
    counts = [sequence_ids.count(0), sequence_ids.count(1)]
    room = n_ctx - sequence_ids.count(None)
    shorter = 1 if counts[0] > counts[1] else 0
    left = [room, room]
    left[shorter] = min(counts[shorter], room // 2)
    left[1 - shorter] -= left[shorter]
    kept = []
    for position, text in enumerate(sequence_ids):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            kept.append(position)
    return kept
