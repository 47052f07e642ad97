"""Remove the tokens that never occur in given texts from a tokenizer and from a model's word embeddings.

Special tokens and single characters stay in any case, so that every text can still be spelled.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from utils.models.families import family_of
from utils.system.errors import UserError

# The marks, at the beginning of a token, that it continues a word (WordPiece) or begins one (BPE).
MARKS = ("##", "Ġ", "▁")
BYTE = re.compile("<0x[0-9A-F]{2}>")


def used_ids(splits: Iterable, first_position: int = 0) -> np.ndarray:
    """The distinct token ids of tokenized tables of `utils.data.tables`, ascending.

    Args:
        first_position: of `utils.models.families`: so many ids, up to the padding token's, must keep their numbers,
            since positions are counted from there.
    """
    ids = [np.unique(split.data.column("input_ids").combine_chunks().flatten().to_numpy()) for split in splits]
    return np.unique(np.concatenate([*ids, np.arange(first_position)]))


def smaller_tokenizer(
    tokenizer: PreTrainedTokenizerFast, used: np.ndarray
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer that has only the ids `used`, special tokens and single characters, with new ids in the same order.

    Texts of these tokens are tokenized as before: WordPiece takes the longest token that fits, byte-level BPE merges in
    the same order, and every token that they went through is still there; Unigram (SentencePiece) takes the split with
    the largest sum of scores, which stays the largest where only others are gone.

    Args:
        used: token ids of `used_ids`, int [ids].

    Returns:
        The tokenizer, and the old id of each of its tokens.

    Raises:
        UserError: its model is none of WordPiece, BPE and Unigram.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] not in ("WordPiece", "BPE", "Unigram"):
        raise UserError(
            f"a {model['type']} vocabulary cannot be pruned, only WordPiece, BPE and Unigram: leave it whole"
        )
    unigram = model["type"] == "Unigram"
    numbers = {token: i for i, (token, _) in enumerate(model["vocab"])} if unigram else model["vocab"]
    ids = {numbers[token] for token in numbers if _is_character(token)}
    ids |= {int(i) for i in used} | {token["id"] for token in state["added_tokens"]}
    if model["type"] == "BPE":
        ids |= _intermediate_ids(model, ids)
    if unigram:
        ids |= _unigram_ids(model)
    old_ids = sorted(ids)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    if unigram:
        model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if i in new_ids]
        model["unk_id"] = new_ids.get(model["unk_id"])
    else:
        model["vocab"] = {token: new_ids[old] for token, old in numbers.items() if old in new_ids}
    if model["type"] == "BPE":
        model["merges"] = [
            merge for merge in model["merges"] if model["vocab"].keys() >= {"".join(_pair(merge)), *_pair(merge)}
        ]
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if state["post_processor"]:
        _renumber(state["post_processor"], new_ids)
    if state["padding"]:
        state["padding"]["pad_id"] = new_ids[state["padding"]["pad_id"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name.startswith(("vocab", "merges")) or path.suffix == ".model":
                path.unlink()
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        path = Path(folder) / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # by old ids, and tokenizer.json says the same
        path.write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), old_ids


def _is_character(token: str) -> bool:
    """Whether a token is a single character, with a mark or without."""
    for mark in MARKS:
        token = token.removeprefix(mark) or token
    return len(token) == 1


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _intermediate_ids(model: dict, ids: set[int]) -> set[int]:
    """Ids of the shorter tokens from which BPE merges the tokens `ids`, step by step."""
    ranks = {tuple(_pair(merge)): rank for rank, merge in enumerate(model["merges"])}
    tokens = {old: token for token, old in model["vocab"].items()}
    intermediate = set()
    for old in ids & tokens.keys():
        parts = list(tokens[old])
        while len(parts) > 1:
            rank, i = min((ranks.get(pair, np.inf), i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)))
            if rank == np.inf:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            intermediate.add(model["vocab"][parts[i]])
    return intermediate


def _unigram_ids(model: dict) -> set[int]:
    """Ids that a Unigram model needs for any text: of the unknown token, of bytes, and of the piece of lowest score.

    An unknown character counts a fixed amount less than that piece.
    """
    ids = set() if model["unk_id"] is None else {model["unk_id"]}
    if model.get("byte_fallback"):
        ids |= {i for i, (token, _) in enumerate(model["vocab"]) if BYTE.fullmatch(token)}
    return ids | {min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1])}


def _renumber(processor: dict, new_ids: dict[int, int]) -> None:
    """Special tokens' ids in a post-processor's description, in place."""
    for part in processor.get("processors", []):
        _renumber(part, new_ids)
    for token in processor.get("special_tokens", {}).values():  # TemplateProcessing
        token["ids"] = [new_ids[old] for old in token["ids"]]
    for name in ("cls", "sep"):  # BertProcessing, RobertaProcessing: [token, id]
        if name in processor:
            processor[name][1] = new_ids[processor[name][1]]


def prune_embeddings(model: PreTrainedModel, old_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Keep only some rows of the word embeddings, in place, and give config.json's special ids their new numbers.

    Args:
        old_ids, tokenizer: of `smaller_tokenizer`.

    Raises:
        UserError: the model's family is not in `utils.models.families`.
    """
    family = family_of(model)
    path = f"{family.embeddings}.{family.word_embeddings}"
    embeddings = model.get_submodule(path)
    rows = embeddings.weight.detach()[torch.tensor(old_ids, device=embeddings.weight.device)]
    padding = None if embeddings.padding_idx is None else old_ids.index(embeddings.padding_idx)
    model.set_submodule(path, nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=padding))
    model.config.vocab_size = len(old_ids)
    model.config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        old = getattr(model.config, name, None)
        if old is not None:
            setattr(model.config, name, old_ids.index(old) if old in old_ids else None)
