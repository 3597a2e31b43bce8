"""One number from one tensor: norms, and what a layer's output says about its units and samples.

What comes out of a CPU tensor is a Python float, because there an operation on a scalar tensor costs fifty
times one on a float; what comes out of a device's tensor is a scalar tensor that stays there, because looking
at it would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from initscope.recording.reductions import cpu, gpu
from initscope.recording.tensors import by_sample

Number = float | Tensor


def on_cpu(x: Tensor) -> bool:
    """Whether numbers of ``x`` can be looked at without waiting for a device."""
    return x.device.type == "cpu"


def norm(x: Tensor) -> Number:
    """L2 norm, right also where float32 squares would vanish (below 1e-19) or overflow. Only Apple's GPUs,
    which have no float64, cannot do that.
    """
    if not on_cpu(x):
        return gpu.norms([x])[0]
    if type(x) is Tensor:
        return cpu.norm(x)
    return torch.linalg.vector_norm(
        x, dtype=torch.float64
    ).item()  # of another kind, spread over processes perhaps: it knows best how


def norms(tensors: list[Tensor]) -> Sequence[Number]:
    """L2 norms of several tensors, with few kernels where launching one costs."""
    return gpu.norms(tensors) if _together(tensors) else [norm(x) for x in tensors]


def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Number]:
    """Copy ``sources`` into ``targets`` (alike in shape and layout); their L2 norms."""
    if _together(targets):
        return gpu.copy_norms(targets, sources)
    pairs = zip(targets, sources, strict=True)
    return [
        cpu.copy_norm(target, source) if cpu.in_order(target) else norm(target.copy_(source))
        for target, source in pairs
    ]


def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Number]:
    """L2 norms of the differences; ``before`` may be overwritten."""
    if _together(before):
        return gpu.change_norms(before, after)
    pairs = zip(before, after, strict=True)
    return [cpu.change_norm(old, new) if cpu.in_order(old) else norm(old.sub_(new)) for old, new in pairs]


def _together(tensors: list[Tensor]) -> bool:
    """Whether there are tensors, all on one device that is not the CPU."""
    return bool(tensors) and not on_cpu(tensors[0]) and all(x.device == tensors[0].device for x in tensors)


def forward_statistics(output: Tensor, off: bool = False) -> dict[Any, Any]:
    """What gives activation_mean, activation_std and signal_std of a layer's output (samples first) when it
    is ``finalize``. ``off`` asks for the units that are not above zero for any sample too, which a rectifier
    will set to zero: with the same look at the memory.

    ``signal_std`` is the population standard deviation of each unit across the samples, root-mean-squared
    over units. It can be a millionth of the values themselves, so the first sample is subtracted before
    anything is squared: the difference of two close floats is exact, and what is left has the size of the
    signal. The whole variance is that across samples plus that of the units' means, which are few and are
    shifted before they are squared too. Where a look at the plain sums (half the work) shows that little
    cancels, a CPU takes those; a GPU would have to be waited for to know.
    """
    x = by_sample(output)
    return (cpu if on_cpu(x) else gpu).forward_statistics(x, off)


def finalize(found: dict[Any, float]) -> dict[str, float]:
    """The three columns, from what ``forward_statistics`` found, once a device has sent its share."""
    return gpu.finalize(found) if "samples" in found else dict(found)


def dead_units(output: Tensor) -> Tensor:
    """For each of a rectifier's units (samples first), whether it is zero for every sample."""
    x = by_sample(output.detach())
    return (cpu if on_cpu(x) else gpu).dead_units(x)


def ratio(part: float, whole: float) -> float:
    """``part / whole``, where nothing is 0 of anything, of nothing too."""
    if part == 0:
        return 0.0
    return part / whole if whole else math.nan if math.isnan(part) else math.inf
