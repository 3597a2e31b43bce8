"""The training loop: from a configuration to a finished run folder.

A non-finite loss is an outcome, not an exception. Everything that moves (weights, optimizer, position in the epoch, the
epoch's sums, random state) is in the checkpoint, so a resumed run goes on along the curve it would have taken.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import data, factories, limits, models
from core.config import RunConfig
from core.errors import ConfigError, RunFolderError, one_line
from core.memory import at_least, estimate
from core.models import outputs as outputs_of
from core.outcome import certain, judge
from core.ranks import Ranks
from core.recorder import Recorder
from core.schema import Outcome, Status
from core.store import Run, RunWriter, own_process
from core.store.files import replacing
from core.store.writer import set_status

CHECKPOINT = "checkpoint.pt"

log = logging.getLogger("initscope")


@dataclass
class Position:
    """Where in the run training stands, the running sums of the epoch, and the signal last seen at the output."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    relative_signal: float = math.inf

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.loss_sum, self.correct, self.samples = self.epoch + 1, 0, 0.0, 0.0, 0


def train(run: Run, progress: Callable[[Position, int], None] = lambda position, total: None, engine: str | None = None) -> Outcome:
    """Train ``run`` to its end, or on from its checkpoint, and write everything it is asked to record.

    ``progress`` is called after every step with the position and the number of steps planned. A stop request or a
    SIGTERM turned into one ends the run as ``stopped`` after the current step, with a checkpoint. Errors mark the run
    ``failed`` and are raised on; InitScopeError ones carry a one-line message. ``engine``: who carries the run, if it came from the queue.
    """
    try:
        writer = RunWriter(run)
        began = time.time()
        writer.update(
            status=str(Status.RUNNING), engine=engine, started=writer.state.get("started") or began, ended=None, error=None, **own_process()
        )
        config = run.config()
        log.info("start %s: %s on %s, init %s, seed %d", run.id, config.model, config.data, config.init, config.init_seed)
        if config.processes > 1:
            from core import torchrun  # starts processes that each come back here

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

    Of several ``ranks`` all do this at once; what is written is written by the first, the others have no ``writer``.
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
        self.data = data.load(self.config, self.device, lambda text: self._tell(phase=text))
        _refuse_what_cannot_fit(self.config, self.device)
        self._tell(phase="building the model")
        # Channels last is 1.3 to 1.6 times as fast for these convolutions on a CPU, and what tensor cores want.
        self.model = models.build(
            self.config, in_channels=self.data.channels, num_classes=self.data.classes, sample=self.data.sample().cpu()
        )
        parameters = sum(p.numel() for p in self.model.parameters())
        limits.check_size(parameters, limits.limits())
        _refuse_what_cannot_fit(self.config, self.device, parameters)
        self.model.to(self.device)
        channels_last(self.model)
        self.network = self.ranks.wrap(self.model, unused=factories.parse(self.config.model) is not None)
        self.optimizer = build_optimizer(self.config, self.model)
        self.total = planned_steps(self.config, self.data.steps_per_epoch)
        self.position = Position()
        self._sums = torch.zeros(2, dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device)
        self.outcome = Outcome.UNDECIDED
        self._resume()

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
        recorder.relative_signal = self.position.relative_signal
        status = Status.FINISHED
        with recorder:
            while status is Status.FINISHED and self.position.step < self.total and not self._certain(recorder):
                status = self._epoch(recorder)
        if self.ranks.first:
            self._finish(recorder, status)
        return self.outcome

    def _tell(self, **changes: Any) -> None:
        """Into the status, if this is who writes it."""
        if self.writer is not None:
            self.writer.update(**changes)

    def _epoch(self, recorder: Recorder) -> Status:
        """One epoch or what is left of it. FINISHED: go on; STOPPED: a stop was asked for, or the loss is not finite."""
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
        """Whether every loss so far is finite. A GPU is asked only to ``wait``, else what has arrived is looked at: it must not stand still."""
        if wait or self.device.type == "cpu":
            self.position.loss_sum, self.position.correct = self._sums.tolist()
            if not math.isfinite(self.position.loss_sum):
                recorder.loss_finite = False  # also where this step was not to be recorded
        return self.ranks.agree(recorder.loss_finite)

    def _step(self, images: Tensor, labels: Tensor, recorder: Recorder) -> None:
        """One optimizer step; the sums of the losses and of the samples classified correctly grow on the device.

        The loss told and recorded is the classifier's own, which has a price of guessing; auxiliary classifiers only take part in training.
        Of several ranks each computes its share of the batch; losses, sums and gradients are the whole batch's on all of them.
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
        recorder.step(loss, sums[1].float() / whole, epoch=at.epoch, whole=sums[0] / whole if self.ranks.several else None)

    def _validate(self, recorder: Recorder) -> None:
        """Loss and accuracy over the validation split, and the outcome so far."""
        at = self.position
        val_loss, val_accuracy = evaluate(self.model, self.data, self.precision)
        recorder.epoch(at.epoch, at.loss_sum / at.samples, at.correct / at.samples, val_loss, val_accuracy)
        self.outcome = self._judge(recorder, val_accuracy)
        self._tell(
            outcome=str(self.outcome),
            train_loss=at.loss_sum / at.samples,
            train_accuracy=at.correct / at.samples,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            images_per_second=at.step * self.config.batch_size / max(recorder.seconds, 1e-9),
        )

    def _certain(self, recorder: Recorder) -> bool:
        """Whether the run may end before its last epoch because its outcome is settled."""
        return self.config.stop_when_certain and self.ranks.agree(self.ranks.first and self._settled(recorder))

    def _settled(self, recorder: Recorder) -> bool:
        accuracies = self.run.read("epochs", ["val_accuracy"])["val_accuracy"].to_pylist() if self.position.step else []
        return certain(
            accuracies=accuracies,
            steps=self.position.step,
            planned=self.total,
            chance=self.data.chance,
            samples=len(self.data.validation),
            relative_signal=recorder.relative_signal,
        )

    def _judge(self, recorder: Recorder, val_accuracy: float | None) -> Outcome:
        return judge(
            loss_finite=recorder.loss_finite,
            steps=self.position.step,
            accuracy=val_accuracy,
            chance=self.data.chance,
            samples=len(self.data.validation),
        )

    # -- checkpoints

    def _save(self, recorder: Recorder) -> None:
        """Replace the checkpoint: rows first, so that a checkpoint never stands for rows that are not on disk."""
        self.position.loss_sum, self.position.correct = self._sums.tolist()
        self.position.seconds = recorder.seconds
        recorder.sync()
        self.position.relative_signal = recorder.relative_signal
        random = self.ranks.gather(torch.get_rng_state())
        random_cuda = self.ranks.gather(torch.cuda.get_rng_state(self.device)) if self.device.type == "cuda" else []
        if not self.ranks.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": vars(self.position),
            "random": random[0],
            "random_of_others": random[1:],
        }
        if random_cuda:
            state |= {"random_cuda": random_cuda[0], "random_cuda_of_others": random_cuda[1:]}
        with replacing(self.run.path / CHECKPOINT, durable=True) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        path = self.run.path / CHECKPOINT
        if not path.exists():
            self._keep_rows(step=0, epoch=0)
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)  # tensors and numbers only: no code from a file
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.position = Position(**state["position"])
            torch.set_rng_state(self._own(state, "random"))
            if "random_cuda" in state:
                torch.cuda.set_rng_state(self._own(state, "random_cuda"), self.device)
        except Exception as error:  # damaged bytes, or another network's, come out of torch.load as almost anything
            if is_out_of_memory(error):
                raise
            why = one_line(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise RunFolderError(
                f"run {self.run.id}: {CHECKPOINT} cannot be used ({why}); delete that file and resume to train from the first step"
            ) from None
        self._keep_rows(step=self.position.step, epoch=self.position.epoch)

    def _own(self, state: dict[str, Any], key: str) -> Tensor:
        """This rank's random state; the first one's for a rank that was not there when the checkpoint was written."""
        return [state[key], *state.get(f"{key}_of_others", [])][self.ranks.rank].cpu()

    def _keep_rows(self, step: int, epoch: int) -> None:
        if self.writer is not None:
            self.writer.keep_until(step=step, epoch=epoch)

    # -- the end

    def _finish(self, recorder: Recorder, status: Status) -> None:
        if not recorder.loss_finite:
            status, self.outcome = Status.FINISHED, Outcome.DIVERGED
        elif status is Status.STOPPED:
            # Stopped early, not having converged says nothing yet.
            accuracy = self.writer.state.get("val_accuracy")
            so_far = self._judge(recorder, accuracy if isinstance(accuracy, float) else None)
            self.outcome = so_far if so_far is Outcome.CONVERGED else Outcome.UNDECIDED
        self.writer.compact()
        (self.run.path / "stop").unlink(missing_ok=True)
        if status is Status.FINISHED and self.config.checkpoint != "keep":
            (self.run.path / CHECKPOINT).unlink(missing_ok=True)
        self.writer.update(
            status=str(status), outcome=str(self.outcome), phase=None, ended=time.time(), step=self.position.step, seconds=recorder.seconds
        )


# ---------------------------------------------------------------- parts of the loop, each usable alone


def channels_last(model: nn.Module) -> None:
    """Lay the weights of 2-d convolutions out as these kernels like them; other weights have no such layout."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)  # contiguous() leaves one channel as it is


