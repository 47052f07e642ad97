"""torchrun with two processes: every row once, every file once, the same result as one process."""

import copy
import json
import random
import shutil
import socket
import subprocess

import pytest
import torch
from conftest import ROOT, WORDS, make_encoder, make_tokenizer, snapshot, torchrun
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed"
)


def valid_losses(log_dir) -> list[float]:
    """The loss on valid.txt at the end of each epoch."""
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return [event.value for event in events.Scalars("valid/loss")]


def output(*agents: subprocess.Popen) -> list[str]:
    """What finished agents said.

    Raises:
        AssertionError: one failed.
    """
    found = [agent.communicate(timeout=120)[0] for agent in agents]
    assert all(agent.returncode == 0 for agent in agents), found
    return found


def test_two_processes_are_like_one(trained, tmp_path):
    """To 1e-5 in the loss after 50 steps, of a distillation: it does all that a training does, and labels rows."""
    # Without dropout nothing differs between one process and two but the order of sums.
    shutil.copytree(trained.encoder, tmp_path / "start")
    config = json.loads((tmp_path / "start/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "start/config.json").write_text(json.dumps(config))
    options = [f"--config={trained.config}", f"--data_dir={trained.data}", "--device=cpu", "--lr=1e-3", "--epoch=10"]
    options += ["--precision=fp32", "--batch_size=20", f"--bert_model_name_or_path={tmp_path}/start"]
    options += [f"--teacher_config={trained.config}", f"--teacher_bert_model_name_or_path={tmp_path}/teacher"]
    options += [f"--teacher_model_path={tmp_path}/teacher.pt", "--state_loss_ratio=1"]
    losses = {}
    for count in (1, 2):
        out = [f"--bert_output_dir={tmp_path}/out{count}", f"--save_path={tmp_path}/out{count}.pt"]
        out += [f"--log_dir={tmp_path}/log{count}"]
        if count == 1:
            code, stderr = trained.script("fastformers", *options, *out)
            assert code == 0, stderr
        else:
            (said,) = output(torchrun(ROOT / "fastformers.py", *options, *out))
            assert "2 process(es)" in said and said.count("[Best]") == 1
        losses[count] = valid_losses(tmp_path / f"log{count}")
    assert len(losses[1]) == 10 and losses[1][0] > losses[1][-1]
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)
    one, two = (torch.load(tmp_path / f"out{count}.pt", weights_only=True) for count in (1, 2))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # has no effect: its gradient is rounding error
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)


def test_two_processes_tokenize_for_a_teacher(trained, tmp_path):
    """Each a part of the rows, which are then those that one process makes."""
    other = copy.copy(trained)
    tokenizer = make_tokenizer(cls="<s>", sep="</s>", pad="<pad>")
    other.encoder, other.data = make_encoder(tmp_path / "other", "bert", tokenizer), tmp_path / "other-data"
    shutil.copytree(trained.data, other.data)
    for step in (other.preprocess, lambda: other.train(out="other-teacher")):
        assert step()[0] == 0
    options = [f"--config={trained.config}", "--device=cpu", "--precision=fp32", "--epoch=1", "--batch_size=20"]
    options += [f"--bert_model_name_or_path={trained.encoder}"]
    options += ["--teacher_bert_model_name_or_path", f"{tmp_path}/other-teacher", f"{tmp_path}/teacher"]
    tables = {}
    for count in (1, 2):
        data = tmp_path / f"data{count}"
        shutil.copytree(trained.data, data)
        out = [
            f"--data_dir={data}",
            f"--bert_output_dir={tmp_path}/out{count}",
            f"--save_path={tmp_path}/out{count}.pt",
        ]
        if count == 1:
            code, stderr = trained.script("fastformers", *options, *out)
            assert code == 0, stderr
        else:
            (said,) = output(torchrun(ROOT / "fastformers.py", *options, *out))
            assert said.count("tokenizing the texts") == 1 and said.count("mean of 2") == 1
        (folder,) = data.glob("tokenized-*")
        assert not list(folder.glob("*.[0-9].arrow"))
        tables[count] = list(Dataset.from_file(str(folder / "train.arrow")))
        assert tables[count] == list(Dataset.from_file(str(other.data / "tokenized/train.arrow")))
    assert tables[1] == tables[2] and len(tables[1]) == 96


