"""What to do about a cause: a sentence, and the config fields that would do it for a run of the project's own
trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from initscope.config.run_config import OPTIONS
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.rules_run import last_scores
from initscope.diagnosis.rules_structure import CAUGHT_UP, averages_lag, last_gap
from initscope.diagnosis.run_signals import RunSignals
from initscope.schema import Cause
from initscope.store.files import optimizer_setting
from initscope.wording import sig3

USUAL_UPDATE = 2e-3
"""|change| / |weight| that a suggested learning rate aims at."""
USUAL_RATE = {"adam": (1e-4, 1e-3), "sgd": (1e-3, 1e-1)}
"""Where suggested learning rates stay."""
CLEARLY = 3.0
"""A suggested rate differs from the one in force by this factor at least."""
ENOUGH = 200
"""Steps after which more of them are no first advice."""


@dataclass(frozen=True)
class Remedy:
    """``text`` for a person; ``changes`` are RunConfig fields, empty where a config cannot help or the run is
    a loop of somebody's own; ``advised`` are the same fields whoever's loop it is.
    """

    text: str
    changes: dict[str, Any] = field(default_factory=dict)
    advised: dict[str, Any] = field(default_factory=dict)


def remedy(cause: Cause, signals: RunSignals, findings: Mapping[str, Finding]) -> Remedy:
    """The remedy for ``cause``. ``changes`` is empty for a loop of somebody's own, and never repeats what the
    config has.
    """
    text, changes = _REMEDIES[cause](signals, findings)
    if unmeasured := signals.facts.get("not_measured"):
        text += f" {unmeasured[0].upper()}{unmeasured[1:]}."
    ours = "learning_rate" in signals.config
    changes = {
        key: value
        for key, value in changes.items()
        if signals.config.get(key) != value and _allowed(key, value)
    }
    parsed = {key: OPTIONS[key].parse(value) for key, value in changes.items()}
    return Remedy(text, parsed if ours else {}, parsed)


def suggested_changes(cause: Cause, signals: RunSignals, findings: Mapping[str, Finding]) -> dict[str, Any]:
    """The same changes for anybody's loop, by the names of RunConfig's fields and not bounded by them."""
    return dict(_REMEDIES[cause](signals, findings)[1])


def _allowed(key: str, value: Any) -> bool:
    """Whether the field takes the value: a rate ten times the highest allowed is no advice for a form."""
    low, high = OPTIONS[key].low, OPTIONS[key].high
    return not isinstance(value, int | float) or (
        (low is None or value >= low) and (high is None or value <= high)
    )


def _init(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if "outputs_loud" in f and "signal_explosion" not in f:
        return (
            "Make the output weights smaller (a shared embedding: nn.init.normal_(embedding.weight, "
            "std=0.02)), or divide the outputs by the square root of their inputs' number.",
            {},
        )
    if v.bounded:
        return (
            "Initialize with xavier_normal, gain 1 (5/3 for deep tanh): it keeps the signal through "
            "tanh-like units.",
            {"init": "xavier_normal", "gain": 1.0},
        )
    if v.config.get("init") in ("kaiming_normal", "kaiming_uniform") and v.config.get("gain") == 1.0:
        return "The weights are Kaiming's already; batch normalization keeps the signal at this depth.", {
            "batch_norm": True
        }
    text = (
        "Initialize with kaiming_normal, gain 1, zero biases (nn.init.kaiming_normal_ on every layer): it "
        "keeps the signal through ReLU layers."
    )
    return text, {"init": "kaiming_normal", "gain": 1.0}


def _symmetric(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    text, changes = _init(v, f)
    return f"Begin with random weights, so that units can become different. {text}", changes


@dataclass(frozen=True)
class RateInForce:
    """The learning rates that the optimizer really had: of the first, the highest and the last recorded
    step.
    """

    first: float
    highest: float
    last: float

    @property
    def constant(self) -> bool:
        return self.highest <= 1.01 * min(self.first, self.last)


def rate_in_force(v: RunSignals) -> RateInForce | None:
    """Learning rates as recorded, schedule included; None if no optimizer was watched."""
    rates = v.learning_rate[np.isfinite(v.learning_rate)]
    if not len(rates) or not rates.max() > 0:
        return None
    return RateInForce(float(rates[0]), float(rates.max()), float(rates[-1]))


def suggested_rate(v: RunSignals, direction: str | None = None) -> float | None:
    """A power of ten near the learning rate whose updates would be ``USUAL_UPDATE``, within the optimizer's
    usual range.

    Judged by the first recorded step that moved, which the rate has not spoiled yet; SGD's momentum m makes
    later ones 1 / (1 - m) times as large. With a ``direction`` ("Lower" or "Raise") it lies beyond the rates
    that were in force, at least a factor of three: below the highest or above all of them. None where no rate
    or update was recorded.
    """
    force, total = rate_in_force(v), v.update_total
    steps = dict(zip(v.loss_steps.tolist(), v.learning_rate.tolist(), strict=True))
    moved = (
        (steps.get(int(step), math.nan), update) for step, update in zip(v.rows.steps, total, strict=True)
    )
    rate, update = next(((r, u) for r, u in moved if r > 0 and u > 0), (math.nan, math.nan))
    if force is None or math.isnan(rate):
        return None
    sgd = v.optimizer.startswith("sgd")
    low, high = USUAL_RATE["sgd" if sgd else "adam"]
    momentum = optimizer_setting(v.facts, "momentum") or v.config.get("momentum") or 0.0
    build_up = 1 - min(0.99, float(momentum)) if sgd else 1.0
    wanted = rate * USUAL_UPDATE / update * build_up if math.isfinite(update) else low
    wanted = _power_of_ten(min(high, max(low, wanted)))
    if direction == "Lower":
        return wanted if wanted <= force.highest / CLEARLY else _power_of_ten(force.highest / 10)
    if direction == "Raise":
        return wanted if wanted >= force.highest * CLEARLY else _power_of_ten(force.highest * 10)
    return wanted


def _power_of_ten(value: float) -> float:
    return float(10.0 ** round(math.log10(value)))


def _lower(v: RunSignals, _: object) -> tuple[str, dict[str, Any]]:
    rate, force = suggested_rate(v, "Lower"), rate_in_force(v)
    if rate is None or force is None:
        return (
            "Lower the learning rate until one update changes the weights by about 0.001 of their size.",
            {},
        )
    was = sig3(force.highest) if force.constant else f"its highest, {sig3(force.highest)},"
    text = (
        f"Lower the learning rate from {was} to about {sig3(rate)}: updates of about 0.001 of the weights' "
        "size are usual."
    )
    return text, {"learning_rate": rate, "warmup_steps": 0} if v.config.get("warmup_steps") else {
        "learning_rate": rate
    }


def _raise(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    rate, force = suggested_rate(v, "Raise"), rate_in_force(v)
    if rate is None or force is None:
        return (
            "Raise the learning rate until one update changes the weights by about 0.001 of their size.",
            {},
        )
    changes = (
        {"learning_rate": rate, "warmup_steps": 0}
        if v.config.get("warmup_steps")
        else {"learning_rate": rate}
    )
    if "rate_fell" in f and not force.constant:
        rising = f["rate_fell"].first
        how = (
            f"it rose from {sig3(force.first)} to {sig3(force.last)} and had not come further; use a "
            "shorter warm-up"
            if rising
            else f"it fell from {sig3(force.highest)} to {sig3(force.last)} (below 1 % of its highest from "
            f"step {f['rate_fell'].step} on); "
            "let the schedule count what it is called for, steps or epochs, or decay it more slowly"
        )
        return f"Keep the learning rate up: {how}.", {"warmup_steps": 0} if v.config.get(
            "warmup_steps"
        ) else {}
    if "epsilon_large" in f:
        return (
            f"Lower the optimizer's epsilon from {sig3(optimizer_setting(v.facts, 'eps') or 0.0)} to 1e-8.",
            {},
        )
    if "gradient_clipped" in f:
        share = f["gradient_clipped"].value or 0.0
        norm = v.gradient_total
        limit = "" if v.adaptive else f" from about {sig3(share * norm)}"
        return (
            f"Raise the limit of the gradient clipping{limit} to about 1, or leave clipping out: the "
            f"gradients' norm is {sig3(norm)} by itself.",
            {},
        )
    text = (
        f"Raise the learning rate from {sig3(force.highest)} to about {sig3(rate)}: updates of about 0.001 "
        "of the weights' size are usual."
    )
    return text, changes


def _decay(v: RunSignals, _: object) -> tuple[str, dict[str, Any]]:
    decay = v.weight_decay
    if not decay:
        return "Give the penalty in the loss a smaller factor, a hundredth or less of what it is.", {}
    target = min(1e-4, decay / 100) if "adamw" not in v.optimizer else min(1e-2, decay / 100)
    text = (
        f"Lower the weight decay from {sig3(decay)} to about {sig3(target)}, and leave biases and "
        "normalizations out of it."
    )
    return text, {"weight_decay": target}


def _targets(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    mean, rms = v.fact("targets", "mean"), v.fact("targets", "rms")
    if mean is None or rms is None:
        return (
            "Scale the targets to zero mean and unit variance over the training set, and scale the "
            "predictions back.",
            {},
        )
    std = math.sqrt(max(0.0, rms**2 - mean**2))
    return (
        f"Train on (target - {sig3(mean)}) / {sig3(std or 1.0)}, the targets' mean and standard deviation, "
        "and scale the predictions back.",
        {},
    )


def _collapse(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    largest, classes = v.fact("targets", "largest"), v.fact("targets", "classes") or 2
    binary = (v.facts.get("targets") or {}).get("kind") == "binary"
    if binary and largest and largest < 1:
        how = f"pos_weight={sig3(largest / (1 - largest))} in binary_cross_entropy_with_logits"
    else:
        how = (
            "weight=1 / (classes * share of each class) in cross_entropy"
            if classes > 2 or not largest
            else f"weight=[{sig3(0.5 / largest)}, {sig3(0.5 / max(1e-6, 1 - largest))}], the larger class "
            "first, in cross_entropy"
        )
    return (
        f"Weight the classes by the inverse of their share ({how}), or draw them equally often "
        "(WeightedRandomSampler); "
        "judge by recall or balanced accuracy, which always answering one class does not raise.",
        {},
    )


def _labels(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if "labels_constant" in f:
        return (
            "Look at how the labels are read: all that were seen are the same. If other classes come later, "
            "shuffle the data.",
            {},
        )
    return (
        "Look at samples beside their labels, in the order the loop sees them: are they shuffled apart, or "
        "read from another file?",
        {},
    )


def _nothing(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    text = "Nothing to change."
    if last_scores(v) is None:
        text += (
            " Nobody validated: a network that learns its samples by heart looks the same; "
            "recorder.validate(loss=..., accuracy=...) tells them apart."
        )
    return text, {}


_LEADS = {
    "network_linear": "put a nonlinear activation such as nn.ReLU() between the layers",
    "signal_cut": "print the tensor between the two layers named above, for two samples",
    "updates_undone": "look for what writes to the weights outside of optimizer.step()",
}
"""By finding: where to look next."""


def _unknown(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    """What was looked at and found sound, and what would tell more."""
    checks = (
        ("frozen weights", len(v.rows.names) > 0, ("weights_frozen",)),
        (
            "a signal that is lost on its way",
            len(v.signal_retained) > 0 and not np.isnan(v.signal_retained).all(),
            ("signal_cut", "signal_collapse", "signal_explosion"),
        ),
        ("dead or saturated units", v.dead.size > 0, ("dead_units", "saturated_units")),
        (
            "a learning rate that is far off",
            not np.isnan(v.update_total).all(),
            ("update_too_large", "update_too_small"),
        ),
        ("inputs out of scale", bool(v.facts.get("input")), ("input_out_of_range",)),
        (
            "sorted or unequal labels",
            "targets" in v.facts,
            ("labels_in_order", "labels_constant", "class_collapse"),
        ),
    )
    ruled_out = [name for name, measured, ids in checks if measured and not any(key in f for key in ids)]
    more = [lead for key, lead in _LEADS.items() if key in f]
    if "loss_unjudged" in f:
        more.append("look at what the network makes (samples, rewards), not at this loss")
    if not len(v.epochs):
        more.append("record validation (recorder.epoch)")
    if v.steps_taken < ENOUGH:
        more.append(f"record more than {v.steps_taken} steps")
    more.append("train on one small batch alone: its loss must come close to zero")
    seen = f"Ruled out: {', '.join(ruled_out)}. " if ruled_out else ""
    return f"No known cause fits. {seen}What would tell more: {'; '.join(more)}.", {}


def _not_updating(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if "frozen_fresh" in f:
        return "Load the trained weights before freezing them, or train all layers.", {}
    return (
        "Let the weights move: give the optimizer this model's parameters, leave requires_grad on, and call "
        "zero_grad(), backward(), step() in this order.",
        {},
    )


def _loss(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if "loss_negated" in f:
        return "Minimize the cross-entropy itself, without the minus sign.", {}
    if "targets_outside" in f:
        return (
            "Give a binary cross-entropy targets between 0 and 1. For classes numbered from 0 use one "
            "output a class and nn.CrossEntropyLoss; for "
            "other numbers scale them to [0, 1] or use nn.MSELoss.",
            {},
        )
    if "outputs_rectified" in f:
        return (
            "Take the ReLU (or softplus) after the last layer away: cross_entropy wants raw outputs of both "
            "signs.",
            {},
        )
    if "outputs_indexed_across" in f:
        return "Take each row's own column: outputs.gather(1, index.unsqueeze(1)).squeeze(1).", {}
    if "targets_broadcast" in f:
        return "Give targets the outputs' shape (targets.unsqueeze(1) or outputs.squeeze(1)).", {}
    if "divergence_of_probabilities" in f:
        return "Give nn.KLDivLoss log_softmax(outputs) and the targets as probabilities.", {}
    if "loss_of_raw_outputs" in f or "loss_below_zero" in f:
        return "Use nn.CrossEntropyLoss on raw outputs, or put log_softmax before nn.NLLLoss.", {}
    return (
        "Give the loss the raw outputs of the last layer: cross_entropy and "
        "binary_cross_entropy_with_logits apply softmax or sigmoid themselves.",
        {},
    )


def _inputs(v: RunSignals, f: Mapping[str, Finding]) -> tuple[str, dict[str, Any]]:
    if v.fact("input", "nonfinite") or v.inputs_broke is not None:
        return (
            "Find the samples that hold NaN or infinite values (torch.isfinite(inputs).all()), and repair "
            "or leave them out.",
            {},
        )
    if v.input_signal == 0:
        return "Look at what the data loader returns: every sample is the same.", {}
    return "Scale the inputs to zero mean and unit variance over the training set.", {
        "normalize": "standardize"
    }


def _batchnorm(v: RunSignals, f: object) -> tuple[str, dict[str, Any]]:
    gap = last_gap(v)
    if gap is not None and averages_lag(v):
        momentum = gap["momentum"]
        text = f"Raise the batch normalization's momentum from {sig3(momentum)} to 0.1 (PyTorch's default)"
        return text + (
            f", or train for more than {CAUGHT_UP / momentum:.0f} steps before evaluating."
            if momentum
            else "."
        ), {}
    return (
        "Check that train() and eval() are called where they should be, lower the learning rate towards the "
        "end, or use larger batches; GroupNorm and LayerNorm keep no averages.",
        {},
    )


def _fixed(text: str, **changes: Any) -> Any:
    return lambda v, f: (text, changes)


_REMEDIES: dict[Cause, Any] = {
    Cause.INIT_TOO_SMALL: _init,
    Cause.INIT_TOO_LARGE: _init,
    Cause.SYMMETRIC_INIT: _symmetric,
    Cause.SATURATED_ACTIVATION: _init,
    Cause.LR_TOO_HIGH: _lower,
    Cause.LR_TOO_LOW: _raise,
    Cause.DEAD_RELU: _fixed(
        "Begin with zero biases (and Kaiming weights), so that about half of the units are on; LeakyReLU "
        "keeps a gradient in the others.",
        init="kaiming_normal",
        gain=1.0,
    ),
    Cause.NOT_UPDATING: _not_updating,
    Cause.INPUT_SCALE: _inputs,
    Cause.TARGET_SCALE: _targets,
    Cause.BATCHNORM_STATISTICS: _batchnorm,
    Cause.CLASS_COLLAPSE: _collapse,
    Cause.GRADIENT_ACCUMULATES: _fixed("Call optimizer.zero_grad() before every backward()."),
    Cause.WEIGHT_DECAY_TOO_HIGH: _decay,
    Cause.UNREGISTERED_LAYERS: _fixed(
        "Keep the layers in nn.ModuleList or nn.ModuleDict instead of a list or a dict, and give the "
        "optimizer model.parameters() after all of them exist."
    ),
    Cause.DATA_ORDER: _fixed(
        "Shuffle the training data, so that every batch holds a mixture: DataLoader(..., shuffle=True)."
    ),
    Cause.SAMPLES_MIXED: _fixed(
        "Check the dimensions: batch_first of recurrent and attention layers, and every view, reshape and "
        "transpose, must keep the samples apart."
    ),
    Cause.NUMERIC_FAULT: _fixed(
        "Keep the function inside its domain (add an epsilon under sqrt and log, clamp before dividing), "
        "and use float32 or bfloat16 where float16 runs out."
    ),
    Cause.LABELS_UNRELATED: _labels,
    Cause.LOSS_MISUSE: _loss,
    Cause.OVERFITTING: _fixed(
        "Use more training data or augmentation, dropout or weight decay, or stop at the lowest validation "
        "loss.",
        dropout=0.5,
        weight_decay=1e-4,
    ),
    Cause.HEALTHY: _nothing,
    Cause.UNKNOWN: _unknown,
}
