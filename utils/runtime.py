"""Run a written ONNX graph on a CPU. Needs onnxruntime and numpy; torch and transformers are never imported here."""

from pathlib import Path

import numpy as np
import onnxruntime

from utils.cli import UserError, first_line


def load_session(path: str | Path, num_threads: int) -> onnxruntime.InferenceSession:
    """Open a graph for CPU inference with `num_threads` threads.

    Raises:
        UserError: the file is missing or damaged, or is not a graph that onnxruntime can run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: write the graph with quantize.py, or check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises whatever the bytes provoke
        raise UserError(
            f"{path} is not a usable ONNX graph ({first_line(error)}): write it again with quantize.py"
        ) from error


def run_session(session: onnxruntime.InferenceSession, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of a batch, float32 [rows, labels].

    Args:
        batch: int64 arrays [rows, tokens]: input_ids, attention_mask, token_type_ids. What the graph does not take is
            not passed, so any further keys do no harm.
    """
    return session.run(["logits"], {node.name: batch[node.name] for node in session.get_inputs()})[0]
