"""torchrun with two processes: every row once, every file once, the same result as one process."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def valid_losses(log_dir) -> list[float]:
    """The loss on valid.txt at the end of each epoch."""
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return [event.value for event in events.Scalars("valid/loss")]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed")
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
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [*command, str(ROOT / "fastformers.py"), *options, *out],
                env=environment, capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "2 process(es)" in done.stderr and done.stderr.count("[Best]") == 1
        losses[count] = valid_losses(tmp_path / f"log{count}")
    assert len(losses[1]) == 10 and losses[1][0] > losses[1][-1]
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)
    one, two = (torch.load(tmp_path / f"out{count}.pt", weights_only=True) for count in (1, 2))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # has no effect: its gradient is rounding error
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)
