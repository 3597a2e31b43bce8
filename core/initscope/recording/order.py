"""Help for a loop whose calls stand in another order than training needs, or that leaves no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from initscope.errors import RecordingError
from initscope.recording.guard import Guard
from initscope.recording.meter import LayerMeter
from initscope.recording.model_facts import backward_has_run, reaches

_UNHEARD = (
    "gradients are there, but neither backward() nor optimizer.step() was heard of, so neither gradients nor "
    "updates are recorded: a compiled function around the whole step calls no hooks; compile the model alone"
)


class CallOrder:
    """Looks at each loss that ``step`` is told; ``note`` is given facts, ``guard`` tells each thing once."""

    def __init__(self, meter: LayerMeter, guard: Guard, note: Callable[[dict[str, Any]], None]):
        self._meter, self._guard, self._note = meter, guard, note
        self._gradient_seen = False

    def check(self, loss: Any) -> None:
        """Raises RecordingError where ``step`` comes before the first backward pass; tells of a cut graph, a
        missing backward pass, evaluation mode, an update that comes too late, and gradients that are nowhere.
        """
        meter, guard = self._meter, self._guard
        if meter.loss_only:
            return
        self._gradient_seen = self._gradient_seen or meter.backward_seen
        graph = isinstance(loss, Tensor) and loss.grad_fn is not None
        if not self._gradient_seen and meter.enabled and graph and meter.misses_gradients():
            if not reaches(loss, meter.model):
                self._note({"loss_detached": True})
                guard.tell_once(
                    "the loss does not depend on the model's parameters, so none of them gets a gradient: "
                    "is the graph cut by detach(), "
                    "no_grad() or a conversion to numbers between the model and the loss?"
                )
                return
            if meter.empty_update and not backward_has_run(loss):
                self._note({"backward_missing": True})
                guard.tell_once(
                    "optimizer.step() was called and no gradient has been computed: is loss.backward() "
                    "missing?"
                )
                return
            if not backward_has_run(loss):
                raise RecordingError(
                    "recorder.step(loss) was called before loss.backward(): no gradient has been computed; "
                    "call it after optimizer.step()"
                )
        if meter.trained_in_evaluation:
            guard.tell_once(
                "the model is in evaluation mode (model.eval()) while it is trained: dropout is off and "
                "batch normalization keeps its statistics; "
                "call model.train() before training unless that is meant"
            )
        if meter.late_update:
            guard.tell_once(
                "recorder.step(loss) is called before optimizer.step(): no update ratio is recorded; call "
                "it after optimizer.step()"
            )
        if not self._gradient_seen and meter.enabled and meter.gradients_unheard():
            self._note({"not_measured": _UNHEARD})
            guard.tell_once(_UNHEARD)
        elif not self._gradient_seen and meter.enabled:
            guard.tell_once(
                "recorder.step(loss) finds no gradient in the model's parameters, so none is recorded: only "
                "loss.backward() leaves them there, "
                "torch.autograd.grad and torch.func do not"
            )
