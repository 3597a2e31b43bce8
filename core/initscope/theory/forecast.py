"""What is to be expected of a training, from one probe or from theory alone, before the first step. No torch.

Two questions decide it, and neither is about the loss:

- **Does the gradient reach every layer?** Adam divides a gradient by its own size plus epsilon = 1e-8. A
  layer whose gradient is smaller than that is not moved however long one trains, so the scale of the
  gradient, which Adam otherwise takes out, matters after all. ``normal_0.01`` and PyTorch's default lose
  VGG16 there.
- **How far does an update move the weights, relative to their size?** Adam moves each by the learning rate,
  all of a unit's in step, so that its output can change by learning rate x sqrt(fan_in) / weight size (Yang
  and Hu 2021, section 5): wide layers need smaller rates. SGD moves them by learning rate x gradient / (1 -
  momentum). Too much, and nothing that is learned survives the next steps (batch norm forgives that); a
  hundredth of a percent, and the run ends before anything has changed.

``tests/benchmarks/forecast.py`` trains 300 small networks, chooses the thresholds on one half and scores the
other. What this cannot see: a training that begins well and breaks down later.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initscope import theory
from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.config.shapes import inputs_and_classes
from initscope.schema import Outcome

Row = Mapping[str, Any]

ADAM_EPSILON = 1e-8
"""torch's default, not fitted; the boundary that fits the runs best lies at 0.8e-8."""
LARGEST_CHANGE = 2.3
"""Adam: how many times its size a unit's output may change by the first update, mean over layers. Runs
converged up to 2.2 and failed from 2.4 on, with a few failures below. Full-width VGG16 at 1e-3 is on the
edge: Kaiming weights (1.9) learned in two runs of three, the tutorial's (2.5) in none of two.
"""
LARGEST_SGD_STEP = 0.2
"""SGD: relative size of the first update (median layer) from which training does not settle; 0.08 converged,
0.44 failed.
"""
DIVERGING_STEP = 3.6
"""SGD: relative size of the first update from which the loss overflows; runs diverged from 30 on and not at
0.44.
"""
LARGEST_SGD_RATE = 0.17
"""SGD: learning rate / (1 - momentum) from which runs begin to learn and then fall back to chance; 0.1 did
not, 0.3 did.
"""
SMALLEST_TRAVEL = 0.01
"""Relative size of the first update x number of steps below which a run ends before anything has changed:
runs failed at 0.0066 and converged at 0.011.
"""
NO_SIGNAL = 1e-3
"""Signal over size of the output from which the reason is put as 'the output no longer depends on the
input'.
"""


@dataclass(frozen=True)
class Signs:
    """What the rules look at."""

    finite: bool
    output: str
    """The last layer's name."""
    signal: float | None
    """How much a logit differs between samples: the last layer's ``signal_std``."""
    relative_signal: float | None
    """The same over the last layer's ``activation_rms``: 1e-7 is what float32 can still tell apart."""
    weakest: str
    """The layer with the smallest weight gradient."""
    smallest_gradient: float
    """Its ``grad_rms``, at the batch size of the run."""
    first_step: float
    """Size of the first update over that of the weights, median layer; 0 where nothing moves."""
    first_change: float
    """The same times sqrt(fan_in), mean over layers: how far a unit's output can move if all its weights pull
    together.
    """


def signs(rows: Sequence[Row], config: RunConfig, samples: int | None = None) -> Signs:
    """The signs in rows of ``probe.probe`` or ``theory.predict``, in order of execution.

    ``samples``: the size of their batch, if not the config's; a batch's gradient is noise that falls with the
    square root of it.
    """
    values = [row[key] for row in rows for key in theory.METRICS if row[key] is not None]
    shrink = math.sqrt((samples or config.batch_size) / config.batch_size)
    moved = [(row, row["grad_rms"] * shrink) for row in rows if row["grad_rms"] is not None]
    weakest, smallest = min(moved, key=lambda layer: layer[1], default=({"layer": ""}, 0.0))
    steps = [
        _update(grad, config) / row["weight_rms"] if row["weight_rms"] else 0.0 for row, grad in moved
    ] or [0.0]
    changes = [step * math.sqrt(row["fan_in"]) for step, (row, _) in zip(steps, moved, strict=False)] or [0.0]
    last = rows[-1]
    signal = last["signal_std"]
    return Signs(
        finite=all(math.isfinite(value) for value in values),
        output=last["layer"],
        signal=signal,
        relative_signal=signal / last["activation_rms"]
        if signal is not None and last["activation_rms"]
        else None,
        weakest=weakest["layer"],
        smallest_gradient=smallest,
        first_step=statistics.median(steps),
        first_change=statistics.fmean(changes),
    )


def _update(grad: float, config: RunConfig) -> float:
    """Root mean square of the first steps' updates: Adam's is bounded by the learning rate, SGD's momentum
    sums up ten of them.
    """
    if config.optimizer == "sgd":
        return config.learning_rate * grad / (1 - config.momentum)
    return (
        config.learning_rate * grad / (grad + ADAM_EPSILON) if math.isfinite(grad) else config.learning_rate
    )


