"""A model folder, and PyTorch's probabilities of the same model."""

import hashlib
import json
import random
from pathlib import Path

import onnx
import torch
from conftest import WORDS, make_encoder, make_tokenizer
from transformers import AutoModelForSequenceClassification

from utils.export.fused import build_graph

LABELS = ["bad", "así así", "good"]
N_CTX = 16
FILES = {"bert": ["model.onnx", "model.unpadded.onnx", "model.weights", "tokenizer.json"]}
FILES["distilbert"] = ["model.onnx", "tokenizer.json"]


class Reference:
    """A model folder, and PyTorch's probabilities of the same model."""

    def __init__(self, folder: Path, family: str, tokenizer=None, **sizes: int):
        self.folder = folder / "model"
        self.tokenizer = tokenizer or make_tokenizer()
        encoder = make_encoder(folder / "encoder", family, self.tokenizer, **sizes)
        self.model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(LABELS)).eval()
        self.model.config.id2label = dict(enumerate(LABELS))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        self.model.config.save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)
        onnx.save(build_graph(self.model), self.folder / "model.onnx")
        if "model.unpadded.onnx" in FILES[family]:
            onnx.save(
                build_graph(self.model, masked=False), self.folder / "model.unpadded.onnx",
                save_as_external_data=True, location="model.weights", size_threshold=1024,
            )  # fmt: skip
        seal(self.folder, FILES[family])

    def probabilities(self, text: str | tuple[str, str]) -> list[float]:
        texts = (text,) if isinstance(text, str) else text
        types = self.model.config.model_type == "bert"
        batch = self.tokenizer(
            *texts, truncation=True, max_length=N_CTX, return_tensors="pt", return_token_type_ids=types
        )
        with torch.inference_mode():
            return self.model(**batch).logits.softmax(-1)[0].tolist()


def seal(folder: Path, files: list[str]) -> None:
    """Write the hashes of `files` into config.json, as quantize.py does."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    change_config(folder, fastformers={"n_ctx": N_CTX, "files": hashes})


def change_config(folder: Path, **keys: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def of_texts(folder: Path, count: int | None) -> Path:
    """The folder as of a model of one text or of pairs; None: as of quantize.py when it did not say."""
    own = json.loads((folder / "config.json").read_text())["fastformers"]
    change_config(folder, fastformers=own | {"texts": count})
    return folder


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, 20))) for _ in range(count)]