def in_layout(inputs: Tensor) -> Tensor:
    """Images in the layout of the weights; other inputs as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _refuse_what_cannot_fit(config: RunConfig, device: torch.device, parameters: int | None = None) -> None:
    """A GPU's memory is known here only, and what a network of somebody's own needs, once it is built, by its ``parameters``.

    Of several processes each has its share of the batch. Raises LimitExceeded.
    """
    share = config.replace(processes=1, batch_size=-(-config.batch_size // config.processes))
    needed = estimate(share)
    if needed is None and parameters is not None:
        needed = at_least(share, parameters)
    if needed is not None:
        gpu = device.type == "cuda"
        limits.check_memory(needed, torch.cuda.get_device_properties(device).total_memory if gpu else limits.limits().memory_of_a_run)


def _refuse_code_in(folder: Path, config: RunConfig) -> None:
    """A run folder from elsewhere may name a Python file that came with it: nothing under ``runs/`` is ever executed.

    Raises ConfigError.
    """
    for role in factories.ROLES:
        factory = factories.parse(getattr(config, role))
        if factory and factory.path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{role}: {factory.path.name} lies in the folder of runs, where no code is taken from; move it elsewhere", role)


def reason(error: BaseException) -> str:
    """What ended a training, in one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
    if is_out_of_memory(error):
        return f"out of memory: {text}; a smaller batch_size, width or image_size needs less"
    if is_out_of_disk(error):
        return f"the disk takes nothing more: {text}; make room, then resume the run from its checkpoint"
    return text


