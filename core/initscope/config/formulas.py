"""The standard deviations that initializations give to weights and biases, as formulas. No torch."""

from __future__ import annotations

import math

from initscope.errors import TheoryUnavailable


def weight_std(
    scheme: str,
    fan_in: int,
    fan_out: int,
    *,
    linear: bool,
    longest: int,
    torch_fan_in: int,
    gain: float = 1.0,
) -> float:
    """Standard deviation of the initial weights (``catalog.INITS`` names the sources).

    ``longest``: the larger side of the flattened weight (output units, inputs a unit), which sets
    ``orthogonal``. ``torch_fan_in``: what torch's constructors count, the weight's size without its first
    dimension; it is another number than ``fan_in`` for transposed convolutions. Raises TheoryUnavailable
    where the data decide (``lsuv``) or the network (``auto``).
    """
    stds = {
        "default": 1 / math.sqrt(3 * torch_fan_in),
        "tutorial": 0.01 if linear else math.sqrt(2 / fan_out),
        "kaiming_normal": math.sqrt(2 / fan_in),
        "kaiming_uniform": math.sqrt(2 / fan_in),
        "xavier_normal": math.sqrt(2 / (fan_in + fan_out)),
        "xavier_uniform": math.sqrt(2 / (fan_in + fan_out)),
        "orthogonal": 1 / math.sqrt(longest),
        "normal_0.01": 0.01,
        "zeros": 0.0,
    }
    if scheme not in stds:
        by = "what the network does" if scheme == "auto" else "what the data does"
        raise TheoryUnavailable(
            f"theory needs the weights' variance in advance, and {scheme!r} sets it by {by}"
        )
    return gain * stds[scheme]


def bias_std(scheme: str, torch_fan_in: int) -> float:
    """Standard deviation of the initial biases: U(±1/sqrt(fan_in)) for ``default``, else 0."""
    return 1 / math.sqrt(3 * torch_fan_in) if scheme == "default" else 0.0
