"""The JSON files in configs/: which encoder family, how many tokens of a text it reads, and what it is to answer."""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.models.families import FAMILIES
from utils.system.errors import UserError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"
# Every task, and what transformers calls it: problem_type in a checkpoint's config.json, which pipeline() goes by.
TASKS = {
    SINGLE_LABEL: "single_label_classification",
    MULTI_LABEL: "multi_label_classification",
    REGRESSION: "regression",
}


@dataclass(frozen=True)
class Config:
    """One file of configs/.

    `encoder_class` is the encoder's family, transformers' model_type: one of `utils.models.families.FAMILIES`, or any
    other that classifies, which is then neither pruned nor fused; `n_ctx` the longest input in tokens, special tokens
    included: longer ones are truncated; `task` is one of `TASKS`: one label a text, any number of them, or scores.
    """

    encoder_class: str
    n_ctx: int
    task: str = SINGLE_LABEL


def load_config(path: str | Path) -> Config:
    """Read and check a config file.

    Raises:
        UserError: the file is missing, is not JSON, or has an unknown, missing or impossible key.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file of configs/") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    keys = list(Config.__dataclass_fields__)
    if not isinstance(values, dict) or sorted(values | {"task": SINGLE_LABEL}) != sorted(keys):
        odd = sorted((set(values) ^ set(keys)) - {"task"}) if isinstance(values, dict) else []
        raise UserError(
            f"{path} must hold exactly the keys encoder_class, n_ctx and, if you like, task: unknown or missing here "
            f"{', '.join(odd)}"
        )
    if values.get("task", SINGLE_LABEL) not in list(TASKS):
        raise UserError(f"{path}: unknown task {values['task']!r}: choose one of {', '.join(TASKS)}")
    if not is_classified(values["encoder_class"]):
        raise UserError(
            f"{path}: unknown encoder_class {values['encoder_class']!r}: choose one of {', '.join(sorted(FAMILIES))}, "
            "or another model_type that transformers has a sequence classifier for"
        )
    n_ctx = values["n_ctx"]
    if not isinstance(n_ctx, int) or isinstance(n_ctx, bool) or n_ctx < 4:
        raise UserError(f"{path}: n_ctx is {n_ctx!r}: it must be a whole number of at least 4 tokens")
    return Config(**values)


def is_classified(encoder_class: object) -> bool:
    """Tell whether transformers has a sequence classifier for this model_type."""
    if encoder_class in list(FAMILIES):  # lists, as the value of a file may be anything
        return True
    # Imported here, as that takes seconds, and most encoders are of these families.
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return encoder_class in list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
