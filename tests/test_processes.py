"""torchrun with two processes: every row once, every file once, the same result as one process."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_processes_train_and_distill_like_one(trained, tmp_path):
    # Without dropout nothing differs between one process and two but the order of sums.
    shutil.copytree(trained.encoder, tmp_path / "start")
    config = json.loads((tmp_path / "start/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "start/config.json").write_text(json.dumps(config))
    common = [f"--config={trained.config}", f"--data_dir={trained.data}", "--device=cpu", "--lr=1e-3", "--epoch=2"]
    common += ["--precision=fp32", "--batch_size=20", f"--bert_model_name_or_path={tmp_path}/start"]
    teacher = [f"--teacher_config={trained.config}", f"--teacher_bert_model_name_or_path={tmp_path}/teacher"]
    teacher += [f"--teacher_model_path={tmp_path}/teacher.pt", "--state_loss_ratio=1"]
    for script, more in (("train", []), ("fastformers", teacher)):
        outputs = {}
        for count in (1, 2):
            out = [f"--bert_output_dir={tmp_path}/{script}{count}", f"--save_path={tmp_path}/{script}{count}.pt"]
            if count == 1:
                code, stderr = trained.script(script, *common, *more, *out)
                assert code == 0, stderr
            else:
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
                command += [str(ROOT / f"{script}.py"), *common, *more, *out]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=False, timeout=120
                )
                stderr = done.stderr
                assert done.returncode == 0, stderr
                assert "2 process(es)" in stderr and stderr.count("[Best]") == 1
            outputs[count] = [float(value) for value in re.findall(r"loss (\d+\.\d+)", stderr)]
        assert outputs[1] == pytest.approx(outputs[2], abs=2e-4)
        one, two = (torch.load(tmp_path / f"{script}{count}.pt", weights_only=True) for count in (1, 2))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)
