"""Tiny random encoders of every family, tiny data sets, and a way to run the real scripts in this process."""

import importlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import utils.predictor.cpus

# Tiny models gain nothing from a second thread, and make test runs two processes, whose threads would wait for another.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start
disable_progress_bar()
utils.predictor.cpus.usable_cpus = lambda: 1

# A background job of a shell script, and all that it starts, ignores Ctrl-C: tests of it would wait for nothing. Once
# it has a handler, so have the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
LABELS = ["negative", "positive"]
FAMILY_NAMES = ["bert", "roberta", "distilbert", "electra", "xlm-roberta", "camembert", "mpnet", "albert"]
FAMILY_NAMES += ["deberta-v2", "modernbert"]
WORDS = "a the film movie plot it is was very not good great fine bad awful dull and but with cast ending".split()
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}


# Files whose tests take longest: they come first, so that no process of `make test` waits for another in the end.
LONGEST = {"test_readme.py", "test_faults.py", "test_launcher.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Ctrl-C stops the tests as ever: the scripts that they import have it end the process until their work begins."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_tokenizer(cls: str = "[CLS]", sep: str = "[SEP]", pad: str = "[PAD]") -> PreTrainedTokenizerFast:
    """Whole lower-cased words, an id each, in BERT's template."""
    vocabulary = {word: i for i, word in enumerate([pad, cls, "[UNK]", sep, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    backend.post_processor = processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token=cls, sep_token=sep, pad_token=pad, unk_token="[UNK]"
    )


# What trains the same on every machine: without these, a GPU or bf16 is taken where there is one.
ALIKE = ("--device=cpu", "--precision=fp32")


def make_model(family: str, kind=AutoModel, noise: float = 0.05, **sizes):
    """A random model of a family, of 2 layers where `sizes` do not say otherwise, by BERT's names of the keys."""
    keys = {"max_position_embeddings": 64} | SIZES | sizes
    if family == "distilbert":
        names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
        names |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
        keys = {names.get(key, key): value for key, value in keys.items()}
    if family in ("electra", "albert"):
        keys = {"embedding_size": 16} | keys
    if family in ("roberta", "xlm-roberta", "camembert"):
        keys["type_vocab_size"] = 1
    if family == "deberta-v2":  # as v3, with few buckets, so that the farther ones have several distances
        keys = {"relative_attention": True, "share_att_key": True, "pos_att_type": "p2c|c2p", "position_buckets": 8,
                "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0} | keys  # fmt: skip
    if family == "modernbert":  # a window that tiny rows exceed, and special tokens that a tiny vocabulary has
        ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "cls", "bos", "sep", "eos"))}
        keys = {"local_attention": 6} | ids | keys
        keys = {"hidden_activation" if key == "hidden_act" else key: value for key, value in keys.items()}
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(family, **keys))
    # The initializer leaves biases 0 and layer norms 1: wrong wiring could go unseen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model.eval()


