"""What a Recorder looks at besides its rows, at a few steps: the structure of the network, and how it behaves
when tried.

One object decides when to look and collects the facts; what is looked at stands in ``graph_facts``,
``clearing``, ``shadow`` and ``nonfinite``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from initscope.recording import twins
from initscope.recording.clearing import Clearing, watched_parameters
from initscope.recording.graph_facts import Unregistered
from initscope.recording.layers import clean
from initscope.recording.meter import LayerMeter
from initscope.recording.nonfinite import NonfiniteWatch
from initscope.recording.repeatable import MOST_NUMBERS, obstacle
from initscope.recording.tensors import tensors_of

MIXING_STEPS = (1, 6)
"""Steps after which one sample is changed to see whose output moves: twice, since outputs may all be zero at
first.
"""
FIRST_GAP, GAP_GROWTH = 8, 1.5
"""Training and evaluation mode are compared after so many steps, and then each time there are so many times
as many.
"""
EPOCH_GROWTH = 1.1
"""At an epoch's end they are compared too, if a tenth of the steps are new since the last time."""
GAPS_KEPT = 20
SAMPLES_KEPT = 8
"""Batches of fewer samples are looked at together."""
MOST_KEPT = 16 * MOST_NUMBERS
"""Numbers in a batch that is kept until the next two recorded steps are over."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Inspection:
    """Facts of the network's structure and behaviour, handed to ``note`` when they are known. ``step`` is the
    first step's number.
    """

    def __init__(self, meter: LayerMeter, note: Callable[[dict[str, Any]], None], step: int = 0):
        self.meter = meter
        self._note = note
        model, optimizers = meter.model, meter.optimizers
        fresh = step == 0
        self._unregistered = Unregistered(model, optimizers) if fresh else None
        held = (
            {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
            if optimizers
            else None
        )
        self._clearing = Clearing(list(watched_parameters(model, held))) if fresh else None
        self._kept: bool | None = None
        measured = {id(layer.weight) for layer in meter.layers if layer.weight is not None}
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        self._nonfinite = NonfiniteWatch(model, optimizers, measured) if on_cpu else None
        self._twins = True
        self._mixing_steps = set(MIXING_STEPS) if fresh else set()
        self._next_gap = FIRST_GAP if fresh else max(FIRST_GAP, step)
        self._gaps: list[dict[str, Any]] = []
        self._last_epoch_gap = 0
        self._arguments: tuple[tuple, dict] | None = None
        # The newest batch and those before: running averages may be those of the newest alone.
        self._batches: list[_Batch] = []
        self._averaging: list[nn.Module] = []
        if fresh:
            note(_dropouts(model))

    def forward(self, inputs: tuple, kwargs: dict, output: Any) -> None:
        """After a training pass of the whole model at a recorded step."""
        self._arguments = (inputs, kwargs)
        self._averaging = twins.averaging(self.meter.model) if self._twins else []
        if self._unregistered is not None and not self._unregistered.done:
            found = self._unregistered.look(output, [inputs, kwargs])
            if found:
                self._note({"unregistered": found})
        elif self._unregistered is not None:
            self._unregistered = None

    def after_step(self, step: int, loss: Any, reading: Any) -> None:
        """After the update of recorded step ``step``, whose numbers are ``reading``."""
        arguments, self._arguments = self._arguments, None
        if self._clearing is not None:
            self._look_at_clearing()
        if self._nonfinite is not None:
            value = 0.0 if loss is None else float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
            found = self._nonfinite.look(step, value, reading, self.meter.names, arguments)
            if found:
                self._note({"nonfinite_origin": found})
                self._nonfinite = None
                self._twins = False  # nothing more is to be learned from a network of NaN
        if arguments is not None and self._twins:
            if self._averaging:
                self._keep(_Batch(arguments))
            self._try(step, arguments)

    def after_epoch(self, step: int) -> None:
        """At an epoch's end, after ``step`` steps: how the two modes differ with the averages that a
        validation has just used. The batches of an epoch are not all alike, the last one is often small.
        """
        averaging = self._averaging
        together = any(isinstance(module, nn.SyncBatchNorm) for module in averaging)  # waits for other ranks
        if not self._twins or not averaging or together or step < EPOCH_GROWTH * self._last_epoch_gap:
            return
        earlier = self._earlier()
        if earlier is None:
            return
        self._last_epoch_gap = step
        self._try_passes(lambda: self._look_at_gap(step, earlier, epoch=True), earlier[0])

    def _keep(self, batch: _Batch) -> None:
        """The newest batch, the one before, and as many more as it takes for ``SAMPLES_KEPT`` samples."""
        before = self._batches
        while len(before) > 1 and sum(kept.samples for kept in before[1:]) >= SAMPLES_KEPT:
            before = before[1:]
        self._batches = [*before[-SAMPLES_KEPT:], batch]

    def _earlier(self) -> list[tuple[tuple, dict]] | None:
        """The inputs of the batches before the newest that are still what they were; None if there are
        none.
        """
        known = [arguments for kept in self._batches[:-1] if (arguments := kept.arguments) is not None]
        return known or None

    def close(self) -> None:
        """Take off what hangs on the model, and keep nothing alive."""
        if self._clearing is not None:
            self._clearing.remove()
        self._clearing = self._unregistered = self._nonfinite = self._arguments = None
        self._batches, self._averaging = [], []

    def _look_at_clearing(self) -> None:
        if self._clearing is None:
            return
        kept = self._clearing.kept
        if kept is not None and kept != self._kept:
            self._kept = kept
            self._note({"gradients_kept": kept})
        if self._clearing.done:
            self._clearing.remove()
            self._clearing = None

    def _try(self, step: int, arguments: tuple[tuple, dict]) -> None:
        """Passes of a twin, where this step is one of the few that are for it."""
        due = {planned for planned in self._mixing_steps if planned <= step}
        self._mixing_steps -= due
        gap = step >= self._next_gap and bool(self._averaging)
        if not (due or gap):
            return
        if gap:
            self._next_gap = max(step + 1, int(step * GAP_GROWTH))

        def passes() -> None:
            if due and (found := twins.mixing(self.meter.model, arguments)):
                self._note({"mixing": {**found, "step": step}})
            if due and (bent := twins.bend(self.meter.model, arguments)) is not None:
                self._note({"bend": bent})
            if gap:
                self._look_at_gap(step, self._earlier() or [arguments])

        self._try_passes(passes, arguments)

    def _look_at_gap(self, step: int, batches: list[tuple[tuple, dict]], epoch: bool = False) -> None:
        found = twins.mode_gap(self.meter.model, batches, self._averaging)
        if found:
            self._gaps = [*self._gaps, {"step": step, **found, "epoch": epoch}][-GAPS_KEPT:]
            self._note({"mode_gap": self._gaps})

    def _try_passes(self, passes: Callable[[], None], arguments: tuple[tuple, dict]) -> None:
        """Run ``passes`` of twins, if nothing stands in their way."""
        if not twins.has_twin(self.meter.model):
            self._twins = False
            return
        if (kept := obstacle(self.meter.model, list(arguments))) is not None:
            self._twins = False
            self._note({"not_tried": kept})
            return
        try:
            with twins.undisturbed(self.meter.model):
                passes()
        # somebody's network in a mode or with a batch it was not made for: what is not known is said
        except Exception as error:
            self._twins = False
            self._note({"not_tried": " ".join(f"{type(error).__name__}: {error}".split())[:200]})


class _Batch:
    """The inputs of a training pass, for as long as nobody writes into them; large ones are not kept."""

    def __init__(self, arguments: tuple[tuple, dict]) -> None:
        tensors = list(tensors_of(list(arguments)))
        self.samples = next((len(x) for x in tensors if x.dim()), 0)
        small = sum(x.numel() for x in tensors) <= MOST_KEPT
        small = small and not any(x.is_inference() for x in tensors)  # these count no versions
        self._arguments = twins.mapped(arguments, Tensor.detach) if small else None
        self._versions = [(x, x._version) for x in tensors] if small else []

    @property
    def arguments(self) -> tuple[tuple, dict] | None:
        same = all(x._version == version for x, version in self._versions)
        return self._arguments if same else None


def _dropouts(model: nn.Module) -> dict[str, Any]:
    """The largest dropout rate and where it stands; nothing if there is none."""
    rates = [
        (module.p, clean(name)) for name, module in model.named_modules() if isinstance(module, DROPOUTS)
    ]
    if not rates:
        return {}
    rate, name = max(rates)
    return {"dropout": {"largest": float(rate), "where": name}}
