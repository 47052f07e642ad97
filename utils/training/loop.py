"""The training loop that train.py, fastformers.py and prune.py share, for one process or many.

All that a step depends on is the model, the optimizer's averages and the step's number: rows and dropout are drawn from
the seed and that number. So a run that was stopped and continued ends as one that was not, to the bit.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from utils.data.tables import Data, collate, lengths, shuffled_batches
from utils.models.classifier import model_inputs
from utils.models.output_layer import standardized_output
from utils.system.bars import progress_bar
from utils.system.devices import keep_freed_memory, wait_for_everyone
from utils.system.signals import Terminated, record_signals
from utils.training.resume import Progress, UnfinishedRun, load_progress, save_progress
from utils.training.scalars import Scalars, no_scalars
from utils.training.scoring import Evaluation, evaluate_logits, predict
from utils.training.tasks import task_of

logger = logging.getLogger(__name__)

EAGER_LENGTH = 128  # tokens; of longer rows eager attention gains less, and its memory grows with their square
AGREE_STEPS = 10  # several processes ask one another so often whether one of them is to stop

# Called with the model, its inputs, the batch of `collate` they come from and the rows' indices in the training split.
RowLosses = Callable[[nn.Module, dict, dict, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a training."""

    lr: float  # the peak
    epochs: int
    batch_size: int  # rows of one optimizer step, over all processes together
    measure: str  # of the task, or one of `LOSSES` of utils.training.scoring: picks the best model on valid
    seed: int
    warmup_ratio: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulation_steps: int = 1  # parts in which a process computes its rows of a step, one after the other
    eval_steps: int | None = None  # between evaluations, beside those at the end of each epoch
    patience: int | None = None  # evaluations in a row without a better model that end the run


