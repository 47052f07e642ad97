"""The training loop that train.py and fastformers.py share, for one process or many."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from utils.cli import UserError
from utils.data import Data, batches_by_length, collate, lengths, row_labels, shuffled_batches
from utils.model import model_inputs

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 128
WARMUP_RATIO = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Settings:
    """Hyperparameters. `batch_size` counts the rows of one optimizer step over all processes together."""

    lr: float
    epochs: int
    batch_size: int
    measure: str  # "loss" or "accuracy" on the validation set picks the best epoch
    seed: int


@dataclass(frozen=True)
class Score:
    """Cross-entropy and accuracy on a labelled split."""

    loss: float
    accuracy: float

    def better_than(self, other: "Score | None", measure: str) -> bool:
        """By `measure`, ties broken by the other one."""
        if other is None:
            return True
        if measure == "loss":
            return (-self.loss, self.accuracy) > (-other.loss, other.accuracy)
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def choose_device(device: str) -> str:
    """Resolve auto to cuda, mps or cpu, the first that is there.

    Raises:
        UserError: another one was asked for and is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in available if available[name])
    if not available[device]:
        raise UserError(f"--device={device}: this machine has none that PyTorch can use: choose another, or auto")
    return device


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate's handle on this process: device, autocast, and the other processes where a launcher started several.

    Args:
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it, else fp32.

    Raises:
        UserError: the device is not there, or cannot do the precision.
    """
    device = choose_device(device)
    has_bf16 = {
        "cpu": torch.cpu.get_capabilities().get("avx512_bf16", False),
        "cuda": device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": False,
    }[device]
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    if precision == "fp16" and device != "cuda":
        raise UserError("--precision=fp16 needs a CUDA device: choose bf16, fp32 or auto")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    logger.info("[Device] : %s, %s, %d process(es)", accelerator.device, precision, accelerator.num_processes)
    return accelerator


def predict(model: PreTrainedModel, split: datasets.Dataset, accelerator: Accelerator, name: str) -> torch.Tensor:
    """The model's logits for every row of a split in its order, fp32 [rows, labels], on the CPU of every process.

    Each row is computed by one process only. `name` labels the progress bar.
    """
    model.eval()
    logits = torch.zeros(len(split), model.config.num_labels, device=accelerator.device)
    batches = batches_by_length(lengths(split), EVALUATION_BATCH)
    with torch.inference_mode(), tqdm(total=len(split), desc=name, unit="row", disable=_bar_off(accelerator)) as bar:
        for indices in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = collate(split, indices, model.config.pad_token_id)
            with accelerator.autocast():
                output = model(**model_inputs(model, batch)).logits
            logits[torch.as_tensor(indices, device=logits.device)] = output.float()
            bar.update(len(indices) * accelerator.num_processes)
    return accelerator.reduce(logits, "sum").cpu()


def score(logits: torch.Tensor, split: datasets.Dataset) -> Score:
    """Cross-entropy and accuracy of logits [rows, labels] against the split's labels."""
    labels = torch.as_tensor(row_labels(split), dtype=torch.long)
    return Score(F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item())


def train(
    model: PreTrainedModel,
    data: Data,
    row_losses: Callable[[nn.Module, dict, dict, np.ndarray], torch.Tensor],
    settings: Settings,
    accelerator: Accelerator,
    save: Callable[[PreTrainedModel], None],
) -> Score:
    """Train `model` in place, score it on the validation set after every epoch, and save the best.

    AdamW with decoupled weight decay, a linear warm-up over the first tenth of the steps, then linear decay to 0.

    Args:
        row_losses: called with the model (wrapped, where there are several processes), its inputs, the batch of
            `collate` they come from and the rows' indices in data.splits["train"]; returns every row's loss, [rows].
        save: called in the main process with the model whenever an epoch's score is the best so far.

    Returns:
        The best score.
    """
    train_split, processes = data.splits["train"], accelerator.num_processes
    row_lengths = lengths(train_split)
    pad = model.config.pad_token_id
    steps = settings.epochs * len(_epoch_batches(row_lengths, settings, 0, processes))
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=settings.lr, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, int(steps * WARMUP_RATIO), steps)
    set_seed(settings.seed, device_specific=True)  # dropout differs between processes
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)

    best: Score | None = None
    for epoch in range(settings.epochs):
        model.train()
        batches = _epoch_batches(row_lengths, settings, epoch, processes)
        total_loss = torch.zeros((), device=accelerator.device)
        bar = tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", unit="step", disable=_bar_off(accelerator))
        for indices in bar:
            own = indices[accelerator.process_index :: processes]
            with accelerator.autocast():
                batch = collate(train_split, own, pad)
                losses = row_losses(model, model_inputs(plain, batch), batch, own)
            # Processes average their gradients, so each one's share is scaled to make that the mean over all rows.
            loss = losses.float().sum() * (processes / len(indices))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total_loss += loss.detach()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        mean_loss = accelerator.reduce(total_loss, "mean").item() / len(batches)
        current = score(predict(plain, data.splits["valid"], accelerator, "validate"), data.splits["valid"])
        improved = current.better_than(best, settings.measure)
        logger.info(
            "[Epoch %d] : train loss %.4f, valid loss %.4f, valid accuracy %.4f%s",
            epoch + 1, mean_loss, current.loss, current.accuracy,
            ", best so far: saved" if improved else "",
        )  # fmt: skip
        if improved:
            best = current
            if accelerator.is_main_process:
                save(plain)
    accelerator.wait_for_everyone()
    assert best, "at least one epoch"
    return best


def _epoch_batches(row_lengths: np.ndarray, settings: Settings, epoch: int, processes: int) -> list[np.ndarray]:
    batches = shuffled_batches(row_lengths, settings.batch_size, seed=settings.seed * 1000 + epoch)
    # A last batch too small to give every process a row would leave one of them waiting for the others.
    return [batch for batch in batches if len(batch) >= processes]


def _parameter_groups(model: PreTrainedModel) -> list[dict]:
    # Biases and layer norms are not decayed (Devlin et al. 2019).
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def _bar_off(accelerator: Accelerator) -> bool | None:
    # None: tqdm shows a bar on a terminal only.
    return None if accelerator.is_main_process else True
