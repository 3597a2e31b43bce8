"""What to do about a cause: a sentence, and the config fields that would do it for a run of the project's own trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from initscope.config.run_config import OPTIONS
from initscope.diagnosis.finding import Finding, sig3
from initscope.diagnosis.run_signals import RunSignals
from initscope.schema import Cause

USUAL_UPDATE = 2e-3
"""|change| / |weight| that a suggested learning rate aims at."""
USUAL_RATE = {"adam": (1e-4, 1e-3), "sgd": (1e-3, 1e-1)}
"""Where suggested learning rates stay."""


@dataclass(frozen=True)
class Remedy:
    """``text`` for a person; ``changes`` are RunConfig fields, empty where a config cannot help or the run is a loop of somebody's own;
    ``advised`` are the same fields whoever's loop it is."""

    text: str
    changes: dict[str, Any] = field(default_factory=dict)
    advised: dict[str, Any] = field(default_factory=dict)


def remedy(cause: Cause, signals: RunSignals, findings: Mapping[str, Finding]) -> Remedy:
    """The remedy for ``cause``. ``changes`` is empty for a loop of somebody's own, and never repeats what the config has."""
    text, changes = _REMEDIES[cause](signals, findings)
    ours = "learning_rate" in signals.config
    changes = {key: value for key, value in changes.items() if signals.config.get(key) != value}
    parsed = {key: OPTIONS[key].parse(value) for key, value in changes.items()}
    return Remedy(text, parsed if ours else {}, parsed)


def _init(v: RunSignals, _: object) -> tuple[str, dict[str, Any]]:
    if v.bounded:
        return (
            "Initialize with xavier_normal, gain 1 (5/3 for deep tanh): it keeps the signal through tanh-like units.",
            {"init": "xavier_normal", "gain": 1.0},
        )
    if v.config.get("init") in ("kaiming_normal", "kaiming_uniform") and v.config.get("gain") == 1.0:
        return "The weights are Kaiming's already; batch normalization keeps the signal at this depth.", {"batch_norm": True}
    text = "Initialize with kaiming_normal, gain 1, zero biases (nn.init.kaiming_normal_ on every layer): it keeps the signal through ReLU layers."
    return text, {"init": "kaiming_normal", "gain": 1.0}


def _symmetric(v: RunSignals, f: object) -> tuple[str, dict[str, Any]]:
    text, changes = _init(v, f)
    return f"Begin with random weights, so that units can become different. {text}", changes


def suggested_rate(v: RunSignals) -> float | None:
    """A power of ten near the learning rate whose updates would be ``USUAL_UPDATE``, within the optimizer's usual range.

    Judged by the first recorded step, which the rate has not spoiled yet; SGD's momentum m makes later ones 1 / (1 - m) times as large.
    """
    rates, total = v.learning_rate[np.isfinite(v.learning_rate)], v.update_total
    if not len(rates) or not len(total) or not total[0] > 0:
        return None
    sgd = str(v.facts.get("optimizer") or v.config.get("optimizer") or "").lower().startswith("sgd")
    low, high = USUAL_RATE["sgd" if sgd else "adam"]
    build_up = 1 - float(v.config.get("momentum") or 0.0) if sgd else 1.0
    wanted = rates[0] * USUAL_UPDATE / total[0] * build_up if math.isfinite(total[0]) else low
    return float(10.0 ** round(math.log10(min(high, max(low, wanted)))))


def _rate(direction: str) -> Any:
    def advise(v: RunSignals, _: object) -> tuple[str, dict[str, Any]]:
        rate = suggested_rate(v)
        if rate is None:
            return f"{direction} the learning rate until one update changes the weights by about 0.001 of their size.", {}
        text = f"{direction} the learning rate to about {sig3(rate)}: updates of about 0.001 of the weights' size are usual."
        return text, {"learning_rate": rate, "warmup_steps": 0} if v.config.get("warmup_steps") else {"learning_rate": rate}

    return advise


def _not_updating(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    return (
        "Let the weights move: give the optimizer this model's parameters, leave requires_grad on, and call zero_grad(), backward(), step() in this order.",
        {},
    )


def _loss(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if "loss_negated" in f:
        return "Minimize the cross-entropy itself, without the minus sign.", {}
    if "targets_broadcast" in f:
        return "Give targets the outputs' shape (targets.unsqueeze(1) or outputs.squeeze(1)).", {}
    if "loss_of_raw_outputs" in f or "loss_below_zero" in f:
        return "Use nn.CrossEntropyLoss on raw outputs, or put log_softmax before nn.NLLLoss.", {}
    return (
        "Give the loss the raw outputs of the last layer: cross_entropy and binary_cross_entropy_with_logits apply softmax or sigmoid themselves.",
        {},
    )


def _inputs(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if v.fact("input", "nonfinite") or v.inputs_broke is not None:
        return "Find the samples that hold NaN or infinite values (torch.isfinite(inputs).all()), and repair or leave them out.", {}
    if v.input_signal == 0:
        return "Look at what the data loader returns: every sample is the same.", {}
    return "Scale the inputs to zero mean and unit variance over the training set.", {"normalize": "standardize"}


def _fixed(text: str, **changes: Any) -> Any:
    return lambda v, f: (text, changes)


_REMEDIES: dict[Cause, Any] = {
    Cause.INIT_TOO_SMALL: _init,
    Cause.INIT_TOO_LARGE: _init,
    Cause.SYMMETRIC_INIT: _symmetric,
    Cause.SATURATED_ACTIVATION: _init,
    Cause.LR_TOO_HIGH: _rate("Lower"),
    Cause.LR_TOO_LOW: _rate("Raise"),
    Cause.DEAD_RELU: _fixed(
        "Begin with zero biases (and Kaiming weights), so that about half of the units are on; LeakyReLU keeps a gradient in the others.",
        init="kaiming_normal",
        gain=1.0,
    ),
    Cause.NOT_UPDATING: _not_updating,
    Cause.INPUT_SCALE: _inputs,
    Cause.LABELS_UNRELATED: _fixed(
        "Look at samples beside their labels, in the order the loop sees them: are they shuffled apart, or read from another file?"
    ),
    Cause.LOSS_MISUSE: _loss,
    Cause.OVERFITTING: _fixed(
        "Use more training data or augmentation, dropout or weight decay, or stop at the lowest validation loss.",
        dropout=0.5,
        weight_decay=1e-4,
    ),
    Cause.HEALTHY: _fixed("Nothing to change."),
    Cause.UNKNOWN: _fixed("No known cause fits. Record more steps, or compare with a run that works."),
}
