"""Classification models: loading and saving.

A checkpoint folder is a standard transformers one. Where pruning left shapes that config.json's own keys cannot say,
config.json lists them, and the folder holds the code that builds such a model: see utils/models/modeling_pruned.py.
"""

import hashlib
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from utils.models import modeling_pruned
from utils.models.checkpoint import (
    check_labels,
    check_task,
    labels_of,
    load_hub_config,
    read_hub_config,
    same_outputs,
)
from utils.models.config import SINGLE_LABEL, TASKS, Config
from utils.models.families import family_of, in_table, layer_shapes, layers_of, takes_token_types
from utils.models.folder import MEND, check_weight_files
from utils.models.output_layer import Scale, output_layer, scale_output
from utils.predictor.errors import check_fetched
from utils.system.errors import UserError, first_line
from utils.system.files import atomic_file, atomic_files_into

# What config.json may hold of the task that a checkpoint was trained for before, and pipeline() goes by.
OLD_TASK = (
    "finetuning_task",
    "task_specific_params",
    "function_to_apply",
    "sentence_transformers",
    "sbert_ce_default_activation_function",
)


def load_model(
    name_or_path: str,
    flag: str,
    config: Config,
    labels: list[str],
    state_path: str | None = None,
    attention: str | None = None,
    new_head: bool = False,
    allow_hub_name: bool = False,
    start: Scale | None = None,
) -> PreTrainedModel:
    """Load a classification model in evaluation mode, pruned or not.

    Args:
        name_or_path: a checkpoint folder; `flag` is the option that named it, for errors.
        labels: the data set's label strings in the order of their ids; the checkpoint's must be the same.
        state_path: a state dict (.pt) to load over the folder's own weights.
        attention: `eager` where attention probabilities are wanted; without it, the fastest that the family has.
        new_head: start a classifier for `labels` afresh where the checkpoint has none or one for other labels or
            another task.
        allow_hub_name: let `name_or_path` be a name on the Hugging Face hub.
        start: mean and deviation of the outputs, each [outputs], that a classifier started afresh gives.

    Raises:
        UserError: the checkpoint is missing, damaged, of another family than `config`'s, or its labels or its task
            differ, or it cannot read rows of `config`'s n_ctx tokens.
    """
    named = f"{flag}={name_or_path}"
    hub_config = load_hub_config(name_or_path, flag, config, allow_hub_name)
    check_weight_files(name_or_path, flag)
    same_head = same_outputs(labels_of(hub_config), labels)
    if new_head:
        # A checkpoint without a problem_type may be of any task, but one label a text is what most of them are for.
        own_type = hub_config.problem_type or TASKS[SINGLE_LABEL]
        same_head = same_head and (config.task == SINGLE_LABEL or own_type == TASKS[config.task])
    else:
        check_labels(hub_config, labels, name_or_path, flag)
        check_task(hub_config, config.task, named)
    _describe_task(hub_config, labels, config.task)
    try:
        pruned = getattr(hub_config, "layer_shapes", None)
        # The code in the folder is not run: this project's own is the same.
        kind: Any = (
            modeling_pruned.PRUNED_CLASSES[hub_config.model_type] if pruned else AutoModelForSequenceClassification
        )
        model, loading = kind.from_pretrained(
            name_or_path,
            config=hub_config,
            attn_implementation=attention,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{named} cannot be loaded ({first_line(error)}): {MEND}") from error
    _check_weights(model, loading, new_head, named)
    if in_table(hub_config) and not same_head and not loading["missing_keys"]:
        _restart_classifier(model)
    if start is not None and (not same_head or loading["missing_keys"] or loading["mismatched_keys"]):
        scale_output(model, start)
    if state_path is not None:
        load_state(model, state_path)
    model.eval()
    if not in_table(hub_config):
        _try_longest_rows(model, config.n_ctx, named)
    return model


def load_word_embeddings(name_or_path: str, flag: str, allow_hub_name: bool = False) -> torch.Tensor:
    """The word embeddings of a pretrained encoder or a classifier, fp32 [vocabulary, width].

    Raises:
        UserError: the checkpoint is missing or damaged, or has none; names `flag`.
    """
    hub_config = read_hub_config(name_or_path, flag, allow_hub_name)
    check_weight_files(name_or_path, flag)
    try:
        encoder, loading = AutoModel.from_pretrained(
            name_or_path,
            config=hub_config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a pruned one has layers of other shapes
        )
        embeddings = encoder.get_input_embeddings()
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{flag}={name_or_path} cannot be loaded ({first_line(error)}): {MEND}") from error
    names = {f"{name}.weight" for name, module in encoder.named_modules() if module is embeddings}
    if names & {*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])} or _not_finite(embeddings):
        raise UserError(
            f"{flag}={name_or_path} has no word embeddings, or not such as its config.json says: copy all files of the "
            "checkpoint again"
        )
    return embeddings.weight.detach()


