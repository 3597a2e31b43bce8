"""The training loop: from a configuration to a finished run folder.

A non-finite loss is an outcome, not an exception. Everything that moves (weights, optimizer, position in the
epoch, the epoch's sums, random state) is in the checkpoint, so a resumed run goes on along the curve it would
have taken.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope import networks
from initscope.config import factory as factories
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.errors import ConfigError, RunFolderError
from initscope.networks import outputs as outputs_of
from initscope.outcome import Basis, certain, judge
from initscope.recording.recorder import Recorder
from initscope.resources import limits
from initscope.resources.memory import at_least, estimate
from initscope.schema import Outcome, Status
from initscope.store import Run, RunWriter, own_process
from initscope.store.writer import set_status
from initscope.training.checkpoint import Checkpoint, Position
from initscope.training.devices import (
    channels_last,
    in_layout,
    pick_device,
    pick_precision,
    precision,
    prepare_torch,
)
from initscope.training.failure import reason
from initscope.training.optimizers import build_optimizer, learning_rate, planned_steps
from initscope.training.ranks import Ranks
from initscope.training.run_log import log


def train(
    run: Run,
    progress: Callable[[Position, int], None] = lambda position, total: None,
    engine: str | None = None,
) -> Outcome:
    """Train ``run`` to its end, or on from its checkpoint, and write everything it is asked to record.

    ``progress`` is called after every step with the position and the number of steps planned. A stop request
    or a SIGTERM turned into one ends the run as ``stopped`` after the current step, with a checkpoint. Errors
    mark the run ``failed`` and are raised on; InitScopeError ones carry a one-line message. ``engine``: who
    carries the run, if it came from the queue.
    """
    try:
        writer = RunWriter(run)
        began = time.time()
        writer.update(
            status=str(Status.RUNNING),
            engine=engine,
            started=writer.state.get("started") or began,
            ended=None,
            error=None,
            **own_process(),
        )
        config = run.config()
        log.info(
            "start %s: %s on %s, init %s, seed %d",
            run.id,
            config.model,
            config.data,
            config.init,
            config.init_seed,
        )
        if config.processes > 1:
            from initscope.training import torchrun  # torch.distributed, for those only who ask for it

            return torchrun.train(run, progress)
        return Training(run, writer, progress).go()
    except BaseException as error:
        # The disk may be the reason: what it still takes is written, and the error itself is raised on below.
        with contextlib.suppress(OSError, RunFolderError):
            RunWriter(run).compact()
        with contextlib.suppress(OSError, RunFolderError):
            set_status(run, status=str(Status.FAILED), phase=None, error=reason(error), ended=time.time())
        raise


class Training:
    """One run's moving parts, put together in order by ``__init__`` and moved by ``go``.

    Of several ``ranks`` all do this at once; what is written is written by the first, the others have no
    ``writer``.
    """

    def __init__(
        self,
        run: Run,
        writer: RunWriter | None,
        progress: Callable[[Position, int], None] = lambda position, total: None,
        ranks: Ranks | None = None,
    ):
        self.run, self.writer, self.progress, self.ranks = run, writer, progress, ranks or Ranks()
        self.config = run.config()
        _refuse_code_in(run.path.parent, self.config)
        self.device = pick_device(self.config.device)
        prepare_torch(self.config, self.device)
        self.precision = pick_precision(self.config.precision, self.device)
        self._tell(phase="loading data", device=str(self.device), precision=self.precision)
        self.data = loading.load(self.config, self.device, lambda text: self._tell(phase=text))
        _refuse_what_cannot_fit(self.config, self.device)
        self._tell(phase="building the model")
        self.model = networks.build(
            self.config,
            in_channels=self.data.channels,
            num_classes=self.data.classes,
            sample=self.data.sample().cpu(),
        )
        parameters = sum(p.numel() for p in self.model.parameters())
        limits.check_size(parameters, limits.limits())
        _refuse_what_cannot_fit(self.config, self.device, parameters)
        self.model.to(self.device)
        channels_last(
            self.model
        )  # 1.3 to 1.6 times as fast for these convolutions on a CPU, and what tensor cores want
        self.network = self.ranks.wrap(self.model, unused=factories.parse(self.config.model) is not None)
        self.optimizer = build_optimizer(self.config, self.model)
        self.total = planned_steps(self.config, self.data.steps_per_epoch)
        self.checkpoint = Checkpoint(run, self.model, self.optimizer, self.ranks, self.device)
        self.position = self._resume()
        self._sums = torch.zeros(
            2, dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device
        )
        self.outcome = Outcome.UNDECIDED

    def go(self) -> Outcome:
        """Run all epochs; returns the outcome. The status is final when this returns."""
        self._tell(
            phase="training",
            total_steps=self.total,
            num_classes=self.data.classes,
            chance=self.data.chance,
            validation_samples=len(self.data.validation),
            train_samples=len(self.data.train),
            parameters=sum(p.numel() for p in self.model.parameters()),
        )
        recorder = Recorder(
            self.model,
            self.optimizer,
            run=self.run,
            every=self.config.record_every,
            step=self.position.step,
            seconds=self.position.seconds,
            writer=self.writer,
        )
        recorder.rows.relative_signal = self.position.relative_signal
        status = Status.FINISHED
        with recorder:
            while (
                status is Status.FINISHED and self.position.step < self.total and not self._certain(recorder)
            ):
                status = self._epoch(recorder)
        if self.writer is not None:
            self._finish(self.writer, recorder, status)
        return self.outcome

    def _tell(self, **changes: Any) -> None:
        """Into the status, if this is who writes it."""
        if self.writer is not None:
            self.writer.update(**changes)

    def _epoch(self, recorder: Recorder) -> Status:
        """One epoch or what is left of it. FINISHED: go on; STOPPED: a stop was asked for, or the loss is not
        finite.
        """
        at = self.position
        self.model.train()
        if at.batch == 0:
            # Dropout follows the data's seed, and no two ranks drop the same units.
            torch.manual_seed(self.config.data_seed * 1_000_003 + at.epoch + (self.ranks.rank << 40))
        self._sums.copy_(torch.tensor([at.loss_sum, at.correct], dtype=self._sums.dtype))
        for images, labels in self.data.epoch(at.epoch, at.batch):
            self._step(images, labels, recorder)
            at.step, at.batch, at.samples = at.step + 1, at.batch + 1, at.samples + len(labels)
            self.progress(at, self.total)
            if not self._finite(recorder):
                return Status.STOPPED
            if at.step >= self.total:
                break
            if self.ranks.agree(self.run.stop_requested()):
                self._save(recorder)
                return Status.STOPPED
        if not self._finite(recorder, wait=True):
            return Status.STOPPED
        if self.ranks.first:
            self._validate(recorder)
        at.next_epoch()
        self._sums.zero_()
        recorder.sync()
        if at.step < self.total or self.config.checkpoint == "keep":
            self._save(recorder)
        return Status.FINISHED

    def _finite(self, recorder: Recorder, wait: bool = False) -> bool:
        """Whether every loss so far is finite. A GPU is asked only to ``wait``, else what has arrived is
        looked at: it must not stand still.
        """
        if wait or self.device.type == "cpu":
            self.position.loss_sum, self.position.correct = self._sums.tolist()
            if not math.isfinite(self.position.loss_sum):
                recorder.rows.loss_finite = False  # also where this step was not to be recorded
        return self.ranks.agree(recorder.rows.loss_finite)

    def _step(self, images: Tensor, labels: Tensor, recorder: Recorder) -> None:
        """One optimizer step; the sums of the losses and of the samples classified correctly grow on the
        device.

        The loss told and recorded is the classifier's own, which has a price of guessing; auxiliary
        classifiers only take part in training. Of several ranks each computes its share of the batch; losses,
        sums and gradients are the whole batch's on all of them.
        """
        at, config, whole = self.position, self.config, len(labels)
        images, labels, mine = self.ranks.share(images, labels)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, at.step, self.total)
        images = in_layout(images)
        self.optimizer.zero_grad(set_to_none=True)
        with precision(self.precision, self.device):
            outputs = self.network(images)
            logits = outputs_of.logits(outputs)
            loss = F.cross_entropy(logits.float(), labels)
            total = loss + outputs_of.auxiliary_loss(outputs, labels)
        (total * (mine / whole) if self.ranks.several else total).backward()
        if config.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        correct = (logits.detach().argmax(1) == labels)[:mine].sum()
        sums = self.ranks.sum(torch.stack([loss.detach().to(self._sums.dtype) * mine, correct]))
        self._sums += sums
        recorder.step(
            loss,
            sums[1].float() / whole,
            epoch=at.epoch,
            whole=sums[0] / whole if self.ranks.several else None,
        )

    def _validate(self, recorder: Recorder) -> None:
        """Loss and accuracy over the validation split, and the outcome so far."""
        at = self.position
        val_loss, val_accuracy = evaluate(self.model, self.data, self.precision)
        recorder.epoch(at.epoch, at.loss_sum / at.samples, at.correct / at.samples, val_loss, val_accuracy)
        self.outcome = self._judge(recorder, val_accuracy)
        self._tell(
            outcome=str(self.outcome),
            outcome_by=str(Basis.VALIDATION),
            train_loss=at.loss_sum / at.samples,
            train_accuracy=at.correct / at.samples,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            images_per_second=at.step * self.config.batch_size / max(recorder.seconds, 1e-9),
        )

    def _certain(self, recorder: Recorder) -> bool:
        """Whether the run may end before its last epoch because its outcome is settled."""
        return self.config.stop_when_certain and self.ranks.agree(
            self.ranks.first and self._settled(recorder)
        )

    def _settled(self, recorder: Recorder) -> bool:
        accuracies = (
            self.run.read("epochs", ["val_accuracy"])["val_accuracy"].to_pylist()
            if self.position.step
            else []
        )
        return certain(
            accuracies=accuracies,
            steps=self.position.step,
            planned=self.total,
            chance=self.data.chance,
            samples=len(self.data.validation),
            relative_signal=recorder.rows.relative_signal,
        )

    def _judge(self, recorder: Recorder, val_accuracy: float | None) -> Outcome:
        return judge(
            loss_finite=recorder.rows.loss_finite,
            steps=self.position.step,
            accuracy=val_accuracy,
            chance=self.data.chance,
            samples=len(self.data.validation),
        )

    # -- checkpoints

    def _save(self, recorder: Recorder) -> None:
        """Rows first, so that a checkpoint never stands for rows that are not on disk."""
        self.position.loss_sum, self.position.correct = self._sums.tolist()
        self.position.seconds = recorder.seconds
        recorder.sync()
        self.position.relative_signal = recorder.rows.relative_signal
        self.checkpoint.save(self.position)

    def _resume(self) -> Position:
        position = self.checkpoint.load()
        if self.writer is not None:
            self.writer.keep_until(step=position.step, epoch=position.epoch)
        return position

    # -- the end

    def _finish(self, writer: RunWriter, recorder: Recorder, status: Status) -> None:
        if not recorder.rows.loss_finite:
            status, self.outcome = Status.FINISHED, Outcome.DIVERGED
        elif status is Status.STOPPED:
            # Stopped early, not having converged says nothing yet.
            accuracy = writer.state.get("val_accuracy")
            so_far = self._judge(recorder, accuracy if isinstance(accuracy, float) else None)
            self.outcome = so_far if so_far is Outcome.CONVERGED else Outcome.UNDECIDED
        writer.compact()
        (self.run.path / "stop").unlink(missing_ok=True)
        if status is Status.FINISHED and self.config.checkpoint != "keep":
            self.checkpoint.path.unlink(missing_ok=True)
        by = (
            Basis.TRAINING_LOSS
            if self.outcome is Outcome.DIVERGED
            else Basis.VALIDATION
            if "val_accuracy" in writer.state
            else None
        )
        writer.update(
            status=str(status),
            outcome=str(self.outcome),
            outcome_by=by and str(by),
            phase=None,
            ended=time.time(),
            step=self.position.step,
            seconds=recorder.seconds,
        )


def _refuse_what_cannot_fit(config: RunConfig, device: torch.device, parameters: int | None = None) -> None:
    """A GPU's memory is known here only, and what a network of somebody's own needs, once it is built, by its
    ``parameters``.

    Of several processes each has its share of the batch. Raises LimitExceeded.
    """
    share = config.replace(processes=1, batch_size=-(-config.batch_size // config.processes))
    needed = estimate(share)
    if needed is None and parameters is not None:
        needed = at_least(share, parameters)
    if needed is not None:
        gpu = device.type == "cuda"
        limits.check_memory(
            needed,
            torch.cuda.get_device_properties(device).total_memory if gpu else limits.limits().memory_of_a_run,
        )


def _refuse_code_in(folder: Path, config: RunConfig) -> None:
    """A run folder from elsewhere may name a Python file that came with it: nothing under ``runs/`` is ever
    executed.

    Raises ConfigError.
    """
    for role in factories.ROLES:
        factory = factories.parse(getattr(config, role))
        if factory and factory.path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{role}: {factory.path.name} lies in the folder of runs, where no code is taken from; move "
                "it elsewhere",
                role,
            )


@torch.no_grad()
def evaluate(model: nn.Module, loaded: loading.Data, how: str = "float32") -> tuple[float, float]:
    """(mean loss, accuracy) over the validation split in precision ``how``, in evaluation mode; the mode is
    restored.
    """
    training = model.training
    model.eval()
    sums: list[Tensor] = []
    try:
        for images, labels in loaded.validate():
            with precision(how, loaded.device):
                logits = model(in_layout(images)).float()
            sums.append(
                torch.stack(
                    [F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()]
                )
            )
    finally:
        model.train(training)
    loss, correct = (
        total / len(loaded.validation) for total in torch.stack(sums).cpu().double().sum(0).tolist()
    )
    return loss, correct
