"""A training that was stopped goes on to the same weights, to the bit; one with other options is not continued.

What SIGKILL leaves behind is tried in tests/faults.
"""

import json
import os
import re
import shutil
import signal

import pytest
import torch
from conftest import fails, snapshot
from safetensors.torch import load_file

STEPS = ["--epoch=3", "--eval_steps=4", "--save_steps=5"]  # 6 steps an epoch


def assert_same_weights(project, one: str, other: str) -> None:
    expected, found = (torch.load(project.folder / f"{out}.pt", weights_only=True) for out in (one, other))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_run(trained, at_step, number, code):
    assert trained.train(*STEPS, out="whole")[0] == 0
    at_step(9, lambda: os.kill(os.getpid(), number))
    stopped, stderr = trained.train(*STEPS, out="other")
    assert stopped == code and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "train.py: stopped at step 9: run the same command again to continue"
    finished, stderr = trained.train(*STEPS, "--resume=always", out="other")
    assert finished == 0 and "from step 9" in stderr
    assert not (trained.folder / "other.unfinished").exists()
    assert_same_weights(trained, "whole", "other")


def test_a_distillation_goes_on_from_its_last_save(trained, at_step):
    """As after a crash: nothing is kept at the moment of failure."""

    def crash() -> None:
        raise ZeroDivisionError

    options = [*STEPS, "--state_loss_ratio=1", "--accumulation_steps=3"]
    assert trained.distill(*options, out="whole")[0] == 0
    at_step(14, crash)
    with pytest.raises(ZeroDivisionError):
        trained.distill(*options, out="other")
    code, stderr = trained.distill(*options, out="other")
    # Step 12 was evaluated and kept.
    assert code == 0 and "from step 12" in stderr
    assert_same_weights(trained, "whole", "other")


@pytest.mark.parametrize(("crashed", "saved"), [(6, 5), (8, 6), (12, 10)])
def test_a_run_is_saved_so_often(trained, at_step, crashed, saved):
    """After steps 5 and 10 of --save_steps=5, and at the end of an epoch, step 6."""

    def crash() -> None:
        raise ZeroDivisionError

    options = ["--epoch=3", "--save_steps=5"]
    at_step(crashed, crash)
    with pytest.raises(ZeroDivisionError):
        trained.train(*options, out="other")
    code, stderr = trained.train(*options, out="other")
    assert code == 0 and f"from step {saved}\n" in stderr


def test_scores_go_on_as_if_nothing_had_been(trained, at_step):
    """The mean loss of an epoch that was stopped in its midst, and the patience."""
    options = ["--lr=1e-30", "--epoch=9", "--patience=2"]

    def scores(stderr: str) -> list[str]:
        return re.findall(r"\[Epoch.*", stderr)

    code, stderr = trained.train(*options, out="whole")
    assert code == 0 and len(scores(stderr)) == 3
    at_step(15, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, stopped = trained.train(*options, out="other")
    assert code == 143 and len(scores(stopped)) == 2
    code, continued = trained.train(*options, out="other")
    assert code == 0 and scores(stopped) + scores(continued) == scores(stderr)


def test_another_option_is_refused(trained, at_step):
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trained.train(*STEPS, out="other")[0] == 143
    before = snapshot(trained.folder)
    fails(trained.train(*STEPS, "--seed=7", out="other"), "--seed is 7 but 42", "other.unfinished", "--overwrite")
    fails(trained.train(*STEPS, "--weight_decay=0.1", out="other"), "--weight_decay is 0.1 but 0.01")
    encoder = ["--bert_model_name_or_path", str(trained.folder / "teacher")]
    fails(trained.train(*STEPS, *encoder, out="other"), "--bert_model_name_or_path is")
    assert snapshot(trained.folder) == before
    # What does not change the result may change.
    log_dir = trained.folder / "log"
    assert trained.train(*STEPS, "--save_steps=2", f"--log_dir={log_dir}", out="other")[0] == 0
    assert list(log_dir.glob("events*"))


def test_starting_again(trained, at_step):
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trained.train(*STEPS, out="other")[0] == 143
    code, stderr = trained.train(*STEPS, "--seed=7", "--overwrite", out="other")
    assert code == 0 and "[Resume]" not in stderr
    fails(trained.train("--resume=always", out="third"), "--resume=always", "third.unfinished")
    (trained.folder / "third.unfinished").write_bytes(b"damaged")
    fails(trained.train(out="third"), "third.unfinished", "--overwrite")
    assert trained.train("--overwrite", out="third")[0] == 0


def test_patience_ends_the_run(trained):
    """A learning rate that changes nothing gets no better after its first score."""
    code, stderr = trained.train("--lr=1e-30", "--epoch=9", "--patience=2", out="other")
    assert code == 0
    assert re.findall(r"\[Epoch (\d)\]", stderr) == ["1", "2", "3"]


def test_a_batch_in_parts_is_the_same_step(trained):
    """But for dropout, which this encoder is given none of."""
    config = trained.folder / "encoder/config.json"
    shutil.copytree(trained.encoder, config.parent)
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    found = []
    for parts in (1, 3):
        out = f"parts{parts}"
        options = [f"--bert_model_name_or_path={config.parent}", f"--accumulation_steps={parts}", "--lr=1e-3"]
        assert trained.train(*options, out=out)[0] == 0
        found.append(torch.load(trained.folder / f"{out}.pt", weights_only=True))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-4, rtol=1e-3)


