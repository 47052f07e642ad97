"""Makes a peer's models from a checkpoint, in the peer's virtual environment, as its documentation shows.

    python -m benchmarks.peers optimum CHECKPOINT CALIBRATION_ROWS FP32_DIR INT8_DIR

CALIBRATION_ROWS is a file of training rows, as `benchmarks.backends.read_rows` reads it; the folders are made.
"""

import shutil
import sys
from pathlib import Path

from benchmarks.backends import pad, read_rows

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


def make_optimum(checkpoint: str, fp32: Path, int8: Path) -> None:
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


def main() -> None:
    peer, checkpoint, calibration, *folders = sys.argv[1:]
    fp32, int8 = map(Path, folders)
    for folder in (fp32, int8):
        folder.mkdir(parents=True, exist_ok=True)
    if peer == "optimum":
        make_optimum(checkpoint, fp32, int8)
    else:
        make_openvino(checkpoint, calibration, fp32, int8)
    for folder in (fp32, int8):
        for name in TOKENIZER_FILES:
            if not (folder / name).exists():
                shutil.copy(Path(checkpoint) / name, folder / name)


if __name__ == "__main__":
    main()
