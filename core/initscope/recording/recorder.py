"""Records a training loop into ``runs/``: two lines in anybody's loop, and what the project's own trainer
uses.

    with Recorder(model, optimizer, name="my net", runs="runs") as recorder:
        for inputs, targets in loader:
            optimizer.zero_grad(); loss = loss_fn(model(inputs), targets); loss.backward(); optimizer.step()
            if not recorder.step(loss): break                     # False: somebody pressed Stop
        recorder.validate(loss=val_loss, accuracy=val_accuracy)   # may be left out, like all of these

Recording changes nothing: the same losses to the bit, no random number drawn, no hook left behind. Whatever
fails inside of it is a warning and a missing number (``initscope.recording.guard``). Where several processes
train together the first one records; a forked child does not.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initscope.errors import ConfigError, RecordingError, Stopped
from initscope.outcome import Basis, Decision, settled
from initscope.recording import arguments, open_recorders
from initscope.recording.beginning import check_model, is_another_rank
from initscope.recording.card import LiveCard
from initscope.recording.guard import Guard, say
from initscope.recording.inspection import Inspection
from initscope.recording.loop_facts import loss_function, optimizer_settings
from initscope.recording.meter import MEASURING, LayerMeter
from initscope.recording.model_facts import (
    first_batch_facts,
    first_step_facts,
    last_facts,
    weight_facts,
)
from initscope.recording.order import CallOrder
from initscope.recording.outputs import OutputLog
from initscope.recording.rows import StepRows, on_device
from initscope.recording.schedule import Schedule
from initscope.schema import Outcome, Status
from initscope.store import RECORDED, Run, Runs, RunWriter, own_process

IGNORED_AFTER = 3
"""Steps after ``step`` has returned False from which on the loop counts as one that does not listen."""
_WRITING = "writing rows"
_TRYING = "looking at how the network is put together"


class Recorder:
    """Writes a row of loss and accuracy for each optimizer step, and a row a layer for those that tell: the
    first 512, then ever fewer, and again all where something happens (``initscope.recording.schedule``). With
    ``every`` both for every ``every``-th step: 1 misses nothing, and costs most.

    ``optimizer`` is needed for the update ratio and the learning rate; several go in a list. A new run named
    ``name`` is made in ``runs``, the folder of all runs. Names need not be unique: each run has an id of its
    own, and runs of one name are a group that can be compared (``name=my net``). ``config``: your settings (a
    mapping, a dataclass or a Namespace), kept with the run. ``layers`` chooses layers by shell patterns
    (``"features.*"``), ``kinds`` by family or class (``("conv", "linear")``, ``("batchnorm2d",)``); the
    default is all weights but those of normalizations and PReLU (``initscope.recording.layers``). ``step`` is
    the first step's number. ``quiet``: the line that says where the run is and how to look at it is not
    printed. ``raise_on_stop``: ``step`` raises ``initscope.Stopped`` instead of returning False. ``run`` and
    ``writer`` instead write into a run that exists (the trainer's way); faults are then raised.

    Raises ConfigError for a model without trainable weights, a pattern or kind that matches nothing, or
    settings that JSON cannot hold; RecordingError for weights without values (device ``meta``). Entering it
    raises RunFolderError if the folder cannot be written.
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
        every: int | None = None,
        tags: Sequence[str] = (),
        layers: str | Sequence[str] | None = None,
        kinds: str | Sequence[str] | None = None,
        step: int = 0,
        seconds: float = 0.0,
        config: Any = None,
        quiet: bool = False,
        raise_on_stop: bool = False,
    ):
        if not isinstance(model, nn.Module):
            raise ConfigError(f"a Recorder watches a torch.nn.Module, not {type(model).__name__}")
        self.next_step = arguments.as_count("step", step, 0)
        every = None if every is None else arguments.as_count("every", every, 1)
        self.schedule = Schedule(every, self.next_step)
        self._new_run: dict[str, Any] = {"name": arguments.as_name(name), "tags": arguments.as_tags(tags)}
        self._own_config = arguments.as_config(config)
        # Absolute from now on: the loop may go to another folder.
        self._runs = arguments.as_runs(runs) or (
            arguments.as_runs(os.environ.get("INITSCOPE_RUNS")) if runs is None or runs == "" else None
        )
        self.owns_run = run is None
        self.guard = Guard(strict=not self.owns_run)
        self.recording = not is_another_rank()
        self.meter = LayerMeter(model, optimizer, layers, kinds)
        self.meter.fault = self.guard.note
        check_model(model, self.meter, self.guard)
        self.model = model
        self.run = run
        """The run; of a new one None until the ``with`` block begins."""
        self._writer = writer
        self.quiet, self.raise_on_stop = quiet, raise_on_stop
        self.cell = open_recorders.current_cell()
        note = _weakly(self._add_facts)
        self.rows = StepRows(self.meter, self.guard, note, _weakly(self._saw_late_loss))
        self._card = LiveCard()
        self._elapsed_before = seconds
        self._began: float | None = None
        self._inside = False
        self._outputs = OutputLog(self.next_step, self.meter.loss_scale, note)
        self._order = CallOrder(self.meter, self.guard, note)
        self._weights_noted = False
        self._epoch = 0
        self._stop_step: int | None = None
        self._called: set[str] = set()
        self._faults_told: tuple[int, int] = (0, 0)
        self._inspection: Inspection | None = None

    # -- life

    def __enter__(self) -> Recorder:
        if self._began is not None:
            raise RecordingError(
                "a Recorder records one run, and this one has been used; make a new Recorder for another run"
            )
        self._began = time.monotonic()
        self.recording = (
            self.recording and not is_another_rank()
        )  # the processes may have met since it was made
        run = self.run = (self.run or self._new()) if self.recording else self.run
        self._inside = True
        if not self.recording or run is None:
            if self.meter.sharded:
                self.meter.follows_another = True
                with self.guard("putting on its hooks"):
                    self.meter.__enter__()
                self._prepare_step()
            return self
        self._writer = self.rows.writer = self._writer or RunWriter(run)
        open_recorders.opened(self)
        try:
            with self.guard("putting on its hooks"):
                self.meter.__enter__()
            self._prepare_step()
            self._tell_unmeasured()
            with self.guard("looking at the weights"):
                if self.next_step == 0:
                    self.meter.on_forward = _weakly(self._look_at_output)
                    self._note_weights()
                elif not self.owns_run:
                    self.rows.restore_curve(run.read("steps", ["loss"])["loss"].to_pylist())
            if not self.meter.loss_only:
                with self.guard(_TRYING):
                    self._inspection = Inspection(self.meter, _weakly(self._add_facts), self.next_step)
                    self.meter.on_pass = self._inspection.forward
        except BaseException as error:
            self._end(error)
            raise
        self._note_faults()
        return self

    def _new(self) -> Run:
        """A new run's folder, and a line on standard error that says where it is."""
        runs = Runs(self._runs)
        values: dict[str, Any] = {**self._new_run, "model": type(self.meter.model).__name__, "init": RECORDED}
        if self._own_config:
            values["own"] = self._own_config
        run = runs.create(values, Status.RUNNING, source="recorder", started=time.time(), **own_process())
        if not self.quiet:
            shown = runs.shown if runs.shared else str(runs.root.absolute())
            say(
                f"initscope: recording into {shown.rstrip('/')}/{run.id}; to see it: initscope ui --runs "
                f"{shlex.quote(shown)}"
            )
        return run

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._end(error)

    def __reduce__(self) -> tuple:
        """A copy (of a model that holds a Recorder) records nothing: the run is the original's."""
        return _silent_copy, ()

    def __del__(self) -> None:
        if self.__dict__.get("_inside"):
            self.leave("nobody held the Recorder any more")

    def leave(self, why: str, error: BaseException | None = None) -> None:
        """End the run whose block nobody will leave any more: as failed by ``error``, else as stopped."""
        if self._inside and self.recording:
            self.writer.note(facts={**self.writer.state.get("facts", {}), "left_open": why})
        self._end(error, left=True)

    def forsake(self) -> None:
        """In a forked child: the run is the parent's, and so are its files; measure and write nothing any
        more.
        """
        self.recording = self.meter.enabled = False
        self.meter.on_forward = self.meter.on_pass = None

    def _end(self, error: BaseException | None, left: bool = False) -> None:
        """Take the hooks off and write the run's last word, whatever else fails, and never over an ``error``
        that passes through.

        ``left``: nobody has left the block, and nobody will.
        """
        inside, self._inside = self._inside, False
        if not (inside and self.recording):
            self.meter.__exit__()
            return
        open_recorders.closed(self)
        self.guard.strict = self.guard.strict and error is None
        self.guard.passing = error is not None
        try:
            with self.guard("taking off its hooks"):
                self.meter.__exit__()
                self.meter.on_forward = self.meter.on_pass = None
                if self._inspection is not None:
                    self._inspection.close()
            with self.guard(_WRITING):
                self.rows.harvest(everything=True)
            with self.guard("looking at the last weights"):
                self._add_facts(last_facts(self.meter))
            with self.guard(_WRITING):
                if self.owns_run:
                    self.writer.compact()
                else:
                    self.writer.flush()
        except BaseException as second:  # Ctrl-C while the last rows are written
            error = error or second
            raise
        finally:
            if self.owns_run:
                self._write_end(error, left)
            self._card.update(self, last=True)

    def _write_end(self, error: BaseException | None, left: bool) -> None:
        status = _status(error)
        stopped = (
            self._stop_step is not None and self.next_step - self._stop_step < IGNORED_AFTER
        )  # because step() had returned False
        if status is Status.FINISHED and (left or stopped):
            status = Status.STOPPED
        self._note_faults()
        # Loss rows may be every tenth step only: a loss that broke between them was seen all the same.
        found = (
            Decision(Outcome.UNDECIDED, None, "")
            if self.rows.loss_finite
            else Decision(Outcome.DIVERGED, Basis.TRAINING_LOSS, "the loss is no number any more")
        )
        if self.rows.loss_finite:
            with self.guard("deciding on the outcome"):
                found = settled(self.writer.run.judged(self.writer.state), status)
        with self.guard(_WRITING):
            self.writer.end(
                status=str(status),
                outcome=str(found.outcome),
                outcome_by=found.by and str(found.by),
                outcome_because=found.because,
                ended=time.time(),
                error=_reason(error) if status is Status.FAILED and error is not None else None,
            )
            (self.writer.run.path / "stop").unlink(missing_ok=True)

    @property
    def writer(self) -> RunWriter:
        """What writes the run. Raises RecordingError where nothing does: before the ``with`` block, and in
        processes that record nothing.
        """
        if self._writer is None:
            raise RecordingError(
                "this Recorder writes no run: its `with` block has not begun, or another records; use it "
                "inside the block, in the process that records"
            )
        return self._writer

    @property
    def last_loss(self) -> float | None:
        """The newest recorded loss that has arrived; None before the first."""
        return self.rows.last_loss

    @property
    def seconds(self) -> float:
        """Training time so far, over resumes too."""
        return self._elapsed_before + (time.monotonic() - self._began if self._began is not None else 0.0)

    # -- recording

    def step(
        self,
        loss: Tensor | float,
        accuracy: Tensor | float | None = None,
        *,
        epoch: int | None = None,
        whole: Tensor | None = None,
    ) -> bool:
        """Call after ``optimizer.step()``: ``loss`` is the batch's loss (one number), ``accuracy`` its share
        classified correctly (a percentage is converted). Returns whether to go on: False once somebody has
        asked the run to stop.

        Where several processes share a batch, ``whole`` is the loss over all of it, to be written in place of
        this process's ``loss``.

        On a GPU nothing is waited for: numbers are written when they have arrived, at the latest one step
        later. Raises RecordingError outside of the ``with`` block, and at the first step for what is no
        number or comes before the backward pass; at later steps the same is a warning and a missing number.
        Raises Stopped with ``raise_on_stop``.
        """
        self._must_be_inside("step")
        if not self.recording:
            return self._add_parts()
        call = self._first("step")
        loss = self._given(call, "loss", loss, lambda value: arguments.as_number("loss", value))
        if accuracy is not None:
            accuracy = self._given(call, "accuracy", accuracy, arguments.as_accuracy)
        number = self._given(call, "epoch", epoch, lambda value: self._epoch_of(value))
        return self.advance(loss, accuracy, self._epoch if number is None else number, whole, refuse=call)

    def advance(
        self,
        loss: Tensor | float | None,
        accuracy: Tensor | float | None,
        epoch: int,
        whole: Tensor | None = None,
        refuse: bool = False,
    ) -> bool:
        """``step`` for arguments that have been looked at; ``loss`` None: this step had none, and its row
        says so.
        """
        if not self._inside:
            return True
        if not self.recording:
            return self._add_parts()
        self.guard.step, self._epoch = self.next_step, epoch
        with self.guard("looking at the loss", refuse=refuse):
            if loss is not None:
                self._look_at_loss(loss)
        if self.meter.enabled or self.schedule.keeps_loss(self.next_step):
            with self.guard(_WRITING):
                self._record(loss if whole is None else whole, accuracy, epoch)
        if self._watches_events:
            with self.guard("looking for events"):
                self.schedule.saw_rate(self.next_step, self.rows.learning_rate())
                if loss is not None and not on_device(loss):
                    number = loss.detach() if isinstance(loss, Tensor) else loss
                    self.schedule.saw_loss(self.next_step, float(number))
        self.next_step += 1
        self.meter.on_forward = _weakly(self._look_at_output) if self._outputs.due(self.next_step) else None
        self._prepare_step()
        self.writer.note(step=self.next_step, epoch=epoch)
        if due := self.writer.due() or self.rows.due:
            with self.guard(_WRITING):
                self.rows.harvest()
                self.writer.flush_if_due()
        self._note_faults()
        if due:
            self._card.update(self)
        return self._goes_on(look=due)

    @property
    def _watches_events(self) -> bool:
        """Not where weights are spread over processes: all of these have to measure the same steps."""
        return self.schedule.every is None and not self.meter.sharded

    def _prepare_step(self) -> None:
        self.meter.enabled = self.schedule.measures(self.next_step)
        self.meter.thoroughly = self.schedule.thoroughly(self.next_step)

    def _add_parts(self) -> bool:
        """A step in a process that records nothing: of weights that are spread over processes it adds its
        parts to the sums.
        """
        with self.guard(MEASURING):
            if self.meter.enabled and self.meter.sharded:
                self.meter.collect()
        self.next_step += 1
        self._prepare_step()
        return True

    def validate(self, loss: Any = None, accuracy: Any = None, *, epoch: Any = None) -> None:
        """Write a row of ``epochs``: these results of a validation, and the means of the training losses and
        accuracies since the last row.

        ``epoch`` numbers the row; without it rows are counted, from the loop's own epoch if ``step`` is told
        one. Either result may be left out. Raises as ``step`` does, at the first call.
        """
        self.epoch(epoch, val_loss=loss, val_accuracy=accuracy, _call="validate")

    def epoch(
        self,
        epoch: Any = None,
        train_loss: Any = None,
        train_accuracy: Any = None,
        val_loss: Any = None,
        val_accuracy: Any = None,
        *,
        _call: str = "epoch",
    ) -> None:
        """Write one row of ``epochs``. Losses in the units of ``step``, accuracies as shares or percentages;
        what is left out is not known, but of training the mean since the last row. Raises as ``step`` does,
        at the first call.
        """
        self._must_be_inside(_call)
        if not self.recording:
            return
        call, name = self._first(_call), f"recorder.{_call}()"
        told = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        numbers: dict[str, float] = {}
        for key, value in told.items():
            convert = (
                (lambda v: arguments.as_accuracy(v, name))
                if "accuracy" in key
                else functools.partial(_number, key, name)
            )
            found = None if value is None else self._given(call, key, value, convert)
            numbers[key] = math.nan if found is None else float(found)
        number = self._given(
            call,
            "epoch",
            epoch,
            lambda value: self._epoch_of(value, name, max(self._epoch, self.rows.next_epoch)),
        )
        with self.guard(_WRITING):
            self.rows.harvest(everything=True)
            self._write_epoch(
                max(self._epoch, self.rows.next_epoch) if number is None else number, numbers, told
            )
        if self._inspection is not None and self.next_step:
            with self.guard(_TRYING):
                self._inspection.after_epoch(self.next_step - 1)
        self._note_faults()

    def log(self, values: Mapping[str, Any]) -> None:
        """Record numbers of one's own, by name, at the step that ``step`` was told last: ``metrics.parquet``.
        Raises as ``step`` does, at the first call.
        """
        self._must_be_inside("log")
        if not self.recording:
            return
        with self.guard("reading what recorder.log() was given", refuse=self._first("log")):
            if not isinstance(values, Mapping):
                raise RecordingError(
                    f"recorder.log() takes a mapping of names to numbers, not {type(values).__name__}"
                )
            numbers = [
                arguments.as_number(str(name), value, "recorder.log()") for name, value in values.items()
            ]
            if numbers:
                names = [arguments.as_name(name) for name in values]
                self.rows.add_metrics(max(0, self.next_step - 1), names, numbers)
        self._note_faults()

    def sync(self) -> None:
        """Bring every recorded row to disk."""
        if not (self.recording and self._inside):
            return
        with self.guard(_WRITING):
            self.rows.harvest(everything=True)
            self.writer.flush()
        self._note_faults()

    # -- what was given

    def _must_be_inside(self, call: str) -> None:
        if not self._inside:
            when = (
                "before the `with Recorder(...)` block began"
                if self._began is None
                else "after the `with Recorder(...)` block had ended"
            )
            raise RecordingError(
                f"recorder.{call}() was called {when}; call it "
                f"inside{', once after every optimizer.step()' if call == 'step' else ''}"
            )

    def _first(self, call: str) -> bool:
        """Whether this is the first call of that name: a mistake in the loop is refused while that costs
        nothing.
        """
        first = call not in self._called
        self._called.add(call)
        self.guard.step = self.next_step
        return first

    def _given(self, refuse: bool, name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
        """What ``convert`` makes of a value that the loop gave; None, and a warning, where it makes nothing
        of it.
        """
        with self.guard(f"reading the {name} it was given", refuse=refuse):
            return convert(value)
        return None

    def _epoch_of(self, value: Any, call: str = "recorder.step()", last: int | None = None) -> int:
        number = arguments.as_epoch(value, self._epoch if last is None else last, call)
        if value is not None and float(value) < 0:
            self.guard.tell_once(
                "epochs are counted from 0: a negative one is recorded as 0", key="negative epoch"
            )
        return number

    def _goes_on(self, look: bool) -> bool:
        """Whether nobody has asked the run to stop; a loop that does not listen is told so, and whoever looks
        at the run, too.
        """
        if not self.owns_run:
            return True  # the trainer looks for itself
        if look and self._stop_step is None:
            with self.guard("looking for a request to stop"):
                self._stop_step = self.next_step if self.writer.run.stop_requested() else None
        if self._stop_step is None:
            return True
        if self.raise_on_stop:
            raise Stopped(
                f"the run was asked to stop at step {self._stop_step}; leave the loop, it ends as stopped"
            )
        if self.next_step - self._stop_step == IGNORED_AFTER:
            self._add_facts({"stop_ignored": {"asked_at_step": self._stop_step}})
            with self.guard(_WRITING):
                self.writer.flush()
            self.guard.tell_once(
                "somebody asked this run to stop, and the loop goes on: write `if not recorder.step(loss): "
                "break`, or give the Recorder raise_on_stop=True"
            )
        return False

    # -- from numbers to rows

    def _look_at_loss(self, loss: Tensor | float) -> None:
        self._order.check(loss)
        if self.next_step == 0:
            facts = first_step_facts(self.meter, loss, self._outputs.node)
            if "loss" in facts:
                facts["loss"]["function"] = loss_function(facts["loss"].get("chain") or ())
            self._add_facts(facts)
            self._outputs.node = None
        known = self.writer.state.get("facts", {}).get("loss", {})
        self._outputs.compare(self.next_step, loss, known.get("chain") or ())

    def _record(self, loss: Tensor | float | None, accuracy: Tensor | float | None, epoch: int) -> None:
        reading = None
        if self.meter.enabled:
            with self.guard(MEASURING):
                reading = self.meter.collect()
            if reading is None:
                self.meter.discard()
            elif not reading.order:
                reading = None
                self._tell_unmeasured()
        self.rows.add(self.next_step, epoch, self.seconds, reading, loss, accuracy)
        if reading is not None and self._inspection is not None:
            with self.guard(_TRYING):
                self._inspection.after_step(self.next_step, loss, reading)

    def _saw_late_loss(self, loss: float) -> None:
        """A loss has arrived from a device."""
        if self._watches_events:
            self.schedule.saw_loss(self.next_step, loss)

    def _write_epoch(self, epoch: int, numbers: dict[str, float], told: Mapping[str, Any]) -> None:
        known = self.rows.write_epoch(epoch, self.seconds, numbers, told)
        if self.owns_run:  # the trainer tells these with what else it knows
            self.writer.note(**known)

    # -- facts

    def _note_weights(self) -> None:
        """What the weights are like before training; of a lazy network once its first forward pass has made
        them.
        """
        self._weights_noted = not any(is_lazy(p) for p in self.model.parameters())
        if self._weights_noted:
            with self.guard("looking at the optimizer"):
                self._add_facts({"optimizers": optimizer_settings(self.meter.optimizers)})
            self._add_facts(weight_facts(self.model, self.meter))
            self.writer.update()

    def _tell_unmeasured(self) -> None:
        """Say once which layers no one can measure, on standard error and in the run's facts."""
        if (why := self.meter.unmeasured) is not None:
            self.guard.tell_once(why)
            self._add_facts({"not_measured": why})

    def _look_at_output(self, inputs: tuple, kwargs: dict, output: Any) -> None:
        """Keep the output of a training pass; of the first batch more is noted."""
        if not self._weights_noted:
            self._note_weights()
        if "batch_size" not in self.writer.state.get("facts", {}):
            self._add_facts(first_batch_facts([inputs, kwargs], output))
        self._outputs.keep(self.next_step, output)

    def _add_facts(self, facts: dict[str, Any]) -> None:
        """Into the status, in memory: the next flush writes them."""
        plain = {key: arguments.as_fact(value) for key, value in facts.items()}
        self.writer.note(facts={**self.writer.state.get("facts", {}), **plain})

    def _note_faults(self) -> None:
        """What went wrong, as the fact ``recording_error`` and with its traceback in ``log.txt``."""
        faults = self.guard.count, self.writer.rows_lost
        if faults != self._faults_told:
            self._faults_told = faults
            lost = (
                f"; {self.writer.rows_lost} rows found no room in memory meanwhile"
                if self.writer.rows_lost
                else ""
            )
            self._add_facts({"recording_error": (self.guard.fact or "") + lost})
        if self.guard.tracebacks:
            try:
                self.writer.log("".join(self.guard.tracebacks))
                self.guard.tracebacks.clear()
            except OSError:
                # the disk that is away is what they are about: they wait, as the rows do, and have been
                # warned of
                return

    # -- in a notebook

    def _repr_html_(self) -> str:
        return self._card.html(self)

    def _ipython_display_(self) -> None:
        self._card.show(self)


def _silent_copy() -> Recorder:
    """A Recorder whose calls do nothing and which has no run."""
    made = Recorder(nn.Embedding.from_pretrained(torch.zeros(1, 1), freeze=False))  # draws no random number
    made.forsake()
    made._inside, made._began = True, time.monotonic()
    return made


def _weakly(method: Callable) -> Callable:
    """A bound method that does not keep its object alive, and does nothing once that is gone."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        if (alive := reference()) is not None:
            alive(*arguments)

    return call


def _status(error: BaseException | None) -> Status:
    """How a run ends whose block is left by ``error``."""
    if error is None:
        return Status.FINISHED
    asked_for = isinstance(error, (KeyboardInterrupt, GeneratorExit, Stopped)) or (
        isinstance(error, SystemExit) and not error.code
    )
    return Status.STOPPED if asked_for else Status.FAILED


def _number(key: str, name: str, value: Any) -> Any:
    return arguments.as_number(key, value, name)


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as another:  # somebody's own __str__
        text = f"(its text cannot be made: {type(another).__name__})"
    return " ".join(f"{type(error).__name__}: {text}".split())[:500]
