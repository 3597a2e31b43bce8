"""From numbers to rows: a recorded step waits here until its numbers have arrived from the device; then the
writer gets its rows, and the status what they say.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from initscope.recording.guard import Guard
from initscope.recording.loop_facts import first_nonfinite
from initscope.recording.meter import LayerMeter
from initscope.recording.reading import HostCopy, StepMeasurements, layer_values, relative_signal
from initscope.recording.reductions import Number
from initscope.schema import LAYER_METRICS
from initscope.store import RunWriter

HELD_STEPS = 16
"""Steps whose numbers wait until rows are made of them: many in a row find the code for it in the processor's
cache, which a training step empties.
"""
CURVE_POINTS = 40
"""Points of the loss sparkline kept in ``status.json``."""
ROUNDING = 1e-6
"""An accuracy this much beyond 1 is 1."""
EPOCH = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
"""The numbers of a row of ``epochs``, in the order of its columns."""


@dataclass
class _Pending:
    """A recorded step whose numbers are on their way from the device."""

    step: int
    epoch: int
    learning_rate: float
    seconds: float
    reading: StepMeasurements | None
    """None if the network could not be measured."""
    sent: HostCopy
    """Loss, accuracy, and what ``reading`` waits for."""
    has_loss: bool
    awaited: bool
    """Whether the loss is seen only now, from a device."""


@dataclass
class _Mean:
    """The mean of the numbers added so far; NaN of none."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


