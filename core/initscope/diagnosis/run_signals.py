"""From recorded rows to the few numbers that rules compare: plain NumPy, no thresholds here.

Layers are in order of execution. "First" is the first recorded step, before any update: what initialization
and inputs did. Everything after that is what training did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from initscope.diagnosis.layer_rows import Frame, LayerRows, layer_rows, pandas_of
from initscope.store.files import number, optimizer_setting
from initscope.store.layer_names import layer_names
from initscope.store.run import with_loss

BOUNDED = {"Tanh": 1.0, "Sigmoid": 2.0, "Hardtanh": 0.5, "Hardsigmoid": 1.5, "Softsign": 2.0}
"""Saturating nonlinearities, and by how much wider than tanh's their steep part is."""
SMOOTH_RECTIFIERS = ("GELU", "SiLU", "Mish", "Softplus", "ELU", "CELU")
OFF = -5.0
"""Input of a smooth rectifier from which less than 4 % of the slope is left."""
USUAL_GAIN = (0.2, 3.0)
"""Gains of initial weights of the usual kinds: 0.58 by default, 1 Xavier's, 1.41 He's."""
NORM_EPS = 1e-5
"""Torch's eps of batch, layer and group norm: a signal whose square is far below it is not restored."""
USUAL_GROWTH = 100.0
"""Weights that have grown by less can turn no finite input of the usual size into an infinite output."""
LEAST_BATCH = 4
"""In smaller batches units that are off for every sample are no rarity."""
FAINTEST = 1e-12
"""A signal smaller than this may be lost to rounding."""
_REACH = np.finfo(np.float32).eps / 2
"""A relative change below this is rounded away in float32."""


