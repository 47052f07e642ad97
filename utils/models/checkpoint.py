"""What a checkpoint says without its weights: its config.json, its labels and its tokenizer."""

import csv
import hashlib
import io
import json
import logging
import shlex

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from utils.models.config import SINGLE_LABEL, TASKS, Config, is_classified
from utils.models.families import FAMILIES, num_positions
from utils.models.folder import MEND, check_folder
from utils.models.tokenizer import check_tokenizer, read_tokenizer, telling_ids
from utils.system.errors import UserError, first_line

logger = logging.getLogger(__name__)


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


def config_of_checkpoint(
    name_or_path: str, flag: str, n_ctx: int, task: str = SINGLE_LABEL, allow_hub_name: bool = False
) -> Config:
    """What a file of configs/ would say of a checkpoint: its family, and n_ctx or, if fewer, its positions.

    Raises:
        UserError: as `read_hub_config`, or transformers has no classifier of its family, or it has too few positions.
    """
    hub_config = read_hub_config(name_or_path, flag, allow_hub_name)
    if not is_classified(hub_config.model_type):
        raise UserError(
            f"{flag}={name_or_path} is of the family {hub_config.model_type!r}, of which transformers has no sequence "
            "classifier: use another checkpoint"
        )
    positions = num_positions(hub_config)
    if positions is not None and positions < 4:
        raise UserError(f"{flag}={name_or_path} has only {positions} positions by its config.json: correct it")
    return Config(hub_config.model_type, n_ctx if positions is None else min(n_ctx, positions), task)


def label_columns(
    hub_config: PretrainedConfig,
    labels: list[str],
    names: list[str] | None,
    name_or_path: str,
    flag: str,
    names_flag: str,
) -> list[int]:
    """Which of a classifier's outputs is that of each of the data set's labels, by their numbers.

    Args:
        names: the data set's label for each output; without them, the checkpoint's own labels must be the data set's,
            in the same order.
        names_flag: the option that gave `names`, for errors.

    Raises:
        UserError: as `check_labels`, or `names` are not the data set's labels, each once.
    """
    if names is None:
        check_labels(hub_config, labels, name_or_path, flag, names_flag)
        return list(range(len(labels)))
    named, given, own_labels = f"{flag}={name_or_path}", f"{names_flag}={joined_labels(names)}", labels_of(hub_config)
    if len(own_labels) != len(labels):
        raise UserError(_other_number(named, own_labels, labels))
    if len(names) != len(own_labels):
        raise UserError(
            f"{given} has {len(names)} labels but {named} has {len(own_labels)} outputs ({_shown(own_labels)}): give "
            "the data set's label for each of them, in this order"
        )
    if unknown := [name for name in names if name not in labels]:
        raise UserError(
            f"{given}: {unknown[0]!r} is not a label of the data set, which has {_shown(labels)}: give these"
        )
    if len(set(names)) < len(names):
        missing = [label for label in labels if label not in names]
        raise UserError(f"{given} has a label twice, and {_shown(missing)} not at all: give each label once")
    return [names.index(label) for label in labels]


def check_labels(
    hub_config: PretrainedConfig, labels: list[str], name_or_path: str, flag: str, names_flag: str | None = None
) -> None:
    """Check that a checkpoint's labels are the data set's, in the same order.

    Args:
        names_flag: the option that says which label each output is, if the script has one.

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
    if same_outputs(own_labels, labels):
        return
    if len(own_labels) != len(labels):
        raise UserError(_other_number(named, own_labels, labels))
    differ = f"{named} was trained for the labels {_shown(own_labels)} but the data set has {_shown(labels)}"
    if names_flag and (names := _plain_names(own_labels, labels)):
        raise UserError(
            f"{differ}: if its outputs mean what their names say, give {names_flag}={joined_labels(names)}, the data "
            "set's label for each of them"
        )
    if names_flag:
        raise UserError(
            f"{differ}: give the data set's label for each of its outputs, in its own order, such as "
            f"{names_flag}={joined_labels(labels[:8])}{',...' * (len(labels) > 8)}, if that is what they mean"
        )
    if set(own_labels) == set(labels):
        raise UserError(f"{differ}: use the data set it was trained on, or train it again")
    example = json.dumps({str(i): label for i, label in enumerate(labels[:8])}, ensure_ascii=False)
    raise UserError(
        f"{differ}: if these are its own labels under other names, write them into its config.json in the order in "
        f'which it was trained, such as "id2label": {example}; if not, train it for this data set'
    )


def same_outputs(own_labels: list[str], labels: list[str]) -> bool:
    """Whether a checkpoint's outputs are the data set's labels, in their order; a single one, a score, by any name."""
    return own_labels == labels or len(own_labels) == len(labels) == 1


def check_task(hub_config: PretrainedConfig, task: str, named: str) -> None:
    """Check that a trained classifier's problem_type, if it has one, is that of the task.

    One label a text may be read off any classifier of several labels, with a warning.

    Args:
        named: how errors name the checkpoint.

    Raises:
        UserError: it is another.
    """
    if hub_config.problem_type in (None, TASKS[task]):
        return
    if task == SINGLE_LABEL:
        logger.warning("%s: its problem_type was %s: one label a text from now on", named, hub_config.problem_type)
        return
    other = {problem_type: name for name, problem_type in TASKS.items()}.get(hub_config.problem_type, "")
    raise UserError(
        f'{named} was trained for the problem_type {hub_config.problem_type} but the config says "task": "{task}": '
        + (f'write "task": "{other}" into the file of --config, or train it again' if other else "train it again")
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
    """Check that a student and its teacher tokenize alike, as losses that compare token by token need.

    Raises:
        UserError: they do not.
    """
    if tokenizer_fingerprint(student) != tokenizer_fingerprint(teacher):
        raise UserError(
            "the tokenizers of teacher and student differ: use a student with its teacher's vocabulary and casing, "
            "made from it by `prune.py --keep_layers` for one, or name no teacher here: fastformers.py tokenizes for "
            "such a one by itself"
        )


def labels_of(hub_config: PretrainedConfig) -> list[str]:
    """A checkpoint's label strings in the order of their ids."""
    return [str(hub_config.id2label[i]) for i in sorted(hub_config.id2label)]


def joined_labels(labels: list[str]) -> str:
    """Labels as an option of `utils.arguments.label_list` takes them, for a shell."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(labels)
    return shlex.quote(line.getvalue())


def _other_number(named: str, own_labels: list[str], labels: list[str]) -> str:
    return (
        f"{named} was trained for the labels {_shown(own_labels)} but the data set has {_shown(labels)}: use the data "
        "set it was trained on, or train it again"
    )


def _plain_names(own_labels: list[str], labels: list[str]) -> list[str] | None:
    """The label that each of a checkpoint's plainly means: the same but for case, or its number after LABEL_."""
    by_name = {label.casefold(): label for label in labels}
    folded = [label.casefold() for label in own_labels]
    names = [by_name.get(label, by_name.get(label.removeprefix("label_"))) for label in folded]
    plain = [name for name in names if name is not None]
    return plain if len(plain) == len(set(plain)) == len(labels) else None


def _shown(labels: list[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
