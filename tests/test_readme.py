"""The README: every block of commands and code is run, on tiny data and tiny encoders; every message is a real one."""

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, WORDS, make_encoder, make_tokenizer, write_texts
from tokenizers import models
from transformers import AutoModelForSequenceClassification

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
NODE_PACKAGES = ("onnxruntime-node", "@huggingface/tokenizers")


def blocks() -> list[tuple[str, str]]:
    """Every fenced block: its language, "" for plain output, and its text."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", README, re.DOTALL | re.MULTILINE)
    assert 2 * len(found) == len(re.findall(r"^ *```", README, re.MULTILINE))
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def commands_of(block: str) -> list[str]:
    """The commands of a `sh` block, each on one line, without comments."""
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#.*", "", line).strip())]


class Folder:
    """A copy of the repository with tiny encoders and data, in which commands run one after the other."""

    def __init__(self, path: Path, runner: subprocess.Popen):
        self.path, self.runner, self.log, self.shown = path, runner, path / "log.txt", ""
        self.train = next(command for command in all_commands() if command.startswith("python train.py "))

    def script(self, command: str) -> None:
        """A script, by the one process that has PyTorch loaded: that saves most of the time."""
        words = shlex.split(command)
        self.log.write_bytes(b"")
        request = [words[1].removesuffix(".py"), str(self.log), *words[2:]]
        print(json.dumps(request), file=self.runner.stdin, flush=True)
        code, self.shown = int(self.runner.stdout.readline()), self.log.read_text()
        assert code == 0, f"{command}\n{self.shown}"
        # Where the output is no terminal there are no progress bars, and nowhere are there colours.
        assert not re.search(r"\r|\x1b|%\|", self.shown), ascii(self.shown)

    def shell(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.path, capture_output=True, text=True, check=False, timeout=120
        )
        self.shown = done.stdout
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    def fetch(self, command: str) -> None:
        """Without network: what it would fetch is there, as a stand-in."""
        before = sorted(self.path.rglob("*"))
        self.shell(f"{command} 2>&1")
        assert re.search("nothing fetched|nothing to do", self.shown)
        assert sorted(self.path.rglob("*")) == before

    def make(self, command: str) -> None:
        """Too long for here: that there is such a target."""
        self.shell(f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make ')}")

    def torchrun(self, command: str) -> None:
        """On one machine instead of two."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for there, here in (
            ("--nnodes=2", "--nnodes=1"), ("--node_rank=N", "--node_rank=0"),
            ("--nproc_per_node=4", "--nproc_per_node=2"), ("ADDRESS", "localhost"), ("29500", str(port)),
            (" train.py ...", f" {self.train.removeprefix('python ')} --bert_output_dir=two --save_path=two.pt"),
        ):  # fmt: skip
            assert command.count(there) == 1
            command = command.replace(there, here)
        self.shell(f"OMP_NUM_THREADS=1 {command} --epoch=1 --device=cpu 2>&1")
        assert "2 process(es)" in self.shown and self.shown.count("[Best]") == 1

    def node(self, command: str) -> None:
        """By test_node."""


RULES = {
    r"make \S+( \w+=\S+)?": Folder.make,
    r"python (embeddings|data)/fetch\.py .*": Folder.fetch,
    r"python \w+\.py .*[^|]*": Folder.script,
    r"mkdir -p \S+ && cp \S+ \S+": Folder.shell,
    r'echo "[^"]*" \| python predict\.py \S+': Folder.shell,
    r"torchrun .*": Folder.torchrun,
    r'echo "[^"]*" \| node label\.mjs \S+|ONNXRUNTIME_NODE_INSTALL=skip npm install [\w@/ -]+': Folder.node,
}


def rule_of(command: str):
    """How a command is run: by the one rule whose pattern it is."""
    (rule,) = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, command)] or [None]
    assert rule, f"README.md has a command that no test runs: {command}"
    return rule


def all_commands() -> list[str]:
    return [command for language, text in blocks() if language == "sh" for command in commands_of(text)]


def test_no_block_is_left_out():
    assert {language for language, _ in blocks()} == {"", "sh", "python", "js"}
    assert [language for language, _ in blocks()].count("js") == 1
    for command in all_commands():
        rule_of(command)
    with pytest.raises(AssertionError, match="no test runs: docker run me"):
        rule_of("docker run me")


