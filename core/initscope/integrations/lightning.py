"""PyTorch Lightning: ``Trainer(callbacks=[InitScopeCallback(name="my net")])`` records the fit as a run.

One row an optimizer step, with the loss of its whole batch under gradient accumulation. Validation, its
sanity check, testing and prediction are not recorded. A stop that somebody asks for ends the fit after the
step. Ctrl-C ends the run as ``stopped``, any other exception as ``failed``; both arrive unchanged. A fit that
goes on from a checkpoint is a new run whose steps are numbered on.
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
            import lightning.pytorch as lightning  # type: ignore[no-redef]
        except ImportError:
            import pytorch_lightning as lightning
except ImportError:
    raise ImportError(
        "initscope.integrations.lightning needs PyTorch Lightning: pip install lightning"
    ) from None


class InitScopeCallback(lightning.Callback):
    """Records every fit of its trainer. Options as in ``initscope.recording.recorder.Recorder``: ``name``,
    ``runs``, ``every``, ``tags``, ``config`` and ``quiet``.

    With several optimizers (manual optimization), or none, a row is one batch, its loss the sum of what was
    sent backward. A batch for which ``training_step`` returns None has a row without a loss. ``recorder`` is
    the newest fit's Recorder, ``recorder.run`` its run.
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
        super().__init__()
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
        self._stepping = self._evaluated = self._stepped = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle (``ddp_spawn`` sends one to each process) records fits of its own."""
        return {**self.__dict__, "recorder": None, "_open": None, "_losses": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_open": contextlib.ExitStack()}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # For a fit without one Lightning makes an optimizer that holds nothing and never steps.
        optimizers = [one for one in trainer.optimizers if any(group["params"] for group in one.param_groups)]
        watched = optimizers[0] if len(optimizers) == 1 else optimizers or None
        self._losses.clear()
        self._stepping = self._evaluated = self._stepped = False
        self._none = not optimizers
        self.recorder = Recorder(pl_module, watched, step=trainer.global_step, **self.options)
        self._open.enter_context(self.recorder)
        for optimizer in optimizers:
            # Lightning's own hooks come after the scheduler has moved on to the next step's learning rate.
            after = self._record if watched is optimizer else self._note_step
            self._open.callback(optimizer.register_step_pre_hook(self._before_step).remove)
            self._open.callback(
                optimizer.register_step_post_hook(lambda *_, after=after: after(trainer)).remove
            )

    def _before_step(self, *_: Any) -> None:
        self._stepping, self._evaluated = True, False

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if self._stepping and self._evaluated:
            # the optimizer (LBFGS) evaluates its closure again, at other weights than those before the step
            return
        self._evaluated = self._stepping
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._losses.append(loss / scaler.get_scale() if scaler is not None else loss)

    def _note_step(self, trainer: Any) -> None:
        self._stepping, self._stepped = False, True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stepped or (self._none and self._losses):
            self._record(trainer)

    def _record(self, trainer: Any) -> None:
        losses, self._losses, self._stepping, self._stepped = self._losses, [], False, False
        if self.recorder is None:
            return
        # Lightning has divided each by the number of accumulated batches.
        loss = (
            None
            if not losses
            else losses[0]
            if len(losses) == 1
            else torch.stack([loss.detach() for loss in losses]).sum()
        )
        if not self.recorder.advance(loss, None, int(trainer.current_epoch)):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._open.__exit__(type(exception), exception, exception.__traceback__)
