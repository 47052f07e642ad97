"""The pruning targets that need training, timing or a file: each runs the project's own scripts, as a user does."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils.data.tables import load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import load_model
from utils.models.config import load_config
from utils.pruning.latency_budget import measure_latencies
from utils.system.files import atomic_folder

HALVED = ["--target_num_heads=6", "--target_ffn_dim=768"]
DISTILLATION = ["--kd_loss=mse", "--lr=2e-4", "--epoch=8", "--batch_size=64"]


def measure_steps(work_dir: Path, config_path: str, data_dir: str, teacher: str, student: str) -> dict[str, Any]:
    """Accuracy and latency of a halved student, latency under --target_latency, file size without unused vocabulary.

    Checkpoints and files that an earlier run finished in `work_dir` are used again.
    """
    common = [f"--config={config_path}", f"--data_dir={data_dir}"]
    valid = load_data(data_dir, load_tokenizer(student, "--student_dir"), load_config(config_path).n_ctx)

    def run_once(name: str, command: list[str], option: str) -> Path:
        if not (work_dir / name).exists():
            with atomic_folder(work_dir / name) as folder:
                run_script([*command, f"{option}={folder}"], work_dir / f"{name}.log")
        return work_dir / name

    def ratio(smaller: Path, whole: str) -> float:
        models = [
            load_model(str(folder), "--bert_output_dir", load_config(config_path), valid.labels)
            for folder in (whole, smaller)
        ]
        whole_ms, smaller_ms = measure_latencies(models, valid.splits["valid"])
        return smaller_ms / whole_ms

    def accuracy(checkpoint: str | Path) -> float:
        path = work_dir / f"{Path(checkpoint).name}.evaluation.json"
        if not path.exists():
            command = ["evaluate.py", *common, f"--bert_output_dir={checkpoint}", f"--output_json={path}"]
            run_script(command, path.with_suffix(".log"))
        return json.loads(path.read_text(encoding="utf-8"))["accuracy"]

    pruning = ["prune.py", *common]
    start = run_once("halved-start", [*pruning, f"--bert_output_dir={student}", *HALVED], "--bert_output_dir_pruned")
    distilling = [
        "fastformers.py", *common, f"--teacher_config={config_path}", f"--teacher_bert_model_name_or_path={teacher}",
        f"--teacher_model_path={Path(teacher)}.pt", f"--bert_model_name_or_path={start}",
        f"--save_path={work_dir}/halved.pt", *DISTILLATION,
    ]  # fmt: skip
    halved = run_once("halved", distilling, "--bert_output_dir")
    budget = [*pruning, f"--bert_output_dir={teacher}", "--target_latency=0.5"]
    faster = run_once("latency-0.5", budget, "--bert_output_dir_pruned")
    latencies = [ratio(faster, teacher) for _ in range(3)]
    return {
        "halved_accuracy": accuracy(halved) / accuracy(teacher),
        "halved_latency": ratio(halved, student),
        "latencies_at_target_0.5": latencies,
        "latency_missed": abs(sorted(latencies)[1] - 0.5),
        "vocabulary_saved": vocabulary_saved(work_dir, config_path, data_dir, student),
    }


def vocabulary_saved(work_dir: Path, config_path: str, data_dir: str, student: str) -> float:
    """The fraction of the int8 file's size that the tokens take which the data set does not use."""
    sizes = []
    source = Path(data_dir)
    for name, options in (("vocabulary-whole", ["--keep_layers=0,1,2"]), ("vocabulary-used", ["--prune_vocabulary"])):
        folder = work_dir / name
        if not (folder / "int8.onnx").exists():
            # A data folder of its own, as the pruned tokenizer gives other ids.
            data = folder / "data"
            data.mkdir(parents=True, exist_ok=True)
            for text in source.glob("*.txt"):
                (data / text.name).write_bytes(text.read_bytes())
            common = [f"--config={config_path}", f"--data_dir={data}"]
            log = work_dir / f"{name}.log"
            run_script(["preprocess.py", *common, f"--bert_model_name_or_path={student}"], log)
            checkpoint = f"{folder}/checkpoint"
            pruning = ["prune.py", *common, f"--bert_output_dir={student}", f"--bert_output_dir_pruned={checkpoint}"]
            run_script([*pruning, *options], log)
            run_script(["preprocess.py", *common, f"--bert_model_name_or_path={checkpoint}"], log)
            quantizing = ["quantize.py", *common, f"--bert_output_dir={checkpoint}"]
            run_script([*quantizing, f"--quantized_onnx_path={folder}/int8.onnx"], log)
        sizes.append((folder / "int8.onnx").stat().st_size)
    return 1 - sizes[1] / sizes[0]


def run_script(command: list[str], log: Path) -> None:
    """Run one of the project's scripts; what it says goes to the end of `log`.

    Raises:
        RuntimeError: it failed.
    """
    root = Path(__file__).resolve().parent.parent
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, str(root / command[0]), *command[1:]], stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: see {log}")
    print(re.sub(r"\s+", " ", log.read_text(encoding="utf-8").splitlines()[-1]), flush=True)