@pytest.mark.slow  # 15 s
def test_two_machines_are_like_one(trained, tmp_path):
    """Two agents of torchrun that meet at an address and share their files; the second waits for the first."""
    shutil.copytree(trained.encoder, tmp_path / "start")
    path = tmp_path / "start/config.json"
    path.write_text(path.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    options = [*trained.common(), f"--bert_model_name_or_path={tmp_path}/start", "--device=cpu", "--precision=fp32"]
    options += ["--lr=1e-3", "--epoch=5", "--batch_size=20"]
    outs = [
        [f"--bert_output_dir={out}", f"--save_path={out}.pt", f"--log_dir={out}-log"]
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    code, stderr = trained.script("train", *options, *outs[0])
    assert code == 0, stderr
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    agents = [
        torchrun(
            ROOT / "train.py", *options, *outs[1],
            agent=("--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1", "--rdzv_backend=c10d",
                   f"--rdzv_endpoint=localhost:{port}"),
        )
        for rank in (1, 0)
    ]  # fmt: skip
    said = output(*agents)
    assert "".join(said).count("2 process(es)") == 1 and "".join(said).count("[Best]") == 1
    losses = valid_losses(tmp_path / "one-log")
    assert len(losses) == 5 and losses[0] > losses[-1]
    assert losses == pytest.approx(valid_losses(tmp_path / "two-log"), abs=1e-5)
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.fixture
def rows(project):
    """A project with 3 chunks of rows to tokenize, and the arguments of preprocess.py."""
    steps = project("bert")
    generator = random.Random(0)
    lines = [f"{' '.join(generator.choices(WORDS, k=i % 7 + 1))}\t{i % 2}\n" for i in range(25_000)]
    for split, part in (("train", lines), ("valid", lines[:30]), ("test", lines[:20])):
        (steps.data / f"{split}.txt").write_text("".join(part))
    return steps, [*steps.common(), f"--bert_model_name_or_path={steps.encoder}"]


def test_two_processes_tokenize_as_one(rows):
    """Rows without labels, of which some are not used, and soft labels, too."""
    steps, arguments = rows
    texts = [f"a {i % 20_000} film" for i in range(21_000)]
    (steps.data / "unlabelled.txt").write_text("\n".join(texts))
    soft = ["null" if i % 7 == 0 else json.dumps([i / 21_000, 1 - i / 21_000]) for i in range(21_000)]
    (steps.data / "unlabelled.soft.jsonl").write_text("\n".join(soft))
    assert steps.preprocess()[0] == 0
    expected = snapshot(steps.data)
    shutil.rmtree(steps.data / "tokenized")
    (steps.data / "label.txt").unlink()
    (said,) = output(torchrun(ROOT / "preprocess.py", *arguments, "--num_proc=2"))
    assert said.count("[train] : 25000 rows") == 1 and said.count("[unlabelled] : 20000 rows") == 1
    assert snapshot(steps.data) == expected


@pytest.mark.slow  # 15 s each
@pytest.mark.parametrize("failure", ["raise OSError(28, 'No space left on device')", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_fails_ends_all(rows, tmp_path, failure, rank):
    """Nothing is written, and none waits for it."""
    steps, arguments = rows
    script = tmp_path / "preprocess.py"
    script.write_text(
        "import os, runpy, utils.data.preprocessing\n"
        "def fail(*arguments):\n"
        f"    {failure}\n"
        f"if os.environ['RANK'] == '{rank}':\n"
        "    utils.data.preprocessing._write_batches = fail\n"
        f"runpy.run_path({str(ROOT / 'preprocess.py')!r}, run_name='__main__')\n"
    )
    before = snapshot(steps.data)
    agent = torchrun(script, *arguments)
    said = agent.communicate(timeout=60)[0]
    assert agent.returncode and ("kill" in failure or said.count("preprocess.py: error: ") == 2), said
    assert {name: data for name, data in snapshot(steps.data).items() if ".tmp/" not in name} == before
    if "kill" not in failure:
        assert snapshot(steps.data) == before
    assert steps.preprocess()[0] == 0  # removes what a killed one left
    assert {path.name for path in steps.data.iterdir()} == {
        "train.txt", "valid.txt", "test.txt", "label.txt", "tokenized",
    }  # fmt: skip
