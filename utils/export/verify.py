"""The comparison of a graph's logits with PyTorch's, on rows of all lengths, alone and in padded batches."""

import logging

import numpy as np
from transformers import PreTrainedModel

from utils.data.tables import Data, collate, lengths
from utils.export.plain import Graphs, open_graph
from utils.measuring.engines import Engine, pytorch_engine
from utils.measuring.timing import evenly_spaced
from utils.predictor.folder import UNPADDED_GRAPH
from utils.system.bars import progress_bar
from utils.system.errors import UserError, first_line

logger = logging.getLogger(__name__)

COMPARED_ROWS = 128
PADDED_BATCH = 8  # rows
MAX_FP32_DIFFERENCE = 1e-4


def comparison_batches(data: Data, pad_token_id: int) -> list[dict[str, np.ndarray]]:
    """Rows of evenly spread lengths from valid, topped up from train: each alone, then all in padded batches."""
    singles, padded = [], []
    missing = COMPARED_ROWS
    for split in (data.splits["valid"], data.splits["train"]):
        by_length = np.argsort(lengths(split), kind="stable")
        rows = by_length[evenly_spaced(missing, len(by_length))]
        missing -= len(rows)
        singles += [collate(split, rows[i : i + 1], pad_token_id) for i in range(len(rows))]
        # Strided, so that short and long rows share a batch.
        step = -(-len(rows) // PADDED_BATCH)
        padded += [collate(split, rows[i::step], pad_token_id) for i in range(step)]
    return singles + padded


def pytorch_logits(
    model: PreTrainedModel, fp32: Graphs, batches: list[dict], num_labels: int, unit: float | np.ndarray = 1.0
) -> list[np.ndarray]:
    """PyTorch's logits [rows, labels] of each batch, once the fp32 graphs' are found to be the same.

    Args:
        unit: what a difference is measured in, of scores the standard deviation of each, [scores].

    Raises:
        UserError: they differ by more than `MAX_FP32_DIFFERENCE`, or a graph that torch.onnx exported cannot run all of
            them.
    """
    run_model = pytorch_engine(model)
    expected = [run_model(batch) for batch in progress_bar(batches, desc="PyTorch", unit="batch")]
    mend = "check that the folder of --bert_output_dir holds finite weights"
    if UNPADDED_GRAPH not in fp32:  # torch.onnx follows one batch through the model, and may take its length for all's
        mend += (
            f", and if so use one of the families in configs/: torch.onnx exports {model.config.model_type!r} for rows "
            "of one length only"
        )
    try:
        difference = largest_difference(fp32, batches, expected, num_labels, unit)
    except Exception as error:  # onnxruntime raises whatever such a graph provokes
        if UNPADDED_GRAPH in fp32:
            raise
        raise UserError(
            f"the fp32 graph cannot run some rows ({first_line(error)}), so nothing was written: {mend}"
        ) from error
    # Not `>`: a NaN must fail too.
    if not difference <= MAX_FP32_DIFFERENCE:
        raise UserError(
            f"the fp32 graph's logits differ from PyTorch's by {difference:.2g}, more than {MAX_FP32_DIFFERENCE}, so "
            f"nothing was written: {mend}"
        )
    logger.info("[fp32] : largest logit difference from PyTorch %.2g", difference)
    return expected


def largest_difference(
    graphs: Graphs,
    batches: list[dict],
    expected: list[np.ndarray],
    num_labels: int,
    unit: float | np.ndarray = 1.0,
) -> float:
    """The largest difference of any logit of any graph from PyTorch's; NaN where either has one.

    Args:
        graphs: the one of rows without padding is compared on single rows only.
        batches: of `comparison_batches`.
        expected: PyTorch's logits [rows, labels] of each batch.
        unit: as of `pytorch_logits`.
    """
    single = [i for i, batch in enumerate(batches) if len(batch["input_ids"]) == 1]
    differences = []
    for file, graph in graphs.items():
        rows = single if file == UNPADDED_GRAPH else range(len(batches))
        engine = open_graph(graph, num_labels)
        differences.append(compare_logits(engine, [expected[i] for i in rows], [batches[i] for i in rows], unit))
    return float(np.max(differences))


def compare_logits(
    run: Engine, expected: list[np.ndarray], batches: list[dict[str, np.ndarray]], unit: float | np.ndarray = 1.0
) -> float:
    """The largest absolute difference between an engine's logits and PyTorch's; NaN where either has one.

    Args:
        run: the graph.
        expected: PyTorch's logits [rows, labels] of each batch.
        batches: of `utils.data.tables.collate`; single rows or padded.
        unit: as of `pytorch_logits`.
    """
    differences = [np.abs(run(batch) - logits) / unit for batch, logits in zip(batches, expected, strict=True)]
    return float(np.max([each.max() for each in differences]))
