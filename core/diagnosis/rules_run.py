"""Rules about the run as a whole: its loss, its structure, its inputs, and how it generalizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.diagnosis.curve import Curve
from core.diagnosis.finding import Finding, g, names_of, percent, plural, source_of, start_of
from core.diagnosis.guess import NEAR
from core.diagnosis.thresholds import Thresholds
from core.diagnosis.vitals import Vitals

# ---------------------------------------------------------------- the loss


def loss_nonfinite(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.nonfinite:
        return None
    began = f" (it began at {g(c.first)})" if math.isfinite(c.first) else ""
    text = f"The loss is not finite from step {c.nonfinite_step} on{began}."
    return Finding(
        "loss_nonfinite", (), float(c.nonfinite_step), None, "IEEE 754", text, c.nonfinite_step, c.nonfinite_step == start_of(v)
    )


def loss_plateau_at_chance(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.at_chance or c.guess.kind == "mean":
        return None
    what = (
        "its scale at the start"
        if c.guess.scaled
        else f"guessing among {c.guess.classes} classes"
        if c.guess.classes
        else "guessing yes or no"
    )
    text = f"After {c.steps} steps the loss is {g(c.late)}; {what} costs {g(c.chance)}."
    return Finding("loss_plateau_at_chance", (), c.late, c.chance * (1 - c.min_progress), source_of("progress", t), text)


def loss_not_decreasing(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.stuck or (c.at_chance and c.guess.kind != "mean"):
        return None
    base = {"classes": "guessing", "binary": "guessing", "mean": "always answering the targets' mean"}.get(
        c.guess.kind, "its beginning"
    )
    text = f"The loss is {'above' if c.above_chance else 'no lower than'} that of {base}: {g(c.late)} over the last steps against {g(c.reference)}."
    return Finding("loss_not_decreasing", (), c.progress, c.min_progress, source_of("progress", t), text)


def loss_oscillates(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    # A loss that is above guessing all the time does not jump.
    if t.oscillation is None or c.count < 10 or not t.oscillation <= c.above_share <= 0.95 or c.nonfinite:
        return None
    text = f"In the second half of the run {percent(c.above_share)} of the losses lie well above both the first and guessing's: the loss jumps."
    return Finding("loss_oscillates", (), c.above_share, t.oscillation, source_of("oscillation", t), text)


def loss_spike(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.spiked:
        return None
    base = max(c.first, c.reference)
    later = np.where(np.isfinite(v.loss[1:]), v.loss[1:], -np.inf)
    step = int(v.loss_steps[1:][later.argmax()])
    text = f"The loss rose to {g(c.highest)} at step {step}, from {g(c.first)} at the start."
    return Finding("loss_spike", (), c.highest / base, t.spike, source_of("spike", t), text, step, False)


def initial_loss_off(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.initial_loss is None or c.chance is None or c.guess.kind == "mean" or not c.first > t.initial_loss * c.chance:
        return None
    ratio = c.first / c.chance
    text = (
        f"The first loss is {g(c.first)}, {g(ratio)} times that of guessing ({g(c.chance)}): confident and wrong before any step."
    )
    return Finding("initial_loss_off", (), ratio, t.initial_loss, source_of("initial_loss", t), text, start_of(v))


# ---------------------------------------------------------------- structure


def weights_frozen(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    if t.frozen_share is None or not v.still.any():
        return None
    share = float(v.weight_counts[v.still].sum() / v.weight_counts.sum())
    if share < t.frozen_share:
        return None
    names = names_of(v, v.still)
    text = f"{percent(share)} of the weights never move ({plural(names)}): {_why_still(v, names)}."
    return Finding("weights_frozen", names, share, t.frozen_share, source_of("frozen_share", t), text)


def _why_still(v: Vitals, names: Sequence[str]) -> str:
    gradient = v.rows.values["grad_norm"]
    if set(v.facts.get("frozen") or ()) & set(names):
        return "requires_grad is False"
    if set(v.facts.get("unoptimized") or ()) & set(names):
        return "the optimizer does not hold them"
    if np.isnan(gradient[:, np.isin(v.rows.names, names)]).all():
        return "no gradient reaches them; is the graph cut by detach() or no_grad(), or backward() missing?"
    if not v.updates_measured:
        return "optimizer.step() was never called"
    return "gradients arrive, yet the optimizer's step changes nothing; is zero_grad() called between backward() and step()?"


def identical_units(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    # The last layer may begin with equal rows: its units differ in their labels, so training tells them apart.
    last = v.rows.names[v.executed[-1]] if len(v.executed) else None
    names = tuple(name for name in v.rows.names if name in (v.facts.get("identical_units") or ()) and name != last)
    if not names:
        return None
    left = set((v.facts.get("end") or {}).get("identical_units") or ()) & set(names)
    end = f"; in {len(left)} of {len(names)} they still did at the end" if left else ""
    text = f"All units of {plural(names)} begin with the same weights, so they compute and learn the same{end}."
    source = "Goodfellow, Bengio and Courville 2016, section 8.4"
    return Finding("identical_units", names, float(len(names)), 1.0, source, text, start_of(v))


Misuse = tuple[str, str, float | None, float | None]
"""(finding id, sentence, value, threshold)"""
SQUASHERS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Relu": "ReLU", "Tanh": "tanh", "Softplus": "softplus"}
_SHAPING = ("View", "Squeeze", "Select", "Reshape", "UnsafeView", "Permute", "Transpose")


def outputs_misused(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    """What stands between the last layer and the loss does not belong there: from autograd's operations, else from the numbers."""
    problem = _misuse_by_chain(v, c) if v.chain else _misuse_by_numbers(v, c)
    if problem is None:
        return None
    kind, text, value, threshold = problem
    return Finding(kind, (), value, threshold, "definition of the loss", text, start_of(v))


