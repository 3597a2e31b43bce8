"""Records a training loop into ``runs/``: two lines in anybody's loop, and what the project's own trainer uses.

    with Recorder(model, optimizer, name="my net", runs="runs") as recorder:
        for inputs, targets in loader:
            optimizer.zero_grad(); loss = loss_fn(model(inputs), targets); loss.backward(); optimizer.step()
            recorder.step(loss)

Recording changes nothing: the same losses to the bit, no random number drawn, no hook left behind. Under
DistributedDataParallel the process of rank 0 records and the others do nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initscope.errors import ConfigError, RecordingError, RunFolderError
from initscope.recording.meter import LayerMeter
from initscope.recording.model_facts import (
    FIRST_STEPS,
    agreed,
    best_constant_loss,
    cross_entropy_scale,
    first_batch_facts,
    first_step_facts,
    last_facts,
    main_output,
    pooled_constant_loss,
    weight_facts,
)
from initscope.recording.reading import HostCopy, StepMeasurements, layer_values, relative_signal
from initscope.schema import Outcome, Status
from initscope.store import RECORDED, Run, Runs, RunWriter, own_process

HELD_STEPS = 16
"""Steps whose numbers wait until rows are made of them: many in a row find the code for it in the processor's cache, which a training step empties."""
CURVE_POINTS = 40
"""Points of the loss sparkline kept in ``status.json``."""


_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


@dataclass
class _Pending:
    """A recorded step whose numbers are on their way from the device."""

    step: int
    epoch: int
    learning_rate: float
    seconds: float
    reading: StepMeasurements
    sent: HostCopy
    """Loss, accuracy, and what ``reading`` waits for."""