def load_state(model: PreTrainedModel, path: str) -> None:
    """Load a state dict written by `save_checkpoint` into `model`, in place.

    Raises:
        UserError: the file is missing, is not a plain state dict, or does not fit.
    """
    check_fetched(Path(path))
    try:
        # weights_only: a pickle that would run code is refused, not executed.
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        if not_finite := _not_finite(model):
            raise ValueError(f"{not_finite} are no numbers")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): train a model first, or check the path") from error
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise UserError(
            f"{path} is not a state dict of this checkpoint ({first_line(error)}): "
            "pass the folder and the file that one command wrote together"
        ) from error


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path, state_path: str | Path | None
) -> None:
    """Write a complete checkpoint folder (config, safetensors, tokenizer) and, with `state_path`, the same as a .pt.

    The weights are the model's, in their shapes and types, on whichever device they are. Other files in `folder` stay.

    Raises:
        OSError: the disk is full, or the folder cannot be written; then neither is changed.
    """
    pruned = in_table(model.config) and _describe_shapes(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_files_into(folder) as temporary:
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary, state_dict=dict(state))  # a copy: it may empty the one it gets
        if pruned:
            shutil.copy(modeling_pruned.__file__, temporary)
    if state_path is not None:
        with atomic_file(state_path) as temporary:
            torch.save(state, temporary)


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Let every dropout of a model have this probability while it trains; its config stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        if isinstance(getattr(module, "attention_dropout", None), (int, float)):  # ModernBERT's is a number
            module.attention_dropout = probability


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Keep all embeddings, and their layer norm, as they are while the model trains."""
    model.get_submodule(family_of(model).embeddings).requires_grad_(False)


def model_inputs(model: PreTrainedModel, batch: dict) -> dict:
    """The entries of a batch that this model's forward takes, as tensors on its device."""
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if takes_token_types(model) else [])
    return {name: torch.as_tensor(batch[name]).to(model.device, non_blocking=True) for name in names}


def _check_weights(model: PreTrainedModel, loading: dict, new_head: bool, named: str) -> None:
    """Check that the checkpoint had all weights in their shapes; with `new_head`, those of the classifier apart.

    And that its encoder has no others: those of an adapter, or of more layers than its config.json says.

    Args:
        loading: what `from_pretrained` returns with `output_loading_info`.
        named: how errors name the checkpoint.

    Raises:
        UserError: it had not, or some are no numbers.
    """
    shapes = {name: (list(own), list(expected)) for name, own, expected in loading["mismatched_keys"]}
    unusable, unexpected = {*loading["missing_keys"], *shapes}, sorted(loading["unexpected_keys"])
    encoder = {
        name
        for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)
        if not name.startswith(f"{model.base_model_prefix}.pooler.")
    }
    if new_head:
        unusable &= encoder
    if unexpected and encoder <= unusable:
        raise UserError(
            f"{named}: its weights have other names than transformers gives them, such as {unexpected[0]} instead of "
            f"{min(unusable)}: save it again with transformers' `save_pretrained`"
        )
    if unusable:
        name = min(unusable)
        if not unusable & (encoder | shapes.keys()):
            raise UserError(f"{named} has no classifier ({name} is missing): train it first, with train.py")
        differs = "has the shape {}, by its config.json {}".format(*shapes[name]) if name in shapes else "is missing"
        raise UserError(f"{named}: of its weights, {name} {differs}: copy all files of the checkpoint again")
    if in_table(model.config):
        parts = "|".join(name for name, _ in model.base_model.named_children())
        of_encoder = re.compile(rf"({model.base_model_prefix}\.)?({parts})\.(?!.*position_ids$)")
        unused = [name for name in unexpected if of_encoder.match(name)]
        if unused:
            raise UserError(
                f"{named}: its config.json has no place for some of its weights, such as {unused[0]}: copy the "
                "config.json that belongs to them"
            )
    if not_finite := _not_finite(model):
        raise UserError(f"{named}: its weights {not_finite} are no numbers: train it again, or copy it again")