def word_pieces():
    """As `make_tokenizer`, of the kind that BERT's is."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.model = models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in [*SCRIPTS, "utils", "configs"]:
        (tmp_path / name).symlink_to(ROOT / name)
    write_texts(tmp_path / "data/sst2")
    rows = [f"{WORDS[i % 20]} {WORDS[i % 7]} it,{('billing', 'login', 'other')[i % 3]}" for i in range(90)]
    (tmp_path / "tickets.csv").write_text("\n".join(["subject,queue", *rows]) + "\n")
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "max_position_embeddings": 100}
    encoder = tmp_path / "embeddings/all-MiniLM-L6-v2"
    make_encoder(encoder, "bert", word_pieces(), num_hidden_layers=6, intermediate_size=400, **sizes)
    larger = tmp_path / "embeddings/all-mpnet-base-v2"
    make_encoder(larger, "mpnet", make_tokenizer(cls="<s>", sep="</s>", pad="<pad>"), max_position_embeddings=102)
    for folder in (encoder, larger):
        (folder / "vocab.txt").touch()  # for fetch.py; the other files are what is loaded
    for name in ("data", "embeddings"):  # no links: they would write into the repository
        shutil.copy(ROOT / name / "fetch.py", tmp_path / name)
    # `python` must be the one that runs the tests.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runner = subprocess.Popen([sys.executable, "-m", "faults.processes"], cwd=tmp_path, text=True, **pipes)
    with runner:
        yield Folder(tmp_path, runner)
        runner.stdin.close()


def test_every_block(folder):
    """From the first line to the last, so that each finds what those above it wrote."""
    code = [text for language, text in blocks() if language == "python"]
    assert len(code) == 2
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
        for command in commands_of(text) if language == "sh" else []:
            rule_of(command)(folder, command)
            if "| python predict.py" in command:
                assert re.fullmatch(r"(negative|positive|billing|login|other)\t[01]\.\d+\n", folder.shown)
            if command.startswith("python evaluate.py"):
                assert re.search(r"^INFO:__main__:\[Accuracy\] : \d\.\d{4}, +\d+/ +24$", folder.shown, re.MULTILINE)
                elapsed = r"^INFO:__main__:\[Elapsed Time\] : \d+\.\d\dms, \d+\.\d{4}ms on average$"
                assert re.search(elapsed, folder.shown, re.MULTILINE)
    for name in [
        "runs/sst2/teacher.pt",
        "runs/sst2/labels/model.safetensors",
        "runs/sst2/taught/model.safetensors",
        "model/model.unpadded.onnx",
        "runs/tickets/model/model.onnx",
    ]:
        assert (folder.path / name).is_file()


NO_NODE = "needs node, and in the repository's root what README.md installs with npm"


@pytest.mark.skipif(
    not shutil.which("node") or not all((ROOT / "node_modules" / name).is_dir() for name in NODE_PACKAGES),
    reason=NO_NODE,
)
def test_node(tmp_path):
    from utils.export.fused import build_graph
    from utils.export.model_dir import write_model_dir
    from utils.runtime import GRAPH, UNPADDED_GRAPH, Predictor

    tokenizer = word_pieces()
    encoder = make_encoder(tmp_path / "encoder", "bert", tokenizer, hidden_size=64, intermediate_size=100)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3).eval()
    graphs = {GRAPH: build_graph(model), UNPADDED_GRAPH: build_graph(model, masked=False)}
    made = {"n_ctx": 12, "version": "fp32", "machine": {}}
    write_model_dir(tmp_path / "model", graphs, tokenizer, model.config, made, "")
    (tmp_path / "label.mjs").write_text(next(text for language, text in blocks() if language == "js"))
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    command = next(command for command in all_commands() if "| node" in command)
    texts = [" ".join(WORDS[i:] + WORDS[:i])[: 7 * i] for i in range(20)] + ["A GOOD film ! unknown", ""]
    run = command[command.index("|") + 1 :]
    done = subprocess.run(
        ["bash", "-c", run], cwd=tmp_path, input="\n".join(texts) + "\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    expected = [prediction.probabilities for prediction in Predictor(tmp_path / "model").predict_batch(texts)]
    assert len(rows) == len(expected)
    for row, probabilities in zip(rows, expected, strict=True):
        assert row == pytest.approx(probabilities, abs=1e-4)


def source_texts() -> set[str]:
    """Every string in the source, with a mark where a value is filled in."""
    found = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py"), ROOT / "data/fetch.py", ROOT / "embeddings/fetch.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                with contextlib.suppress(UnicodeEncodeError):
                    found.add(node.value)
    return found


def test_messages_are_what_the_scripts_say():
    section = README[README.index("## Troubleshooting") : README.index("## Where things are")]
    messages = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    assert len(messages) >= 10 and len(messages) == section.count("\n| `")
    texts = source_texts()
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), message
