"""Makes a peer's models from a checkpoint, in the peer's virtual environment, as its documentation shows.

    python -m benchmarks.peers optimum CHECKPOINT CALIBRATION_ROWS FOLDER...

CALIBRATION_ROWS is a file of training rows, as `benchmarks.backends.read_rows` reads it; the folders are made, one for
each of the peer's engines in `benchmarks.processes.VENVS`.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.backends import pad, read_rows
from benchmarks.static_classifier import write_static_classifier

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


def make_optimum(checkpoint: str, calibration: str, fp32: Path, int8: Path) -> None:
    """ONNX by Optimum's default export, and its dynamic quantization."""
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
    model.save_pretrained(fp32)
    quantizer = ORTQuantizer.from_pretrained(model)
    quantizer.quantize(
        save_dir=int8, quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    )


def make_openvino(checkpoint: str, calibration: str, fp32: Path, int8: Path) -> None:
    """OpenVINO's representation by Optimum Intel's default export, and NNCF's static quantization on training rows."""
    import nncf
    import openvino
    from optimum.intel import OVModelForSequenceClassification

    OVModelForSequenceClassification.from_pretrained(checkpoint, export=True, compile=False).save_pretrained(fp32)
    rows = [pad([row]) for row in read_rows(calibration)]
    model = openvino.Core().read_model(fp32 / "openvino_model.xml")
    quantized = nncf.quantize(model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, int8 / "openvino_model.xml")


def make_ctranslate2(checkpoint: str, calibration: str, int8: Path) -> None:
    """CTranslate2's int8 encoder, and beside it the rest of the classifier: it converts encoders only.

    Of BERT its encoder includes the pooler; other classifiers' first layer is `dense`.
    """
    import numpy as np
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoModelForSequenceClassification

    TransformersConverter(checkpoint).convert(str(int8 / "encoder"), quantization="int8")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    if hasattr(model, "pre_classifier"):  # DistilBERT
        layers = {"dense": model.pre_classifier, "output": model.classifier}
    elif hasattr(model.classifier, "dense"):  # RoBERTa
        layers = {"dense": model.classifier.dense, "output": model.classifier.out_proj}
    else:
        layers = {"output": model.classifier}
    np.savez(
        int8 / "head.npz",
        **{f"{name}_weight": layer.weight.detach().numpy() for name, layer in layers.items()},
        **{f"{name}_bias": layer.bias.detach().numpy() for name, layer in layers.items()},
    )


def make_inductor(checkpoint: str, calibration: str, int8: Path) -> None:
    """torch.export, torchao's dynamic int8 for x86, compiled by Inductor, for rows of any number and length."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(input_ids, attention_mask, token_type_ids).logits

    row = max(read_rows(calibration), key=lambda row: len(row["input_ids"]))
    example = tuple(torch.from_numpy(array) for array in pad([row, row]).values())
    axes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},) * 3
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=True))
    torch._inductor.config.freezing = True
    with torch.no_grad():
        exported = torch.export.export(Logits().eval(), example, dynamic_shapes=axes).module()
        prepared = prepare_pt2e(exported, quantizer)
        prepared(*example)
        quantized = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=axes)
        torch._inductor.aoti_compile_and_package(quantized, package_path=str(int8 / "model.pt2"))


def make_model2vec(checkpoint: str, calibration: str, folder: Path) -> None:
    """A classifier on static embeddings, trained on train.txt, and the labels in the order of their ids."""
    rows = read_rows(str(Path(calibration).with_name("train.jsonl")))
    write_static_classifier(checkpoint, [row["text"] for row in rows], [row["label"] for row in rows], str(folder))
    labels = dict(sorted((row["label_id"], row["label"]) for row in rows))
    (folder / "labels.json").write_text(json.dumps(list(labels.values())), encoding="utf-8")


MAKERS: dict[str, Callable[..., None]] = {
    "optimum": make_optimum,
    "openvino": make_openvino,
    "ctranslate2": make_ctranslate2,
    "inductor": make_inductor,
    "model2vec": make_model2vec,
}


def main() -> None:
    peer, checkpoint, calibration, *paths = sys.argv[1:]
    folders = [Path(path) for path in paths]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    MAKERS[peer](checkpoint, calibration, *folders)
    for folder in folders:
        for name in TOKENIZER_FILES:
            if not (folder / name).exists():
                shutil.copy(Path(checkpoint) / name, folder / name)


if __name__ == "__main__":
    main()
