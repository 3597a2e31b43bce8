"""One step's measurements: raw numbers, some perhaps still on a device, and the columns they make once all
have arrived.

Formulas run on the host, over plain floats: on a GPU each of them would be one more kernel a layer a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from initscope.recording.calls import LayerCall
from initscope.recording.quantities import OF_OUTPUTS, WeightQuantity
from initscope.recording.reductions import Number
from initscope.schema import LAYER_METRICS, MISSING


@dataclass(eq=False)
class WeightNumbers:
    """What a step made of one weight of ``size`` numbers, and the rows that show it."""

    rows: Sequence[int]
    size: int
    values: dict[str, Number]
    """Raw numbers, by the names of the quantities that took them; what was not measured is not there."""


class StepMeasurements:
    """A step of all layers: ``calls`` of each, the weights, what ``quantities`` of weights make of them, and
    the layers' ``order`` from the input to the output.
    """

    def __init__(
        self,
        calls: Sequence[Sequence[LayerCall]],
        weights: Sequence[WeightNumbers],
        order: Sequence[int],
        quantities: Sequence[WeightQuantity],
    ):
        self.order = order
        self._calls, self._weights, self._quantities = calls, weights, quantities
        self._of_outputs: list[dict[Any, Number]] = [
            {key: n for quantity in OF_OUTPUTS for key, n in quantity.at_the_end(of_layer).items()}
            for of_layer in calls
        ]
        holders: list[Any] = [
            holder for of_layer in calls for call in of_layer for holder in (call.values, call.gradients)
        ]
        holders += [weight.values for weight in weights] + self._of_outputs
        self._places = [
            (holder, key) for holder in holders for key, value in _items(holder) if isinstance(value, Tensor)
        ]

    @property
    def waiting(self) -> list[Tensor]:
        """The numbers that lie on a device, scalars each."""
        return [holder[key] for holder, key in self._places]

    @property
    def weights_finite(self) -> bool:
        """Whether every weight was finite before its update and after it, as far as its numbers have arrived
        (on the CPU all have).
        """
        known = (weight.values.get(name) for weight in self._weights for name in ("weight", "moved"))
        return all(not isinstance(value, float) or math.isfinite(value) for value in known)

    def table(self, arrived: Sequence[float] = ()) -> np.ndarray:
        """(metrics, layers), float32: a row for each of ``LAYER_METRICS`` less ``nonfinite``, a column a
        layer in ``order``. ``arrived`` are the values of ``waiting``. What was not measured (a frozen weight,
        a layer that did not run, no optimizer given) is ``MISSING``.
        """
        for (holder, key), number in zip(self._places, arrived, strict=True):
            holder[key] = number
        columns: list[dict[str, float]] = [{} for _ in self._calls]
        for cells, calls, values in zip(columns, self._calls, self._of_outputs, strict=True):
            for of_outputs in OF_OUTPUTS if calls else ():
                cells |= of_outputs.columns(calls, cast("dict[Any, float]", values))
        for weight in self._weights:
            for quantity in self._quantities:
                found = quantity.columns(cast("dict[str, float]", weight.values), weight.size)
                for row in weight.rows:
                    columns[row] |= found
        table = [[columns[i].get(name, MISSING) for i in self.order] for name in LAYER_METRICS[:-1]]
        with np.errstate(over="ignore"):
            return np.array(table, np.float64).astype(np.float32)


def _items(holder: dict[str, Number] | list[Number]) -> Any:
    return holder.items() if isinstance(holder, dict) else enumerate(holder)


def relative_signal(measured: np.ndarray) -> float:
    """signal_std over the RMS of the last layer's pre-activation, from ``StepMeasurements.table``; infinity
    where not measured.
    """
    mean, std, signal = (
        float(measured[LAYER_METRICS.index(name), -1])
        for name in ("activation_mean", "activation_std", "signal_std")
    )
    size = math.hypot(mean, std)
    return (
        signal / size if size > 0 and signal >= 0 and math.isfinite(size) else 0.0 if size == 0 else math.inf
    )


def layer_values(measured: np.ndarray) -> np.ndarray:
    """Rows for the store from ``StepMeasurements.table`` (metrics, layers), with ``nonfinite`` counted as the
    last.

    ``nonfinite`` says how many of weight, gradient, output and output gradient hold a NaN or an infinity.
    """
    return np.vstack([measured, (~np.isfinite(measured[_TENSORS])).sum(0, dtype=np.float32)])


_TENSORS = [
    LAYER_METRICS.index(name)
    for name in ("weight_norm", "grad_norm", "activation_std", "activation_grad_rms")
]
"""The metrics that are no number if one of the four tensors holds one that is none."""


class HostCopy:
    """Numbers on their way to the host: plain ones and scalar tensors, those of a device in one transfer that
    nothing waits for.
    """

    def __init__(self, numbers: Sequence[Number]):
        self._numbers = [x.item() if isinstance(x, Tensor) and x.device.type == "cpu" else x for x in numbers]
        there = [x.detach() for x in self._numbers if isinstance(x, Tensor)]
        self._sent = self._event = None
        if there:
            device = there[-1].device
            kind = torch.float32 if device.type == "mps" else torch.float64
            self._sent = torch.stack([x.reshape(()).to(device, kind, non_blocking=True) for x in there])
            if device.type == "cuda":
                self._sent = self._sent.to("cpu", non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()

    def arrived(self) -> bool:
        """Whether looking at the numbers waits for nothing."""
        return self._event is None or self._event.query()

    def numbers(self) -> list[float]:
        """All of them, in their order; waits for what has not arrived."""
        if self._event is not None:
            self._event.synchronize()
        sent = iter(self._sent.tolist() if self._sent is not None else ())
        return [next(sent) if isinstance(x, Tensor) else x for x in self._numbers]