def make_encoder(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int) -> str:
    """A random pretrained-like encoder without a classifier, in `folder`; returns the folder as a string."""
    tokenizer = tokenizer or make_tokenizer()
    model = make_model(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_texts(folder: Path, counts: dict[str, int] | None = None, pairs: bool = False) -> Path:
    """A data set whose label depends on its words; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for split, count in (counts or {"train": 96, "valid": 32, "test": 24}).items():
        lines = []
        for i in range(count):
            label = ("negative", "positive")[i % 2]
            words = generator.choices(WORDS[:9], k=generator.randint(1, 9))
            words += generator.choices(["good", "great", "fine"] if i % 2 else ["bad", "awful", "dull"], k=2)
            generator.shuffle(words)
            cut = len(words) // 2
            texts = [" ".join(words[:cut]), " ".join(words[cut:])] if pairs else [" ".join(words)]
            lines.append("\t".join([*texts, label]) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes, to show that nothing was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """For every family a folder with an encoder and a configuration; made once, never written to."""
    folders = {}
    for family in FAMILY_NAMES:
        folders[family] = tmp_path_factory.mktemp(family)
        make_encoder(folders[family] / "encoder", family)
        (folders[family] / "config.json").write_text(f'{{"encoder_class": "{family}", "n_ctx": 16}}')
    return folders


@pytest.fixture
def model(made, request):
    """A random classifier with 2 layers of 4 heads and 64 neurons; of another family by indirect parametrization."""
    # Imported here, so that the tests of what needs no PyTorch models do not wait for them.
    from utils.models.classifier import load_model
    from utils.models.config import Config

    family = getattr(request, "param", "bert")
    torch.manual_seed(0)  # the classifier's weights are drawn
    return load_model(str(made[family] / "encoder"), "--flag", Config(family, 16), LABELS, new_head=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT's model folder, and PyTorch's probabilities: a `Reference`."""
    from reference_model import Reference  # which imports this file

    return Reference(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def copy(bert, tmp_path) -> Path:
    """That folder again, to change or spoil."""
    return shutil.copytree(bert.folder, tmp_path / "copy")


@pytest.fixture
def milliseconds(monkeypatch) -> list[float]:
    """What a cascade's stages take, instead of what is measured: of tiny models, the slower is a matter of chance."""
    import cascade

    given, measure_stages = [1.0, 4.0], cascade.measure_stages

    def measured(models, texts):
        return measure_stages(models, texts)[0], np.array([np.full(len(texts), each) for each in given])

    monkeypatch.setattr(cascade, "measure_stages", measured)
    return given


def make_batch(rows: int = 6, lengths: list[int] | None = None, seed: int = 1, pad_token_id: int = 0) -> dict:
    """Random rows of 3 to 11 tokens, padded to 12; or of these lengths, padded to the longest."""
    torch.manual_seed(seed)
    numbers = torch.randint(3, 12, (rows,)) if lengths is None else torch.tensor(lengths)
    width = 12 if lengths is None else max(lengths)
    mask = (torch.arange(width)[None] < numbers[:, None]).long()
    ids = torch.randint(4, 24, mask.shape)
    types = torch.zeros_like(ids) if lengths is None else torch.randint(0, 2, mask.shape) * mask
    labels = torch.arange(len(mask)) % 2
    ids = torch.where(mask == 1, ids, pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}


def logits(model, batch: dict) -> torch.Tensor:
    from utils.models.classifier import model_inputs

    return model(**model_inputs(model, batch)).logits


@pytest.fixture
def script(capsys, monkeypatch, tmp_path):
    """Run a script's main in this process and in tmp_path: `script("train", "--lr=1")` -> (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # What another test has imported has read the environment before: a name that is no folder would be looked for.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run_script(name: str, *arguments: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        # pytest's own handlers would keep the script from setting up its own on stderr.
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            importlib.import_module("utils.system.cli").run_script(importlib.import_module(name).main)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
        return code, capsys.readouterr().err

    return run_script


def torchrun(script, *arguments: str, agent: tuple[str, ...] = ()) -> subprocess.Popen:
    """A script in two processes on this machine, or in those that the options `agent` say."""
    command = [sys.executable, "-m", "torch.distributed.run", *(agent or ("--standalone", "--nproc_per_node=2"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, str(script), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def at_step(monkeypatch):
    """Call a function before the optimizer's step of this number, once: `at_step(7, act)`."""

    def arrange(number: int, act) -> None:
        step, calls = torch.optim.AdamW.step, []

        def counted(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                act()
            return step(*arguments, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", counted)

    return arrange


def fails(result: tuple[int, str], *parts: str) -> None:
    """The step ended as a user's mistake does, and its one line holds all of `parts`."""
    code, stderr = result
    assert code == 2, stderr
    line = stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr and ".py: error: " in line
    for part in parts:
        assert part in line, line


class Project:
    """One family's recipe in a folder: each step is a method that returns (exit code, stderr)."""

    def __init__(self, folder: Path, script, made_folder: Path):
        self.folder, self.script = folder, script
        self.encoder, self.config = str(made_folder / "encoder"), str(made_folder / "config.json")
        self.data = write_texts(folder / "data")

    def common(self) -> list[str]:
        return [f"--config={self.config}", f"--data_dir={self.data}"]

    def preprocess(self, *more: str):
        return self.script("preprocess", *self.common(), f"--bert_model_name_or_path={self.encoder}", *more)

    def train(self, *more: str, out: str = "teacher"):
        return self.script(
            "train", *self.common(), f"--bert_model_name_or_path={self.encoder}",
            f"--bert_output_dir={self.folder / out}",
            f"--save_path={self.folder / out}.pt", "--lr=1e-2", "--epoch=2", "--batch_size=16", *ALIKE, *more,
        )  # fmt: skip

    def distill(self, *more: str, start: str | None = None, out: str = "student"):
        return self.script(
            "fastformers", *self.common(), f"--teacher_config={self.config}",
            f"--teacher_bert_model_name_or_path={self.folder / 'teacher'}",
            f"--teacher_model_path={self.folder / 'teacher.pt'}",
            f"--bert_model_name_or_path={start or self.encoder}", f"--bert_output_dir={self.folder / out}",
            f"--save_path={self.folder / out}.pt", "--lr=5e-3", "--epoch=1", "--batch_size=16", *ALIKE, *more,
        )  # fmt: skip

    def prune(self, *more: str, source: str = "teacher", out: str = "pruned"):
        return self.script(
            "prune", *self.common(), f"--bert_output_dir={self.folder / source}",
            f"--model_path={self.folder / source}.pt", f"--bert_output_dir_pruned={self.folder / out}",
            f"--save_path_pruned={self.folder / out}.pt", "--device=cpu", *more,
        )  # fmt: skip

    def quantize(self, *more: str, source: str = "pruned"):
        return self.script(
            "quantize", *self.common(), f"--bert_output_dir={self.folder / source}",
            f"--model_path={self.folder / source}.pt", f"--onnx_path={self.folder / source}.onnx",
            f"--quantized_onnx_path={self.folder / source}.int8.onnx", *more,
        )  # fmt: skip

    def evaluate(self, *more: str, source: str = "teacher"):
        return self.script(
            "evaluate", *self.common(), f"--bert_output_dir={self.folder / source}", "--device=cpu", *more
        )  # fmt: skip


@pytest.fixture
def project(tmp_path, script, made):
    """Make a family's `Project` in tmp_path: `project("bert")`."""
    return lambda family="bert": Project(tmp_path, script, made[family])


@pytest.fixture
def trained(project) -> Project:
    """A BERT `Project` that is preprocessed and has a teacher."""
    return made_once("trained", project("bert"), lambda ready: [ready.preprocess(), ready.train()])


_made_once: dict[str, tempfile.TemporaryDirectory] = {}  # folders of projects


def made_once(name: str, project: Project, steps: Callable[[Project], Iterable[tuple[int, str]]]) -> Project:
    """Take `steps` in a project's folder; copy what they made where steps of this name have been taken before."""
    if name in _made_once:
        shutil.rmtree(project.data)
        shutil.copytree(_made_once[name].name, project.folder, dirs_exist_ok=True)
        return project
    for code, stderr in steps(project):
        assert code == 0, stderr
    _made_once[name] = tempfile.TemporaryDirectory()
    shutil.copytree(project.folder, _made_once[name].name, dirs_exist_ok=True)
    return project


@pytest.fixture(params=["multi_label", "regression"])
def task(request) -> str:
    """Each task but that of one label a row."""
    return request.param


@pytest.fixture
def steps(project, task):
    """A `Project` of each task, with a teacher."""
    from task_data import ready  # which imports this file

    return ready(project(), task)
