"""The engines' models, made once, and their worker processes."""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.backends import BACKENDS
from utils.data.texts import read_rows
from utils.models.config import load_config
from utils.system.errors import UserError
from utils.system.files import write_json

ROOT = Path(__file__).resolve().parent.parent
# The engines whose models `benchmarks.peers` makes, by the virtual environment that runs them.
VENVS = {
    "optimum": ("optimum_fp32", "optimum_int8"),
    "openvino": ("openvino_fp32", "nncf_int8"),
    "ctranslate2": ("ctranslate2_int8",),
    "inductor": ("inductor_int8",),
    "model2vec": ("model2vec",),
}
# Engines that run another one's model: theirs.
SAME_MODEL = {"nncf_int8_throughput": "nncf_int8"}
CALIBRATION_ROWS = 300
NUM_PREDICTIONS = 1_000_000
# What changes a measurement when it changes.
SOURCES = ("utils/predictor/*.py", "benchmarks/worker.py", "benchmarks/backends.py")


@dataclass(frozen=True)
class Model:
    """An engine's model folder, and the Python that runs it."""

    path: Path
    python: str
    num_bytes: int


@dataclass
class Setup:
    """What the measurements share; `versions` is filled in by the workers."""

    work_dir: Path
    partial: Path
    rows: Path  # those that are timed
    all_rows: Path
    lengths: list[int]
    all_lengths: list[int]
    num_labels: int
    text: str
    n_ctx: int
    num_threads: int
    cpus: list[int]
    seed: int
    num_predictions: int
    models: dict[str, Model] = field(default_factory=dict)
    versions: dict[str, dict] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)