def is_out_of_disk(error: BaseException) -> bool:
    """Whether a disk or a quota is full; torch's writer of checkpoints says so in words only: it could not write as far as it meant to."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)) or "inline_container.cc" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's, the CPU's or Python's memory ran out; torch's CPU allocator says so in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto``: a CUDA GPU, else Apple's, else the CPU. Raises ConfigError if it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        available = ", ".join(kind for kind, ok in there.items() if ok)
        raise ConfigError(f"device {name} is not available on this machine; available: {available}", "device")
    return torch.device(name)


def prepare_torch(config: RunConfig, device: torch.device) -> None:
    """Threads and determinism: the same config gives the same sums in the same order."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // config.processes))
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of that name; ``auto``: bfloat16 where the device computes in it, float32 where it would be emulated."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if native else "float32"


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast for ``bfloat16``; nothing for ``float32``."""
    if name == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        yield


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with the config's hyperparameters; ``fused`` kernels where the device has them."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), betas=(config.momentum, 0.999), **common)


def planned_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """Learning rate of a step, a function of the step alone so that a resumed run needs no scheduler state.

    Linear warm-up, then constant, half a cosine to zero, or a tenth after one half and a hundredth after three quarters.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    return config.learning_rate


@torch.no_grad()
def evaluate(model: nn.Module, loaded: data.Data, how: str = "float32") -> tuple[float, float]:
    """(mean loss, accuracy) over the validation split in precision ``how``, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    sums: list[Tensor] = []
    try:
        for images, labels in loaded.validate():
            with precision(how, loaded.device):
                logits = model(in_layout(images)).float()
            sums.append(torch.stack([F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()]))
    finally:
        model.train(training)
    loss, correct = (total / len(loaded.validation) for total in torch.stack(sums).cpu().double().sum(0).tolist())
    return loss, correct
