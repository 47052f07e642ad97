"""The README and docs/: every block of commands and code is run, on tiny data and encoders; what they quote is so."""

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
from task_data import MULTI, SCORES, rows_of
from tokenizers import models

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
NAMES = [
    "recipe",
    "cascade",
    "options",
    "choosing",
    "serving",
    "batch",
    "distributed",
    "troubleshooting",
    "results",
    "language-model-teacher",
    "tasks",
]
DOCS = [f"docs/{name}.md" for name in NAMES]  # in an order in which each finds what those before it wrote
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ["README.md", *DOCS]}
# Programs that need them are run by test_serving.py and test_batch.py.
OTHER_PACKAGES = ("from fastapi", "from optimum", "import ray")


def blocks(name: str) -> list[tuple[str, str]]:
    """Every fenced block of a page: its language, "" for plain output, and its text."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", PAGES[name], re.DOTALL | re.MULTILINE)
    assert 2 * len(fenced) == len(re.findall(r"^ *```", PAGES[name], re.MULTILINE))
    return [(language, textwrap.dedent(text)) for _, language, text in fenced]


def commands_of(block: str) -> list[str]:
    """The commands of a `sh` block, or of what make prints, each on one line, without comments; by plain `python`."""
    lines = re.sub(r"[ \t]*\\\n[ \t]*", " ", block).splitlines()
    commands = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [re.sub(r"\s+", " ", command).replace(".venv/bin/python", "python") for command in commands if command]


def reports(text: str) -> set[str]:
    """Who says something, and of what: the beginnings of lines such as `INFO:__main__:[Best] : ...`."""
    return set(re.findall(r"^(?:INFO|WARNING):[\w.]+:\[[^\]\d]+", text, re.MULTILINE))


def make_commands(command: str, folder: Path) -> list[str]:
    """What `make ...` would run in `folder`, which has the Makefile and the requirements."""
    done = subprocess.run(
        ["bash", "-c", command.replace("make ", "make -n ", 1)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return commands_of(done.stdout)


class Folder:
    """A copy of the repository with tiny encoders and data, in which commands run one after the other."""

    def __init__(self, path: Path, runner: subprocess.Popen):
        self.path, self.runner, self.log, self.shown = path, runner, path / "log.txt", ""
        self.reported: set[str] = set()
        self.train = next(command for command in all_commands(DOCS) if command.startswith("python train.py "))

    def script(self, command: str) -> None:
        """A script, by the one process that has PyTorch loaded: that saves most of the time."""
        words = shlex.split(command)
        self.log.write_bytes(b"")
        request = [words[1].removesuffix(".py"), str(self.log), *words[2:]]
        print(json.dumps(request), file=self.runner.stdin, flush=True)
        code, self.shown = int(self.runner.stdout.readline()), self.log.read_text()
        assert code == 0, f"{command}\n{self.shown}"
        self.reported |= reports(self.shown)
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
        """The steps of a ladder, with the commands that make prints, of `make demo` those of the smallest model.

        Of other targets, that they are there.
        """
        steps = make_commands(command, self.path)
        if command == "make demo":
            steps = make_commands("make runs/demo/int8-pruned-small.done", self.path)
        for step in steps:
            if re.match(r"python \w+\.py ", step):
                rule_of(step)(self, step)

    def report(self, command: str) -> None:
        """Without BERT-base, which is too large for here."""
        command, _, output = command.partition(" > ")
        without = command.replace(' --rung "BERT-base, random, padded" bert_base -', "")
        assert without != command
        self.script(without)
        (self.path / output).write_text(self.shown)

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
        self.shell(f"{command} --epoch=1 --device=cpu 2>&1")
        assert "2 process(es)" in self.shown and self.shown.count("[Best]") == 1

    def pip(self, command: str) -> None:
        """That the file is there; test_serving.py installs such packages."""
        assert (self.path / command.split()[-1]).is_file()

    def npm(self, command: str) -> None:
        """By .ci/run."""
        assert command.partition("install ")[2] in (ROOT / ".ci/run").read_text()


RULES = {
    r'make \w+( \w+=(\S+|".*"))*': Folder.make,
    r"python (embeddings|data)/fetch\.py .*": Folder.fetch,
    r"python report\.py .*": Folder.report,
    r"python (?!report)\w+\.py [^|>]*": Folder.script,
    r"mkdir -p \S+ && cp \S+ \S+": Folder.shell,
    r'echo "[^"]*" \| python (predict\.py \S+|\S+/predictor)': Folder.shell,
    r"pip install -r \S+/requirements\.txt": Folder.pip,
    r"torchrun .*": Folder.torchrun,
    r"ONNXRUNTIME_NODE_INSTALL=skip npm install [\w@/ -]+": Folder.npm,
}


def rule_of(command: str):
    """How a command is run: by the one rule whose pattern it is."""
    (rule,) = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, command)] or [None]
    assert rule, f"there is a command that no test runs: {command}"
    return rule


def all_commands(names: list[str]) -> list[str]:
    texts = [text for name in names for language, text in blocks(name) if language == "sh"]
    return [command for text in texts for command in commands_of(text)]


def test_no_block_is_left_out():
    assert list(PAGES)[1:] == sorted((f"docs/{path.name}" for path in ROOT.glob("docs/*.md")), key=DOCS.index)
    languages = [language for name in PAGES for language, _ in blocks(name)]
    assert set(languages) == {"", "sh", "python", "js", "dockerfile"}
    assert [name for name in PAGES if {"js", "dockerfile"} & {language for language, _ in blocks(name)}] == [DOCS[4]]
    assert languages.count("js") == 3 and languages.count("python") == 6
    for command in all_commands(list(PAGES)):
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
    for name in [*SCRIPTS, "utils", "configs", "Makefile", "requirements.txt", "requirements-dev.txt"]:
        (tmp_path / name).symlink_to(ROOT / name)
    write_texts(tmp_path / "data/sst2")
    write_texts(tmp_path / "data/movie-reviews")
    texts = [f"{WORDS[i % 20]} {WORDS[i % 7]} unseen" for i in range(40)]
    (tmp_path / "data/movie-reviews/unlabelled.txt").write_text("\n".join(texts) + "\n")
    for split, count in (("train", 96), ("valid", 32), ("test", 24)):  # for docs/tasks.md
        for name in ("comments", "movie-ratings"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        several = [f"{text},{'|'.join(labels)}" for text, labels in rows_of(MULTI, count)]
        (tmp_path / f"data/comments/{split}.csv").write_text("\n".join(["text,labels", *several]) + "\n")
        scores = [f"{text}\t{score}\n" for text, score in rows_of(SCORES, count)]
        (tmp_path / f"data/movie-ratings/{split}.txt").write_text("".join(scores))
    rows = [f"{WORDS[i % 20]} {WORDS[i % 7]} it,{('billing', 'login', 'other')[i % 3]}" for i in range(90)]
    rows.append("a thing that nobody else wrote,rare")
    (tmp_path / "tickets.csv").write_text("\n".join(["subject,queue", *rows]) + "\n")
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "max_position_embeddings": 100}
    encoder = tmp_path / "embeddings/all-MiniLM-L6-v2"
    make_encoder(encoder, "bert", word_pieces(), num_hidden_layers=6, intermediate_size=800, **sizes)
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
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in [name for name in sys.modules if name.partition(".")[0] == "predictor"]:  # of another test's folder
        del sys.modules[name]
    monkeypatch.chdir(tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runner = subprocess.Popen([sys.executable, "-m", "faults.processes"], cwd=tmp_path, text=True, **pipes)
    with runner:
        yield Folder(tmp_path, runner)
        runner.stdin.close()


def run_blocks(folder: Folder, names: list[str]) -> None:
    """From the first line to the last, so that each finds what those above it wrote."""
    for language, text in [block for name in names for block in blocks(name)]:
        if language == "python" and not any(package in text for package in OTHER_PACKAGES):
            exec(compile(text, "page", "exec"), {})
        for command in commands_of(text) if language == "sh" else []:
            if not (command.startswith("make ladder") and names == DOCS):  # its commands are on the page
                rule_of(command)(folder, command)
            if "| python " in command:
                one_label = r"(negative|positive|billing|login|other|rare)\t[01]\.\d+"
                several, score = r"[a-z|]*\t[01.\d|]*", r"-?\d+\.\d+"
                assert re.fullmatch(f"({one_label}|{several}|{score})\n", folder.shown)
            if command.startswith("python evaluate.py") and "multi-label" not in command:
                assert re.search(r"^INFO:__main__:\[Accuracy\] : \d\.\d{4}, +\d+/ +24$", folder.shown, re.MULTILINE)
                elapsed = r"^INFO:__main__:\[Elapsed Time\] : \d+\.\d\dms, \d+\.\d{4}ms on average$"
                assert re.search(elapsed, folder.shown, re.MULTILINE)


def test_every_block_of_the_readme(folder):
    run_blocks(folder, ["README.md"])
    for name in ["runs/tickets/ladder/ladder.svg", "runs/tickets/ladder.txt", "runs/tickets/models/student/model.onnx"]:
        assert (folder.path / name).is_file()
    splits = {name: (folder.path / f"data/tickets/{name}.csv").read_text() for name in ("train", "valid", "test")}
    assert [text.count("\n") - 1 for text in splits.values()] == [73, 9, 9]
    assert [text.count(",rare") for text in splits.values()] == [1, 0, 0]


def test_every_block_of_the_docs(folder):
    run_blocks(folder, DOCS)
    quoted = reports("\n".join(PAGES[name] for name in DOCS))
    assert len(quoted) > 15
    assert quoted - folder.reported == set()
    names = ["teacher.pt", "ladder.txt", "labels/model.safetensors", "of-probabilities.pt"]
    for name in names:
        assert (folder.path / "runs/sst2" / name).is_file()


def test_the_recipe_is_what_make_runs(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = all_commands(["docs/recipe.md"])
    ladder = page.pop(0)
    assert ladder.startswith("make ladder ")
    shown = [command for command in page if not re.match(r"python evaluate\.py|echo ", command)]
    run = [command for command in make_commands(ladder, tmp_path) if re.match(r"python \S+\.py ", command)]
    assert len(run) >= 15 and sorted(shown) == sorted(run)


def test_the_readme_is_short_and_its_table_of_the_ladder():
    assert PAGES["README.md"].count("\n") <= 180
    rungs = json.loads((ROOT / "results/sst2/ladder.json").read_text())["rungs"]
    lines = {
        f"| {rung['name']} | {rung['accuracy'] or 0:.4f} | {rung['ms_a_row']:.2f} | {rung['speedup']:.1f}x |"
        for rung in rungs
    }
    assert len(lines & set(PAGES["README.md"].splitlines())) == 5


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
    page = PAGES["docs/troubleshooting.md"]
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    assert len(messages) >= 10 and len(messages) == page.count("\n| `")
    texts = source_texts()
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), message


def anchors(page: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    folders = ("data", "embeddings", "benchmarks")
    count = 0
    for name in [*PAGES, "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in folders)]:
        page = ROOT / name
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"
            count += 1
    assert count > 30


def test_the_map_has_every_module():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(utils/\S*)` \| (.*) \|$", page, re.MULTILINE)
    on_the_map = sorted(folder + name for folder, text in rows for name in re.findall(r"`(\w+\.py)`", text))
    modules = [str(path.relative_to(ROOT)) for path in ROOT.glob("utils/**/*.py") if path.name != "__init__.py"]
    assert on_the_map == sorted(modules)
    for name in re.findall(r"`([\w/]+/[\w.]+)`", page):
        assert (ROOT / name).exists(), name
