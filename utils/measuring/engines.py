"""A trained model as a function from a batch of `utils.data.tables.collate` to its logits, whatever runs it.

A cascade takes the key `texts` of a batch, a list of texts or pairs.

PyTorch is imported only by those who ask for it: a process that runs an ONNX file starts in a tenth of the time and of
the memory without.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.predictor.folder import GRAPH, UNPADDED_GRAPH, is_cascade, read_stages
from utils.predictor.model import MULTI_LABEL, Predictor, load_session
from utils.predictor.tokens import Text, TokenRow
from utils.system.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import PreTrainedModel

    from utils.models.config import Config

Engine = Callable[[dict], np.ndarray]


def pytorch_engine(model: PreTrainedModel) -> Engine:
    """Logits [rows, labels] of a PyTorch model, fp32, on its own device."""
    import torch

    from utils.models.classifier import model_inputs

    def run(batch: dict) -> np.ndarray:
        with torch.inference_mode():
            return model(**model_inputs(model, batch)).logits.float().cpu().numpy()

    return run


def open_pytorch(
    folder: str, config: Config, labels: list[str], state_path: str | None, device: str, num_threads: int, int8: bool
) -> Engine:
    """Load a checkpoint folder as an engine on `device`; sets this process's number of PyTorch threads.

    Args:
        labels: the data set's label strings in the order of their ids; the checkpoint's must be the same.
        state_path: a state dict (.pt) to load over the folder's own weights.
        int8: quantize the Linear layers dynamically; `device` must be cpu.

    Raises:
        UserError: it cannot be loaded, or its labels are not `labels`.
    """
    import torch

    from utils.models.classifier import load_model

    torch.set_num_threads(num_threads)
    model = load_model(folder, "--bert_output_dir", config, labels, state_path).to(device)
    return pytorch_engine(quantize_linears(model) if int8 else model)


def quantize_linears(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every Linear layer of `model`, in place, by PyTorch's dynamic int8 one; returns `model`. CPU only."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        # Deprecated, but what replaces it is a package more to install.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_", UserWarning)
        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def onnx_engine(graph: str | Path | bytes, num_threads: int, num_labels: int) -> Engine:
    """Logits [rows, labels] of an ONNX file, or the bytes of one, by ONNX Runtime on the CPU.

    Raises:
        UserError: the file is missing or damaged, or gives another number of logits than `num_labels`; when run, the
            batch has padding that the graph cannot be told of.
    """
    session = load_session(graph, num_threads)
    name = "the graph" if isinstance(graph, bytes) else graph
    num_logits = session.get_outputs()[0].shape[-1]
    if num_logits != num_labels:
        raise UserError(
            f"{name} gives {num_logits} logits but the data set has {num_labels} labels: "
            "write it again with quantize.py"
        )
    if "attention_mask" in [node.name for node in session.get_inputs()]:
        return lambda batch: run_session(session, batch)

    def run(batch: dict) -> np.ndarray:
        if not batch["attention_mask"].all():
            raise UserError(
                f"{name} takes no attention_mask but a batch has padding: use --batch_size=1 without "
                "--use_fixed_seq_length, or the graph that takes attention_mask"
            )
        return run_session(session, batch)

    return run


def run_session(session: InferenceSession, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of a batch, float32 [rows, labels].

    Args:
        batch: int64 arrays [rows, tokens]: input_ids, attention_mask, token_type_ids. What the graph does not take is
            not passed, so any further keys do no harm.
    """
    return session.run(["logits"], {node.name: batch[node.name] for node in session.get_inputs()})[0]


def open_onnx(path: str | Path, num_threads: int, labels: list[str], has_padding: bool = False) -> Engine:
    """An ONNX file, or a folder that quantize.py or cascade.py wrote, as an engine on the CPU.

    Args:
        labels: the data set's in the order of their ids.
        has_padding: whether the batches have any; a folder's graph for rows without padding is then left alone.

    Raises:
        UserError: as `onnx_engine` and `cascade_engine`.
    """
    if is_cascade(path):
        return cascade_engine(path, num_threads, labels)
    return onnx_engine(single_graph(path, has_padding), num_threads, len(labels))


