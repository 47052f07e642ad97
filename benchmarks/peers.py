"""Makes a peer's models from a checkpoint, in the peer's virtual environment, as its documentation shows.

    python -m benchmarks.peers optimum CHECKPOINT CALIBRATION_ROWS FOLDER...

CALIBRATION_ROWS is a file of training rows, as `benchmarks.backends.read_rows` reads it; the folders are made, one for
each of the peer's engines in `benchmarks.processes.VENVS`.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.backends import pad, read_rows

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


MAKERS: dict[str, Callable[..., None]] = {
    "optimum": make_optimum,
    "openvino": make_openvino,
    "ctranslate2": make_ctranslate2,
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
