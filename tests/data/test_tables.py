"""From tokenized tables to batches."""

import numpy as np
import pytest
from conftest import make_tokenizer, write_texts

from utils.data.preprocessing import tokenize_data
from utils.data.tables import batches_by_length, collate, lengths, load_data, shuffled_batches
from utils.system.errors import UserError


def tokenize(folder, n_ctx: int = 16):
    tokenizer = make_tokenizer()
    tokenize_data(folder, tokenizer, n_ctx, lambda rows, total, split: iter(rows))
    return load_data(folder, tokenizer, n_ctx)


def test_collate_pads_to_the_longest_row_or_to_a_length(tmp_path):
    split = tokenize(write_texts(tmp_path)).splits["train"]
    rows = np.array([3, 1, 7])
    batch = collate(split, rows, pad_token_id=0)
    assert batch["input_ids"].shape == (3, lengths(split)[rows].max())
    assert (batch["attention_mask"].sum(1) == lengths(split)[rows]).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert collate(split, rows, 0, length=16)["input_ids"].shape == (3, 16)


def test_shuffled_batches_hold_every_row_once_and_similar_lengths():
    row_lengths = np.random.default_rng(0).integers(3, 100, 1003)
    batches = shuffled_batches(row_lengths, 8, seed=1)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert np.mean([np.ptp(row_lengths[batch]) for batch in batches]) < 5
    assert [b.tolist() for b in batches] == [b.tolist() for b in shuffled_batches(row_lengths, 8, seed=1)]
    assert [b.tolist() for b in batches] != [b.tolist() for b in shuffled_batches(row_lengths, 8, seed=2)]


def test_batches_by_length_are_longest_first():
    batches = batches_by_length(np.array([3, 9, 5, 7]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0]]


def test_changed_text_is_noticed(tmp_path):
    tokenize(write_texts(tmp_path))
    with open(tmp_path / "valid.txt", "a") as file:
        file.write("good\tpositive\n")
    with pytest.raises(UserError, match="has changed"):
        load_data(tmp_path, make_tokenizer(), 16)