def _misuse_by_chain(v: Vitals, c: Curve) -> Misuse | None:
    chain, loss = v.chain, v.facts.get("loss") or {}
    if loss.get("broadcast"):
        return (
            "targets_broadcast",
            "Outputs and targets differ in shape, so every output is compared with every target.",
            None,
            None,
        )
    if loss.get("classes") == 1:
        return "softmax_of_one", "A softmax runs over a single output: it is always one, whatever the network says.", None, None
    nll = next((i for i, name in enumerate(chain) if name.startswith("NllLoss")), None)
    if nll is not None:
        if "Neg" in chain[:nll]:
            return "loss_negated", "The loss is the negative of a cross-entropy: training makes it worse.", c.late, 0.0
        if loss.get("across_batch"):
            return "softmax_across_batch", "The softmax runs over the samples of the batch instead of the classes.", None, None
        below = chain[nll + 1 :]
        if "LogSoftmax" in below:
            return _squashed(c, _squasher(below[below.index("LogSoftmax") + 1 :]))
        cheap = c.first < 0.5 * math.log(c.guess.classes or 2) or np.nanmin(v.loss) < 0
        if not any(name.startswith("Log") for name in below) and not v.facts.get("outputs_log_probabilities") and cheap:
            what = _squasher(below)
            given = f"a {what}'s outputs" if what else "raw outputs"
            return (
                "loss_of_raw_outputs",
                f"NLLLoss was given {given} where it needs log-probabilities (log_softmax).",
                c.late,
                0.0,
            )
    elif any(name.startswith("LogSoftmax") for name in chain) and _is_likelihood(c):
        return "loss_negated", "The loss is a log-likelihood without its minus sign: training makes the true class less likely.", c.late, 0.0
    logits = next((i for i, name in enumerate(chain) if name.startswith("BinaryCrossEntropyWithLogits")), None)
    return _squashed(c, _squasher(chain[logits + 1 :])) if logits is not None else None


def _is_likelihood(c: Curve) -> bool:
    """A loss that begins at minus the price of guessing and falls from there."""
    price = math.log(c.guess.classes) if c.guess.classes else math.nan
    return abs(c.first / -price - 1) < NEAR and c.late < (1 + NEAR) * c.first


def _squasher(below: Sequence[str]) -> str | None:
    """The squashing function right below; None if the first operation that is more than a reshaping is another. A second
    LogSoftmax changes nothing, a scaled tanh or a pooled ReLU may be meant."""
    first = next((name for name in below if not name.startswith(_SHAPING)), "")
    return SQUASHERS.get(first)


def _squashed(c: Curve, what: str | None) -> Misuse | None:
    if what is None:
        return None
    kind = "outputs_rectified" if what in ("ReLU", "softplus") else "outputs_are_probabilities"
    floor = (
        f" The loss cannot fall below {g(softmax_floor(c.guess.classes))} however sure the network is."
        if what == "softmax" and c.guess.classes
        else ""
    )
    return kind, f"A {what} stands between the last layer and a loss that expects raw outputs.{floor}", None, None


def softmax_floor(classes: int) -> float:
    """Smallest cross-entropy of a softmax's outputs taken as logits: ln(e + K - 1) - 1, 1.46 for ten classes."""
    return math.log(math.e + classes - 1) - 1


def _misuse_by_numbers(v: Vitals, c: Curve) -> Misuse | None:
    """The loss came as a plain number: judge by its sign and floor, and by the outputs' range."""
    lowest = float(np.nanmin(v.loss)) if np.isfinite(v.loss).any() else math.nan
    if lowest < 0 and c.guess.classes and "num_classes" not in v.state:
        return "loss_below_zero", f"The loss falls below zero ({g(lowest)}), which a cross-entropy cannot.", lowest, 0.0
    low, high = v.facts.get("output_range") or (math.nan, math.nan)
    unit = v.facts.get("outputs_sum_to_one") or (isinstance(low, float) and low >= 0 and high <= 1)
    # The floor is what tells a softmax too many from the log of one softmax.
    if (
        unit
        and c.chance is not None
        and c.guess.kind == "classes"
        and c.guess.classes > 2
        and lowest >= 0.98 * softmax_floor(c.guess.classes)
    ):
        return _squashed(c, "softmax" if v.facts.get("outputs_sum_to_one") else "sigmoid")
    return None