class Recorder:
    """Writes one row a layer and one row of loss and accuracy for every ``every``-th optimizer step.

    ``optimizer`` is needed for the update ratio and the learning rate; several go in a list. A new run named ``name`` is made in
    ``runs``, the folder of all runs. Names need not be unique: each run has an id of its own, and runs of one name are a group
    that can be compared (``name=my net``). ``layers`` chooses layers by shell patterns (``"features.*"``), ``kinds`` by family or class
    (``("conv", "linear")``, ``("batchnorm2d",)``); the default is all weights but those of normalizations and PReLU (``initscope.recording.layers``). ``run`` and
    ``writer`` instead write into a run that exists (the trainer's way). ``step`` is the first step's number.

    Raises ConfigError for a model without trainable weights or a pattern or kind that matches nothing; RecordingError for weights without values (device ``meta``); RunFolderError if the folder cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        name: str = "",
        runs: str | Path | None = None,
        run: Run | None = None,
        writer: RunWriter | None = None,
        every: int = 1,
        tags: tuple[str, ...] = (),
        layers: str | Sequence[str] | None = None,
        kinds: str | Sequence[str] | None = None,
        step: int = 0,
        seconds: float = 0.0,
    ):
        if not isinstance(model, nn.Module):
            raise ConfigError(f"a Recorder watches a torch.nn.Module, not {type(model).__name__}")
        self.recording = not _is_another_rank()
        self.meter = LayerMeter(model, optimizer, layers, kinds)
        _check_model(model, self.meter)
        self.model, self.every = model, max(1, int(every))
        self.next_step = step
        self.owns_run = run is None
        self.run = run
        if run is None and self.recording:
            self.run = Runs(runs).create(
                {"name": name, "tags": list(tags), "model": type(self.meter.model).__name__, "init": RECORDED},
                Status.RUNNING,
                source="recorder",
                started=time.time(),
                **own_process(),
            )
        self.writer = writer or (RunWriter(self.run) if self.recording else None)
        self.last_loss: float | None = None
        self.loss_finite = True
        self.relative_signal = math.inf
        self._elapsed_before = seconds
        self._began: float | None = None
        self._inside = False
        self._pending: deque[_Pending] = deque()
        self._curve: list[float] = []
        self._curve_stride = 1
        self._seen = 0
        self._outputs: list[Tensor] = []
        self._answers: list[tuple[float, float]] = []
        self._scales: list[float] = []
        self._layer_columns: tuple[pa.Array, pa.Array, pa.Array] | None = None
        self._recent_accuracy: deque[float] = deque(maxlen=20)
        self._gradient_seen = False
        self._told: set[str] = set()

    # -- life

    def __enter__(self) -> Recorder:
        if self._began is not None:
            raise RecordingError("a Recorder records one run, and this one has been used; make a new Recorder for another run")
        self._began = time.monotonic()
        self._inside = True
        if not self.recording:
            return self
        self.meter.__enter__()
        try:
            self.meter.enabled = self.next_step % self.every == 0
            if self.next_step == 0:
                self.meter.on_forward = self._look_at_first_batch
                self._note_weights()
            else:
                self._restore_curve()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._inside = False
        if not self.recording:
            return
        self.meter.__exit__()
        self.meter.on_forward = None
        # An exception that passes through must arrive as it is, whatever it did to the disk.
        with contextlib.suppress(OSError, RunFolderError) if error else contextlib.nullcontext():
            self._close(kind, error)

    def _close(self, kind: type | None, error: BaseException | None) -> None:
        self._harvest(everything=True)
        self._add_facts(last_facts(self.meter))
        if not self.owns_run:
            self.writer.flush()
            return
        self.writer.compact()
        stopped = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and not error.code)
        failed = error is not None and not stopped
        status = Status.FAILED if failed else Status.STOPPED if error else Status.FINISHED
        outcome = Outcome.DIVERGED if not self.loss_finite else Outcome.UNDECIDED
        message = " ".join(f"{kind.__name__}: {error}".split())[:500] if failed else None
        self.writer.update(status=str(status), outcome=str(outcome), ended=time.time(), error=message)

    @property
    def seconds(self) -> float:
        """Training time so far, over resumes too."""
        return self._elapsed_before + (time.monotonic() - self._began if self._began is not None else 0.0)

    # -- recording

    def step(self, loss: Tensor | float, accuracy: Tensor | float | None = None, *, epoch: int = 0, whole: Tensor | None = None) -> None:
        """LayerCall after ``optimizer.step()``: ``loss`` is the batch's loss (scalar), ``accuracy`` its share classified correctly.

        Where several processes share a batch, ``whole`` is the loss over all of it, to be written in place of this process's ``loss``.

        On a GPU nothing is waited for: numbers are written when they have arrived, at the latest one step later. Raises
        RecordingError outside of the ``with`` block, for a loss that is not one number, and if at the first step no backward pass has come before.
        """
        if not self._inside:
            when = "before the `with Recorder(...)` block began" if self._began is None else "after the `with Recorder(...)` block had ended"
            raise RecordingError(f"recorder.step() was called {when}; call it inside, once after every optimizer.step()")
        if not self.recording:
            self.next_step += 1
            return
        _check_number("loss", loss)
        if accuracy is not None:
            _check_number("accuracy", accuracy)
        self._check_order(loss)
        if self.next_step == 0:
            self._add_facts(first_step_facts(self.meter, loss))
        self._look_at_outputs(loss)
        if self.meter.enabled:
            self._record(loss if whole is None else whole, accuracy, epoch)
        self.next_step += 1
        if self.next_step >= FIRST_STEPS:
            self.meter.on_forward = None
        self.writer.note(step=self.next_step, epoch=epoch)
        self.meter.enabled = self.next_step % self.every == 0
        if len(self._pending) >= HELD_STEPS or self.writer.due():
            self._harvest()
            self.writer.flush_if_due()

    def epoch(self, epoch: int, train_loss: float, train_accuracy: float, val_loss: float, val_accuracy: float) -> None:
        """Write one row of ``epochs``: losses in nats, accuracies in 0..1."""
        if not self.recording:
            return
        self._harvest(everything=True)
        self.writer.epoch(epoch, train_loss, train_accuracy, val_loss, val_accuracy, self.seconds)

    def sync(self) -> None:
        """Bring every recorded row to disk."""
        if not self.recording:
            return
        self._harvest(everything=True)
        self.writer.flush()

    def _check_order(self, loss: Any) -> None:
        """Help where ``step`` stands too early: before the backward pass, or between it and the update."""
        self._gradient_seen = self._gradient_seen or self.meter.backward_seen
        if not self._gradient_seen and self.meter.enabled and isinstance(loss, Tensor) and loss.grad_fn is not None and self.meter.misses_gradients():
            raise RecordingError(
                "recorder.step(loss) was called before loss.backward(): no gradient has been computed; call it after optimizer.step()"
            )
        if self.meter.late_update:
            self._tell_once("recorder.step(loss) is called before optimizer.step(): no update ratio is recorded; call it after optimizer.step()")
        if not self._gradient_seen and self.meter.enabled:
            self._tell_once(
                "recorder.step(loss) finds no gradient in the model's parameters, so none is recorded: only loss.backward() leaves them there, "
                "torch.autograd.grad and torch.func do not"
            )

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, stacklevel=4)

    def _record(self, loss: Tensor | float, accuracy: Tensor | float | None, epoch: int) -> None:
        reading = self.meter.collect()
        sent = HostCopy([loss, math.nan if accuracy is None else accuracy, *reading.waiting])
        rate = self.meter.optimizers[0].param_groups[0]["lr"] if self.meter.optimizers else float("nan")
        self._pending.append(_Pending(self.next_step, epoch, float(rate), self.seconds, reading, sent))

    def _harvest(self, everything: bool = False) -> None:
        """Hand to the writer what has arrived on the host; wait for it only when ``everything`` is asked for."""
        while self._pending and (everything or len(self._pending) > 2 * HELD_STEPS or self._pending[0].sent.arrived()):
            self._write(self._pending.popleft())

    def _write(self, pending: _Pending) -> None:
        loss, accuracy, *numbers = pending.sent.numbers()
        self.last_loss = loss
        self.loss_finite = self.loss_finite and math.isfinite(loss)
        self._recent_accuracy.append(accuracy)
        self.writer.step(pending.step, pending.epoch, loss, accuracy, pending.learning_rate, pending.seconds)
        measured = pending.reading.table(numbers)
        names, kinds, depths = self._columns(pending.reading.order)
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

    def _columns(self, order: list[int]) -> tuple[pa.Array, pa.Array, pa.Array]:
        if self._layer_columns is None or self._layer_columns[3] != order:
            index = pa.array(range(len(order)), pa.int32())
            names = pa.DictionaryArray.from_arrays(index, [self.meter.names[i] for i in order])
            kinds = [self.meter.kinds[i] for i in order]
            distinct = sorted(set(kinds))
            kind = pa.DictionaryArray.from_arrays(pa.array([distinct.index(k) for k in kinds], pa.int32()), distinct)
            self._layer_columns = (names, kind, index, order)
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

    def _note_weights(self) -> None:
        """What the weights are like before training; of a lazy network once its first forward pass has made them."""
        if any(is_lazy(p) for p in self.model.parameters()):
            self._weights_noted = False
        else:
            self._weights_noted = True
            self.writer.update(facts={**self.writer.state.get("facts", {}), **weight_facts(self.model, self.meter)})

    def _look_at_first_batch(self, inputs: tuple, kwargs: dict, output: Any) -> None:
        if not self._weights_noted:
            self._note_weights()
        if "batch_size" not in self.writer.state.get("facts", {}):
            self._add_facts(first_batch_facts([inputs, kwargs], output))
        logits = main_output(output)
        if logits is not None and logits.requires_grad:
            self._outputs = outputs = [logits.detach()]
            scale = self.meter.loss_scale
            logits.register_hook(lambda gradient: outputs.append(gradient.detach() / (1.0 if scale.current is None else scale.current)))

    def _look_at_outputs(self, loss: Any) -> None:
        """What the loss of the best constant answer is, over the batches so far."""
        outputs, self._outputs = self._outputs[:2], []
        chain = self.writer.state.get("facts", {}).get("loss", {}).get("chain")
        if len(outputs) < 2 or not chain:
            return
        known = (chain, float(torch.as_tensor(loss).detach()), *outputs)
        facts: dict[str, Any] = {}
        if answer := best_constant_loss(*known):
            self._answers.append(answer)
            facts = dict(zip(("constant_answer", "constant_answer_error"), pooled_constant_loss(self._answers), strict=True))
        if scale := cross_entropy_scale(*known):
            self._scales.append(scale)
            facts["scale"] = agreed(self._scales)
        self._add_facts({"loss": {**self.writer.state["facts"]["loss"], **facts}})

    def _add_facts(self, facts: dict[str, Any]) -> None:
        """Into the status, in memory: the next flush writes them."""
        self.writer.note(facts={**self.writer.state.get("facts", {}), **facts})


def _is_another_rank() -> bool:
    """Whether this is one of several processes that train together, and not the first."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0


