"""Norms of weights that are spread over processes (FSDP2's ``fully_shard``, tensor parallel: ``DTensor``).

The square of a whole tensor's norm is the sum of its parts' squares. What is replicated along a dimension of
the mesh lies in every process of it and would be counted as often; so the sum runs only over dimensions along
which a tensor is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from initscope.recording.reductions import Number
from initscope.recording.tensors import is_shared, local

NORMS = ("weight", "moved", "gradient")
"""What is measured of a weight; a fixed order, so that all processes send numbers of the same meaning."""


def sum_over_processes(weights: Sequence[tuple[Tensor, dict[str, Number]]]) -> None:
    """Put into ``values`` of each (parameter, values) the norms of whole tensors in place of this process's
    parts.

    One all-reduce for all weights that are cut along the same dimensions of one mesh: of FSDP2 one. All
    processes of the mesh have to call this; a part that one of them does not have counts as zero.
    """
    together: dict[tuple[Any, tuple[int, ...]], list[tuple[Tensor, dict[str, Number]]]] = {}
    parameter: Any
    for parameter, values in weights:
        if is_shared(parameter):
            cut = tuple(k for k, placement in enumerate(parameter.placements) if not placement.is_replicate())
            if cut:
                together.setdefault((parameter.device_mesh, cut), []).append((parameter, values))
    for (mesh, cut), group in together.items():
        here = local(group[0][0]).device
        device = (
            here if here.type == mesh.device_type else torch.device(mesh.device_type)
        )  # weights offloaded to the CPU
        squares = torch.stack([_square(values.get(name), device) for _, values in group for name in NORMS])
        for dimension in cut:
            torch.distributed.all_reduce(squares, group=mesh.get_group(dimension))
        roots = squares.sqrt()
        lengths = roots.tolist() if device.type == "cpu" else roots.unbind()
        for k, (_, values) in enumerate(group):
            for n, name in enumerate(NORMS):
                if name in values:
                    values[name] = lengths[k * len(NORMS) + n]


def _square(length: Number | None, device: torch.device) -> Tensor:
    kind = torch.float32 if device.type == "mps" else torch.float64
    length = torch.as_tensor(0.0 if length is None else length, dtype=kind, device=device)
    return length * length