def train(
    model: PreTrainedModel,
    data: Data,
    row_losses: RowLosses,
    settings: Settings,
    accelerator: Accelerator,
    save: Callable[[PreTrainedModel], None],
    run: UnfinishedRun | None = None,
    write_scalars: Scalars = no_scalars,
    kd_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Evaluation:
    """Train `model` in place, score it on the validation set, and save the best.

    AdamW with decoupled weight decay, a linear warm-up, then linear decay to 0.

    Args:
        row_losses: gives every row's loss, [rows]; its model is wrapped, where there are several processes.
        save: called in the main process with the model whenever an evaluation's score is the best so far.
        run: where this run is saved, and continued from if it is there; the caller removes it in the end.
        write_scalars: called in the main process with a step and its losses.
        kd_loss: gives the loss of each row of the validation set, [rows], from its logits, [rows, outputs]; taken in
            the place of the labels' loss.

    Returns:
        The best score.

    Raises:
        KeyboardInterrupt: Ctrl-C, or (Terminated) SIGTERM; the run is saved first.
    """
    with standardized_output(model, data.scale) as in_units:

        def save_in_units(best: PreTrainedModel) -> None:
            with in_units():
                save(best)

        return _train(model, data, row_losses, settings, accelerator, save_in_units, run, write_scalars, kd_loss)


def _train(
    model: PreTrainedModel,
    data: Data,
    row_losses: RowLosses,
    settings: Settings,
    accelerator: Accelerator,
    save: Callable[[PreTrainedModel], None],
    run: UnfinishedRun | None,
    write_scalars: Scalars,
    kd_loss: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Evaluation:
    """As `train`, of a model whose last layer is standardized where it gives scores."""
    keep_freed_memory()
    plain, row_lengths, processes = model, lengths(data.splits["train"]), accelerator.num_processes
    per_epoch = len(_epoch_batches(row_lengths, settings, 0, processes))
    total = settings.epochs * per_epoch
    _choose_attention(plain, row_lengths, accelerator)
    adamw, schedule, progress = _start(plain, settings, total, accelerator, run)
    model, optimizer = accelerator.prepare(model, adamw)

    def save_run() -> None:
        if run and accelerator.is_main_process:
            save_progress(run, plain, adamw, accelerator, progress)

    batches: list[np.ndarray] = []
    bar = progress_bar(initial=progress.step, total=total, unit="step", shown=accelerator.is_main_process)
    with bar, record_signals() as received:
        while True:
            if progress.step > progress.evaluated and _evaluation_due(progress.step, per_epoch, settings):
                _evaluate(plain, data, settings, accelerator, progress, per_epoch, save, write_scalars, kd_loss)
                save_run()
            if progress.step == total or (settings.patience and progress.since_best >= settings.patience):
                break
            epoch, position = divmod(progress.step, per_epoch)
            if position == 0 or not batches:
                batches = _epoch_batches(row_lengths, settings, epoch, processes)
                bar.set_description(f"epoch {epoch + 1}/{settings.epochs}")
            _seed_dropout(settings.seed, progress.step, accelerator.process_index)
            loss = _backward(model, plain, data, row_losses, settings, accelerator, batches[position])
            _update(model, optimizer, schedule, settings, accelerator)
            progress.step += 1
            progress.loss_sum += loss
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if accelerator.is_main_process:
                write_scalars(progress.step, {"train/loss": loss, "train/lr": schedule.get_last_lr()[0]})
            _stop_if_asked(received, accelerator, progress, save_run)
            if run and progress.step % run.save_steps == 0:
                save_run()
    wait_for_everyone(accelerator)
    assert progress.best, "at least one evaluation"
    return progress.best


def _start(
    model: PreTrainedModel, settings: Settings, total: int, accelerator: Accelerator, run: UnfinishedRun | None
) -> tuple[torch.optim.Optimizer, LRScheduler, Progress]:
    """The optimizer, its schedule over `total` steps, and how far both are; the model, too, where a run continues."""
    adamw = torch.optim.AdamW(_parameter_groups(model, settings), lr=settings.lr, fused=True)
    progress = load_progress(run, model, adamw, accelerator) if run else Progress()
    warmup = int(total * settings.warmup_ratio)
    schedule = get_linear_schedule_with_warmup(adamw, warmup, total, last_epoch=progress.step - 1)
    return adamw, schedule, progress


def _seed_dropout(seed: int, step: int, process: int) -> None:
    # It differs between steps and processes, and is the same again in a run that is continued.
    torch.manual_seed((seed * 2**20 + step) * 2**10 + process)


def _choose_attention(model: PreTrainedModel, row_lengths: np.ndarray, accelerator: Accelerator) -> None:
    # On a CPU in bf16, PyTorch's fused attention is slow on its way back: of 16 tokens a row, a step of a small student
    # takes 2.5 times as long as with transformers' eager one.
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and row_lengths.max() <= EAGER_LENGTH:
        model.set_attn_implementation("eager")


def _backward(
    model: nn.Module,
    plain: PreTrainedModel,
    data: Data,
    row_losses: RowLosses,
    settings: Settings,
    accelerator: Accelerator,
    indices: np.ndarray,
) -> float:
    """Add up the gradients of the mean loss over a step's rows, and return that loss over this process's share."""
    model.train()
    own = indices[accelerator.process_index :: accelerator.num_processes]
    parts = [part for part in np.array_split(own, settings.accumulation_steps) if len(part)]
    total = torch.zeros((), device=accelerator.device)
    for i, rows in enumerate(parts):
        with accelerator.autocast():
            batch = collate(data.splits["train"], rows, plain.config.pad_token_id)
            losses = row_losses(model, model_inputs(plain, batch), batch, rows)
        # Processes average their gradients, so each one's share is scaled to make that the mean over all rows.
        loss = losses.float().sum() * (accelerator.num_processes / len(indices))
        if i < len(parts) - 1:
            with accelerator.no_sync(model):
                accelerator.backward(loss)
        else:
            accelerator.backward(loss)
        total += loss.detach()
    return total.item()


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    settings: Settings,
    accelerator: Accelerator,
) -> None:
    """Change the weights by the gradients that were added up, and start these anew."""
    accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def _evaluation_due(step: int, per_epoch: int, settings: Settings) -> bool:
    return step % per_epoch == 0 or (settings.eval_steps is not None and step % settings.eval_steps == 0)


def _evaluate(
    model: PreTrainedModel,
    data: Data,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress,
    per_epoch: int,
    save: Callable[[PreTrainedModel], None],
    write_scalars: Scalars,
    kd_loss: Callable[[torch.Tensor], torch.Tensor] | None,
) -> None:
    """Score the model, save it if it is the best so far, and note both in `progress`."""
    steps = progress.step - progress.evaluated
    mean_loss = accelerator.reduce(torch.tensor(progress.loss_sum, device=accelerator.device), "mean").item() / steps
    valid = data.splits["valid"]
    logits = predict(model, valid, accelerator, "validate")
    current = evaluate_logits(logits, valid, task_of(data), settings.measure, kd_loss)
    improved = current.better_than(progress.best, settings.measure)
    logger.info(
        "[Epoch %.4g] : train loss %.4f, %s%s",
        progress.step / per_epoch,
        mean_loss,
        current,
        ", best so far: saved" if improved else "",
    )
    if accelerator.is_main_process:
        scalars = {current.loss_name: current.loss, current.measure: current.score}
        write_scalars(progress.step, {f"valid/{name}": value for name, value in scalars.items()})
        if improved:
            save(model)
    if improved:
        progress.best = current
    progress.since_best = 0 if improved else progress.since_best + 1
    progress.evaluated, progress.loss_sum = progress.step, 0.0


def _stop_if_asked(
    received: list[int], accelerator: Accelerator, progress: Progress, save_run: Callable[[], None]
) -> None:
    """Save the run and end it where a signal came, in all processes at the same step."""
    asked = len(received)
    if accelerator.num_processes > 1:
        if progress.step % AGREE_STEPS:
            return
        asked = int(accelerator.reduce(torch.tensor(asked, device=accelerator.device), "sum"))
    if not asked:
        return
    save_run()
    wait_for_everyone(accelerator)
    kind = Terminated if Terminated.signal in received else KeyboardInterrupt
    raise kind(f"stopped at step {progress.step}: run the same command again to continue")


def _epoch_batches(row_lengths: np.ndarray, settings: Settings, epoch: int, processes: int) -> list[np.ndarray]:
    batches = shuffled_batches(row_lengths, settings.batch_size, seed=settings.seed * 1000 + epoch)
    # A last batch too small to give every process a row would leave one of them waiting for the others.
    return [batch for batch in batches if len(batch) >= processes]


def _parameter_groups(model: PreTrainedModel, settings: Settings) -> list[dict]:
    # Biases and layer norms are not decayed (Devlin et al. 2019). A schedule that starts late wants the initial rate.
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": settings.weight_decay, "initial_lr": settings.lr},
        {"params": others, "weight_decay": 0.0, "initial_lr": settings.lr},
    ]
