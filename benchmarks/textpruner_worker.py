"""Which heads and neurons TextPruner keeps: run by the Python of its own virtual environment, see pruning.py.

    python benchmarks/textpruner_worker.py CHECKPOINT BATCHES.jsonl 0.9 0.8 ... > kept.jsonl

BATCHES holds a batch of token ids, masks and labels a line. Fractions descend: TextPruner's iterative method goes on
from one to the next, with importance measured anew on the pruned model each time, and heads and neurons uneven over
layers, as its documentation advises.
"""

import contextlib
import json
import sys
import tempfile
import time

import torch
from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig
from textpruner.pruners import transformer_pruner
from transformers import AutoModelForSequenceClassification

NEURON_STEP = 32

generate_mask = transformer_pruner.generate_mask


def generate_mask_of_whole_size(importance: torch.Tensor, size: float, *more, **options) -> torch.Tensor:
    """TextPruner's own, for a total that it computed from a mean over layers, a float."""
    return generate_mask(importance, round(size), *more, **options)


transformer_pruner.generate_mask = generate_mask_of_whole_size


def main() -> None:
    checkpoint, batches_path, *fractions = sys.argv[1:]
    with open(batches_path, encoding="utf-8") as file:
        batches = [{name: torch.tensor(value) for name, value in json.loads(line).items()} for line in file]
    # Eager attention: the one that its own releases were written against.
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    hub_config = model.config
    start = time.perf_counter()
    for fraction in map(float, fractions):
        layers = hub_config.num_hidden_layers
        # Targets are means over layers, and their products with the number of layers must be whole.
        heads = round(fraction * hub_config.num_attention_heads * layers) / layers
        steps = round(fraction * hub_config.intermediate_size * layers / NEURON_STEP)
        pruning = TransformerPruningConfig(
            target_num_of_heads=heads, target_ffn_size=steps * NEURON_STEP / layers, pruning_method="iterative",
            head_even_masking=False, ffn_even_masking=False, multiple_of=NEURON_STEP, n_iters=1,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            general = GeneralConfig(use_device="cpu", output_dir=folder)
            pruner = TransformerPruner(model, pruning, general)
            # The shape stays and what is pruned is zeroed: what is zero stays unimportant to the next fraction.
            pruner.prune(batches, keep_shape=True, save_model=False)
        kept = {
            "heads": [layer.nonzero().flatten().tolist() for layer in pruner.head_mask],
            "neurons": [layer.nonzero().flatten().tolist() for layer in pruner.ffn_mask],
        }
        print(json.dumps({"fraction": fraction, "seconds": time.perf_counter() - start, **kept}), flush=True)


if __name__ == "__main__":
    main()
