"""A cascade's folder: a model folder for each stage, and a config.json that says when each stage answers."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from utils.export.runtime import check_model_dir, copy_runtime
from utils.measuring.picture import save_figure
from utils.predictor.folder import StageFolder
from utils.system.errors import UserError
from utils.system.files import atomic_folder, write_json

CARD = """---
library_name: onnx
pipeline_tag: text-classification
---

# Text classifier, a cascade: {labels}

{names}: each model labels the texts that those before it are not sure of.
{rule}.

    pip install -r requirements.txt
    python predictor < texts.txt

Each stage's folder is a model of its own, which any onnxruntime runs. config.json has, for each, the temperature by
which its logits are divided, the weight with which the logits of the stages before it are added, and the threshold that
the probability of its answer must be above for it to count.

## How it was made

By `cascade.py`, on {rows} rows of valid, one row at a time. The machine: {machine}.

```
{table}
```

![accuracy against mean latency](frontier.svg)
"""


def check_cascade_dirs(paths: Sequence[str | Path], stages: list[str], flag: str) -> None:
    """Check that each path can become a cascade's folder: as `check_model_dir`, and none is, holds or is in another.

    Raises:
        UserError: naming `flag`.
    """
    for number, path in enumerate(paths):
        target = Path(path).resolve()
        others = [("stage", stage) for stage in stages] + [("cascade", other) for other in paths[:number]]
        for kind, other in others:
            source = Path(other).resolve()
            if target == source or target in source.parents or source in target.parents:
                raise UserError(f"{flag}={path} is, holds or is in the {kind} {other}: name another folder")
        check_model_dir(path, flag)


def write_cascade_dir(
    path: str | Path, stages: list[StageFolder], origin: dict, rule: str, table: str, frontier: dict, figure: Figure
) -> None:
    """Write the folder whole, replacing an older one.

    Args:
        stages: their folders are copied.
        origin: `machine`, and `rows`, the number of rows of valid; goes into config.json.
        rule: a sentence on what was chosen, for README.md.
        table: the frontier as text, for README.md.
        frontier: the same, for frontier.json.
    """
    labels, names = stages[0].model.labels, [stage.model.path.name for stage in stages]
    with atomic_folder(path) as folder:
        entries, hashes = [], {}
        for number, stage in enumerate(stages):
            name = f"stage-{number}"
            shutil.copytree(stage.model.path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            hashes[f"{name}/config.json"] = hashlib.sha256((folder / name / "config.json").read_bytes()).hexdigest()
            own = stage._asdict()
            del own["model"]
            entries.append({"folder": name} | own)
        texts = {"texts": stages[0].model.texts_a_row} if stages[0].model.texts_a_row else {}
        config = {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "fastformers": {"n_ctx": stages[0].model.n_ctx, **texts, **origin, "cascade": entries, "files": hashes},
        }
        write_json(folder / "config.json", config)
        write_json(folder / "frontier.json", frontier)
        save_figure(figure, folder, "frontier")
        card = CARD.format(
            labels=", ".join(labels),
            names=", ".join(names),
            rule=rule,
            rows=origin["rows"],
            table=table,
            machine=", ".join(f"{key} {value}" for key, value in origin["machine"].items()),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        copy_runtime(folder)
