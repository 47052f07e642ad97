"""What a checkpoint says without its weights: its config.json, its labels and its tokenizer."""

import hashlib
import json
import os
import re

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from utils.models.config import Config
from utils.models.families import FAMILIES
from utils.system.errors import UserError, first_line

MEND = "check the path, or fetch a pretrained encoder with `python embeddings/fetch.py NAME`"


def load_hub_config(name_or_path: str, flag: str, config: Config) -> PretrainedConfig:
    """Read a checkpoint's config.json and check it against `config`.

    Raises:
        UserError: it is missing or damaged, of another family, or too short for n_ctx.
    """
    _check_there(name_or_path, flag)
    try:
        # trust_remote_code=False, wherever a checkpoint is loaded: else transformers asks, and a yes runs its code.
        hub_config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{flag}={name_or_path} holds no usable config.json ({first_line(error)}): {MEND}") from error
    if hub_config.model_type != config.encoder_class:
        raise UserError(
            f"{flag}={name_or_path} is of the family {hub_config.model_type!r} but the config says encoder_class "
            f"{config.encoder_class!r}: use "
            + (f"configs/config-{hub_config.model_type}-cls.json" if hub_config.model_type in FAMILIES
               else f"an encoder of one of the families {', '.join(sorted(FAMILIES))}")
        )  # fmt: skip
    positions = getattr(hub_config, "max_position_embeddings", config.n_ctx)
    family = FAMILIES.get(hub_config.model_type)
    if family and family.positions_follow_padding:
        positions -= hub_config.pad_token_id + 1
    if config.n_ctx > positions:
        raise UserError(
            f"n_ctx is {config.n_ctx} but {flag}={name_or_path} has only {positions} positions: lower it in the config"
        )
    return hub_config


def check_labels(hub_config: PretrainedConfig, labels: list[str], name_or_path: str, flag: str) -> None:
    """Check that a checkpoint's labels are the data set's, in the same order.

    Raises:
        UserError: they are not.
    """
    own_labels = labels_of(hub_config)
    if own_labels != labels:
        raise UserError(
            f"{flag}={name_or_path} was trained for the labels {_shown(own_labels)} but the data set has "
            f"{_shown(labels)}: use the data set it was trained on, or train it again"
        )


def load_tokenizer(name_or_path: str, flag: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint folder, or of a Hugging Face hub name.

    Raises:
        UserError: there is none, naming `flag`.
    """
    _check_there(name_or_path, flag)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{flag}={name_or_path} holds no usable tokenizer ({first_line(error)}): {MEND}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{flag}={name_or_path}: its tokenizer has no fast version (tokenizer.json): use another encoder"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of what the tokenizer does: its vocabulary, and the ids it gives a set of telling texts and a pair.

    Two tokenizers that agree have the same one, whatever their classes or files are called.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    texts = [
        "Hello, World! it 's naïve",
        "UPPER lower 12,345.67 a_b",
        "日本語 текст ñ é ü",
        "🙂 don't re-do\t ok",
        "[CLS] <s> </s>",
        "",
    ]
    ids = [backend.encode(text).ids for text in texts] + [backend.encode(texts[0], texts[1]).ids]
    known = json.dumps([sorted(backend.get_vocab().items()), ids], ensure_ascii=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def check_same_tokenizer(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> None:
    """A student learns from its teacher's logits on the same token ids, so both must tokenize alike.

    Raises:
        UserError: they do not.
    """
    if tokenizer_fingerprint(student) != tokenizer_fingerprint(teacher):
        raise UserError(
            "the tokenizers of teacher and student differ: use a student with its teacher's vocabulary and casing, "
            "made from it by `prune.py --keep_layers` for one, or give fastformers.py the rows in the teacher's tokens "
            "too (--teacher_data_dir)"
        )


def labels_of(hub_config: PretrainedConfig) -> list[str]:
    """A checkpoint's label strings in the order of their ids."""
    return [hub_config.id2label[i] for i in sorted(hub_config.id2label)]


def _check_there(name_or_path: str, flag: str) -> None:
    # Only a pretrained encoder may be a name on the hub, "name" or "owner/name", and only where no such folder is near.
    may_be_hub_name = (
        flag.endswith("name_or_path")
        and re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name_or_path)
        and not os.path.isdir(os.path.dirname(name_or_path))
    )
    if not os.path.isdir(name_or_path) and not may_be_hub_name:
        raise UserError(f"{flag}={name_or_path} is not a folder: {MEND}")


def _shown(labels: list[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