def _check_number(name: str, value: Any) -> None:
    """Raise unless ``value`` is one real number, or a tensor of one."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            hint = "; give its mean, loss.mean()" if name == "loss" and value.numel() > 1 else ""
            raise RecordingError(f"recorder.step() takes the {name} as one real number, not a {value.dtype} tensor of shape {tuple(value.shape)}{hint}")
    elif not isinstance(value, Real):
        raise RecordingError(f"recorder.step() takes the {name} as one real number or a tensor of one, not {type(value).__name__}")


def _check_model(model: nn.Module, meter: LayerMeter) -> None:
    """Raise for weights that have no values or cannot be trained; warn of optimizers that train another model."""
    sharded = any(base.__name__ in _SHARDED for module in model.modules() for base in type(module).__mro__)
    if sharded or any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        raise RecordingError(
            "the model's parameters are spread over processes (FSDP or tensor parallel), so none holds a whole weight to measure; "
            "record it under DistributedDataParallel or in one process"
        )
    empty = [layer.name for layer in meter.layers if layer.weight is not None and layer.weight.device.type == "meta"]
    if empty:
        raise RecordingError(
            f"the weights of {empty[0]} are on device meta, where they have no values; move the model to a real device before recording it"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("nothing to train: every parameter of the model has requires_grad=False; unfreeze a layer with requires_grad_(True)")
    if meter.optimizers:
        held = [p for optimizer in meter.optimizers for group in optimizer.param_groups for p in group["params"]]
        own = {id(p) for p in model.parameters()}
        if not any(id(p) in own for p in held):
            devices = sorted({str(p.device) for p in model.parameters()} | {str(p.device) for p in held})
            where = f" (devices: {', '.join(devices)})" if len(devices) > 1 else ""
            # No error: the loop runs as it was written, and the diagnosis of the run says the same.
            warnings.warn(
                f"the optimizer holds none of the model's parameters{where}, so nothing will be learned: it was made for another model, or "
                "before this one was copied or moved; make it from this model's parameters()",
                stacklevel=3,
            )
