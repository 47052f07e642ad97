"""New texts from old ones: masked words, words replaced by their neighbours, parts of a sentence."""

import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from transformers import AutoModel, PreTrainedTokenizerFast

from utils.data.texts import TextRow
from utils.system.files import atomic_file
from utils.system.journal import check_flags
from utils.system.pool import chunks, map_in_processes

Texts = tuple[str, ...]  # a sentence, or a pair

CHUNK = 1000  # rows that a process varies at a time
CHUNK_END = "\t\n"  # after the rows of a chunk, in an unfinished file
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
    encoder = AutoModel.from_pretrained(name_or_path, trust_remote_code=False)
    table = encoder.get_input_embeddings().weight.detach().float()
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


def augmented_chunks(
    rows: Iterable[TextRow],
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    num_proc: int,
    first: int = 0,
) -> Iterator[list[TextRow]]:
    """Yield up to `n_iter` variants of each row, in the order of the rows, for `CHUNK` rows at a time.

    Each row has random numbers of its own, so that the result does not depend on `num_proc`, and one can go on with
    chunk number `first`.
    """
    vary_chunk = partial(_vary_chunk, neighbours, mask_token, ratios, n_iter, seed)
    numbered = itertools.islice(enumerate(chunks(rows, CHUNK)), first, None)
    return map_in_processes(vary_chunk, numbered, num_proc)


def read_unfinished(path: Path, flags: dict) -> tuple[int, set[int]]:
    """How many chunks an unfinished file holds, and hashes of its texts; what a killed run wrote after them is cut off.

    Raises:
        UserError: it was made with other options.
    """
    seen: set[int] = set()
    of_chunk: set[int] = set()
    done = end = 0
    if path.exists():
        with open(path, "rb") as file:
            try:
                kept = json.loads(file.readline())
            except ValueError:
                kept = None  # killed in its first line
            if kept is not None:
                check_flags(path, kept, flags)
            while kept is not None and (line := file.readline()).endswith(b"\n"):
                if line == CHUNK_END.encode():
                    seen, done, end = seen | of_chunk, done + 1, file.tell()
                    of_chunk = set()
                else:
                    of_chunk.add(hash(tuple(line.decode().split("\t")[:-1])))
        os.truncate(path, end)
    return done, seen


def write_chunks(path: Path, flags: dict, varied: Iterable[list[TextRow]], known: Set[Texts], seen: set[int]) -> int:
    """Add chunks to an unfinished file, each text once and none of `known`; returns how many rows it then holds."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        if not file.tell():
            file.write(json.dumps(flags) + "\n")
        for chunk in varied:
            for texts, label in chunk:
                if texts not in known and hash(texts) not in seen:
                    seen.add(hash(texts))
                    file.write("\t".join([*texts, label]) + "\n")
            file.write(CHUNK_END)
            file.flush()
    return len(seen)


def finish(path: Path, target: Path) -> None:
    """Make `target` of an unfinished file that holds all chunks, and remove that."""
    with atomic_file(target) as temporary, open(path, "rb") as source, open(temporary, "wb") as file:
        file.writelines(line for line in itertools.islice(source, 1, None) if line != CHUNK_END.encode())
    path.unlink()


def _vary_chunk(
    neighbours: dict[str, list[str]],
    mask_token: str | None,
    ratios: Ratios,
    n_iter: int,
    seed: int,
    chunk: tuple[int, list[TextRow]],
) -> list[TextRow]:
    number, rows = chunk
    varied = []
    for i, (texts, label) in enumerate(rows):
        generator = random.Random(f"{seed} {number} {i}")
        if all(texts):
            for _ in range(n_iter):
                varied.append((tuple(vary(text, neighbours, mask_token, ratios, generator) for text in texts), label))
    return varied
