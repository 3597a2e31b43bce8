"""Hugging Face: ``Trainer(..., callbacks=[InitScopeCallback(name="my net")])`` records the training as a run.

One row an optimizer step, with the Trainer's own loss, whatever made it (label smoothing,
``compute_loss_func``, a ``compute_loss`` of one's own), of its whole batch under gradient accumulation;
evaluation is not recorded. The Trainer tells its callbacks neither the loss nor an exception. The loss is
what its ``training_step`` returns; exceptions are seen with

    with InitScopeCallback(name="my net") as callback:
        Trainer(..., callbacks=[callback]).train()

which ends the run as ``stopped`` (Ctrl-C) or ``failed`` at once. Without the block that happens when the
process ends, or when the same callback begins again. A stop that somebody asks for ends the training after
the step. Training on from a checkpoint is a new run whose steps are numbered on.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from initscope.recording.recorder import Recorder

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError(
        "initscope.integrations.huggingface needs Hugging Face's Trainer: pip install transformers accelerate"
    ) from None


class InitScopeCallback(TrainerCallback):
    """Records every training of its trainer. Options as in ``initscope.recording.recorder.Recorder``:
    ``name``, ``runs``, ``every``, ``tags``, ``config`` and ``quiet``.

    ``recorder`` is the newest training's Recorder, ``recorder.run`` its run. A training whose loss cannot be
    seen (a trainer that is no ``transformers.Trainer`` and a model whose output holds no loss) is recorded
    without one, and a warning says so.
    """

    def __init__(
        self,
        *,
        name: str = "",
        runs: str | Path | None = None,
        every: int | None = None,
        tags: Sequence[str] = (),
        config: Any = None,
        quiet: bool = False,
    ):
        self.options: dict[str, Any] = {
            "name": name,
            "runs": runs,
            "every": every,
            "tags": tags,
            "config": config,
            "quiet": quiet,
        }
        self.recorder: Recorder | None = None
        self._open = contextlib.ExitStack()
        self._losses: list[torch.Tensor] = []
        self._loss: torch.Tensor | None = None
        self._averaged = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle records trainings of its own."""
        return {**self.__dict__, "recorder": None, "_open": None, "_losses": [], "_loss": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_open": contextlib.ExitStack()}

    def __enter__(self) -> InitScopeCallback:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._open.__exit__(kind, error, trace)

    def on_train_begin(  # type: ignore[override]  # the model is always among its keywords
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any = None, **_: Any
    ) -> None:
        self._abandon()
        optimizer = getattr(
            optimizer, "optimizer", optimizer
        )  # Accelerate's wrapper counts no steps of its own
        recorder = self.recorder = Recorder(model, optimizer, step=state.global_step, **self.options)
        self._losses, self._loss = [], None
        self._open.enter_context(recorder)
        trainer = self._trainer()
        if trainer is not None:
            self._watch(recorder, trainer, "compute_loss", self._see_loss)
            self._watch(recorder, trainer, "training_step", self._losses_add)
        else:
            self._open.callback(model.register_forward_hook(self._look, with_kwargs=True).remove)

    def _trainer(self) -> Any:
        """The Trainer that is calling this callback: it hands itself to none."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            found = frame.f_locals.get("self")
            handler = getattr(found, "callback_handler", None)
            if (
                found is not self
                and self in getattr(handler, "callbacks", ())
                and hasattr(found, "training_step")
                and hasattr(found, "compute_loss")
            ):
                return found
            frame = frame.f_back
        return None

    def _watch(self, recorder: Recorder, trainer: Any, method: str, see: Callable[[Any], None]) -> None:
        """Have ``see`` called with what a method of this one trainer returns, until the training ends."""
        original = getattr(trainer, method)
        own = vars(trainer).get(method)

        @functools.wraps(original)
        def watched(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            with recorder.guard("reading the Trainer's loss"):
                see(result)
            return result

        def put_back() -> None:
            if own is None:
                vars(trainer).pop(method, None)
            else:
                setattr(trainer, method, own)

        setattr(trainer, method, watched)
        self._open.callback(put_back)

    def _see_loss(self, result: Any) -> None:
        """Keep the loss of a training pass with its graph, which says what kind of loss it is."""
        loss = result[0] if isinstance(result, tuple) else result
        if torch.is_grad_enabled() and isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._loss = loss

    def _losses_add(self, result: Any) -> None:
        """Keep a batch's share of the step's loss, as the Trainer itself adds it up for its log."""
        self._losses.append(
            result.detach() if isinstance(result, torch.Tensor) else torch.tensor(float(result))
        )

    def _look(self, module: Any, arguments: tuple, named: Mapping[str, Any], output: Any) -> None:
        """Without a Trainer: keep the loss that the model's output holds after a training pass."""
        if not module.training or not torch.is_grad_enabled():
            return
        loss = (
            output.get("loss")
            if isinstance(output, Mapping)
            else output[0]
            if isinstance(output, (tuple, list))
            else None
        )
        if isinstance(loss, torch.Tensor) and loss.dim() == 0:
            self._losses.append(loss.detach())
            self._loss = loss
            # Told the number of items in the whole batch, a model has divided by it already.
            self._averaged = named.get("num_items_in_batch") is None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses, loss = self._losses, self._loss
        self._losses, self._loss = [], None
        if self.recorder is None:
            return
        whole = None
        if losses:
            whole = (
                losses[0]
                if len(losses) == 1
                else torch.stack([one.to(losses[0].device) for one in losses]).sum()
            )
            whole = whole / len(losses) if self._averaged else whole
        else:
            self.recorder.guard.tell_once(
                "no loss of this training can be seen, so none is recorded; record your loop with "
                "initscope.Recorder itself"
            )
        epoch = int(state.epoch or 0)
        go_on = self.recorder.advance(loss if loss is not None else whole, None, epoch, whole)
        if not go_on:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._open.close()

    def _abandon(self) -> None:
        """End a run whose training was left by an exception: the interpreter's last one, where it knows
        it.
        """
        error = getattr(sys, "last_value", None) or RuntimeError("training was left before its end")
        self._open.__exit__(type(error), error, None)
        self._open = contextlib.ExitStack()