def _not_finite(model: nn.Module) -> str | None:
    """The name of some weights that are infinite or not a number."""
    for name, weights in model.named_parameters():
        # The sum is many times faster to look at; that of finite weights may be infinite.
        if not weights.sum().isfinite() and not weights.isfinite().all():
            return name
    return None


def _try_longest_rows(model: PreTrainedModel, n_ctx: int, named: str) -> None:
    """Run a model of a family that is not in the table once: on a row of n_ctx tokens and a padded one.

    Raises:
        UserError: it cannot read them.
    """
    size = model.get_input_embeddings().num_embeddings
    names = ("pad", "eos", "bos", "sep", "cls", "mask")
    special = {name: getattr(model.config, f"{name}_token_id", None) for name in names}
    special = {name: i for name, i in special.items() if i is not None and i < size}
    word = next((i for i in range(size) if i not in special.values()), 0)
    padding, last = special.get("pad", 0), special.get("eos", word)  # BART reads the answer off eos
    ids = torch.full((2, n_ctx), word)
    ids[0, -1] = ids[1, 1] = last
    mask = torch.ones_like(ids)
    ids[1, 2:], mask[1, 2:] = padding, 0
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
    except Exception as error:  # whatever an architecture raises
        mend = f"lower n_ctx, which is {n_ctx}, in the config, or use another encoder"
        if "pad" in str(error).lower():
            mend = "write the number of the tokenizer's pad token as pad_token_id into its config.json"
        raise UserError(f"{named} cannot read padded rows of {n_ctx} tokens ({first_line(error)}): {mend}") from error


def _describe_task(hub_config: PretrainedConfig, labels: list[str], task: str) -> None:
    """Make a checkpoint's config that of a classifier with these labels, in place."""
    hub_config.id2label, hub_config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    hub_config.problem_type = TASKS[task]
    for name in OLD_TASK:
        hub_config.__dict__.pop(name, None)
    if not hasattr(hub_config, "layer_shapes"):
        hub_config.__dict__.pop("auto_map", None)  # code for another class


def _restart_classifier(model: PreTrainedModel) -> None:
    """Draw the output layer anew: it was trained for other labels, if as many."""
    output = output_layer(model)
    nn.init.normal_(output.weight, std=model.config.initializer_range)
    nn.init.zeros_(output.bias)


def _describe_shapes(model: PreTrainedModel) -> bool:
    """Write the layers' shapes into the model's config, where its own keys do not say them; returns whether so."""
    config, shapes = model.config, layer_shapes(model)
    family = family_of(model)
    # A layer that was not the first one: transformers gives the first one no norm before its attention.
    first_norm = family.pre_norm and isinstance(layers_of(model)[0].get_submodule(family.attention_norm), nn.LayerNorm)
    pruned = first_norm or set(shapes) != {(config.num_attention_heads, _config_ffn_size(config))}
    pruned = pruned or hasattr(config, "num_position_biases")
    described: dict[str, object] = {
        "layer_shapes": [list(shape) for shape in shapes],
        "layer_paths": asdict(family),
        "auto_map": {
            "AutoModelForSequenceClassification": "modeling_pruned."
            + modeling_pruned.PRUNED_CLASSES[config.model_type].__name__
        },
    }
    if family.pre_norm:
        described["first_layer_norm"] = first_norm
    for key, value in described.items():
        if pruned:
            setattr(config, key, value)
        elif hasattr(config, key):
            delattr(config, key)
    return pruned


def _config_ffn_size(hub_config: PretrainedConfig) -> int:
    return hub_config.hidden_dim if hub_config.model_type == "distilbert" else hub_config.intermediate_size
