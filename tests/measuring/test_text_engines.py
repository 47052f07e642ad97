"""Engines that read texts: the logits of plain PyTorch, whatever the length."""

import numpy as np
import pytest
from conftest import WORDS
from reference_model import LABELS, N_CTX, Reference, random_texts

from utils.measuring.engines import pytorch_engine
from utils.measuring.text_engines import onnx_text_engine, open_text_engine, text_engine, timed_logits

TEXTS = [*random_texts(20), " ".join(WORDS * 3)]


@pytest.mark.parametrize("is_padded", [False, True])
def test_checkpoint(tmp_path, is_padded):
    reference = Reference(tmp_path, "bert")
    widths = []

    def run(batch: dict) -> np.ndarray:
        widths.append(batch["input_ids"].shape[1])
        return pytorch_engine(reference.model)(batch)

    tokenizer = reference.tokenizer.backend_tokenizer
    engine = text_engine(run, tokenizer, N_CTX, reference.tokenizer.pad_token_id, is_padded)
    for text in TEXTS:
        logits = timed_logits(engine, text).logits
        assert softmax(logits) == pytest.approx(reference.probabilities(text), abs=1e-5)
    assert max(widths) == N_CTX and (set(widths) == {N_CTX}) == is_padded


@pytest.mark.parametrize("name", ["model", "model/model.onnx"])
def test_folder_and_file(tmp_path, name):
    """A folder has a tokenizer and n_ctx of its own, a file those that are given."""
    reference = Reference(tmp_path, "bert")
    given = ("not JSON", 3) if name == "model" else (reference.tokenizer.backend_tokenizer.to_str(), N_CTX)
    engine = onnx_text_engine(tmp_path / name, 1, LABELS, *given)
    label = open_text_engine(tmp_path / name, 1, LABELS, *given)
    for text in TEXTS:
        timed = label(text)
        assert softmax(timed.logits) == pytest.approx(reference.probabilities(text), abs=1e-5)
        assert np.array_equal(timed.logits, timed_logits(engine, text).logits) and timed.ids_ms > 0


def softmax(logits: np.ndarray) -> list[float]:
    powers = np.exp(logits[0] - logits[0].max())
    return list(powers / powers.sum())
