"""Which terms the linear rung counts; static embeddings as a rung."""

import sys

import numpy as np
import pytest
from model2vec import StaticModel
from model2vec.inference import StaticModelPipeline
from model2vec.inference.mlp import Activation, Layer, MLPHead
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from utils.measuring.rungs import Rung, Setting, open_rung, words_repeat
from utils.models.config import MULTI_LABEL, SINGLE_LABEL
from utils.system.errors import UserError


def test_words_repeat():
    assert words_repeat(["the film is good", "the film is bad", "a good plot"])
    assert not words_repeat(["這部電影很好，我喜歡", "故事很差，演員也不好", "音樂好聽"])
    assert not words_repeat(["", "a"])


@pytest.fixture
def static(tmp_path):
    """A static model that answers "good" where the text has that word, and "bad" for this one."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    model = StaticModel(np.array([[0, 0], [1, 0], [0, 1]], np.float32), tokenizer)
    layer = Layer(np.array([[0, 3], [3, 0]], np.float32), np.zeros(2, np.float32))
    head = MLPHead([layer], Activation.SOFTMAX, np.array(["bad", "good"]))
    StaticModelPipeline(model, head).save_pretrained(str(tmp_path / "static"))
    return str(tmp_path / "static")


def setting(labels: list[str], task: str = SINGLE_LABEL) -> Setting:
    return Setting([], [], np.zeros(0), labels, 16, None, 1, task)


def test_static_embeddings(static):
    """Its columns are those of the data set's labels, in whatever order it has them; pairs are joined."""
    rung = open_rung("model2vec", static, setting(["good", "bad"]))
    assert isinstance(rung, Rung) and not rung.is_step and not rung.reads_tokens
    assert (rung.parameters, rung.model_bytes) == (12, 48)
    for text, column in (("a good film", 0), ("a bad film", 1), (("a film", "good"), 0)):
        logits = rung.engine.run(rung.engine.encode(text))
        assert logits.shape == (1, 2) and logits.argmax() == column and logits.max() > 0.9


def test_static_embeddings_that_do_not_fit(static, tmp_path):
    with pytest.raises(UserError, match="gives the labels bad, good: give a model with the data set's"):
        open_rung("model2vec", static, setting(["0", "1"]))
    with pytest.raises(UserError, match="for one label a text"):
        open_rung("model2vec", static, setting(["good", "bad"], MULTI_LABEL))
    with pytest.raises(UserError, match="holds no model.safetensors"):
        open_rung("model2vec", str(tmp_path), setting(["good", "bad"]))


def test_static_embeddings_without_the_library(static, monkeypatch):
    monkeypatch.setitem(sys.modules, "model2vec.inference", None)
    with pytest.raises(UserError, match="pip install model2vec"):
        open_rung("model2vec", static, setting(["good", "bad"]))
