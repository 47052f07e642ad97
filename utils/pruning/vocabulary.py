"""Take the tokens that never occur in given texts out of a tokenizer and out of a model's word embeddings.

Of the vocabulary's other tokens stay the special ones and the single characters, so that any text can still be spelled.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from utils.models.families import family_of
from utils.system.errors import UserError

# What a token begins with that continues a word, or that begins one.
MARKS = ("##", "Ġ", "▁")


def used_ids(splits: Iterable) -> np.ndarray:
    """The distinct token ids of tokenized tables of `utils.data.tables`, ascending."""
    found = [np.unique(split.data.column("input_ids").combine_chunks().flatten().to_numpy()) for split in splits]
    return np.unique(np.concatenate(found))


def smaller_tokenizer(
    tokenizer: PreTrainedTokenizerFast, used: np.ndarray
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer that knows only the ids `used`, special tokens and single characters, numbered anew in their order.

    Texts of these tokens are tokenized as before: WordPiece takes the longest token that fits, byte-level BPE merges in
    the same order, and no token that took part is gone.

    Returns:
        The tokenizer, and the old id of each of its tokens.

    Raises:
        UserError: its model is neither WordPiece nor BPE.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] not in ("WordPiece", "BPE"):
        raise UserError(f"a {model['type']} vocabulary cannot be pruned, only WordPiece and BPE: leave it whole")
    kept = {model["vocab"][token] for token in model["vocab"] if _is_fallback(token)}
    kept |= {int(i) for i in used} | {token["id"] for token in state["added_tokens"]}
    if model["type"] == "BPE":
        kept |= _made_on_the_way(model, kept)
    old_ids = sorted(kept)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    model["vocab"] = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in model["merges"] if "".join(_pair(pair)) in model["vocab"]
                           and all(part in model["vocab"] for part in _pair(pair))]  # fmt: skip
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if state["post_processor"]:
        _renumber(state["post_processor"], new_ids)
    if state["padding"]:
        state["padding"]["pad_id"] = new_ids[state["padding"]["pad_id"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name.startswith(("vocab", "merges")):
                path.unlink()
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        path = Path(folder) / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # by old ids, and tokenizer.json says the same
        path.write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), old_ids


def _is_fallback(token: str) -> bool:
    for mark in MARKS:
        token = token.removeprefix(mark) or token
    return len(token) == 1


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _made_on_the_way(model: dict, kept: set[int]) -> set[int]:
    """Ids of the shorter tokens that BPE merges into the kept ones, step by step."""
    ranks = {tuple(_pair(merge)): rank for rank, merge in enumerate(model["merges"])}
    tokens = {old: token for token, old in model["vocab"].items()}
    found = set()
    for old in kept & tokens.keys():
        parts = list(tokens[old])
        while len(parts) > 1:
            rank, i = min((ranks.get(pair, np.inf), i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)))
            if rank == np.inf:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            found.add(model["vocab"][parts[i]])
    return found


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
    """Keep only these rows of the word embeddings, in place, and the ids that config.json names."""
    path = f"{family_of(model).embeddings}.word_embeddings"
    embeddings = model.get_submodule(path)
    rows = embeddings.weight.detach()[torch.tensor(old_ids, device=embeddings.weight.device)]
    padding = None if embeddings.padding_idx is None else old_ids.index(embeddings.padding_idx)
    model.set_submodule(path, nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=padding))
    model.config.vocab_size = len(old_ids)
    model.config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        old = getattr(model.config, name, None)
        if old is not None:
            setattr(model.config, name, old_ids.index(old) if old in old_ids else None)
