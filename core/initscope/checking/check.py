"""Check a network before it is trained: on a deep copy, with one batch, in seconds.

A copy of model and optimizer learns the one batch by heart for up to 200 steps under a Recorder; its rows and
facts go through the rules of a diagnosis. What was seen directly (weights that nobody holds, samples that
touch each other, numbers that are none, a loss and outputs that do not fit) is always a finding. What is only
out of the ordinary (dead units, a faint signal, large inputs) is a finding if the batch is not learned, and a
note if it is: then it stands in nobody's way. Gradients are looked for after three real steps, so that heads
and branches that begin at zero (ViT, ReZero, zero gamma, LoRA, muP) are seen to wake up.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initscope.checking.snippets import RAW_OUTPUTS, SNIPPETS
from initscope.diagnosis.causes import MISUSES, VERY_LOUD
from initscope.diagnosis.curve import Curve, read_curve
from initscope.diagnosis.finding import Finding, plural
from initscope.diagnosis.findings import find
from initscope.diagnosis.rules_structure import averages_lag
from initscope.diagnosis.run_signals import RunSignals, read_signals
from initscope.diagnosis.thresholds import DEFAULT, Thresholds
from initscope.errors import ConfigError
from initscope.networks.outputs import training_loss
from initscope.recording.recorder import Recorder
from initscope.recording.tensors import tensors_of
from initscope.recording.twins import mapped
from initscope.recording.wrappers import as_optimizers, unwrapped
from initscope.wording import percent, sig3

MOST_STEPS = 200
MOST_SECONDS = 20.0
LEAST_STEPS = 10
"""Fewer steps on one batch show nothing."""
MOST_SAMPLES = 16
"""Samples of the batch that is learned by heart."""
LEARNED = 0.1
"""Share of the first loss that must be gone: a network that can learn loses far more on one batch."""
BEATEN = 0.8
"""Share of the best constant answer's loss below which the answers must depend on the inputs."""
DONE = 0.5
"""Share of the first loss, and of the best constant answer's, after which there is nothing more to show."""
CREEPING = 0.02
"""Share of the first loss that is gone in a run which is on its way; one batch has no noise, so that any loss
falls steadily.
"""
SILENT = 1e-3
"""Share of the input's signal that is left at the outputs of a network that answers everything alike."""
LOST = 1e-6
"""Share of the input's signal below which float32 cannot tell two inputs apart at the output: a batch that is
learned all the same was learned by steps that could not see it.
"""
REACHED_AFTER = 3
"""Real optimizer steps after which a gradient must have come: zero-initialized branches wake up one after the
other.
"""
OTHER_RATES = (1e-3, 1e-4)
"""Adam's learning rates that are tried where the given optimizer does not learn the batch."""
HARD = (
    "weights_frozen",
    "layers_unregistered",
    "layers_not_optimized",
    "samples_mixed",
    "identical_units",
    "first_nonfinite",
    "loss_nonfinite",
    "dropout_high",
    *MISUSES,
)
"""Findings that are wrong whatever the loss does."""
SOFT = (
    "input_out_of_range",
    "signal_collapse",
    "signal_explosion",
    "vanishing_gradient",
    "dead_units",
    "saturated_units",
    "initial_loss_off",
    "modes_disagree",
)
"""Findings that explain a batch that is not learned."""


