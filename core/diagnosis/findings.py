"""The rules: what is out of the ordinary in a run's rows and facts. Each says its value, its threshold and whose that is.

A finding is no verdict yet: which of them explain the loss is decided in ``causes``. ``step`` is the recorded step at which a finding was
made; at the first one, initialization and inputs are responsible, later ones are training's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.diagnosis.curve import Curve
from core.diagnosis.thresholds import LIMITS, OURS_NAME, Thresholds
from core.diagnosis.vitals import EARLY, Vitals


@dataclass(frozen=True)
class Finding:
    """One observation: ``value`` against ``threshold``, at ``layers`` (none: the whole run), seen at ``step`` (None: no one step)."""

    id: str
    layers: tuple[str, ...]
    value: float | None
    threshold: float | None
    source: str
    text: str
    step: int | None = None
    first: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


Rule = Callable[[Vitals, Curve, Thresholds], "Finding | None"]


def find(vitals: Vitals, curve: Curve, thresholds: Thresholds) -> list[Finding]:
    """Every rule's finding, in the order of the rules."""
    found = (rule(vitals, curve, thresholds) for rule in RULES)
    return [finding for finding in found if finding is not None]


def g(value: float) -> str:
    """A number for a sentence: at most three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    return f"{share:.0%}" if 0.01 <= share <= 0.99 or share in (0, 1) else f"{share:.3g}" if share < 0.01 else f"{share:.1%}"


def source_of(name: str, thresholds: Thresholds) -> str:
    """Whose number a threshold is: the preset's, or for ours the place it was taken from."""
    if thresholds.name == OURS_NAME:
        return LIMITS[name].source
    return thresholds.name


def plural(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} layers)"


# ---------------------------------------------------------------- the loss


