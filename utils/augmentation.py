"""New texts from old ones: masked words, words replaced by their neighbours, parts of a sentence."""

import random
from collections.abc import Iterable, Iterator, Set
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from transformers import AutoModel, PreTrainedTokenizerFast

from utils.pool import chunks, map_in_processes
from utils.texts import Row

Texts = tuple[str, ...]  # a sentence, or a pair

CHUNK = 1000  # rows that a process varies at a time
NGRAM_LENGTHS = (1, 2, 3, 4, 5)


class Ratios(NamedTuple):
    """How much is varied: of the words, of the words, and of the variants."""

    mask: float
    replace: float
    ngram: float


def nearest_words(name_or_path: str, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, list[str]]:
    """The `count` words nearest to each word of the vocabulary, by the cosine of the encoder's word embeddings.

    Words are the tokens that are letters only, alone or, where a tokenizer marks the start of words, marked.
    """
    table = AutoModel.from_pretrained(name_or_path).get_input_embeddings().weight.detach().float()
    words: dict[str, int] = {}
    for token, index in tokenizer.get_vocab().items():
        word = token.removeprefix("Ġ").removeprefix("▁")
        if word.isalpha() and len(word) > 1 and index < len(table) and token not in tokenizer.all_special_tokens:
            words.setdefault(word, index)
    names = list(words)
    vectors = F.normalize(table[list(words.values())], dim=-1)
    neighbours = {}
    for start in range(0, len(names), CHUNK):
        # One more, as the nearest is the word itself.
        nearest = (vectors[start : start + CHUNK] @ vectors.T).topk(min(count + 1, len(names))).indices.tolist()
        for name, found in zip(names[start : start + CHUNK], nearest, strict=True):
            neighbours[name] = [names[i] for i in found if names[i] != name][:count]
    return neighbours


def vary(
    text: str, neighbours: dict[str, list[str]], mask_token: str | None, ratios: Ratios, generator: random.Random
) -> str:
    """One variant of a text; its words are what spaces separate."""
    words = text.split()
    varied = []
    for word in words:
        chance = generator.random()
        near = neighbours.get(word) or neighbours.get(word.lower())
        if chance < ratios.mask and mask_token:
            varied.append(mask_token)
        elif chance < ratios.mask + ratios.replace and near:
            varied.append(generator.choice(near))
        else:
            varied.append(word)
    if generator.random() < ratios.ngram:
        length = min(len(varied), generator.choice(NGRAM_LENGTHS))
        start = generator.randrange(len(varied) - length + 1)
        varied = varied[start : start + length]
    return " ".join(varied)


def augmented_rows(
    rows: Iterable[Row],
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    known: Set[Texts],
    num_proc: int,
) -> Iterator[Row]:
    """Yield up to `n_iter` variants of each row, in the order of the rows; none twice, and none of `known`.

    Each row has random numbers of its own, so that the result does not depend on `num_proc`.
    """
    vary_chunk = partial(_vary_chunk, neighbours, mask_token, ratios, n_iter, seed)
    seen: set[int] = set()  # hashes: the texts themselves may not fit into memory
    for varied in map_in_processes(vary_chunk, enumerate(chunks(rows, CHUNK)), num_proc):
        for texts, label in varied:
            if texts not in known and hash(texts) not in seen:
                seen.add(hash(texts))
                yield texts, label


def _vary_chunk(
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    chunk: tuple[int, list[Row]],
) -> list[Row]:
    number, rows = chunk
    varied = []
    for i, (texts, label) in enumerate(rows):
        generator = random.Random(f"{seed} {number} {i}")
        if all(texts):
            for _ in range(n_iter):
                varied.append((tuple(vary(text, neighbours, mask_token, ratios, generator) for text in texts), label))
    return varied
