"""A folder that labels texts by itself: graphs, tokenizer, labels, how it was made, and the program that runs it."""

import hashlib
import json
from pathlib import Path

import onnx
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from utils.export.plain import Graphs, save_graphs
from utils.export.runtime import copy_runtime
from utils.models.checkpoint import labels_of
from utils.predictor.folder import GRAPH, TOKENIZER, WEIGHTS
from utils.system.files import atomic_folder, write_json

CARD = """---
library_name: onnx
pipeline_tag: text-classification
---

# {title}: {labels}

A {family} encoder, as ONNX graphs ({version}). Texts are read up to {n_ctx} tokens.

    pip install -r requirements.txt
    python predictor < texts.txt

`model.onnx` takes input_ids, attention_mask and, where listed, token_type_ids (int64, [batch, sequence]) and gives
logits, float32 [batch, {num_labels}], in the order of config.json's id2label. {meaning}Any onnxruntime runs it.
`model.unpadded.onnx`, where it is there, is the same without attention_mask: faster, for a batch whose rows all have
the same number of tokens. Both take their weights from `model.weights`, where it is there.

## How it was made

By `quantize.py`, which measured these versions on valid.txt, one row at a time, and took "{version}". The machine:
{machine}.

```
{table}
```
{scaled}"""

SCALED = """
The graphs here multiply a text's logits by {:.4f} + {:.4f} x the distance of its two largest, so that probabilities fit
valid.txt. The table's ECE and Brier score are of before.
"""

# What a card calls a model and says of its logits, by transformers' problem_type.
TASK_WORDS = {
    "single_label_classification": ("Text classifier", ""),
    "multi_label_classification": (
        "Text classifier, any number of labels a text",
        "The sigmoid of each is its label's\nprobability; the label is given above config.json's thresholds, or 0.5. ",
    ),
    "regression": ("Model of scores", "They are the scores\nthemselves, in the data's units. "),
}


def write_model_dir(
    path: str | Path,
    graphs: Graphs,
    tokenizer: PreTrainedTokenizerFast,
    hub_config: PretrainedConfig,
    origin: dict,
    table: str,
    single_file: bool = False,
) -> None:
    """Write the folder whole, replacing an older one.

    Args:
        graphs: `GRAPH` and, where rows without padding have a graph of their own, `UNPADDED_GRAPH`.
        origin: how it was made: `n_ctx`, `version`, `machine`, and `logit_scale` if calibrated; goes into config.json.
        table: the versions that were measured; goes into README.md.
        single_file: write `GRAPH` alone, with its weights in it.
    """
    with atomic_folder(path) as folder:
        if single_file:
            onnx.save(graphs[GRAPH], folder / GRAPH)
        else:
            save_graphs(graphs, folder, WEIGHTS)
        files = [GRAPH] if single_file else [*graphs, WEIGHTS]
        tokenizer.save_pretrained(folder)
        hub_config.save_pretrained(folder)
        _adapt_tokenizer_config(folder / "tokenizer_config.json", origin["n_ctx"])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in [*files, TOKENIZER]}
        config.pop("auto_map", None)  # of a pruned checkpoint's PyTorch code, which is not needed here
        config["fastformers"] = origin | {"files": hashes}
        write_json(folder / "config.json", config)
        labels = labels_of(hub_config)
        title, meaning = TASK_WORDS.get(hub_config.problem_type, TASK_WORDS["single_label_classification"])
        card = CARD.format(
            title=title,
            meaning=meaning,
            labels=", ".join(labels),
            num_labels=len(labels),
            family=hub_config.model_type,
            n_ctx=origin["n_ctx"],
            version=origin["version"],
            table=table,
            scaled=SCALED.format(*origin["logit_scale"]) if "logit_scale" in origin else "",
            machine=", ".join(f"{key} {value}" for key, value in origin["machine"].items()),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        copy_runtime(folder)


def _adapt_tokenizer_config(path: Path, n_ctx: int) -> None:
    """Have other libraries read texts as this project does: truncated at n_ctx, and not at the encoder's own length."""
    settings = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": n_ctx}
    if settings.get("tokenizer_class") == "TokenizersBackend":  # which transformers 4, as Optimum needs it, calls so:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, settings)
