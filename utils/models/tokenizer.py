"""Reads a checkpoint's tokenizer, and checks it against its files and against the model that it is for.

What transformers does not find it makes up: a vocabulary of special tokens only, merges, lower-casing. None of that is
an error there, and each gives a model that reads other tokens than it was trained on.
"""

import importlib.util
import json
import logging
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from utils.models.families import FAMILIES, positions_follow_padding
from utils.models.folder import MEND
from utils.system.errors import UserError, first_line

logger = logging.getLogger(__name__)

SENTENCEPIECE = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe.codes", "tiktoken.model", "tekken.json")
NO_VOCABULARY = (
    "holds no vocabulary (tokenizer.json, vocab.txt or another): copy the tokenizer's files from the encoder that it "
    "was trained from"
)
# What in tokenizer_config.json says how texts are read; without any of these, tokenizer.json does.
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
# Texts that show how a tokenizer treats case, accents, whitespace, scripts and its own special tokens.
TELLING_TEXTS = [
    "Hello, World! it 's naïve",
    "UPPER lower 12,345.67 a_b",
    "日本語 текст ñ é ü",
    "🙂 don't re-do\t ok",
    "[CLS] <s> </s>",
    "",
]
CASED = 0.01  # fraction of a vocabulary's tokens; without case, only a few signs are capitals
UNUSED = 0.01  # fraction of the embeddings that padding the vocabulary leaves without a token, at most


def read_tokenizer(name_or_path: str, named: str) -> PreTrainedTokenizerFast:
    """Read a tokenizer as its files describe it.

    Args:
        named: how errors name the checkpoint.

    Raises:
        UserError: there is none, or not all of it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file provokes
        present = [name for name in (*VOCABULARIES, *SENTENCEPIECE) if _file(name_or_path, name)]
        if not present:
            raise UserError(f"{named} {NO_VOCABULARY}") from error
        if present == ["vocab.json"] and not _file(name_or_path, "merges.txt"):
            raise UserError(
                f"{named} holds vocab.json but no merges.txt: copy it from the encoder that it was trained from"
            ) from error
        if set(present) <= set(SENTENCEPIECE) and not _has_sentencepiece():
            raise UserError(
                f"{named} has its vocabulary as a SentencePiece model only: run `pip install sentencepiece`"
            ) from error
        raise UserError(f"{named} holds no usable tokenizer ({first_line(error)}): {MEND}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{named}: its tokenizer has no fast version (tokenizer.json): use another encoder")
    tokenizer_file = _file(name_or_path, "tokenizer.json")
    if set(tokenizer.get_vocab()) <= {"▁", *tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}:
        raise UserError(f"{named} {NO_VOCABULARY}")
    settings_file = _file(name_or_path, "tokenizer_config.json")
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file else {}
    if any(settings.get(name) is not None for name in SETTINGS):
        return tokenizer
    if tokenizer_file:
        return _as_in_file(tokenizer, tokenizer_file, named)
    return _with_case(tokenizer, name_or_path, named)


def _as_in_file(tokenizer: PreTrainedTokenizerFast, path: Path, named: str) -> PreTrainedTokenizerFast:
    """The tokenizer, or what tokenizer.json describes where transformers made another one of its vocabulary."""
    described = Tokenizer.from_file(str(path))
    if described.post_processor is None:  # one that adds no [CLS] was meant to be given it
        described.post_processor = tokenizer.backend_tokenizer.post_processor
    if telling_ids(described) == telling_ids(tokenizer.backend_tokenizer):
        return tokenizer
    logger.warning(
        "%s: transformers' %s would read texts in another way than its tokenizer.json says: tokenizer.json is followed",
        named,
        type(tokenizer).__name__,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=described,
        **tokenizer.special_tokens_map,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
    )


def _with_case(tokenizer: PreTrainedTokenizerFast, name_or_path: str, named: str) -> PreTrainedTokenizerFast:
    """The tokenizer, or the same without lower-casing where many words of its vocabulary could then never occur."""
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    words = {word for word in words if not word.startswith("[")}  # [unused1]
    capitals = sum(word != word.lower() for word in words)
    if not getattr(tokenizer, "do_lower_case", False) or capitals <= CASED * len(words):
        return tokenizer
    logger.warning(
        "%s: %d of %d words of its vocabulary have capitals and no file says whether texts are lower-cased: they are "
        'not; if they should be, write {"do_lower_case": true} into its tokenizer_config.json',
        named,
        capitals,
        len(words),
    )
    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, do_lower_case=False)


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, hub_config: PretrainedConfig, named: str) -> None:
    """Check that a tokenizer's ids are those of a model: that each has an embedding, and which one is padding.

    Warns where many embeddings have no token.

    Raises:
        UserError: they are not.
    """
    largest, token = max((index, token) for token, index in tokenizer.get_vocab().items())
    size = getattr(hub_config, "vocab_size", None)
    if size is not None and largest >= size:
        raise UserError(
            f"{named}: its tokenizer has the token {token!r} with the number {largest} but the model only {size} "
            "embeddings: use the tokenizer that belongs to it, or give it more with transformers' "
            "`resize_token_embeddings`"
        )
    unused = 0 if size is None else size - largest - 1
    if size and (unused > size / 2 or unused > max(256, UNUSED * size)):
        logger.warning(
            "%s: its tokenizer has %d tokens but the model %d embeddings: check that they belong together",
            named,
            largest + 1,
            size,
        )
    padding, own_padding = tokenizer.pad_token_id, getattr(hub_config, "pad_token_id", None)
    if padding is None:
        choice = tokenizer.eos_token or tokenizer.sep_token or "[PAD]"
        raise UserError(
            f'{named}: its tokenizer has no pad token: write one that it knows, such as "pad_token": "{choice}", into '
            "its tokenizer_config.json, and its number as pad_token_id into config.json"
        )
    if own_padding not in (None, padding):
        differs = (
            f"{named}: its tokenizer pads with token {padding} but its config.json says pad_token_id {own_padding}"
        )
        if hub_config.model_type not in FAMILIES or positions_follow_padding(hub_config):
            raise UserError(f"{differs}: use the tokenizer that belongs to it")
        logger.warning("%s: check that they belong together", differs)


def telling_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """The ids that a tokenizer gives telling texts, and a pair; turns off its truncation and padding."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [tokenizer.encode(text).ids for text in TELLING_TEXTS]
    return [*ids, tokenizer.encode(TELLING_TEXTS[0], TELLING_TEXTS[1]).ids]


def _file(name_or_path: str, name: str) -> Path | None:
    """A file of a folder, or of what was fetched from the hub."""
    path = cached_file(
        name_or_path,
        name,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(path) if path else None


def _has_sentencepiece() -> bool:
    return importlib.util.find_spec("sentencepiece") is not None