def single_graph(path: str | Path, has_padding: bool) -> Path:
    """The ONNX file that runs batches with or without padding: of a folder of quantize.py, or the file itself."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    return folder / (UNPADDED_GRAPH if (folder / UNPADDED_GRAPH).is_file() and not has_padding else GRAPH)


def cascade_engine(folder: str | Path, num_threads: int, labels: list[str]) -> Engine:
    """Logits [rows, labels] of a cascade: of each row those of the stage that answers it, divided by its temperature.

    From the `texts` of a batch, not its token ids, as stages may have tokenizers of their own.

    Raises:
        UserError: as `open_predictor`.
    """
    predictor = open_predictor(folder, num_threads, labels)

    def run(batch: dict) -> np.ndarray:
        texts = batch["texts"]
        return predictor_logits(predictor, predictor.encode(texts), texts, len(texts))

    return run


def open_predictor(folder: str | Path, num_threads: int, labels: list[str]) -> Predictor:
    """Open a folder that quantize.py or cascade.py wrote, for a data set with `labels`, in the order of their ids.

    Raises:
        UserError: the folder is damaged, or has other labels.
    """
    predictor = Predictor(folder, num_threads)
    if predictor.labels != labels:
        raise UserError(
            f"{folder} has the labels {', '.join(predictor.labels)} but the data set {', '.join(labels)}: "
            "use the data set that it was trained on"
        )
    return predictor


def predictor_logits(predictor: Predictor, rows: list[TokenRow], texts: list[Text], batch_size: int) -> np.ndarray:
    """The logits of `Predictor.run`, of a cascade of any number of labels so that a label is given above 0.

    There each stage has thresholds of its own, which are taken off its logits.
    """
    logits, stages = predictor.run(rows, texts, batch_size)
    if predictor.is_cascade and predictor.problem_type == MULTI_LABEL:
        thresholds = predictor.thresholds[stages]
        logits = logits - np.log(thresholds / (1 - thresholds)).astype(np.float32)
    return logits


def folder_thresholds(path: str | Path) -> np.ndarray | None:
    """The probability above which a folder of quantize.py gives each label, [labels]; None for a file or a cascade.

    Raises:
        UserError: the folder is damaged.
    """
    if not Path(path).is_dir() or is_cascade(path):
        return None
    return np.array(read_stages(path)[0][0].model.thresholds)


def onnx_size(path: str | Path) -> tuple[int, int]:
    """As `graph_size`, of an ONNX file or of a folder, of a cascade the sum of its stages."""
    if is_cascade(path):
        sizes = [graph_size(stage.model.graph) for stage in read_stages(path)[0]]
        return sum(count for count, _ in sizes), sum(size for _, size in sizes)
    return graph_size(single_graph(path, has_padding=False))


def graph_size(graph: str | Path) -> tuple[int, int]:
    """The number of weights of an ONNX file, and its bytes, with those of the files that it keeps weights in."""
    import onnx

    weights = onnx.load(graph, load_external_data=False).graph.initializer
    locations = {entry.value for weight in weights for entry in weight.external_data if entry.key == "location"}
    files = [Path(graph), *(Path(graph).parent / name for name in locations)]
    return sum(int(np.prod(weight.dims)) for weight in weights), sum(file.stat().st_size for file in files)


def checkpoint_bytes(folder: str | Path) -> int:
    """The bytes of a checkpoint folder's weights: of the file, or of all shards, that transformers loads."""
    folder = Path(folder)
    for weights in ("model.safetensors", "pytorch_model.bin"):
        if (folder / weights).is_file():
            return (folder / weights).stat().st_size
        if (folder / f"{weights}.index.json").is_file():
            shards = json.loads((folder / f"{weights}.index.json").read_text(encoding="utf-8"))["weight_map"].values()
            return sum((folder / shard).stat().st_size for shard in set(shards))
    return sum(path.stat().st_size for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}"))