@dataclass(frozen=True)
class RunSignals:
    """A run's rows, facts and config, and the quantities that rules look at."""

    rows: LayerRows
    loss: np.ndarray
    loss_steps: np.ndarray
    loss_epochs: np.ndarray
    learning_rate: np.ndarray
    epochs: Any
    state: Mapping[str, Any]
    config: Mapping[str, Any]

    # -- facts

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.state.get("facts") or {}

    def called(self, layer: str) -> str:
        """A layer's name for a sentence."""
        return layer_names([layer], self.state)[layer]

    def fact(self, *path: str) -> float | None:
        """A number among the facts, None if it is not there."""
        at: Any = self.facts
        for key in path:
            at = at.get(key) if isinstance(at, Mapping) else None
        return number(at)

    @property
    def batch_size(self) -> int | None:
        size = self.facts.get("batch_size") or self.config.get("batch_size")
        return int(size) if size else None

    @cached_property
    def input_rms(self) -> float:
        """Root mean square of the first batch's inputs; NaN if they were not numbers (token ids)."""
        return (
            float(np.hypot(self.fact("input", "mean") or 0.0, self.fact("input", "std") or 0.0))
            if self.facts.get("input")
            else np.nan
        )

    @cached_property
    def implied_input_rms(self) -> float:
        """RMS of the first layer's inputs, from its first outputs and the size of its weights, where the
        inputs themselves were not seen: a model whose parts are called one by one. NaN if weights are not of
        the usual size, or not known.
        """
        if self.facts.get("input") or not len(self.executed) or not len(self.rms):
            return float("nan")
        layer = self.executed[0]
        gain = self.gains[layer]
        usual = USUAL_GAIN[0] < gain < USUAL_GAIN[1]
        return float(self.rms[0, layer] / gain) if usual else float("nan")

    @cached_property
    def input_signal(self) -> float:
        """Standard deviation of the inputs across samples, RMS over elements; NaN if not known."""
        signal = self.fact("input", "signal")
        return float("nan") if signal is None else signal

    @property
    def chain(self) -> tuple[str, ...]:
        """Autograd's operations from the loss down to the last layer; empty if not known."""
        return tuple((self.facts.get("loss") or {}).get("chain") or ())

    @property
    def activations(self) -> Mapping[str, str]:
        """Which nonlinearity follows a layer."""
        return self.facts.get("activations") or {}

    @property
    def steps_taken(self) -> int:
        """Optimizer steps that were seen, recorded or between recorded ones."""
        return int(self.loss_steps[-1] - self.loss_steps[0]) + 1 if len(self.loss_steps) else 0

    @cached_property
    def first_pass(self) -> int | None:
        """How many of the recorded losses are of samples seen for the first time; None if the loop did not
        count epochs.
        """
        if not len(self.loss_epochs):
            return None
        later = np.flatnonzero(self.loss_epochs > self.loss_epochs[0])
        return int(later[0]) if len(later) else None

    @cached_property
    def train_samples(self) -> float:
        """Training samples, as far as is known: at most those of all recorded steps."""
        known = number(self.state.get("train_samples"))
        if known:
            return known
        last = (
            self.steps_taken
            if self.first_pass is None
            else int(self.loss_steps[self.first_pass] - self.loss_steps[0])
        )
        return max(1.0, float(last * (self.batch_size or 1)))

    # -- layers

    @cached_property
    def executed(self) -> np.ndarray:
        """Indices of the layers whose outputs were measured, in order of execution."""
        return np.flatnonzero(
            ~np.isnan(self.rows.values["activation_mean"]).all(0) | (self.rows.values["nonfinite"] > 0).any(0)
        )

    @property
    def hidden(self) -> np.ndarray:
        """Executed layers but the last, whose outputs are the network's."""
        return self.executed[:-1]

    @cached_property
    def inputs_broke(self) -> int | None:
        """The step at which the first layer's output was not finite though its weights were, and not large:
        the batch it was given was not. None if there was none.
        """
        told = self.facts.get("nonfinite_origin")
        if told:  # the batch itself was looked at
            return int(told["step"]) if told["what"] == "input" else None
        if not len(self.executed) or len(self.rows.steps) < 2:
            return None
        layer = self.executed[0]
        length, output = (
            self.rows.values["weight_norm"][:, layer],
            self.rows.values["activation_std"][:, layer],
        )
        broken = np.flatnonzero((self.rows.values["nonfinite"][:, layer] > 0) & ~np.isfinite(output))
        if not len(broken) or broken[0] == 0:
            return None
        # Without an optimizer the weight is measured after its update: the row before tells what the batch
        # met.
        at = broken[0] if self.updates_measured else broken[0] - 1
        return int(self.rows.steps[broken[0]]) if length[at] < USUAL_GROWTH * length[0] else None

    @cached_property
    def nonfinite_origin(self) -> Mapping[str, Any] | None:
        """The first number that is none: as it was looked at when it came, else (on a GPU) from the rows.
        None if all are finite.

        Keys: ``what`` (input, weight, output, loss, gradient, update), ``where`` (names), ``step``, ``since``
        (the last step known to be sound), ``nan``, ``from`` (finite sizes before it). Gradients that are not
        finite where the loss goes on are a scaler's business.
        """
        told = self.facts.get("nonfinite_origin")
        if told:
            return told
        broken = np.flatnonzero(~np.isfinite(self.loss))
        if not len(broken) or not len(self.rows.steps):
            return None
        at = int(np.searchsorted(self.rows.steps, self.loss_steps[broken[0]]))
        at = min(at, len(self.rows.steps) - 1)
        before = at
        while before > 0 and (self.rows.values["nonfinite"][before - 1] > 0).any():
            before -= 1  # gradients break a step before the loss does
        values, names = self.rows.values, np.array(self.rows.names)
        bad = self.rows.values["nonfinite"][before] > 0
        since = int(self.rows.steps[before - 1]) if before else None
        base: dict[str, Any] = {"step": int(self.rows.steps[before]), "since": since, "from": {}}
        for what, metric in (
            ("weight", "weight_norm"),
            ("output", "activation_std"),
            ("loss", None),
            ("gradient", "grad_norm"),
        ):
            if metric is None:
                if before == at:
                    return {**base, "what": "loss", "where": [], "nan": bool(np.isnan(self.loss[broken[0]]))}
                continue
            mask = bad & ~np.isfinite(values[metric][before])
            if metric == "activation_std":
                mask &= np.isin(np.arange(len(names)), self.executed)
            if mask.any() and not (
                metric == "weight_norm" and np.isnan(values[metric][before][mask]).all() and before == 0
            ):
                first = [str(names[mask][0])] if what == "output" else [str(name) for name in names[mask][:6]]
                return {
                    **base,
                    "what": what,
                    "where": first,
                    "nan": bool(np.isnan(values[metric][before][mask]).any()),
                }
        return None

    @cached_property
    def normalized(self) -> np.ndarray:
        """Whether a normalization follows the layer: its scale is then made good."""
        return np.isin(self.rows.names, self.facts.get("normalized") or [])

    @cached_property
    def rms(self) -> np.ndarray:
        """RMS of pre-activations, (steps, layers); infinite where they were not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            rms = np.hypot(self.rows.values["activation_mean"], self.rows.values["activation_std"])
        broken = np.isnan(rms) & (self.rows.values["nonfinite"] > 0)
        return np.where(broken, np.inf, rms)

    @cached_property
    def kept_by_layer(self) -> np.ndarray:
        """(steps, layers): share of the input's signal left in each layer's pre-activations.

        The smaller of two: signal_std over the signal of the input (or over one, after a normalization, which
        restores it), and signal_std over RMS, how much of the layer's output depends on the input at all,
        over the input's own share. With one sample a batch the RMS stands for the signal, as an upper bound.
        Before a normalization: what that makes of it.
        """
        signal, scale = self.rows.values["signal_std"], self.input_signal
        share = scale / self.input_rms if self.input_rms else 1.0
        if self.batch_size == 1:  # nothing to compare; but no signal is larger than what carries it
            signal, scale, share = self.rms, self.input_rms, 1.0
        kept = np.full(signal.shape, np.nan)
        if not signal.size:
            return kept
        if not (np.isfinite(scale) and scale > 0):
            scale, share = float(signal[0, self.executed[0]]) if len(self.executed) else 1.0, 1.0
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for layer in self.executed:
                if self.normalized[layer]:
                    kept[:, layer] = signal[:, layer] / np.sqrt(signal[:, layer] ** 2 + NORM_EPS)
                    scale, share = 1.0, 1.0
                    continue
                relative = (
                    np.where(self.rms[:, layer] > 0, signal[:, layer] / self.rms[:, layer], 0.0) / share
                )
                kept[:, layer] = np.minimum(signal[:, layer] / scale, relative)
        return kept

    @cached_property
    def signal_retained(self) -> np.ndarray:
        """(steps,): the signal left at the last hidden layer; NaN for a network without one."""
        return (
            self.kept_by_layer[:, self.hidden[-1]]
            if len(self.hidden)
            else np.full(len(self.rows.steps), np.nan)
        )

    @cached_property
    def output_spread(self) -> np.ndarray:
        """(steps,): standard deviation of the last layer's outputs across samples; empty if there is none."""
        if not len(self.executed) or not self.rows.values["signal_std"].size:
            return np.zeros(0)
        return self.rows.values["signal_std"][:, self.executed[-1]]

    @cached_property
    def output_share(self) -> np.ndarray:
        """(steps,): ``output_spread`` over the outputs' RMS: 1 where they are all input's doing, 0 where they
        are one answer for all.
        """
        if not len(self.output_spread):
            return np.zeros(0)
        size = self.rms[:, self.executed[-1]]
        return np.divide(self.output_spread, size, out=np.full(len(size), np.nan), where=size > 0)

    @cached_property
    def grown_by_layer(self) -> np.ndarray:
        """(steps, layers): pre-activation RMS over the inputs' (or over one, whichever is larger); NaN before
        a normalization.
        """
        scale = max(1.0, self.input_rms) if np.isfinite(self.input_rms) else 1.0
        # What the initial biases add is theirs, not the weights'.
        with np.errstate(invalid="ignore", over="ignore"):
            weights_part = np.sqrt(np.maximum(0.0, self.rms**2 - self._bias_rms**2))
        return np.where(self.normalized, np.nan, weights_part / scale)

    @cached_property
    def dead(self) -> np.ndarray:
        """(steps, layers): share of ReLU units at zero for the whole batch; NaN for batches too small to
        tell.

        For smooth relatives of ReLU: the estimated share of their inputs below ``OFF``, where hardly a
        gradient passes.
        """
        dead = self.rows.values["dead_fraction"].copy()
        if (self.batch_size or LEAST_BATCH) < LEAST_BATCH:
            dead[:] = np.nan
        mean, std = self.rows.values["activation_mean"], self.rows.values["activation_std"]
        for j, name in enumerate(self.rows.names):
            if self.activations.get(name) in SMOOTH_RECTIFIERS and not self.normalized[j]:
                with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                    dead[:, j] = _normal_cdf((OFF - mean[:, j]) / std[:, j])
        return np.where(self._cut & np.isnan(dead), 1.0, dead)

    @cached_property
    def _cut(self) -> np.ndarray:
        """(steps, layers): True where nothing of a signal that the layer's output has gets into the next one,
        although that has weights, its outputs are nearly all negative, and the nonlinearity between them is
        none that is known: all units between them are off. What reaches any later layer has gone round (an
        embedding of positions has no signal of its own).
        """
        signal, length, mean, std = (
            self.rows.values[name]
            for name in ("signal_std", "weight_norm", "activation_mean", "activation_std")
        )
        cut = np.zeros(signal.shape, bool)
        for place, (layer, after) in enumerate(pairwise(self.executed)):
            if self.rows.names[layer] not in self.activations and not self.normalized[layer]:
                nothing = ~(signal[:, self.executed[place + 1 :]] > 0).any(1)
                negative = mean[:, layer] < -std[:, layer]
                silent = (signal[:, after] == 0) & nothing & (length[:, after] > 0)
                cut[:, layer] = (signal[:, layer] > FAINTEST) & negative & silent
        return cut

    def saturated(self, from_input: float) -> np.ndarray:
        """(steps, layers): estimated share of a bounded nonlinearity's inputs beyond ``from_input`` (tanh;
        wider for others).

        From mean and standard deviation of the pre-activations as if they were Gaussian. NaN for other
        nonlinearities.
        """
        mean, std = self.rows.values["activation_mean"], self.rows.values["activation_std"]
        share = np.full(mean.shape, np.nan)
        for j, name in enumerate(self.rows.names):
            width = BOUNDED.get(self.activations.get(name, ""))
            if width is not None and not self.normalized[j]:
                share[:, j] = _outside(mean[:, j], std[:, j], from_input * width)
        return share

    @cached_property
    def bounded(self) -> bool:
        """Whether most hidden layers are followed by a saturating nonlinearity."""
        activations = list(self.activations.values())
        return bool(activations) and sum(a in BOUNDED for a in activations) > len(activations) / 2

    # -- updates

    @property
    def updates_measured(self) -> bool:
        """Whether the optimizer's steps were watched."""
        return not np.isnan(self.rows.values["update_ratio"]).all()

    @cached_property
    def update_ratio(self) -> np.ndarray:
        """(steps, layers): |change| / |weight| of a step. Where no optimizer was watched, the change of the
        norm stands in: a lower bound, since a change across the weight leaves its norm.
        """
        ratio, length = self.rows.values["update_ratio"], self.rows.values["weight_norm"]
        if self.updates_measured or len(length) < 2:
            return ratio
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            lower = np.abs(np.diff(length, axis=0)) / length[:-1] / np.diff(self.rows.steps)[:, None]
        return np.vstack([lower, np.full((1, length.shape[1]), np.nan)])

    @cached_property
    def update_total(self) -> np.ndarray:
        """(steps,): |change of all weights| / |all weights|: a small layer counts little. NaN where not
        measured.
        """
        ratio, length = self.update_ratio, self.rows.values["weight_norm"]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            moved = np.where(np.isfinite(length) & (length > 0), ratio * length, np.nan)
            total = np.sqrt(np.nansum(moved**2, 1) / np.nansum(length**2, 1))
        return np.where(np.isnan(moved).all(1), np.nan, total)

    @cached_property
    def update_fastest(self) -> float:
        """The usual (median over steps) update ratio of the layer that moves fastest; NaN if not measured."""
        ratio = self.update_ratio[:, (self.rows.first("weight_norm") > 0)]
        ratio = ratio[:, ~np.isnan(ratio).all(0)] if ratio.size else ratio
        return float(np.nanmax(np.nanmedian(ratio, 0))) if ratio.size else float("nan")

    @cached_property
    def update_usual(self) -> float:
        """The median of ``update_total`` over the second half of the run; NaN if not measured."""
        late = self.update_total[len(self.update_total) // 2 :]
        late = late[np.isfinite(late)]
        return float(np.median(late)) if len(late) else float("nan")

    @cached_property
    def total_relative_update(self) -> float:
        """How far the hidden layers have gone: the median layer's sum of update ratios over all steps; NaN if
        not measured.
        """
        ratio = self.update_ratio[:, self.hidden] if len(self.hidden) else np.empty((0, 0))
        if not ratio.size or np.isnan(ratio).all():
            return float("nan")
        between = self.steps_taken / len(self.rows.steps)
        return float(np.median(np.nansum(ratio, 0)) * between)

    # -- the optimizer's settings

    @property
    def optimizer(self) -> str:
        """Class names of the optimizers, lower case; empty if not known."""
        return str(self.facts.get("optimizer") or self.config.get("optimizer") or "").lower()

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by the gradient's size, so that the rate is what a weight moves."""
        return any(word in self.optimizer for word in ("ada", "rms", "lion", "rprop", "muon"))

    @property
    def weight_decay(self) -> float:
        """The largest weight decay of a parameter group, 0 if there is none or it is not known."""
        return optimizer_setting(self.facts, "weight_decay") or number(self.config.get("weight_decay")) or 0.0

    @cached_property
    def decay_pull(self) -> float:
        """How hard weight decay pulls at the weights in units of the loss's gradient: the median layer, at
        the first step or usually, whichever is more (weights that have shrunk pull less); 0 without decay,
        NaN if not measured. Decoupled decay (AdamW) is set against what one step moves a weight, the learning
        rate.
        """
        decay, length = self.weight_decay, self.rows.values["weight_norm"]
        if not decay or not length.size:
            return 0.0
        begun = self.rows.first("weight_norm") > 0
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            force = (
                np.sqrt(self.weight_counts) if "adamw" in self.optimizer else self.rows.values["grad_norm"]
            )
            pull = (decay * length / force)[:, begun]
        pull = pull[:, ~np.isnan(pull).all(0)]
        return (
            float(max(np.nanmedian(pull[0]), np.median(np.nanmedian(pull, 0))))
            if pull.size and not np.isnan(pull[0]).all()
            else float("nan")
        )

    @cached_property
    def decayed(self) -> float:
        """The sum of learning rate times weight decay over the steps: what decay alone would have made of the
        weights is exp(-that).
        """
        rates = self.learning_rate[np.isfinite(self.learning_rate)]
        momentum = (
            min(0.99, optimizer_setting(self.facts, "momentum") or 0.0) if "sgd" in self.optimizer else 0.0
        )
        return (
            float(rates.mean() * self.steps_taken * self.weight_decay / (1 - momentum)) if len(rates) else 0.0
        )

    @cached_property
    def gradient_total(self) -> float:
        """Norm of the first recorded gradient over all recorded weights, before any clipping; NaN if not
        measured.
        """
        norm = self.rows.first("grad_norm")
        return float(np.sqrt(np.nansum(norm**2))) if len(norm) and not np.isnan(norm).all() else float("nan")

    @cached_property
    def step_share(self) -> float:
        """Length of the first recorded update over what gradient and learning rate make it: 1 for SGD; for
        Adam 1 if every weight of at least one layer had a gradient (unseen rows of an embedding and units
        that are off have none). NaN for other optimizers, and where the first step was not recorded or not
        moved by the rate.
        """
        plain = "sgd" in self.optimizer and "," not in self.optimizer
        adam = self.optimizer in ("adam", "adamw")
        rate = self.learning_rate[0] if len(self.learning_rate) else np.nan
        if (
            not (plain or adam)
            or not rate > 0
            or not self.updates_measured
            or not len(self.rows.steps)
            or self.rows.steps[0] != 0
        ):
            return float("nan")
        norm, length, ratio = (self.rows.first(name) for name in ("grad_norm", "weight_norm", "update_ratio"))
        with np.errstate(invalid="ignore", over="ignore"):
            decay = 0.0 if adam else self.weight_decay * np.nan_to_num(length)
            force = np.sqrt(self.weight_counts) * (norm > 0) if adam else np.hypot(norm, decay)
            known = np.isfinite(force) & np.isfinite(ratio * length) & (length > 0)
            moving = known & (force > 0)
            if adam and moving.any():  # a scale, if there is one, is the same for all layers
                return float(np.max((ratio * length)[moving] / (rate * force[moving])))
            made = rate * np.sqrt(np.sum(force[known] ** 2))
            moved = np.sqrt(np.sum((ratio * length)[known] ** 2))
        return float(moved / made) if made > 0 else float("nan")

    @cached_property
    def frozen_mask(self) -> np.ndarray:
        """(layers,): True where the weight never moved although something should have moved it.

        A layer whose gradient is exactly zero, or too small for float32 at this learning rate, is blocked,
        not frozen.
        """
        ratio, length, gradient = (self.rows.values[m] for m in ("update_ratio", "weight_norm", "grad_norm"))
        if not len(length):
            return np.zeros(len(self.rows.names), bool)
        unmoved = ~(np.nan_to_num(ratio, nan=0.0) > 0).any(0) & (length == length[0]).all(0)
        rate = (
            np.nanmax(self.learning_rate)
            if len(self.learning_rate) and not np.isnan(self.learning_rate).all()
            else np.nan
        )
        adaptive = any(
            word in str(self.facts.get("optimizer", "")) for word in ("Ada", "RMS", "Lion", "Rprop", "Muon")
        )
        count = self.weight_counts
        with np.errstate(invalid="ignore", divide="ignore"):
            push = rate * (np.sqrt(count) if adaptive else np.nanmax(gradient, 0, initial=0.0)) / length[0]
        has_gradient = ~np.isnan(gradient).all(0)
        unheld = np.isin(
            self.rows.names, [*(self.facts.get("unoptimized") or []), *(self.facts.get("frozen") or [])]
        )
        zero = has_gradient & (np.nanmax(gradient, 0, initial=0.0) == 0)
        too_small = has_gradient & (push < _REACH)
        return unmoved & (unheld | ~(zero | too_small)) & (len(length) > 1 or unheld)

    @cached_property
    def grad_to_weight_ratio(self) -> float:
        """The largest |gradient| / |weight| of a layer at the first step: what a learning rate of one would
        do; NaN if not measured.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            pull = self.rows.first("grad_norm") / self.rows.first("weight_norm")
        pull = pull[np.isfinite(pull)]
        return float(pull.max()) if len(pull) else float("nan")

    @cached_property
    def weight_counts(self) -> np.ndarray:
        """(layers,): number of weights; one each if not known."""
        counts = self.facts.get("weights") or {}
        return np.array([float(counts.get(name, 1)) for name in self.rows.names])

    @cached_property
    def gains(self) -> np.ndarray:
        """(layers,): initial weight std times sqrt(fan_in); NaN if not known."""
        scales = self.facts.get("scales") or {}
        return np.array([number((scales.get(name) or {}).get("gain")) or np.nan for name in self.rows.names])

    @cached_property
    def _bias_rms(self) -> np.ndarray:
        """(layers,): RMS of the initial biases; 0 if not known."""
        scales = self.facts.get("scales") or {}
        rows = [scales.get(name) or {} for name in self.rows.names]
        return np.array(
            [
                np.hypot(number(row.get("bias_mean")) or 0.0, number(row.get("bias_std")) or 0.0)
                for row in rows
            ]
        )


def _outside(mean: np.ndarray, std: np.ndarray, edge: float) -> np.ndarray:
    """P(|x| > edge) for x ~ N(mean, std^2)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return _normal_cdf((-edge - mean) / std) + 1 - _normal_cdf((edge - mean) / std)


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    """Normal distribution function by a logistic approximation good to 2e-4 (Bowling et al. 2009): no SciPy
    needed.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return 1 / (1 + np.exp(-(0.07056 * z**3 + 1.5976 * z)))


def read_signals(
    steps: Frame, epochs: Frame, layers: Frame, state: Mapping[str, Any], config: Mapping[str, Any]
) -> RunSignals:
    """Frames as recorded to ``RunSignals``."""
    curve = pandas_of(with_loss(steps) if isinstance(steps, pa.Table) else steps)
    return RunSignals(
        rows=layer_rows(layers),
        loss=curve["loss"].to_numpy(dtype=float, na_value=np.nan),
        loss_steps=curve["step"].to_numpy(),
        loss_epochs=curve["epoch"].to_numpy(),
        learning_rate=curve["learning_rate"].to_numpy(dtype=float, na_value=np.nan),
        epochs=pandas_of(epochs),
        state=state,
        config=config,
    )
