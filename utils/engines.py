"""A trained model as a function from a batch of `utils.data.collate` to its logits, whatever runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from utils.cli import UserError
from utils.model import model_inputs
from utils.runtime import load_session, run_session

Engine = Callable[[dict], np.ndarray]


def pytorch_engine(model: PreTrainedModel) -> Engine:
    """Logits [rows, labels] of a PyTorch model, fp32, on its own device."""

    def run(batch: dict) -> np.ndarray:
        with torch.inference_mode():
            return model(**model_inputs(model, batch)).logits.float().cpu().numpy()

    return run


def onnx_engine(path: str | Path, num_threads: int, num_labels: int) -> Engine:
    """Logits [rows, labels] of an ONNX file, by ONNX Runtime on the CPU.

    Raises:
        UserError: the file is missing or damaged, or gives another number of logits than `num_labels`.
    """
    session = load_session(path, num_threads)
    found = session.get_outputs()[0].shape[-1]
    if found != num_labels:
        raise UserError(
            f"{path} gives {found} logits but the data set has {num_labels} labels: write it again with quantize.py"
        )
    return lambda batch: run_session(session, batch)
