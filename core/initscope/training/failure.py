"""What ended a training, in one line: memory and disk by name, whatever words torch has for them."""

from __future__ import annotations

import errno

import torch


def reason(error: BaseException) -> str:
    """What ended a training, in one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
    if is_out_of_memory(error):
        return f"out of memory: {text}; a smaller batch_size, width or image_size needs less"
    if is_out_of_disk(error):
        return f"the disk takes nothing more: {text}; make room, then resume the run from its checkpoint"
    return text


def is_out_of_disk(error: BaseException) -> bool:
    """Whether a disk or a quota is full; torch's writer of checkpoints says so in words only: it could not
    write as far as it meant to.
    """
    return (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    ) or "inline_container.cc" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's, the CPU's or Python's memory ran out; torch's CPU allocator says so in words
    only.
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