def forecast(
    rows: Sequence[Row], config: RunConfig, *, samples: int | None = None, normalized: bool | None = None
) -> dict[str, str]:
    """{"outcome": converged, not_converged or diverged, "reason": one sentence for a person}.

    ``rows`` and ``samples`` as for ``signs``; ``normalized``: whether the model has normalization layers, if
    the config does not know. ``rows`` must have ``fan_in`` and ``weight_rms``.
    """
    found = signs(rows, config, samples)
    outcome, reason = _judge(found, config, config.batch_norm if normalized is None else normalized)
    return {"outcome": str(outcome), "reason": reason}


def expect(config: RunConfig) -> dict[str, str]:
    """The forecast from theory alone: no torch, no data, milliseconds. For the VGG family; raises
    ConfigError for other models, TheoryUnavailable where the weights' variance is not known in advance."""
    channels, classes = inputs_and_classes(config)
    layers = theory.vgg_layers(config, in_channels=channels, num_classes=classes)
    return forecast(
        theory.predict(layers, theory.typical_stats(config, in_channels=channels, num_classes=classes)),
        config,
    )


def _judge(found: Signs, config: RunConfig, normalized: bool) -> tuple[Outcome, str]:
    sgd = config.optimizer == "sgd"
    step = found.first_step
    if not found.finite:
        return Outcome.DIVERGED, "the first forward and backward pass already overflows"
    if sgd and step > DIVERGING_STEP:
        return (
            Outcome.DIVERGED,
            f"the first update is {_times(step)} the size of the weights themselves: the loss will overflow",
        )
    if not sgd and found.smallest_gradient < ADAM_EPSILON:
        return Outcome.NOT_CONVERGED, _unreached(found)
    travel = step * (planned_steps(config) or math.inf) if step else 0.0
    if travel < SMALLEST_TRAVEL:
        return Outcome.NOT_CONVERGED, _unmoved(found, travel)
    if not normalized and sgd and step > LARGEST_SGD_STEP:
        return (
            Outcome.NOT_CONVERGED,
            f"every step changes the weights by {100 * step:.0f} % of their size: {_LOWER}",
        )
    if not normalized and not sgd and found.first_change > LARGEST_CHANGE:
        return (
            Outcome.NOT_CONVERGED,
            f"one step can change a unit's output by {found.first_change:.2g} times its size: {_LOWER}",
        )
    if not normalized and sgd and config.learning_rate / (1 - config.momentum) > LARGEST_SGD_RATE:
        rate = config.learning_rate / (1 - config.momentum)
        return (
            Outcome.NOT_CONVERGED,
            f"learning rate / (1 - momentum) is {rate:.2g}: such runs begin to learn and then fall back to "
            "chance",
        )
    return Outcome.CONVERGED, _healthy(found)


_LOWER = "too fast to settle, lower the learning rate"


def planned_steps(config: RunConfig) -> int | None:
    """Optimizer steps of the run where the size of its data is known."""
    entry = catalog.DATA.get(config.data)
    samples = (
        min(entry.train, config.train_samples or entry.train)
        if entry and entry.train
        else config.train_samples
    )
    steps = config.epochs * math.ceil(samples / config.batch_size) if samples else None
    return min(filter(None, (steps, config.max_steps)), default=None)


def _unreached(found: Signs) -> str:
    gradient = (
        f"the gradient of {found.weakest} ({_power(found.smallest_gradient)}) is below Adam's epsilon (1e-8)"
    )
    if found.smallest_gradient == 0:
        gradient = f"no gradient reaches {found.weakest}"
    return _lost(found) + (f", and {gradient}" if _lost(found) else f"{gradient}: its weights will not move")


def _unmoved(found: Signs, travel: float) -> str:
    moves = f"the weights would move by {_power(travel)} of their size in the whole run"
    return _lost(found) + f", and {moves}" if _lost(found) else f"{moves}: too little to learn anything"


def _lost(found: Signs) -> str:
    if found.relative_signal is None or found.relative_signal >= NO_SIGNAL:
        return ""
    return f"the signal at {_signal(found)}: the output no longer depends on the input"


def _healthy(found: Signs) -> str:
    reach = (
        f"the gradient reaches every layer (smallest {_power(found.smallest_gradient)} in {found.weakest})"
    )
    if found.relative_signal is None:
        return f"{reach}, and a step changes the weights by {100 * found.first_step:.2g} % of their size"
    if found.relative_signal < NO_SIGNAL:
        return (
            f"the output hardly depends on the input (the signal at {_signal(found)}), but {reach}: "
            "it can be made to"
        )
    return f"the signal at {_signal(found)}, and {reach}"


def _signal(found: Signs) -> str:
    """ "fc3 is 3e-05, 0.15 of the output's size": the absolute number is the one that charts show as Signal,
    the relative one is what the rules look at.
    """
    signal, share = _power(found.signal or 0.0), _power(found.relative_signal or 0.0)
    return f"{found.output} is {signal}, {share} of the output's size"


def _times(value: float) -> str:
    return f"{value:.0f} times" if value < 1e4 else f"{value:.0e} times"


def _power(value: float) -> str:
    """A plain number where that is short, else a power of ten: 0.15, 3e-08."""
    return f"{value:.2g}" if 1e-3 <= value < 1e4 or value == 0 else f"{value:.0e}"