def test_the_teacher_is_asked_once(trained, monkeypatch):
    assert trained.distill(out="first")[0] == 0
    kept = list(trained.data.glob("tokenized/teacher-*.safetensors"))
    assert len(kept) == 2  # train and valid
    code, stderr = trained.distill(out="second")
    assert code == 0
    assert_same_weights(trained, "first", "second")
    monkeypatch.setattr("utils.training.teacher.predict", None)
    assert trained.distill(out="third")[0] == 0
    monkeypatch.undo()
    for path in kept:
        path.write_bytes(b"damaged")
    assert trained.distill(out="fourth")[0] == 0
    assert_same_weights(trained, "first", "fourth")


def test_labelling_goes_on_where_it_was_killed(trained, monkeypatch):
    import utils.training.teacher

    assert trained.distill(out="whole")[0] == 0
    kept = {path.name: path for path in trained.data.glob("tokenized/teacher-*.safetensors")}
    expected = torch.cat([load_file(path)["logits"] for name, path in kept.items() if "-train-" in name])
    for path in kept.values():
        path.unlink()
    predict, asked = utils.training.teacher.predict, []

    def killed_at_third(teacher, rows, accelerator, name):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(rows))
        return predict(teacher, rows, accelerator, name)

    monkeypatch.setattr(utils.training.teacher, "PART", 40)  # 96 rows of train are 3 parts, 32 of valid one
    monkeypatch.setattr(utils.training.teacher, "predict", killed_at_third)
    assert trained.distill(out="parts")[0] == 130
    assert asked == [32, 40, 40]
    monkeypatch.setattr(
        utils.training.teacher, "predict", lambda *given: asked.append(len(given[1])) or predict(*given)
    )
    assert trained.distill(out="parts")[0] == 0
    assert asked == [32, 40, 40, 16]
    parts = sorted(trained.data.glob("tokenized/teacher-*-train-*.safetensors"))
    torch.testing.assert_close(torch.cat([load_file(path)["logits"] for path in parts]), expected, atol=1e-5, rtol=1e-4)


def test_preprocessing_again_keeps_what_the_teacher_said_of_the_same_rows(trained):
    assert trained.distill(out="first")[0] == 0
    (kept,) = trained.data.glob("tokenized/teacher-*-train-0.safetensors")
    content = kept.read_bytes()
    valid = trained.data / "valid.txt"
    valid.write_text(valid.read_text() + "a fine film\tpositive\n")
    assert trained.preprocess()[0] == 0
    assert [path.name for path in trained.data.glob("tokenized/teacher-*")] == [kept.name]
    assert kept.read_bytes() == content
    train = trained.data / "train.txt"
    train.write_text(train.read_text().replace("good", "bad"))
    assert trained.preprocess()[0] == 0
    assert not list(trained.data.glob("tokenized/teacher-*"))


def test_pruning_in_steps_goes_on(trained, at_step):
    """Stopped in the second of three distillations, and killed before the third one was kept for the first time."""
    options = ["--target_num_heads=1", "--target_hidden_size=16", "--iterations=3", "--save_steps=1", "--lr=1e-3"]
    assert trained.prune(*options, out="whole")[0] == 0
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))  # 2 steps an epoch
    assert trained.prune(*options, out="other")[0] == 143
    fails(trained.prune(*options, "--seed=7", out="other"), "--seed is 7 but 42", "other.unfinished")
    code, stderr = trained.prune(*options, out="other")
    assert code == 0 and "from step 2" in stderr
    assert_same_weights(trained, "whole", "other")
    assert not (trained.folder / "other.unfinished").exists()


def test_weights_of_another_shape_are_no_start(trained):
    """They would be drawn at random without a word."""
    encoder = trained.folder / "encoder"
    shutil.copytree(trained.encoder, encoder)
    config = encoder / "config.json"
    for key, value in (("intermediate_size", 128), ("num_hidden_layers", 3)):
        fields = json.loads((trained.folder / trained.encoder / "config.json").read_text())
        config.write_text(json.dumps(fields | {key: value}))
        fails(
            trained.train(f"--bert_model_name_or_path={encoder}", out="other"),
            "encoder",
            "of its weights, bert.encoder.layer",
        )