class StepRows:
    """Makes rows of what ``meter`` has measured, in the order of the steps.

    ``note`` is given facts, ``late_loss`` losses that a device had; ``guard`` warns of accuracies that are
    none. The ``writer`` is set when the run begins.
    """

    writer: RunWriter

    def __init__(
        self,
        meter: LayerMeter,
        guard: Guard,
        note: Callable[[dict[str, Any]], None],
        late_loss: Callable[[float], None],
    ):
        self.last_loss: float | None = None
        self.loss_finite = True
        self.relative_signal = math.inf
        self.measured: tuple[list[str], np.ndarray] | None = None
        """(names, (metrics, layers)) of the newest step that has arrived."""
        self.next_epoch = 0
        """The row of ``epochs`` after the last."""
        self._meter, self._guard, self._note, self._late_loss = meter, guard, note, late_loss
        self._pending: deque[_Pending] = deque()
        self._logged: deque[tuple[int, list[str], HostCopy]] = deque()
        self._curve: list[float] = []
        self._curve_stride = 1
        self._seen = 0
        self._columns: tuple[pa.Array, pa.Array, pa.Array] | None = None
        self._order: Sequence[int] = []
        self._recent_accuracy: deque[float] = deque(maxlen=20)
        self._percent = False
        self._train_loss, self._train_accuracy = _Mean(), _Mean()
        self._nonfinite: dict[str, Any] | None = None

    # -- on their way

    def add(
        self,
        step: int,
        epoch: int,
        seconds: float,
        reading: StepMeasurements | None,
        loss: Tensor | float | None,
        accuracy: Tensor | float | None,
    ) -> None:
        """A recorded step; ``reading`` is None where nothing was measured of the layers."""
        waiting = [] if reading is None else reading.waiting
        sent = HostCopy(
            [math.nan if loss is None else loss, math.nan if accuracy is None else accuracy, *waiting]
        )
        self._pending.append(
            _Pending(
                step,
                epoch,
                self.learning_rate(),
                seconds,
                reading,
                sent,
                loss is not None,
                on_device(loss),
            )
        )

    def add_metrics(self, step: int, names: list[str], numbers: list[Number]) -> None:
        """Somebody's own numbers at a step."""
        self._logged.append((step, names, HostCopy(numbers)))

    def learning_rate(self) -> float:
        """The first optimizer's, of its first group; NaN of none."""
        optimizers = self._meter.optimizers
        groups = optimizers[0].param_groups if optimizers else ()
        return float(groups[0]["lr"]) if groups and "lr" in groups[0] else math.nan

    @property
    def due(self) -> bool:
        """Whether so many steps wait that rows should be made of them."""
        return len(self._pending) >= HELD_STEPS

    def harvest(self, everything: bool = False) -> None:
        """Hand to the writer what has arrived on the host; wait for it only when ``everything`` is asked
        for.
        """
        while self._pending and (
            everything or len(self._pending) > 2 * HELD_STEPS or self._pending[0].sent.arrived()
        ):
            self._write(self._pending.popleft())
        while self._logged and (
            everything or len(self._logged) > 2 * HELD_STEPS or self._logged[0][2].arrived()
        ):
            step, names, sent = self._logged.popleft()
            self.writer.metrics(step, dict(zip(names, map(float, sent.numbers()), strict=True)))

    # -- arrived

    def _write(self, pending: _Pending) -> None:
        first, second, *numbers = pending.sent.numbers()
        loss, accuracy = float(first) if pending.has_loss else None, self._share(float(second))
        self._recent_accuracy.append(accuracy)
        self.writer.step(pending.step, pending.epoch, loss, accuracy, pending.learning_rate, pending.seconds)
        if loss is not None and pending.awaited:
            self._late_loss(loss)
        if loss is not None:
            self.last_loss = loss
            self.loss_finite = self.loss_finite and math.isfinite(loss)
            self._train_loss.add(loss)
            self._add_to_curve(loss)
            self.writer.note(loss=loss, curve=self._curve)
        if not math.isnan(accuracy):
            self._train_accuracy.add(accuracy)
        recent = [a for a in self._recent_accuracy if not math.isnan(a)]
        self.writer.note(accuracy=sum(recent) / len(recent) if recent else None, seconds=pending.seconds)
        if pending.reading is not None:
            measured = pending.reading.table(numbers)
            order = pending.reading.order
            self.writer.layers(pending.step, *self._layer_columns(order), layer_values(measured))
            self.relative_signal = relative_signal(measured)
            self.measured = [self._meter.names[i] for i in order], measured
            self._note_nonfinite(pending.step, loss, *self.measured)
        elif self._meter.loss_only:
            self._note_nonfinite(pending.step, loss, [], np.empty((len(LAYER_METRICS) - 1, 0)))

    def _note_nonfinite(self, step: int, loss: float | None, names: list[str], measured: np.ndarray) -> None:
        """The fact ``first_nonfinite``: since which recorded step every one has held a NaN or an infinity,
        and in which tensor it was first.

        One that passes without harm to the loss is forgotten: under loss scaling gradients overflow by
        design.
        """
        found = first_nonfinite(loss, measured, names)
        harmed = loss is not None and not math.isfinite(loss)
        if found is None and self._nonfinite is not None and not self._nonfinite["loss"]:
            self._nonfinite = None
            self._note({"first_nonfinite": None})
        elif found is not None and self._nonfinite is None:
            self._nonfinite = {"step": step, **found, "loss": harmed}
            self._note({"first_nonfinite": dict(self._nonfinite)})
        elif harmed and self._nonfinite is not None and not self._nonfinite["loss"]:
            self._nonfinite["loss"] = True
            self._note({"first_nonfinite": dict(self._nonfinite)})

    def _layer_columns(self, order: Sequence[int]) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Names, kinds and depths of the layers, made anew when their order changes."""
        if self._columns is None or self._order != order:
            index = pa.array(range(len(order)), pa.int32())
            names = pa.DictionaryArray.from_arrays(index, [self._meter.names[i] for i in order])
            kinds = [self._meter.kinds[i] for i in order]
            distinct = sorted(set(kinds))
            kind = pa.DictionaryArray.from_arrays(
                pa.array([distinct.index(k) for k in kinds], pa.int32()), distinct
            )
            self._columns, self._order = (names, kind, index), order
        return self._columns

    # -- epochs

    def write_epoch(
        self, epoch: int, seconds: float, numbers: dict[str, float], told: Mapping[str, Any]
    ) -> dict[str, float | None]:
        """A row of ``epochs``: ``numbers`` for ``EPOCH``, those of training that were not ``told`` as means
        since the last row. Returns what the row says, None for what is not known.
        """
        for key in ("train_accuracy", "val_accuracy"):
            numbers[key] = self._share(numbers[key])
        for key, mean in (("train_loss", self._train_loss), ("train_accuracy", self._train_accuracy)):
            if told[key] is None:
                numbers[key] = mean.value
        self._train_loss, self._train_accuracy = _Mean(), _Mean()
        self.next_epoch = epoch + 1
        self.writer.epoch(epoch, *(numbers[key] for key in EPOCH), seconds)
        return {
            key: None if math.isnan(numbers[key]) and told[key] is None else numbers[key] for key in EPOCH
        }

    def _share(self, accuracy: float) -> float:
        """An accuracy as a share: of percentages a hundredth, from the first number that can only be one."""
        if math.isnan(accuracy):
            return accuracy
        if 1 + ROUNDING < accuracy <= 100 * (1 + ROUNDING) and not self._percent:
            self._percent = True
            self._guard.tell_once(
                f"an accuracy of {accuracy:.4g} is taken for a percentage, and so are all from now on; give "
                "a share from 0 to 1"
            )
        share = accuracy / 100 if self._percent else accuracy
        if not 0 <= share <= 1 + ROUNDING:
            self._guard.tell_once(
                f"an accuracy of {accuracy:.4g} is neither a share nor a percentage, and is not recorded; "
                "give a share from 0 to 1",
                key="accuracy",
            )
            return math.nan
        return min(1.0, share)

    # -- the sparkline

    def _add_to_curve(self, loss: float) -> None:
        """Keep a sparkline of bounded length: every stride-th loss, the stride doubling when it is full; and
        the first that is no number, which ends it.
        """
        broke = not math.isfinite(loss) and all(map(math.isfinite, self._curve[-1:]))
        if broke or self._seen % self._curve_stride == 0:
            self._curve.append(loss)
        self._seen += 1
        if len(self._curve) > CURVE_POINTS:
            self._curve, self._curve_stride = self._curve[::2], self._curve_stride * 2

    def restore_curve(self, losses: Iterable[float]) -> None:
        """A resumed run's sparkline shows the whole run."""
        for loss in losses:
            self._add_to_curve(loss)


def on_device(value: Any) -> bool:
    """Whether ``value`` lies where looking at it waits."""
    return isinstance(value, Tensor) and value.device.type != "cpu"
