"""Records a training loop into ``runs/``: two lines in anybody's loop, and what the project's own trainer uses.

    with Recorder(model, optimizer, name="my net", runs="runs") as recorder:
        for inputs, targets in loader:
            optimizer.zero_grad(); loss = loss_fn(model(inputs), targets); loss.backward(); optimizer.step()
            recorder.step(loss)

Recording changes nothing: the same losses to the bit, no random number drawn, no hook left behind.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.facts import FIRST_STEPS, constant_answer, first_batch_facts, first_step_facts, last_facts, pooled, weight_facts
from core.meter import MISSING, LayerMeter
from core.schema import LAYER_METRICS, Outcome, Status
from core.store import Run, Runs, RunWriter, own_process

CURVE_POINTS = 40
"""Points of the loss sparkline kept in ``status.json``."""


@dataclass
class _Pending:
    """A recorded step whose numbers are on their way from the device."""

    step: int
    epoch: int
    learning_rate: float
    seconds: float
    scalars: Tensor
    layers: Tensor
    arrived: Any


class Recorder:
    """Writes one row a layer and one row of loss and accuracy for every ``every``-th optimizer step.

    ``runs`` is the folder of all runs; a new run named ``name`` is made in it. ``run`` and ``writer`` instead write into a
    run that exists (the trainer's way). ``optimizer`` is needed for the update ratio only. ``step`` is the first step's number.
    Raises ConfigError if the model has no convolution or linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        name: str = "",
        runs: str | Path | None = None,
        run: Run | None = None,
        writer: RunWriter | None = None,
        every: int = 1,
        tags: tuple[str, ...] = (),
        step: int = 0,
        seconds: float = 0.0,
    ):
        self.meter = LayerMeter(model, optimizer)
        if not self.meter.names:
            kinds = sorted({type(m).__name__ for m in model.modules()})
            raise ConfigError(f"nothing to record: the model has no convolution or linear layer, only {', '.join(kinds)}")
        self.model, self.optimizer, self.every = model, optimizer, max(1, int(every))
        self.next_step = step
        self.owns_run = run is None
        self.run = run or Runs(runs).create(
            {"name": name, "tags": list(tags), "model": type(model).__name__, "init": "custom"},
            Status.RUNNING,
            source="recorder",
            started=time.time(),
            **own_process(),
        )
        self.writer = writer or RunWriter(self.run)
        self.last_loss: float | None = None
        self.loss_finite = True
        self.relative_signal = math.inf
        self._elapsed_before = seconds
        self._pending: deque[_Pending] = deque()
        self._curve: list[float] = []
        self._curve_stride = 1
        self._seen = 0
        self._first_batch: Any = None
        self._outputs: list[Tensor] = []
        self._answers: list[tuple[float, float]] = []
        self._layer_columns: tuple[pa.Array, pa.Array, pa.Array] | None = None
        self._recent_accuracy: deque[float] = deque(maxlen=20)

    # -- life

    def __enter__(self) -> Recorder:
        self._began = time.monotonic()
        self.meter.__enter__()
        try:
            self.meter.armed = self.next_step % self.every == 0
            if self.next_step == 0:
                self._first_batch = self.model.register_forward_hook(self._look_at_first_batch)
                self.writer.update(facts=weight_facts(self.model, self.meter))
            else:
                self._restore_curve()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.meter.__exit__()
        self._forget_first_batch()
        # An exception that passes through must arrive as it is, whatever it did to the disk.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._close(kind, error)

    def _close(self, kind: type | None, error: BaseException | None) -> None:
        self._harvest(everything=True)
        self._add_facts(last_facts(self.meter))
        if not self.owns_run:
            self.writer.flush()
            return
        self.writer.compact()
        failed = error is not None and not isinstance(error, KeyboardInterrupt)
        status = Status.FAILED if failed else Status.STOPPED if error else Status.FINISHED
        outcome = Outcome.DIVERGED if not self.loss_finite else Outcome.UNDECIDED
        message = " ".join(f"{kind.__name__}: {error}".split())[:500] if failed else None
        self.writer.update(status=str(status), outcome=str(outcome), ended=time.time(), error=message)

    @property
    def seconds(self) -> float:
        """Training time so far, over resumes too."""
        return self._elapsed_before + time.monotonic() - self._began

    # -- recording

    def step(self, loss: Tensor | float, accuracy: Tensor | float | None = None, *, epoch: int = 0) -> None:
        """Call after ``optimizer.step()``: ``loss`` is the batch's loss (scalar), ``accuracy`` its share classified correctly.

        On a GPU nothing is waited for: numbers are written when they have arrived, at the latest one step later.
        """
        if self.next_step == 0:
            self._add_facts(first_step_facts(self.meter, loss))
        self._look_at_outputs(loss)
        if self.meter.armed:
            self._record(loss, accuracy, epoch)
        self.next_step += 1
        if self.next_step >= FIRST_STEPS:
            self._forget_first_batch()
        self.writer.note(step=self.next_step, epoch=epoch)
        self.meter.armed = self.next_step % self.every == 0
        self._harvest()
        self.writer.flush_if_due()

    def epoch(self, epoch: int, train_loss: float, train_accuracy: float, val_loss: float, val_accuracy: float) -> None:
        """Write one row of ``epochs``: losses in nats, accuracies in 0..1."""
        self._harvest(everything=True)
        self.writer.epoch(epoch, train_loss, train_accuracy, val_loss, val_accuracy, self.seconds)

    def sync(self) -> None:
        """Bring every recorded row to disk."""
        self._harvest(everything=True)
        self.writer.flush()

    def _record(self, loss: Tensor | float, accuracy: Tensor | float | None, epoch: int) -> None:
        layers = self.meter.collect()
        device = layers.device
        both = [float("nan") if accuracy is None else accuracy, loss]
        scalars = torch.stack([torch.as_tensor(value, device=device).detach().float().reshape(()) for value in reversed(both)])
        arrived = None
        if device.type == "cuda":
            scalars, layers = (t.to("cpu", non_blocking=True) for t in (scalars, layers))
            arrived = torch.cuda.Event()
            arrived.record()
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else float("nan")
        self._pending.append(_Pending(self.next_step, epoch, float(rate), self.seconds, scalars, layers, arrived))

    def _harvest(self, everything: bool = False) -> None:
        """Hand to the writer what has arrived on the host; wait for it only when ``everything`` is asked for."""
        while self._pending:
            first = self._pending[0]
            if first.arrived is not None and not first.arrived.query():
                if not everything and len(self._pending) < 3:
                    return
                first.arrived.synchronize()
            self._pending.popleft()
            self._write(first)

    def _write(self, pending: _Pending) -> None:
        loss, accuracy = pending.scalars.tolist()
        self.last_loss = loss
        self.loss_finite = self.loss_finite and math.isfinite(loss)
        self._recent_accuracy.append(accuracy)
        self.writer.step(pending.step, pending.epoch, loss, accuracy, pending.learning_rate, pending.seconds)
        names, kinds, depths = self._columns(pending.layers.shape[1])
        measured = pending.layers.cpu().numpy()
        self.writer.layers(pending.step, names, kinds, depths, layer_values(measured))
        self.relative_signal = relative_signal(measured)
        self._add_to_curve(loss)
        recent = [a for a in self._recent_accuracy if not math.isnan(a)]
        self.writer.note(
            loss=loss,
            accuracy=sum(recent) / len(recent) if recent else None,
            curve=self._curve,
            seconds=pending.seconds,
        )

    def _columns(self, layers: int) -> tuple[pa.Array, pa.Array, pa.Array]:
        if self._layer_columns is None or self._layer_columns[3] != self.meter.order:
            index = pa.array(range(layers), pa.int32())
            names = pa.DictionaryArray.from_arrays(index, self.meter.ordered_names())
            kinds = self.meter.ordered_kinds()
            distinct = sorted(set(kinds))
            kind = pa.DictionaryArray.from_arrays(pa.array([distinct.index(k) for k in kinds], pa.int32()), distinct)
            self._layer_columns = (names, kind, index, list(self.meter.order))
        return self._layer_columns[:3]

    def _add_to_curve(self, loss: float) -> None:
        """Keep a sparkline of bounded length: every stride-th loss, the stride doubling when it is full."""
        if self._seen % self._curve_stride == 0:
            self._curve.append(loss)
        self._seen += 1
        if len(self._curve) > CURVE_POINTS:
            self._curve, self._curve_stride = self._curve[::2], self._curve_stride * 2

    def _restore_curve(self) -> None:
        """A resumed run's sparkline shows the whole run."""
        for loss in self.run.read("steps", ["loss"])["loss"].to_pylist():
            self._add_to_curve(loss)

    # -- the first batches

    def _look_at_first_batch(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        if "batch_size" not in self.writer.state.get("facts", {}):
            self._add_facts(first_batch_facts(inputs, output))
        if isinstance(output, Tensor) and output.requires_grad:
            self._outputs = outputs = [output.detach()]
            output.register_hook(lambda gradient: outputs.append(gradient.detach()))

    def _look_at_outputs(self, loss: Any) -> None:
        """What the loss of the best constant answer is, over the batches so far."""
        outputs, self._outputs = self._outputs[:2], []
        chain = self.writer.state.get("facts", {}).get("loss", {}).get("chain")
        if len(outputs) == 2 and chain and (answer := constant_answer(chain, float(torch.as_tensor(loss).detach()), *outputs)):
            self._answers.append(answer)
            facts = dict(zip(("constant_answer", "constant_answer_error"), pooled(self._answers), strict=True))
            self._add_facts({"loss": {**self.writer.state["facts"]["loss"], **facts}})

    def _add_facts(self, facts: dict[str, Any]) -> None:
        """Into the status, in memory: the next flush writes them."""
        self.writer.note(facts={**self.writer.state.get("facts", {}), **facts})

    def _forget_first_batch(self) -> None:
        if self._first_batch is not None:
            self._first_batch.remove()
            self._first_batch = None


def relative_signal(measured: np.ndarray) -> float:
    """signal_std over the RMS of the last layer's pre-activation, from ``LayerMeter.collect``; infinity where not measured."""
    mean, std, signal = (float(measured[LAYER_METRICS.index(name), -1]) for name in ("activation_mean", "activation_std", "signal_std"))
    size = math.hypot(mean, std)
    return signal / size if size > 0 and signal >= 0 and math.isfinite(size) else 0.0 if size == 0 else math.inf


def layer_values(measured: np.ndarray) -> list[pa.Array]:
    """Columns for the store from ``LayerMeter.collect`` (metrics, layers): missing becomes null, ``nonfinite`` is counted.

    ``nonfinite`` says how many of weight, gradient, output and output gradient hold a NaN or an infinity.
    """
    rows = dict(zip(LAYER_METRICS[:-1], measured, strict=True))
    tensors = ("weight_norm", "grad_norm", "activation_std", "activation_grad_rms")
    nonfinite = sum((~np.isfinite(rows[name])).astype(np.int32) for name in tensors)
    columns = [pa.array(row, pa.float32(), mask=row == np.float32(MISSING)) for row in rows.values()]
    return [*columns, pa.array(nonfinite, pa.int32())]
