"""Rules about the run as a whole: its structure, its inputs, and how it generalizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, names_of, plural, source_of, start_of
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

LEAST_ZERO_STEPS = 10
"""Recorded steps from which a gradient that was always zero stays so."""

DEFAULT_GAIN = 3**-0.5
"""Standard deviation times sqrt(fan_in) of what torch's linear layers and convolutions begin with."""
FRESH_DOUBT = 1.8
"""Four standard errors of a gain, times the square root of the number of weights."""
LEAST_FRESH = 3
"""Frozen layers from which gains that all agree are no chance."""

# ---------------------------------------------------------------- structure


def weights_frozen(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.frozen_share is None or not v.frozen_mask.any():
        return None
    share = float(v.weight_counts[v.frozen_mask].sum() / v.weight_counts.sum())
    if share < t.frozen_share:
        return None
    names = names_of(v, v.frozen_mask)
    text = f"{percent(share)} of the weights never move ({plural(v, names)}): {_why_still(v, names)}."
    return Finding("weights_frozen", names, share, t.frozen_share, source_of("frozen_share", t), text)


def gradient_blocked(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Weights whose gradient comes and is exactly zero at every step."""
    gradient = v.rows.values["grad_norm"]
    if t.frozen_share is None or len(gradient) < LEAST_ZERO_STEPS or c.nonfinite:
        return None
    zero = ~np.isnan(gradient).all(0) & (np.nanmax(gradient, 0, initial=0.0) == 0)
    share = float(v.weight_counts[zero].sum() / max(1.0, v.weight_counts.sum()))
    if not zero.any():
        return None
    if share < t.frozen_share:
        return _part_blocked(v, t, zero, share)
    names = names_of(v, zero)
    text = (
        f"The gradient of {plural(v, names)} ({percent(share)} of the weights) is exactly zero at every "
        "step: something behind lets none through, such as sign(), round(), a comparison or a factor of "
        "zero."
    )
    return Finding("gradient_blocked", names, share, t.frozen_share, source_of("frozen_share", t), text)


def _part_blocked(v: RunSignals, t: Thresholds, zero: np.ndarray, share: float) -> Finding | None:
    """A layer that is cut off while the rest is trained: no cause by itself, but worth a look."""
    off = np.nan_to_num(v.dead, nan=0.0).min(0) >= (t.dead_share or np.inf)
    names = names_of(v, zero & ~off)
    if not names:
        return None
    text = (
        f"The gradient of {plural(v, names)} is exactly zero at every step: what it computes does not reach "
        "the loss, or cannot change it, such as a softmax over a single value."
    )
    source = source_of("frozen_share", t)
    return Finding("layer_without_gradient", names, share, t.frozen_share, source, text)


def frozen_fresh(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Frozen weights that are as PyTorch makes them: what they were frozen for, trained weights, was never
    loaded.
    """
    frozen = np.isin(v.rows.names, sorted(v.facts.get("frozen") or ()))
    known = frozen & ~np.isnan(v.gains)
    share = float(v.weight_counts[frozen].sum() / max(1.0, v.weight_counts.sum()))
    if t.frozen_share is None or known.sum() < LEAST_FRESH or share < t.frozen_share:
        return None
    in_order = frozen[v.executed]
    if in_order[np.argmin(in_order) :].any():  # adapters between frozen layers make up for what those do
        return None
    # A standard deviation of n uniform numbers is known to 0.45 / sqrt(n).
    doubt = FRESH_DOUBT / np.sqrt(v.weight_counts[known])
    if not (np.abs(v.gains[known] / DEFAULT_GAIN - 1) < doubt).all():
        return None
    names = names_of(v, known)
    text = (
        f"{percent(share)} of the weights have requires_grad off and are as PyTorch initializes them (gain "
        f"{sig3(DEFAULT_GAIN)} in all of {plural(v, names)}): were the trained weights loaded?"
    )
    return Finding("frozen_fresh", names, share, t.frozen_share, "torch.nn.Linear.reset_parameters", text)


def _why_still(v: RunSignals, names: Sequence[str]) -> str:
    gradient = v.rows.values["grad_norm"]
    if set(v.facts.get("frozen") or ()) & set(names):
        return "requires_grad is False"
    if set(v.facts.get("unoptimized") or ()) & set(names):
        return "the optimizer does not hold them"
    if v.facts.get("backward_missing"):
        return "optimizer.step() is called and loss.backward() is not"
    if np.isnan(gradient[:, np.isin(v.rows.names, names)]).all():
        return "no gradient reaches them; is the graph cut by detach() or no_grad(), or backward() missing?"
    if not v.updates_measured:
        return "optimizer.step() was never called"
    return (
        "gradients arrive, yet the optimizer's step changes nothing; is zero_grad() called between "
        "backward() and step()?"
    )


def identical_units(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    # The last layer may begin with equal rows: its units differ in their labels, so training tells them
    # apart.
    last = v.rows.names[v.executed[-1]] if len(v.executed) else None
    names = tuple(
        name for name in v.rows.names if name in (v.facts.get("identical_units") or ()) and name != last
    )
    if not names:
        return None
    left = set((v.facts.get("end") or {}).get("identical_units") or ()) & set(names)
    end = f"; in {len(left)} of {len(names)} they still did at the end" if left else ""
    text = (
        f"All units of {plural(v, names)} begin with the same weights, so they compute and learn the "
        f"same{end}."
    )
    source = "Goodfellow, Bengio and Courville 2016, section 8.4"
    return Finding("identical_units", names, float(len(names)), 1.0, source, text, start_of(v))


# ---------------------------------------------------------------- inputs


def input_out_of_range(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    mean, std = v.fact("input", "mean"), v.fact("input", "std")
    if mean is None or std is None:
        return _implied_by_the_first_layer(v, t)

    def finding(value: float, name: str | None, text: str) -> Finding:
        threshold, source = (getattr(t, name), source_of(name, t)) if name else (0.0, "IEEE 754")
        return Finding("input_out_of_range", (), value, threshold, source, text, start_of(v))

    bad = v.fact("input", "nonfinite") or 0
    if bad:
        return finding(bad, None, f"{int(bad)} values of the first batch's inputs are NaN or infinite.")
    later = v.inputs_broke
    if later is not None:
        where = v.rows.names[v.executed[0]]
        text = (
            f"At step {later} the output of {v.called(where)} is not finite while its weights are: that "
            "batch's inputs held NaN or infinite values."
        )
        return Finding("input_out_of_range", (), None, None, "IEEE 754", text, later, False)
    if v.input_signal == 0 and (v.batch_size or 1) > 1:
        return finding(0.0, None, "All samples of the first batch are the same: the inputs carry nothing.")
    if t.input_high is not None and v.input_rms > t.input_high:
        return finding(
            v.input_rms,
            "input_high",
            f"The inputs have an RMS of {sig3(v.input_rms)} (mean {sig3(mean)}, standard deviation "
            f"{sig3(std)}).",
        )
    if t.input_offset is not None and abs(mean) > t.input_offset * std:
        return finding(
            abs(mean) / std if std else math.inf,
            "input_offset",
            f"The inputs' mean is {sig3(mean)}, their standard deviation only {sig3(std)}.",
        )
    peak = max(abs(v.fact("input", "low") or 0.0), abs(v.fact("input", "high") or 0.0))
    if t.input_low is not None and peak < t.input_low:
        return finding(peak, "input_low", f"No input is larger than {sig3(peak)}.")
    if t.input_mean is not None and abs(mean) > t.input_mean:
        return finding(abs(mean), "input_mean", f"The inputs' mean is {sig3(mean)}.")
    return None


def _implied_by_the_first_layer(v: RunSignals, t: Thresholds) -> Finding | None:
    size = v.implied_input_rms
    if t.input_high is None or not size > t.input_high:
        return None
    layer = v.executed[0]
    text = (
        f"The first outputs of {v.rows.names[layer]} have an RMS of {sig3(float(v.rms[0, layer]))} with "
        f"weights of the usual size (gain {sig3(float(v.gains[layer]))}): its inputs have one of about "
        f"{sig3(size)}."
    )
    return Finding(
        "input_out_of_range", (), size, t.input_high, source_of("input_high", t), text, start_of(v)
    )


# ---------------------------------------------------------------- generalization


def train_validation_gap(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    scores = last_scores(v)
    if t.overfit_gap is None or scores is None:
        return None
    gap = scores.gap(c.reference)
    if gap < t.overfit_gap:
        return None
    text = (
        f"Training accuracy is {percent(scores.train)}, validation accuracy {percent(scores.validation)}."
        if scores.accuracies
        else f"The training loss is {sig3(scores.train_loss)}, the validation loss {sig3(scores.last_loss)}."
    )
    return Finding("train_validation_gap", (), gap, t.overfit_gap, source_of("overfit_gap", t), text)


@dataclass(frozen=True)
class Scores:
    """The last epoch's accuracies (NaN, or both zero, where there are none, as in a regression) and losses,
    and the validation losses' course.

    ``lowest_loss``: the lowest validation loss; ``earlier_loss``: the lowest before the last epoch, NaN if
    there is but one.
    """

    train: float
    validation: float
    train_loss: float
    lowest_loss: float
    earlier_loss: float
    last_loss: float

    @property
    def accuracies(self) -> bool:
        return (
            math.isfinite(self.train)
            and math.isfinite(self.validation)
            and max(self.train, self.validation) > 0
        )

    def gap(self, reference: float) -> float:
        """By how much training is ahead of validation: in accuracy, else in loss as a share of guessing's
        (``reference``).
        """
        if self.accuracies:
            return self.train - self.validation
        gap = (self.last_loss - self.train_loss) / reference if reference > 0 else 0.0
        return gap if math.isfinite(gap) else 0.0


def last_scores(v: RunSignals) -> Scores | None:
    """Scores of the last epoch that has both accuracies, else both losses; None if there is none."""
    for pair in (["train_accuracy", "val_accuracy"], ["train_loss", "val_loss"]):
        epochs = v.epochs.dropna(subset=pair) if len(v.epochs) else v.epochs
        if len(epochs):
            break
    else:
        return None
    last, losses = epochs.iloc[-1], epochs["val_loss"].to_numpy(dtype=float, na_value=np.nan)
    accuracies, train_loss = (last["train_accuracy"], last["val_accuracy"]), last["train_loss"]
    train, validation, loss = (
        math.nan if value is None else float(value) for value in (*accuracies, train_loss)
    )
    return Scores(train, validation, loss, _lowest(losses), _lowest(losses[:-1]), float(losses[-1]))


def _lowest(losses: np.ndarray) -> float:
    return float(np.nanmin(losses)) if np.isfinite(losses).any() else math.nan