# ---------------------------------------------------------------- inputs


def input_out_of_range(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    mean, std = v.fact("input", "mean"), v.fact("input", "std")
    if mean is None or std is None:
        return None

    def finding(value: float, name: str | None, text: str) -> Finding:
        threshold, source = (getattr(t, name), source_of(name, t)) if name else (0.0, "IEEE 754")
        return Finding("input_out_of_range", (), value, threshold, source, text, start_of(v))

    bad = v.fact("input", "nonfinite") or 0
    if bad:
        return finding(bad, None, f"{int(bad)} values of the first batch's inputs are NaN or infinite.")
    later = v.inputs_broke
    if later is not None:
        where = v.rows.names[v.executed[0]]
        text = f"At step {later} the output of {where} is not finite while its weights are: that batch's inputs held NaN or infinite values."
        return Finding("input_out_of_range", (), None, None, "IEEE 754", text, later, False)
    if v.input_signal == 0 and (v.batch_size or 1) > 1:
        return finding(0.0, None, "All samples of the first batch are the same: the inputs carry nothing.")
    if t.input_high is not None and v.input_rms > t.input_high:
        return finding(
            v.input_rms,
            "input_high",
            f"The inputs have an RMS of {g(v.input_rms)} (mean {g(mean)}, standard deviation {g(std)}).",
        )
    if t.input_offset is not None and abs(mean) > t.input_offset * std:
        return finding(
            abs(mean) / std if std else math.inf,
            "input_offset",
            f"The inputs' mean is {g(mean)}, their standard deviation only {g(std)}.",
        )
    peak = max(abs(v.fact("input", "low") or 0.0), abs(v.fact("input", "high") or 0.0))
    if t.input_low is not None and peak < t.input_low:
        return finding(peak, "input_low", f"No input is larger than {g(peak)}.")
    if t.input_mean is not None and abs(mean) > t.input_mean:
        return finding(abs(mean), "input_mean", f"The inputs' mean is {g(mean)}.")
    return None


# ---------------------------------------------------------------- generalization


def train_validation_gap(v: Vitals, c: Curve, t: Thresholds) -> Finding | None:
    scores = last_scores(v)
    if t.overfit_gap is None or scores is None:
        return None
    gap = scores.gap(c.reference)
    if gap < t.overfit_gap:
        return None
    text = (
        f"Training accuracy is {percent(scores.train)}, validation accuracy {percent(scores.validation)}."
        if scores.accuracies
        else f"The training loss is {g(scores.train_loss)}, the validation loss {g(scores.last_loss)}."
    )
    return Finding("train_validation_gap", (), gap, t.overfit_gap, source_of("overfit_gap", t), text)


@dataclass(frozen=True)
class Scores:
    """The last epoch's accuracies (NaN, or both zero, where there are none, as in a regression) and losses, and the validation losses' course.

    ``lowest_loss``: the lowest validation loss; ``earlier_loss``: the lowest before the last epoch, NaN if there is but one.
    """

    train: float
    validation: float
    train_loss: float
    lowest_loss: float
    earlier_loss: float
    last_loss: float

    @property
    def accuracies(self) -> bool:
        return math.isfinite(self.train) and math.isfinite(self.validation) and max(self.train, self.validation) > 0

    def gap(self, reference: float) -> float:
        """By how much training is ahead of validation: in accuracy, else in loss as a share of guessing's (``reference``)."""
        if self.accuracies:
            return self.train - self.validation
        gap = (self.last_loss - self.train_loss) / reference if reference > 0 else 0.0
        return gap if math.isfinite(gap) else 0.0


def last_scores(v: Vitals) -> Scores | None:
    """Scores of the last epoch that has both accuracies, else both losses; None if there is none."""
    for pair in (["train_accuracy", "val_accuracy"], ["train_loss", "val_loss"]):
        epochs = v.epochs.dropna(subset=pair) if len(v.epochs) else v.epochs
        if len(epochs):
            break
    else:
        return None
    last, losses = epochs.iloc[-1], epochs["val_loss"].to_numpy(dtype=float, na_value=np.nan)
    accuracies, train_loss = (last["train_accuracy"], last["val_accuracy"]), last["train_loss"]
    numbers = (math.nan if value is None else float(value) for value in (*accuracies, train_loss))
    return Scores(*numbers, _lowest(losses), _lowest(losses[:-1]), float(losses[-1]))


def _lowest(losses: np.ndarray) -> float:
    return float(np.nanmin(losses)) if np.isfinite(losses).any() else math.nan
