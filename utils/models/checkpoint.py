"""What a checkpoint says without its weights: its config.json, its labels and its tokenizer."""

import hashlib
import json

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from utils.models.config import Config
from utils.models.families import FAMILIES, num_positions
from utils.models.folder import MEND, check_folder
from utils.models.tokenizer import check_tokenizer, read_tokenizer, telling_ids
from utils.system.errors import UserError, first_line


def read_hub_config(name_or_path: str, flag: str, allow_hub_name: bool = False) -> PretrainedConfig:
    """Read the config.json of a checkpoint folder or, with `allow_hub_name`, of a name on the Hugging Face hub.

    Raises:
        UserError: it is missing or damaged, or the folder is not a checkpoint; names `flag`.
    """
    check_folder(name_or_path, flag, allow_hub_name)
    try:
        # trust_remote_code=False, wherever a checkpoint is loaded: else transformers asks, and a yes runs its code.
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{flag}={name_or_path} holds no usable config.json ({first_line(error)}): {MEND}") from error


def load_hub_config(name_or_path: str, flag: str, config: Config, allow_hub_name: bool = False) -> PretrainedConfig:
    """Read a checkpoint's config.json, as `read_hub_config`, and check it against `config`.

    Raises:
        UserError: it is missing or damaged, of another family, or too short for n_ctx.
    """
    hub_config = read_hub_config(name_or_path, flag, allow_hub_name)
    if hub_config.model_type != config.encoder_class:
        raise UserError(
            f"{flag}={name_or_path} is of the family {hub_config.model_type!r} but the config says encoder_class "
            f"{config.encoder_class!r}: use "
            + (
                f"configs/config-{hub_config.model_type}-cls.json"
                if hub_config.model_type in FAMILIES
                else f"an encoder of one of the families {', '.join(sorted(FAMILIES))}"
            )
        )
    if getattr(hub_config, "is_decoder", False):
        raise UserError(
            f"{flag}={name_or_path} is a decoder by its config.json: each token sees only those before it; if it was "
            'trained as an encoder, write "is_decoder": false there'
        )
    positions = num_positions(hub_config)
    if positions is not None and config.n_ctx > positions:
        raise UserError(
            f"n_ctx is {config.n_ctx} but {flag}={name_or_path} has only {positions} positions: lower it in the config"
        )
    return hub_config


def check_labels(hub_config: PretrainedConfig, labels: list[str], name_or_path: str, flag: str) -> None:
    """Check that a checkpoint's labels are the data set's, in the same order.

    Raises:
        UserError: they are not.
    """
    named = f"{flag}={name_or_path}"
    own_labels = labels_of(hub_config)
    written, _ = PretrainedConfig.get_config_dict(name_or_path)
    counted, names = written.get("num_labels"), written.get("id2label")
    if counted is not None and names is not None and len(names) != counted:
        raise UserError(f"{named}: its config.json says num_labels {counted} but id2label has {len(names)}: correct it")
    if sorted(hub_config.id2label) != list(range(len(own_labels))) or len(set(own_labels)) < len(own_labels):
        raise UserError(
            f"{named}: the id2label of its config.json must number the labels 0, 1, ... and give each a name of its "
            f"own, but is {_shown([f'{i}: {name}' for i, name in hub_config.id2label.items()])}: correct it"
        )
    if own_labels == labels:
        return
    differ = f"{named} was trained for the labels {_shown(own_labels)} but the data set has {_shown(labels)}"
    if len(own_labels) != len(labels) or set(own_labels) == set(labels):
        raise UserError(f"{differ}: use the data set it was trained on, or train it again")
    example = json.dumps({str(i): label for i, label in enumerate(labels[:8])}, ensure_ascii=False)
    raise UserError(
        f"{differ}: if these are its own labels under other names, write them into its config.json in the order in "
        f'which it was trained, such as "id2label": {example}; if not, train it for this data set'
    )


def load_tokenizer(name_or_path: str, flag: str, allow_hub_name: bool = False) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint folder or, with `allow_hub_name`, of a name on the Hugging Face hub.

    Raises:
        UserError: there is none, or it is not the one of this checkpoint's model; names `flag`.
    """
    hub_config = read_hub_config(name_or_path, flag, allow_hub_name)
    tokenizer = read_tokenizer(name_or_path, f"{flag}={name_or_path}")
    check_tokenizer(tokenizer, hub_config, f"{flag}={name_or_path}")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of what the tokenizer does: its vocabulary, and the ids it gives a set of telling texts and a pair.

    Two tokenizers that agree have the same one, whatever their classes or files are called.
    """
    backend = tokenizer.backend_tokenizer
    behaviour = json.dumps([sorted(backend.get_vocab().items()), telling_ids(backend)], ensure_ascii=True)
    return hashlib.sha256(behaviour.encode()).hexdigest()[:16]


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
    return [str(hub_config.id2label[i]) for i in sorted(hub_config.id2label)]


def _shown(labels: list[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