@dataclass(frozen=True)
class Check:
    """What a check found. ``findings`` should be mended before training; ``notes`` are out of the ordinary
    and harmed nothing here.

    ``learned``: whether the batch was learned by heart (None: not enough time to tell); ``first_loss`` and
    ``last_loss`` over ``steps`` steps; ``guessing``: the loss of the best answer that ignores the input, None
    if it is not known; ``snippets``: by finding id, code to copy.
    """

    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    learned: bool | None
    steps: int
    first_loss: float
    last_loss: float
    guessing: float | None
    seconds: float
    snippets: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether nothing was found that should be mended."""
        return not self.findings

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.findings:
            first = self.findings[0].text
            return first if len(self.findings) == 1 else f"{first} ({len(self.findings) - 1} more)"
        if self.learned is None:
            return f"Nothing is wrong as far as {self.steps} steps can show."
        return (
            f"Nothing is wrong: one batch was learned from a loss of {sig3(self.first_loss)} to "
            f"{sig3(self.last_loss)} in {self.steps} steps."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sound": self.sound,
            "headline": self.headline,
            "findings": [
                {**finding.to_dict(), "snippet": self.snippets.get(finding.id)} for finding in self.findings
            ],
            "notes": [
                {**finding.to_dict(), "snippet": self.snippets.get(finding.id)} for finding in self.notes
            ],
            "learned": self.learned,
            "steps": self.steps,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "guessing": self.guessing,
            "seconds": self.seconds,
        }


def check(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    *,
    steps: int = MOST_STEPS,
    seconds: float = MOST_SECONDS,
    thresholds: Thresholds = DEFAULT,
) -> Check:
    """Check ``model`` on one ``batch`` before training; nothing of yours is touched.

    ``batch`` is (inputs, targets), or a dict of keyword arguments from which the model computes its own loss
    (transformers). ``inputs`` may be a tensor, a tuple of arguments or a dict of keyword arguments.
    ``loss_fn(outputs, targets)`` gives one number (default: cross-entropy, or the outputs' own ``loss``).
    ``optimizer``: yours, of which a copy steps (default: Adam at 0.001). At most ``steps`` steps and about
    ``seconds`` seconds for each of at most three attempts. Raises ConfigError for a model that cannot be
    copied or a loss that is not one number.
    """
    began = time.monotonic()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"check takes a torch.nn.Module, not {type(model).__name__}")
    trial = _Trial(unwrapped(model), _Batch.of(batch, loss_fn), as_optimizers(optimizer))
    with _untouched(model):
        seen = trial.run(steps, seconds, thresholds)
        findings, notes = _sorted(seen)
        if seen.learned is False and not any(finding.id in HARD for finding in findings):
            verdict = _not_learned(seen, trial, steps, seconds, thresholds)
            if (
                verdict.id == "rate_out_of_range"
            ):  # another rate learns the batch, so nothing else stood in its way
                notes = [*(finding for finding in findings if finding.id in SOFT), *notes]
                findings = [finding for finding in findings if finding.id not in SOFT]
            findings = [verdict, *findings]
    found = (*findings, *notes)
    return Check(
        findings=tuple(findings),
        notes=tuple(notes),
        learned=seen.learned,
        steps=seen.curve.count,
        first_loss=seen.first,
        last_loss=seen.last,
        guessing=seen.curve.chance,
        seconds=round(time.monotonic() - began, 2),
        snippets={finding.id: SNIPPETS.get(finding.id, RAW_OUTPUTS) for finding in found},
    )


@dataclass(frozen=True)
class _Batch:
    """How a batch is handed to the model, and its loss computed."""

    arguments: tuple[tuple, dict]
    targets: Any
    loss_fn: Callable[[Any, Any], Tensor] | None

    @classmethod
    def of(cls, batch: Any, loss_fn: Callable[[Any, Any], Tensor] | None) -> _Batch:
        if isinstance(batch, Mapping):
            arguments, targets = ((), dict(batch)), batch
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            inputs, targets = batch
            arguments = (
                ((), dict(inputs))
                if isinstance(inputs, Mapping)
                else (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {})
            )
        else:
            raise ConfigError(
                f"a batch is (inputs, targets) or a dict of keyword arguments, not {type(batch).__name__}"
            )
        sizes = {x.shape[0] for x in tensors_of([list(arguments), targets]) if x.dim()}
        if len(sizes) == 1 and (size := sizes.pop()) > MOST_SAMPLES:
            arguments, targets = (
                mapped(part, lambda x: x[:MOST_SAMPLES] if x.dim() and x.shape[0] == size else x)
                for part in (arguments, targets)
            )
        return cls(arguments, targets, loss_fn)

    def loss(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor] | None) -> Tensor:
        outputs = model(*self.arguments[0], **self.arguments[1])
        if loss_fn is not None:
            loss = loss_fn(outputs, self.targets)
        else:
            own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
            loss = own if isinstance(own, Tensor) else training_loss(outputs, self.targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = (
                f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise ConfigError(f"the loss must be one number, not {shape}; give its mean")
        return (
            loss if loss.dim() == 0 else loss.reshape(())
        )  # a view more would hide the loss function from the rules


@dataclass(frozen=True)
class _Seen:
    """What one attempt has shown."""

    signals: RunSignals
    curve: Curve
    findings: list[Finding]

    @property
    def first(self) -> float:
        return float(self.signals.loss[0])

    @property
    def last(self) -> float:
        return float(np.median(self.signals.loss[-3:]))

    @property
    def gone(self) -> float:
        """Share of the first loss that is gone; of a loss below zero, of its size."""
        return (self.first - self.last) / abs(self.first) if self.first else 0.0

    @property
    def learned(self) -> bool | None:
        """Better than the best constant answer; None if the loss still falls, or too little was seen."""
        if self.curve.nonfinite:
            return False
        constant = self.signals.fact("targets", "price")
        if self.gone >= LEARNED and (not constant or self.last < BEATEN * constant):
            return True
        still = self.curve.falling and self.gone >= CREEPING and not self.silent
        return None if still or self.curve.count < 2 * LEAST_STEPS else False

    @property
    def silent(self) -> bool:
        """Whether the outputs hardly depend on the inputs at the end."""
        layers = self.signals.executed
        return bool(len(layers)) and bool(self.signals.kept_by_layer[-1, layers[-1]] < SILENT)


class _Trial:
    """Attempts to learn one batch, each from a fresh copy."""

    def __init__(self, model: nn.Module, batch: _Batch, optimizers: list[torch.optim.Optimizer]):
        self.model, self.batch, self.optimizers = model, batch, optimizers

    def run(self, steps: int, seconds: float, thresholds: Thresholds, rate: float | None = None) -> _Seen:
        """Train a copy; with ``rate`` by Adam at that rate instead of by the optimizers given."""
        try:
            model, optimizers, loss_fn = copy.deepcopy((self.model, self.optimizers, self.batch.loss_fn))
        except Exception as error:
            raise ConfigError(
                f"the model cannot be copied ({type(error).__name__}: {error}); keep no computed tensors "
                "among its attributes"
            ) from error
        if rate is not None or not optimizers:
            optimizers = [torch.optim.Adam(model.parameters(), rate or OTHER_RATES[0])]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"])  # a warm-up begins near zero
        torch.manual_seed(0)
        model.train()
        deadline = time.monotonic() + seconds
        with (
            tempfile.TemporaryDirectory(prefix="initscope-check-") as folder,
            Recorder(model, optimizers, runs=folder, quiet=True) as recorder,
        ):
            run = recorder.run
            if run is None:
                raise ConfigError("check() works in the process that records, rank 0; here is another rank")
            writer = recorder.writer
            for step in range(steps):

                def closure() -> Tensor:
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                    loss = self.batch.loss(model, loss_fn)
                    loss.backward()
                    return loss

                loss = closure()
                for optimizer in optimizers:
                    optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
                recorder.step(loss)
                if step == 0:
                    first = float(loss.detach())
                over = time.monotonic() - deadline
                late = over > seconds or (over > 0 and step + 1 >= LEAST_STEPS)
                constant = (writer.state.get("facts", {}).get("targets") or {}).get("price")
                done = step + 1 >= 2 * LEAST_STEPS and loss.item() < DONE * min(first, constant or first)
                if late or done or not math.isfinite(loss.item()):
                    break
            recorder.sync()
            signals = read_signals(
                run.read("steps"), run.read("epochs"), run.read("layers"), {**writer.state}, {}
            )
        curve = read_curve(signals, thresholds)
        return _Seen(signals, curve, find(signals, curve, thresholds))


def _sorted(seen: _Seen) -> tuple[list[Finding], list[Finding]]:
    """(what should be mended, what is merely out of the ordinary)."""
    findings: list[Finding] = []
    notes: list[Finding] = []
    for finding in seen.findings:
        if finding.id in HARD:
            findings.append(finding)
        elif finding.id in SOFT and (finding.first or finding.id == "modes_disagree"):
            (findings if _matters(finding, seen) else notes).append(finding)
    if (unreached := _unreached(seen)) is not None and not any(
        finding.id == "weights_frozen" for finding in findings
    ):
        notes.append(unreached)
    return findings, notes


def _matters(finding: Finding, seen: _Seen) -> bool:
    if finding.id == "modes_disagree":
        return not averages_lag(seen.signals)
    classes = seen.curve.guess.classes
    if finding.id == "initial_loss_off" and seen.first > VERY_LOUD * max(
        seen.curve.chance or 0.0, math.log(classes) if classes else 0.0
    ):
        return True  # against ln K too: few samples may happen to be of few classes
    if finding.id == "input_out_of_range" and (finding.source == "IEEE 754"):
        return True  # NaN, or all samples alike
    if finding.id == "signal_collapse" and (finding.value or 0.0) < LOST:
        return True
    return seen.learned is False


def _unreached(seen: _Seen) -> Finding | None:
    """Weights that no gradient has reached after ``REACHED_AFTER`` real steps, though they are to be
    trained.
    """
    v = seen.signals
    gradient = v.rows.values["grad_norm"]
    if len(gradient) <= REACHED_AFTER:
        return None
    reached = (np.nan_to_num(gradient[REACHED_AFTER:], nan=0.0, posinf=1.0) > 0).any(0)
    frozen = np.isin(v.rows.names, v.facts.get("frozen") or [])
    names = tuple(name for name, yes in zip(v.rows.names, ~reached & ~frozen, strict=True) if yes)
    if not names:
        return None
    share = float(v.weight_counts[~reached & ~frozen].sum() / v.weight_counts.sum())
    text = (
        f"After {REACHED_AFTER} steps no gradient has reached {plural(v, names)} ({percent(share)} of "
        "the weights)."
    )
    return Finding("layers_unreached", names, share, 0.0, "seen directly", text, REACHED_AFTER, False)


def _not_learned(seen: _Seen, trial: _Trial, steps: int, seconds: float, thresholds: Thresholds) -> Finding:
    """One batch was not learned: by this optimizer, or by none that was tried."""
    count, samples = seen.curve.count, seen.signals.batch_size
    many = f"{samples} samples" if samples else "one batch"
    for rate in OTHER_RATES if trial.optimizers else OTHER_RATES[1:]:
        other = trial.run(steps, seconds, thresholds, rate)
        if other.learned:
            text = (
                f"{count} steps of the optimizer bring the loss on {many} from {sig3(seen.first)} to "
                f"{sig3(seen.last)}; Adam at {sig3(rate)} brings it to "
                f"{sig3(other.last)}: look at the learning rate."
            )
            return Finding("rate_out_of_range", (), seen.gone, LEARNED, "seen directly", text, None, False)
    text = (
        f"After {count} steps on {many} the loss is {sig3(seen.last)}, at first it was {sig3(seen.first)}, "
        "and no learning rate tried does better: "
        "a network that can learn learns one batch by heart."
    )
    return Finding("batch_not_learned", (), seen.gone, LEARNED, "seen directly", text, None, False)


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Random states and the gradients of ``model`` as they were: a loss function may reach the original, as a
    penalty on its weights does.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the copy's loop, not of the user's
        for p, _ in gradients:
            p.grad = None
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for p, gradient in gradients:
                p.grad = gradient