class Worker:
    """A process of one engine, on all of the CPUs or on one. Blocked on its input, it takes no CPU time."""

    def __init__(self, setup: Setup, engine: str, cpu: int | None = None, mode: str = "serve"):
        model = setup.models.get(engine, Model(Path(), sys.executable, 0))
        settings = {
            "mode": mode,
            "engine": engine,
            "path": str(model.path),
            "n_ctx": setup.n_ctx,
            "rows": str(setup.rows),
            "all_rows": str(setup.all_rows),
            "num_threads": setup.num_threads if cpu is None else 1,
            "cpus": setup.cpus if cpu is None else [cpu],
            "text": setup.text,
            "num_predictions": setup.num_predictions,
        }
        # The libraries' defaults, whatever this process was started with; and compiled modules may be kept.
        left_out = ("PYTHONDONTWRITEBYTECODE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        self.log_path = setup.work_dir / f"{engine}.log"
        self.log = open(self.log_path, "w", encoding="utf-8")
        self.engine = engine
        self.process = subprocess.Popen(
            [model.python, "-m", "benchmarks.worker", json.dumps(settings)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment | {"HF_HUB_OFFLINE": "1"},
        )
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        if mode == "serve":
            setup.versions[engine] = self.receive()["versions"]

    def send(self, command: str, **options) -> None:
        """Give the process something to measure."""
        try:
            self.input.write(json.dumps({"command": command} | options) + "\n")
            self.input.flush()
        except BrokenPipeError:
            self.fail()

    def receive(self) -> dict:
        """The process's next answer.

        Raises:
            UserError: it ended without one.
        """
        line = self.output.readline()
        if not line:
            self.fail()
        return json.loads(line)

    def ask(self, command: str, **options) -> dict:
        """Send, and wait for the answer."""
        self.send(command, **options)
        return self.receive()

    def fail(self) -> None:
        """Say where the process's last words are."""
        raise UserError(f"the process of {self.engine} ended without an answer: see {self.log_path}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind:
            self.process.kill()
        self.input.close()
        self.output.close()
        self.process.wait()
        self.log.close()


def answer_of(setup: Setup, engine: str, mode: str) -> tuple[dict, float]:
    """The one answer of a fresh process, and the seconds from its start to that answer."""
    start = time.perf_counter()
    with Worker(setup, engine, mode=mode) as worker:
        return worker.receive(), time.perf_counter() - start


def prepare(args: argparse.Namespace) -> Setup:
    """Write the test, train and calibration rows, tokenized once for all engines, into the work folder.

    Raises:
        UserError: the checkpoint has no tokenizer or labels, or the data set holds pairs or other labels.
    """
    n_ctx = load_config(args.config).n_ctx
    checkpoint = Path(args.bert_output_dir)
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        label_ids, padding = config["label2id"], config["pad_token_id"]
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    except Exception as error:  # tokenizers raises a plain Exception
        raise UserError(f"--bert_output_dir {checkpoint} is not a classifier's checkpoint: name one") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(n_ctx)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    kind = "quick" if args.quick else "full"
    every = tokenized_rows(Path(args.data_dir) / "test.txt", tokenizer, padding, label_ids)
    test = every[: args.num_rows]
    train = tokenized_rows(Path(args.data_dir) / "train.txt", tokenizer, padding, label_ids)
    calibration = random.Random(args.seed).sample(train, min(CALIBRATION_ROWS, len(train)))
    for name, rows in ((f"test-{kind}", test), ("test", every), ("calibration", calibration), ("train", train)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.work_dir / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return Setup(
        work_dir=args.work_dir.resolve(),
        partial=(args.work_dir / f"partial-{kind}").resolve(),
        rows=(args.work_dir / f"test-{kind}.jsonl").resolve(),
        all_rows=(args.work_dir / "test.jsonl").resolve(),
        lengths=[len(row["input_ids"]) for row in test],
        all_lengths=[len(row["input_ids"]) for row in every],
        num_labels=len(label_ids),
        text=test[0]["text"],
        n_ctx=n_ctx,
        num_threads=args.num_threads,
        cpus=sorted(os.sched_getaffinity(0))[: args.num_threads],
        seed=args.seed,
        num_predictions=20_000 if args.quick else NUM_PREDICTIONS,
    )


def tokenized_rows(path: Path, tokenizer: Tokenizer, pad_token_id: int, label_ids: dict[str, int]) -> list[dict]:
    """Rows of one of the data set's text files, as `benchmarks.backends.read_rows` reads them.

    Raises:
        UserError: as `read_rows`, or the rows are pairs, or a label is not the checkpoint's.
    """
    rows: list[dict] = []
    for texts, label in read_rows(path):
        if len(texts) != 1 or label not in label_ids:
            raise UserError(f"{path}: row {len(rows) + 1} is a pair, or {label!r} is not a label of the checkpoint")
        encoded = tokenizer.encode(texts[0])
        rows.append(
            {
                "text": texts[0],
                "label": label,
                "label_id": label_ids[label],
                "pad_token_id": pad_token_id,
                "input_ids": encoded.ids,
                "token_type_ids": encoded.type_ids,
            }
        )
    return rows


def make_models(
    args: argparse.Namespace, setup: Setup, engines: Iterable[str] = tuple(BACKENDS), quantize_options: Iterable = ()
) -> Setup:
    """Make the models of `engines` that are missing, and put all of them into the setup.

    Args:
        quantize_options: more options of quantize.py, for ours.
    """
    checkpoint = Path(args.bert_output_dir).resolve()
    folders = {engine: (checkpoint, sys.executable) for engine in engines if engine.startswith("pytorch")}
    for peer, of_peer in VENVS.items():
        missing = [engine for engine in engines if SAME_MODEL.get(engine, engine) in of_peer]
        if not missing:
            continue
        if peer == "inductor" and not shutil.which("g++"):
            print(f"{', '.join(missing)} left out: it compiles with g++, and there is none")
            continue
        # Not resolved: a virtual environment's Python is a link.
        python = os.path.abspath(getattr(args, f"{peer}_python"))
        if not os.path.exists(python):
            print(f"{', '.join(missing)} left out: there is no {python} (--{peer}_python)")
            continue
        folder = setup.work_dir / peer
        start = [python, "-m", "benchmarks.peers", peer, checkpoint, setup.work_dir / "calibration.jsonl"]
        make_once(folder, partial(peer_command, start, of_peer))
        folders |= {engine: (folder / SAME_MODEL.get(engine, engine), python) for engine in missing}
    for engine in ("ours_fp32", "ours_int8"):
        folder = Path(getattr(args, engine, None) or setup.work_dir / engine).resolve()
        options = [*quantize_options, *(["--fp32"] if engine == "ours_fp32" else [])]
        make_once(folder, partial(our_command, args, options))
        folders[engine] = folder, sys.executable
    for engine, (folder, python) in folders.items():
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        setup.models[engine] = Model(folder, python, num_bytes)
    keep_partials(setup, args.fresh)
    return setup


def peer_command(start: list, engines: Iterable[str], folder: Path) -> list:
    """The command that makes the models of `engines` in `folder`."""
    return [*start, *(folder / engine for engine in engines)]


def our_command(args: argparse.Namespace, options: list, folder: Path) -> list:
    """The call of quantize.py that writes our model folder."""
    return [
        sys.executable,
        "quantize.py",
        f"--config={os.path.abspath(args.config)}",
        f"--data_dir={os.path.abspath(args.data_dir)}",
        f"--bert_output_dir={os.path.abspath(args.bert_output_dir)}",
        f"--output_dir={folder}",
        *options,
    ]


def make_once(folder: Path, command: Callable[[Path], list]) -> None:
    """Make a folder by the command line that `command` gives for a new folder, unless it is there already.

    Raises:
        UserError: the command failed.
    """
    if folder.exists():
        return
    print(f"making {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    log = folder.with_name(f"{folder.name}-make.log")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.run(
            [str(part) for part in command(new)], cwd=ROOT, stdout=file, stderr=file, env=environment
        )
    if process.returncode or not new.exists():
        raise UserError(f"{folder} could not be made: see {log}")
    os.replace(new, folder)


def keep_partials(setup: Setup, fresh: bool) -> None:
    """Drop what an earlier run measured unless it measured the same models and rows, with the same code."""
    sources = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, setup.rows])).hexdigest()
    settings = {
        "sources_and_rows": digest,
        "num_threads": setup.num_threads,
        "cpus": setup.cpus,
        "seed": setup.seed,
        "models": {
            engine: [str(model.path), model.python, model.num_bytes, model.path.stat().st_mtime]
            for engine, model in setup.models.items()
        },
    }
    folder = setup.partial
    path = folder / "settings.json"
    if folder.exists() and (fresh or json.loads(path.read_text(encoding="utf-8")) != settings):
        print(f"measuring anew: {folder} was measured with other models, rows or code", file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_json(path, settings)


def read_partial(setup: Setup, name: str, number: int) -> dict | None:
    """One kept measurement, or None."""
    path = setup.partial / f"{name}-{number}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_partial(setup: Setup, name: str, number: int, value: dict) -> None:
    """Keep one measurement."""
    write_json(setup.partial / f"{name}-{number}.json", value)