def loss_nonfinite(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.nonfinite:
        return None
    text = f"The loss is not finite from step {c.nonfinite_step} on (it began at {g(c.first)})."
    return Finding("loss_nonfinite", (), float(c.nonfinite_step), 0.0, "IEEE 754", text, c.nonfinite_step, c.nonfinite_step == _start(v))


def loss_plateau_at_chance(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.at_chance or t.progress is None:
        return None
    text = f"After {c.count} recorded steps the loss is {g(c.late)}; guessing among {c.classes or 2} classes costs {g(c.chance)}."
    return Finding("loss_plateau_at_chance", (), c.late, c.chance * (1 - t.progress), source_of("progress", t), text)


def loss_not_decreasing(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.stuck or c.at_chance or t.progress is None:
        return None
    above = "above guessing" if c.chance is not None else "above where it began"
    state = above if c.above_chance else "no lower than where it began"
    text = f"The loss is {state}: {g(c.late)} over the last steps against {g(c.reference)}."
    return Finding("loss_not_decreasing", (), c.progress, t.progress, source_of("progress", t), text)


def loss_oscillates(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.oscillation is None or c.count < 10 or c.above_share < t.oscillation or c.above_share > 0.95 or c.nonfinite:
        return None
    what = "guessing" if c.chance is not None else "where it began"
    text = f"In the second half of the run {percent(c.above_share)} of the losses lie well above {what}: the loss jumps."
    return Finding("loss_oscillates", (), c.above_share, t.oscillation, source_of("oscillation", t), text)


def loss_spike(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.spike is None or not c.spiked:
        return None
    base = max(c.first, c.reference)
    step = int(v.loss_steps[1:][np.nanargmax(np.where(np.isfinite(v.loss[1:]), v.loss[1:], -np.inf))])
    text = f"The loss rose to {g(c.highest)} at step {step}, from {g(c.first)} at the start."
    return Finding("loss_spike", (), c.highest / base if base else math.inf, t.spike, source_of("spike", t), text, step, False)


def initial_loss_off(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.initial_loss is None or c.chance is None or not c.first > t.initial_loss * c.chance:
        return None
    text = f"The first loss is {g(c.first)}, {g(c.first / c.chance)} times that of guessing ({g(c.chance)}): confident and wrong before any step."
    return Finding("initial_loss_off", (), c.first / c.chance, t.initial_loss, source_of("initial_loss", t), text, _start(v))


# ---------------------------------------------------------------- structure


def weights_frozen(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.frozen_share is None or not v.still.any():
        return None
    share = float(v.weight_counts[v.still].sum() / v.weight_counts.sum())
    if share < t.frozen_share:
        return None
    names = _names(v, v.still)
    text = f"{percent(share)} of the weights never move ({plural(names)}): {_why_still(v, names)}."
    return Finding("weights_frozen", names, share, t.frozen_share, source_of("frozen_share", t), text)


def _why_still(v: Vitals, names: Sequence[str]) -> str:
    frozen, unheld = set(v.facts.get("frozen") or ()), set(v.facts.get("unoptimized") or ())
    ratio, gradient = v.rows.values["update_ratio"], v.rows.values["grad_norm"]
    if frozen & set(names):
        return "requires_grad is False"
    if unheld & set(names):
        return "the optimizer does not hold them"
    if np.isnan(ratio).all():
        return "optimizer.step() was never called"
    still = np.isin(v.rows.names, names)
    if np.isnan(gradient[:, still]).all():
        return "no gradient reaches them; is the graph cut by detach() or no_grad(), or backward() missing?"
    return "gradients arrive, yet the optimizer's step changes nothing; is zero_grad() called between backward() and step()?"


def identical_units(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    # The last layer may begin with equal rows: its units differ in their labels, so training tells them apart.
    last = v.rows.names[v.executed[-1]] if len(v.executed) else None
    names = tuple(n for n in v.rows.names if n in (v.facts.get("identical_units") or ()) and n != last)
    if not names:
        return None
    kept = set((v.facts.get("end") or {}).get("identical_units") or ()) & set(names)
    end = f"; {len(kept)} of them still were at the end" if kept else ""
    text = f"All units of {plural(names)} begin with the same weights, so they compute and learn the same thing{end}."
    source = "Goodfellow et al. 2016, section 8.4 (symmetry)"
    return Finding("identical_units", names, float(len(names)), 1.0, source, text, _start(v))


def outputs_misused(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    """What stands between the last layer and the loss does not belong there; from autograd's operations, else the outputs."""
    problem = misuse(v, c)
    if problem is None:
        return None
    kind, text, value, threshold = problem
    return Finding(kind, (), value, threshold, "definition of the loss", text, _start(v))


SQUASHERS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Relu": "ReLU", "Tanh": "tanh", "Softplus": "softplus"}
_CROSS_ENTROPY = ("NllLoss", "NllLoss2D", "NllLossNd")


def misuse(v: Vitals, c: Curve) -> tuple[str, str, float | None, float | None] | None:
    """(finding id, sentence, value, threshold) if loss and outputs do not fit together, else None."""
    chain = v.chain
    nll = next((i for i, name in enumerate(chain) if name.startswith("NllLoss")), None)
    if nll is not None:
        below = chain[nll + 1 :]
        if "Neg" in chain[:nll]:
            return "loss_negated", "The loss is the negative of a cross-entropy: training makes it worse.", c.late, 0.0
        soft = next((i for i, name in enumerate(below) if name == "LogSoftmax"), None)
        rest = below if soft is None else below[soft + 1 :]
        squashed = next((SQUASHERS[name] for name in rest if name in SQUASHERS), None)
        if soft is None and "Log" not in below and "Where" not in below:
            what = f"a {squashed}'s outputs" if squashed else "raw outputs"
            return "loss_of_raw_outputs", f"NLLLoss was given {what} where it needs log-probabilities (log_softmax).", c.late, 0.0
        if soft is not None and squashed is not None and "LogSoftmax" not in rest:
            return _squashed(v, c, squashed)
    if any(name.startswith("BinaryCrossEntropyWithLogits") for name in chain):
        squashed = next((SQUASHERS[name] for name in chain if name in SQUASHERS), None)
        if squashed:
            return _squashed(v, c, squashed)
    if any(name.startswith(("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")) for name in chain) and "Expand" in chain:
        text = "Outputs and targets differ in shape and are broadcast: every output is compared with every target."
        return "targets_broadcast", text, None, None
    if not chain and c.chance is not None:
        return _misuse_by_numbers(v, c)
    return None


def _squashed(v: Vitals, c: Curve, what: str) -> tuple[str, str, float | None, float | None]:
    floor = f" The loss cannot fall below {g(softmax_floor(c.classes))} however sure the network is." if what == "softmax" and c.classes else ""
    return "outputs_are_probabilities", f"A {what} stands between the last layer and a loss that expects raw outputs.{floor}", 1.0, 0.0


def softmax_floor(classes: int) -> float:
    """Smallest cross-entropy of a softmax's outputs taken as logits: ln(e + K - 1) - 1, 1.46 for ten classes."""
    return math.log(math.e + classes - 1) - 1


def _misuse_by_numbers(v: Vitals, c: Curve) -> tuple[str, str, float | None, float | None] | None:
    """The loss came as a plain number: judge by the outputs' range and the loss's floor."""
    lowest = float(np.nanmin(v.loss)) if len(v.loss) else math.nan
    if lowest < 0:
        return "loss_below_zero", f"The loss falls below zero ({g(lowest)}), which a cross-entropy cannot.", lowest, 0.0
    low, high = v.facts.get("output_range") or (None, None)
    unit = v.facts.get("outputs_sum_to_one") or (low is not None and low >= 0 and high <= 1)
    if unit and c.classes and c.classes > 2 and lowest >= softmax_floor(c.classes) * 0.98:
        return _squashed(v, c, "softmax" if v.facts.get("outputs_sum_to_one") else "sigmoid")
    return None


# ---------------------------------------------------------------- inputs


def input_out_of_range(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    mean, std = v.fact("input", "mean"), v.fact("input", "std")
    if mean is None or std is None:
        return None

    def finding(value: float, name: str | None, text: str) -> Finding:
        threshold, source = (getattr(t, name), source_of(name, t)) if name else (0.0, "IEEE 754")
        return Finding("input_out_of_range", (), value, threshold, source, text, _start(v))

    bad = v.fact("input", "nonfinite") or 0
    if bad:
        return finding(bad, None, f"{int(bad)} values of the first batch's inputs are NaN or infinite.")
    if v.input_signal == 0 and (v.batch_size or 1) > 1:
        return finding(0.0, None, "All samples of the first batch are the same: the inputs carry nothing.")
    if t.input_high is not None and v.input_rms > t.input_high:
        return finding(v.input_rms, "input_high", f"The inputs have an RMS of {g(v.input_rms)} (mean {g(mean)}, standard deviation {g(std)}).")
    if t.input_offset is not None and abs(mean) > t.input_offset * std:
        return finding(abs(mean) / std if std else math.inf, "input_offset", f"The inputs' mean is {g(mean)}, their standard deviation only {g(std)}.")
    peak = max(abs(v.fact("input", "low") or 0.0), abs(v.fact("input", "high") or 0.0))
    if t.input_low is not None and peak < t.input_low:
        return finding(peak, "input_low", f"No input is larger than {g(peak)}.")
    if t.input_mean is not None and abs(mean) > t.input_mean:
        return finding(abs(mean), "input_mean", f"The inputs' mean is {g(mean)}.")
    return None


# ---------------------------------------------------------------- signals


def signal_collapse(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.signal_kept is None or not len(v.kept):
        return None
    at = _when(v.kept < t.signal_kept)
    if at is None:
        return None
    lost = v.kept_by_layer[at] < t.signal_kept
    names = tuple(n for n in _names(v, lost) if n in {v.rows.names[i] for i in v.hidden})
    kept, step = float(v.kept[at]), int(v.rows.steps[at])
    when = "Before any update" if at == 0 else f"From step {step} on"
    text = f"{when} {percent(kept)} of the input's signal is left at {names[-1]}: the output hardly depends on the input."
    return Finding("signal_collapse", names, kept, t.signal_kept, source_of("signal_kept", t), text, step, at == 0)


def signal_explosion(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.signal_grown is None or not v.grown_by_layer.size:
        return None
    grown = np.nan_to_num(v.grown_by_layer, nan=0.0, posinf=np.inf)
    at = 0 if (grown[0] > t.signal_grown).any() else _when((grown > 10 * t.signal_grown).any(1))
    if at is None:
        return None
    names, value = _names(v, grown[at] > t.signal_grown), float(grown[at].max())
    when = "Before any update" if at == 0 else f"By step {int(v.rows.steps[at])}"
    text = f"{when} pre-activations reach {g(value)} times the size of the inputs, at {names[-1]}."
    return Finding("signal_explosion", names, value, t.signal_grown, source_of("signal_grown", t), text, int(v.rows.steps[at]), at == 0)


def vanishing_gradient(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    layers = v.executed
    if len(layers) < 3:
        return None
    norm, rms = v.rows.first("grad_norm")[layers], v.rows.first("grad_rms")[layers]
    if not norm[-1] > 0:
        return None
    ratio = norm[0] / norm[-1]
    if t.vanishing_ratio is not None and t.vanishing_norm is not None and ratio < t.vanishing_ratio and norm[0] < t.vanishing_norm:
        names = tuple(v.rows.names[i] for i, n in zip(layers, norm, strict=True) if n < t.vanishing_norm)
        text = f"The gradient at {v.rows.names[layers[0]]} is {g(ratio)} of the one at {v.rows.names[layers[-1]]} ({g(norm[0])} against {g(norm[-1])})."
        return Finding("vanishing_gradient", names, ratio, t.vanishing_ratio, source_of("vanishing_ratio", t), text, _start(v))
    highest = float(np.nanmax(rms[:-1], initial=0.0))
    if t.vanishing_rms is not None and highest < t.vanishing_rms and not np.isnan(rms[:-1]).all():
        text = f"No hidden layer has a gradient above {g(highest)} a weight."
        return Finding("vanishing_gradient", tuple(v.rows.names[i] for i in v.hidden), highest, t.vanishing_rms, source_of("vanishing_rms", t), text, _start(v))
    return None


def exploding_gradient(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    layers = v.executed
    norm = v.rows.values["grad_norm"][:, layers] if len(layers) else np.empty((0, 0))
    if not norm.size:
        return None
    norm = np.where(np.isnan(norm) & (v.rows.values["nonfinite"][:, layers] > 0), np.inf, norm)
    if t.exploding_norm is not None:
        at = _when((np.nan_to_num(norm, nan=0.0, posinf=np.inf) > t.exploding_norm).any(1))
        if at is not None:
            value = float(np.nanmax(norm[at]))
            names = tuple(v.rows.names[i] for i, n in zip(layers, norm[at], strict=True) if n > t.exploding_norm)
            text = f"At step {int(v.rows.steps[at])} the gradient reaches {g(value)} at {plural(names)}."
            return Finding("exploding_gradient", names, value, t.exploding_norm, source_of("exploding_norm", t), text, int(v.rows.steps[at]), at == 0)
    first, last = norm[0, 0], norm[0, -1]
    if t.exploding_ratio is not None and last > 0 and first / last > t.exploding_ratio:
        text = f"The gradient at {v.rows.names[layers[0]]} is {g(first / last)} times the one at {v.rows.names[layers[-1]]}."
        return Finding("exploding_gradient", (v.rows.names[layers[0]],), first / last, t.exploding_ratio, source_of("exploding_ratio", t), text, _start(v))
    return None


# ---------------------------------------------------------------- units


def dead_units(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.dead_share is None or not v.dead.size:
        return None
    dead = np.nan_to_num(v.dead, nan=0.0)
    at = _when((dead >= t.dead_share).any(1))
    if at is None:
        return None
    names, value = _names(v, dead[at] >= t.dead_share), float(dead[at].max())
    when = "Before any update" if at == 0 else f"By step {int(v.rows.steps[at])}"
    text = f"{when} {percent(value)} of the ReLU units after {plural(names)} output zero for the whole batch: no gradient passes them."
    return Finding("dead_units", names, value, t.dead_share, source_of("dead_share", t), text, int(v.rows.steps[at]), at == 0)


def saturated_units(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.saturated_share is None or t.saturated_input is None:
        return None
    share = np.nan_to_num(v.saturated(t.saturated_input), nan=0.0)
    at = _when((share >= t.saturated_share).any(1)) if share.size else None
    if at is None:
        return None
    names, value = _names(v, share[at] >= t.saturated_share), float(share[at].max())
    when = "Before any update" if at == 0 else f"By step {int(v.rows.steps[at])}"
    text = f"{when} about {percent(value)} of the units after {plural(names)} sit where their nonlinearity is flat: little gradient passes."
    return Finding("saturated_units", names, value, t.saturated_share, source_of("saturated_share", t), text, int(v.rows.steps[at]), at == 0)


# ---------------------------------------------------------------- updates


def update_too_large(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.update_high is None or np.isnan(v.update_total).all():
        return None
    total = np.nan_to_num(v.update_total[: 2 * EARLY], nan=0.0, posinf=np.inf)
    value, at = float(total.max()), int(total.argmax())
    if value <= t.update_high:
        return None
    text = f"At step {int(v.rows.steps[at])} one update changes the weights by {g(value)} of their size; about 0.001 is usual."
    return Finding("update_too_large", (), value, t.update_high, source_of("update_high", t), text, int(v.rows.steps[at]), at == 0)


def update_too_small(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.update_low is None or not v.update_fastest < t.update_low or v.still.all():
        return None
    text = f"Even the fastest layer usually changes by {g(v.update_fastest)} of its size a step; about 0.001 is usual."
    return Finding("update_too_small", (), v.update_fastest, t.update_low, source_of("update_low", t), text)


# ---------------------------------------------------------------- generalization


def train_validation_gap(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    scores = last_scores(v)
    if t.overfit_gap is None or scores is None or scores.gap < t.overfit_gap:
        return None
    text = f"Training accuracy is {percent(scores.train)}, validation accuracy {percent(scores.validation)}."
    return Finding("train_validation_gap", (), scores.gap, t.overfit_gap, source_of("overfit_gap", t), text)


@dataclass(frozen=True)
class Scores:
    """Accuracies of the last epoch, and validation losses: the lowest and the last."""

    train: float
    validation: float
    lowest_loss: float
    last_loss: float

    @property
    def gap(self) -> float:
        return self.train - self.validation


def last_scores(v: Vitals) -> Scores | None:
    """Scores of the last epoch that has both accuracies; None if there is none."""
    epochs = v.epochs.dropna(subset=["train_accuracy", "val_accuracy"]) if len(v.epochs) else v.epochs
    if not len(epochs):
        return None
    last, losses = epochs.iloc[-1], epochs["val_loss"].to_numpy(dtype=float)
    return Scores(float(last["train_accuracy"]), float(last["val_accuracy"]), float(np.nanmin(losses)), float(losses[-1]))


# ---------------------------------------------------------------- helpers


def _start(v: Vitals) -> int | None:
    return int(v.rows.steps[0]) if len(v.rows.steps) else None


def _names(v: Vitals, mask: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, yes in zip(v.rows.names, mask, strict=True) if yes)


def _when(condition: np.ndarray) -> int | None:
    """Index of the first step from which a condition holds for at least half of what follows, or holds at the first step."""
    if not len(condition) or not condition.any():
        return None
    if condition[0]:
        return 0
    at = int(condition.argmax())
    return at if condition[at:].mean() >= 0.5 or condition[-max(1, len(condition) // 5) :].mean() >= 0.5 else None


RULES: tuple[Rule, ...] = (
    loss_nonfinite,
    loss_plateau_at_chance,
    loss_not_decreasing,
    loss_oscillates,
    loss_spike,
    initial_loss_off,
    weights_frozen,
    identical_units,
    outputs_misused,
    input_out_of_range,
    signal_collapse,
    signal_explosion,
    vanishing_gradient,
    exploding_gradient,
    dead_units,
    saturated_units,
    update_too_large,
    update_too_small,
    train_validation_gap,
)
