"""PyTorch Lightning: ``Trainer(callbacks=[InitScopeCallback(name="my net")])`` records the fit as a run.

One row an optimizer step, with the loss of its whole batch under gradient accumulation. Validation, its sanity check, testing and
prediction are not recorded. Ctrl-C ends the run as ``stopped``, any other exception as ``failed``; both arrive unchanged. A fit
that goes on from a checkpoint is a new run whose steps are numbered on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from initscope.recording.recorder import Recorder

try:
    # The two packages hold two copies of the same classes: take the one that the program uses.
    if "pytorch_lightning" in sys.modules:
        import pytorch_lightning as lightning
    else:
        try:
            import lightning.pytorch as lightning
        except ImportError:
            import pytorch_lightning as lightning
except ImportError:
    raise ImportError("initscope.integrations.lightning needs PyTorch Lightning: pip install lightning") from None


class InitScopeCallback(lightning.Callback):
    """Records every fit of its trainer. ``name``, ``runs``, ``every`` and ``tags`` as in ``initscope.recording.recorder.Recorder``.

    With several optimizers (manual optimization) a row is one batch, its loss the sum of what was sent backward.
    ``recorder`` is the newest fit's Recorder, ``recorder.run`` its run.
    """

    def __init__(self, *, name: str = "", runs: str | Path | None = None, every: int = 1, tags: Sequence[str] = ()):
        super().__init__()
        self.options: dict[str, Any] = {"name": name, "runs": runs, "every": every, "tags": tuple(tags)}
        self.recorder: Recorder | None = None
        self._open = contextlib.ExitStack()
        self._losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        optimizers = list(trainer.optimizers)
        watched = optimizers[0] if len(optimizers) == 1 else optimizers or None
        self._losses.clear()
        self._stepped = False
        self.recorder = Recorder(pl_module, watched, step=trainer.global_step, **self.options)
        self._open.enter_context(self.recorder)
        for optimizer in optimizers:
            # Lightning's own hooks come after the scheduler has moved on to the next step's learning rate.
            after = self._record if len(optimizers) == 1 else self._note_step
            self._open.callback(optimizer.register_step_post_hook(lambda *_, after=after: after(trainer)).remove)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._losses.append(loss / scaler.get_scale() if scaler is not None else loss)

    def _note_step(self, trainer: Any) -> None:
        self._stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._stepped:
            self._record(trainer)

    def _record(self, trainer: Any) -> None:
        losses, self._losses, self._stepped = self._losses, [], False
        if losses and self.recorder is not None:
            # Lightning has divided each by the number of accumulated batches.
            loss = losses[0] if len(losses) == 1 else torch.stack([loss.detach() for loss in losses]).sum()
            self.recorder.step(loss, epoch=trainer.current_epoch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._open.__exit__(type(exception), exception, exception.__traceback__)
