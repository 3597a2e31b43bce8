"""Hugging Face: ``Trainer(..., callbacks=[InitScopeCallback(name="my net")])`` records the training as a run.

One row an optimizer step, with the loss of its whole batch under gradient accumulation; evaluation is not recorded. The Trainer
tells its callbacks neither the loss nor an exception. The loss is read off the model's own output; exceptions are seen with

    with InitScopeCallback(name="my net") as callback:
        Trainer(..., callbacks=[callback]).train()

which ends the run as ``stopped`` (Ctrl-C) or ``failed`` at once. Without the block that happens when the process ends, or when the same
callback begins again. Training on from a checkpoint is a new run whose steps are numbered on.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from initscope.errors import ConfigError
from initscope.recording.recorder import Recorder

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError("initscope.integrations.huggingface needs Hugging Face's Trainer: pip install transformers accelerate") from None


class InitScopeCallback(TrainerCallback):
    """Records every training of its trainer. ``name``, ``runs``, ``every`` and ``tags`` as in ``initscope.recording.recorder.Recorder``.

    ``recorder`` is the newest training's Recorder, ``recorder.run`` its run. Raises ConfigError at the first step if
    the model's output holds no loss (a compute_loss of one's own): record such a loop with ``initscope.recording.recorder`` itself.
    """

    def __init__(self, *, name: str = "", runs: str | Path | None = None, every: int = 1, tags: Sequence[str] = ()):
        self.options: dict[str, Any] = {"name": name, "runs": runs, "every": every, "tags": tuple(tags)}
        self.recorder: Recorder | None = None
        self._open = contextlib.ExitStack()
        self._losses: list[torch.Tensor] = []
        self._mean = True

    def __enter__(self) -> InitScopeCallback:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._open.__exit__(kind, error, trace)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any = None, **_: Any) -> None:
        self._abandon()
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper counts no steps of its own
        self.recorder = Recorder(model, optimizer, step=state.global_step, **self.options)
        self._losses.clear()
        self._open.enter_context(self.recorder)
        self._open.callback(model.register_forward_hook(self._look, with_kwargs=True).remove)
        atexit.register(self._abandon)
        self._open.callback(atexit.unregister, self._abandon)

    def _look(self, module: Any, arguments: tuple, named: Mapping[str, Any], output: Any) -> None:
        """Keep the loss of a training pass."""
        if not module.training or not torch.is_grad_enabled():
            return
        loss = output.get("loss") if isinstance(output, Mapping) else output[0] if isinstance(output, (tuple, list)) else None
        if isinstance(loss, torch.Tensor) and loss.dim() == 0:
            self._losses.append(loss)
            # Told the number of items in the whole batch, a model has divided by it already.
            self._mean = named.get("num_items_in_batch") is None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses, self._losses = self._losses, []
        if self.recorder is None:
            return
        if not losses:
            raise ConfigError("the model's output holds no loss to record; give the data labels, or record your loop with initscope.recording.recorder.Recorder")
        if len(losses) == 1:
            loss = losses[0]
        else:
            stacked = torch.stack([loss.detach() for loss in losses])
            loss = stacked.mean() if self._mean else stacked.sum()
        self.recorder.step(loss, epoch=int(state.epoch or 0))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._open.close()

    def _abandon(self) -> None:
        """End a run whose training was left by an exception: the interpreter's last one, where it knows it."""
        error = getattr(sys, "last_value", None) or RuntimeError("training was left before its end")
        self._open.__exit__(type(error), error, None)
        self._open = contextlib.ExitStack()
