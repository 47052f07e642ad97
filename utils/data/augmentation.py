"""New texts from old ones: masked words, words replaced by their neighbours, parts of a sentence."""

import itertools
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from utils.data.texts import TextRow, Texts
from utils.system.files import atomic_file
from utils.system.journal import Cached
from utils.system.pool import chunks, map_in_processes

CHUNK = 1000  # rows that a process varies at a time
NGRAM_LENGTHS = (1, 2, 3, 4, 5)
# First and last character of the scripts that are written without spaces between words: Thai and Lao, Burmese, Khmer,
# Japanese kana, and Chinese characters in all of their blocks.
UNSPACED = ("\u0e00\u0eff", "\u1000\u109f", "\u1780\u17ff", "\u3040\u30ff", "\u3400\u9fff", "\uf900\ufaff",
            "\U00020000\U0003ffff")  # fmt: skip


class Ratios(NamedTuple):
    """How often each way of varying is taken."""

    masked: float  # share of the words that the mask token replaces
    replaced: float  # share of the words that a neighbour replaces
    shortened: float  # share of the variants of which only 1 to 5 words in a row remain


def nearest_words(
    embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerFast, num_neighbours: int
) -> dict[str, list[str]]:
    """The words nearest to each word of the vocabulary, by the cosine of their embeddings, the nearest first.

    Words are the tokens of two or more letters, alone or, where a tokenizer marks the start of words, marked. Single
    characters of scripts without spaces are compared with each other.

    Args:
        embeddings: an encoder's word embeddings, float [tokens, hidden size].
        num_neighbours: of each word, at most.
    """
    words: dict[str, int] = {}
    characters: dict[str, int] = {}
    for token, index in tokenizer.get_vocab().items():
        word = token.removeprefix("Ġ").removeprefix("▁")
        if word.isalpha() and index < len(embeddings) and token not in tokenizer.all_special_tokens:
            if len(word) > 1:
                words.setdefault(word, index)
            elif _is_unspaced(word):
                characters.setdefault(word, index)
    return _nearest(words, embeddings, num_neighbours) | _nearest(characters, embeddings, num_neighbours)


def vary(
    text: str, neighbours: dict[str, list[str]], mask_token: str | None, ratios: Ratios, generator: random.Random
) -> str:
    """One variant of a text; its words are as `split_words` has them."""
    words, spaces = split_words(text)
    varied = []
    for word in words:
        chance = generator.random()
        near = neighbours.get(word) or neighbours.get(word.lower())
        if chance < ratios.masked and mask_token:
            varied.append(mask_token)
        elif chance < ratios.masked + ratios.replaced and near:
            varied.append(generator.choice(near))
        else:
            varied.append(word)
    if generator.random() < ratios.shortened:
        length = min(len(varied), generator.choice(NGRAM_LENGTHS))
        start = generator.randrange(len(varied) - length + 1)
        varied, spaces = varied[start : start + length], spaces and spaces[start : start + length]
    if spaces is None:
        return " ".join(varied)
    return "".join(itertools.chain(*zip(spaces, varied, strict=True))).strip()


def split_words(text: str) -> tuple[list[str], list[str] | None]:
    """A text's words, and what stands before each, a space or nothing; None where it is always a space.

    Words are what spaces separate. In scripts without spaces every character is a word, together with the vowel signs
    and tone marks that belong to it.
    """
    words = text.split()
    if text.isascii() or not any(map(_is_unspaced, text)):
        return words, None
    parts: list[str] = []
    spaces: list[str] = []
    for word in words:
        before, alone = " ", True
        for character in word:
            unspaced = _is_unspaced(character)
            if before or (unspaced or alone) and not unicodedata.category(character).startswith("M"):
                parts.append(character)
                spaces.append(before)
                alone = unspaced
            else:
                parts[-1] += character
            before = ""
    return parts, spaces


def variants(
    cached: Cached,
    rows: Callable[[], Iterable[TextRow]],
    num_rows: int,
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    num_proc: int,
) -> Iterator[TextRow]:
    """Yield up to `n_iter` variants of each row, in the order of the rows.

    Each row has random numbers of its own, so that the result does not depend on `num_proc`, nor on where a run was
    stopped.

    Args:
        cached: keeps the variants of `CHUNK` rows at a time.
        rows: opens the rows, `num_rows` of them.
    """
    vary_chunk = partial(_vary_chunk, neighbours, mask_token, ratios, n_iter, seed)
    new_chunks: Iterator[str] | None = None

    def make(number: int) -> str:
        nonlocal new_chunks
        if new_chunks is None:  # those before this one are kept
            numbered = itertools.islice(enumerate(chunks(rows(), CHUNK)), number, None)
            new_chunks = map_in_processes(vary_chunk, numbered, num_proc)
        return next(new_chunks)

    for number in range(-(-num_rows // CHUNK)):
        for line in cached(f"chunk {number}", partial(make, number)).split("\n")[:-1]:
            *texts, label = line.split("\t")
            yield tuple(texts), label


def new_rows(rows: Iterable[TextRow], known: Iterable[Texts]) -> Iterator[TextRow]:
    """Yield each text once, and none of `known`."""
    hashes = set(map(hash, known))  # smaller than the texts, of which there may be millions
    for texts, label in rows:
        if hash(texts) not in hashes:
            hashes.add(hash(texts))
            yield texts, label


def write_rows(path: Path, rows: Iterator[TextRow]) -> int:
    """Write a text file of rows; returns how many. Without any, nothing is written."""
    first = next(rows, None)
    if first is None:
        return 0
    count = 0
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for texts, label in itertools.chain([first], rows):
            file.write("\t".join([*texts, label]) + "\n")
            count += 1
    return count


def _nearest(words: dict[str, int], embeddings: torch.Tensor, num_neighbours: int) -> dict[str, list[str]]:
    names = list(words)
    vectors = F.normalize(embeddings[list(words.values())], dim=-1)
    neighbours = {}
    for start in range(0, len(names), CHUNK):
        # One more, as the nearest is the word itself.
        indices = (vectors[start : start + CHUNK] @ vectors.T).topk(min(num_neighbours + 1, len(names))).indices
        for name, nearest in zip(names[start : start + CHUNK], indices.tolist(), strict=True):
            neighbours[name] = [names[i] for i in nearest if names[i] != name][:num_neighbours]
    return neighbours


def _is_unspaced(character: str) -> bool:
    return character > "\u0dff" and any(block[0] <= character <= block[1] for block in UNSPACED)


def _vary_chunk(
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    chunk: tuple[int, list[TextRow]],
) -> str:
    """The variants of a chunk's rows as lines of a text file."""
    number, rows = chunk
    lines = []
    for i, (texts, label) in enumerate(rows):
        generator = random.Random(f"{seed} {number} {i}")
        if all(texts):
            for _ in range(n_iter):
                varied = [vary(text, neighbours, mask_token, ratios, generator) for text in texts]
                lines.append("\t".join([*varied, label]) + "\n")
    return "".join(lines)
