"""What a model runs on: the device, the precision, the processes that a launcher started, and freed memory."""

import ctypes
import logging
import os

import torch
from accelerate import Accelerator

from utils.system.errors import UserError
from utils.system.launcher import leave_at_exit

logger = logging.getLogger(__name__)

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GIB = 2**30


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


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bf16; `device` is cpu, cuda or mps."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate's handle on this process: device, autocast, and the other processes where a launcher started several.

    Args:
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it, else fp32.

    Raises:
        UserError: the device is not there, or cannot do the precision, or the launcher started more processes on this
            machine than it has GPUs.
    """
    device = choose_device(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # as torchrun and accelerate launch set it
    if device == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"--device=cuda: {processes} processes but {torch.cuda.device_count()} GPU(s): start one for each GPU, or "
            "take --device=cpu"
        )
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    if precision == "fp16" and device != "cuda":
        raise UserError("--precision=fp16 needs a CUDA device: choose bf16, fp32 or auto")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    leave_at_exit(accelerator.state)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    logger.info("[Device] : %s, %s, %d process(es)", accelerator.device, precision, accelerator.num_processes)
    return accelerator


def wait_for_everyone(accelerator: Accelerator) -> None:
    """Return when all processes of the launcher have come here.

    Accelerate names a GPU for that even where the processes run on the CPU, which fails where there are fewer of them.
    """
    if accelerator.device.type == "cpu" and accelerator.num_processes > 1:
        torch.distributed.barrier()
    else:
        accelerator.wait_for_everyone()


def keep_freed_memory() -> None:
    """Have this process keep what it frees instead of giving it back to the kernel. Only with glibc, else nothing.

    By default every tensor of more than 32 MB, such as the gradient of the word embeddings, and some smaller ones are
    mapped anew in every step, and the kernel fills their pages with zeros one by one: a tenth of a student's step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked so
        return
    mallopt(M_MMAP_THRESHOLD, GIB)
    mallopt(M_TRIM_THRESHOLD, GIB)
