"""What lies in a folder that should be a checkpoint, seen before a library trips over it."""

import json
import os
import re
from pathlib import Path

from utils.predictor.errors import check_fetched
from utils.system.errors import UserError

MEND = "check the path, or fetch a pretrained encoder with `python embeddings/fetch.py NAME`"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Weights that transformers 5 does not read, and what they are.
OTHER_WEIGHTS = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "model.ckpt.index": "TensorFlow 1",
    "bert_model.ckpt.index": "TensorFlow 1",
    "rust_model.ot": "Rust",
}


def check_folder(name_or_path: str, flag: str, allow_hub_name: bool = False) -> None:
    """Check that a path is a folder whose files are here, with a config.json that says what it is.

    Args:
        allow_hub_name: let a name on the Hugging Face hub pass, "name" or "owner/name".

    Raises:
        UserError: it is not; `flag` is the option that named it.
    """
    named = f"{flag}={name_or_path}"
    if not os.path.isdir(name_or_path):
        # A name on the hub only where no folder of that owner's name is near.
        is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name_or_path)
        if os.path.isfile(name_or_path):
            raise UserError(f"{named} is a file: name the folder that it is in")
        if not allow_hub_name or not is_hub_name or os.path.isdir(os.path.dirname(name_or_path)):
            raise UserError(f"{named} is not a folder: {MEND}")
        return
    folder = Path(name_or_path)
    for path in sorted(folder.iterdir()):
        check_fetched(path)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{named} holds an adapter of PEFT (LoRA or the like), which is read by none of these scripts: merge it "
            "into its model with `model.merge_and_unload().save_pretrained(FOLDER)`, save the tokenizer there too and "
            "name that folder"
        )
    if not (folder / "config.json").exists():
        raise UserError(f"{named} {_instead_of_config(folder)}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{named} holds no usable config.json ({error}): {MEND}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        # transformers would guess the family from the folder's name.
        raise UserError(
            f'{named}: its config.json does not say which family it is: add its model_type, such as "model_type": '
            '"bert"'
        )


def check_weight_files(name_or_path: str, flag: str) -> None:
    """Check that a checkpoint folder has weights in a form that transformers reads; a name on the hub passes.

    Raises:
        UserError: it has none, or not all of them.
    """
    folder, named = Path(name_or_path), f"{flag}={name_or_path}"
    if not folder.is_dir() or (folder / WEIGHTS[0]).exists():
        return
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.exists():
            missing = [shard for shard in _shards(index, named) if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{named}: {index.name} names {missing[0]}, which is not there: copy the missing files")
            return
        if (folder / name).exists():
            return
    for name, library in OTHER_WEIGHTS.items():
        if (folder / name).exists():
            raise UserError(
                f"{named} has weights of {library} only ({name}): convert them with transformers 4, "
                "`from_pretrained(FOLDER, from_tf=True)` or `from_flax=True` and then `save_pretrained`, or find it "
                "with a model.safetensors"
            )
    if list(folder.glob("*.onnx")):
        raise UserError(f"{named} holds ONNX graphs, not a checkpoint: name the folder that they were made from")
    raise UserError(f"{named} has no weights (model.safetensors or pytorch_model.bin): {MEND}")


def _shards(index: Path, named: str) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{named}: {index.name} cannot be read: {MEND}") from error


def _instead_of_config(folder: Path) -> str:
    """What a folder without a config.json is, and what to do."""
    inner = sorted(path.parent.name for path in folder.glob("*/config.json") if _has_model_type(path))
    what = "is a folder of sentence-transformers" if (folder / "modules.json").exists() else "holds no config.json"
    if inner:
        return f"{what}, but {', '.join(inner[:8])} in it holds one: name {folder / inner[-1]}"
    return f"{what}{'' if what.endswith('json') else ' without a transformers encoder'}: {MEND}"


def _has_model_type(path: Path) -> bool:
    try:
        return "model_type" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
