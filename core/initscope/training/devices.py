"""Where and how precisely a network computes: device, threads, precision, and the layout of its tensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto``: a CUDA GPU, else Apple's, else the CPU. Raises ConfigError if it is
    not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        available = ", ".join(kind for kind, ok in there.items() if ok)
        raise ConfigError(f"device {name} is not available on this machine; available: {available}", "device")
    return torch.device(name)


def prepare_torch(config: RunConfig, device: torch.device) -> None:
    """Threads and determinism: the same config gives the same sums in the same order."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // config.processes))
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of that name; ``auto``: bfloat16 where the device computes in it, float32 where it would
    be emulated.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and any(
            torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16", "bf16")
        )
    return "bfloat16" if native else "float32"


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast for ``bfloat16``; nothing for ``float32``."""
    if name == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        yield


def channels_last(model: nn.Module) -> None:
    """Lay the weights of 2-d convolutions out as these kernels like them; other weights have no such
    layout.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(
                memory_format=torch.channels_last
            )  # contiguous() leaves one channel as it is


def in_layout(inputs: Tensor) -> Tensor:
    """Images in the layout of the weights; other inputs as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
