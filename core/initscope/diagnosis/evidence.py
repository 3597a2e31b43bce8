"""Findings and loss symptom put together: what several causes ask about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.rules_run import last_scores
from initscope.diagnosis.rules_targets import late_targets
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.outcome import ASSUMED_SAMPLES, Basis, chance_ceiling, converged_floor
from initscope.schema import Outcome
from initscope.store.files import number

SEVERE = 1e-3
"""Less signal than this is a plateau's cause whatever the optimizer does; Adam gets through what is left
above it.
"""
MOVED = 0.1
"""Hidden layers that have gone at least this far (sum of update ratios) have had their chance to leave a mild
collapse.
"""
WAKING = 3.0
"""Growth of a faint signal that random labels do not bring about."""
RESTLESS = 0.03
"""Updates of this share of the weights, step after step, settle nowhere; with random labels they are 0.01 at
most.
"""
STANDING = 0.03
"""A network whose fastest layer has not even gone this far (sum of update ratios) has hardly moved yet."""
USUAL_SIZE = 1e3
"""Pre-activations up to here overflow in no function of float32: what is not finite after them came from the
edge of a domain.
"""
TIE = 2.5
"""Neither network of an adversarial pair has won while the loss is within this factor of a tie's."""
DECAYED = 0.3
"""Learning rate times weight decay, summed over the steps, from which weights have lost a quarter."""
CORRELATED = 4.0
"""Standard errors above zero of a correlation between outputs and targets that is none by chance."""
AGREEMENT = 5.0
"""Standard errors by which outputs must agree with their targets better than chance."""
LEAST_JUDGED = 64
"""Fewer compared outputs show no agreement."""
ALIVE = 0.1
"""A network whose outputs still differ from sample to sample by this share of what they did at first is not
cut off by units that are off.
"""
LEAST_PULL = 1e-2
"""Below this first |gradient| / |weight| in every layer, the gradients are what is small, not the learning
rate.
"""


@dataclass(frozen=True)
class Evidence:
    """All that a cause is judged by."""

    signals: RunSignals
    curve: Curve
    findings: Mapping[str, Finding]
    thresholds: Thresholds

    def has(self, *ids: str) -> bool:
        return any(name in self.findings for name in ids)

    def at_first(self, *ids: str) -> bool:
        """Found at the first recorded step: before training could have done it."""
        return any(name in self.findings and self.findings[name].first for name in ids)

    def later(self, *ids: str) -> bool:
        return any(name in self.findings and not self.findings[name].first for name in ids)

    def value(self, name: str) -> float:
        """The value of a finding, 0 if it was not made."""
        return float(self.findings[name].value or 0.0) if name in self.findings else 0.0

    # -- how the run went

    @property
    def succeeded(self) -> bool:
        """The run has converged by its validation accuracy; a training loss below guessing's may have been
        learned from the majority.
        """
        state = self.signals.state
        return state.get("outcome") == Outcome.CONVERGED and state.get("outcome_by") in (
            None,
            Basis.VALIDATION,
        )

    @property
    def failing(self) -> bool:
        return not self.succeeded and (
            self.curve.nonfinite or self.curve.stuck or self.has("loss_oscillates")
        )

    @property
    def loss_diverges(self) -> bool:
        """The loss shows that steps were too large: not finite, far above its beginning, or jumping."""
        spiked = self.curve.spiked and not self.curve.learned
        return self.curve.nonfinite or spiked or self.curve.worsened or self.has("loss_oscillates")

    @property
    def validation_at_chance(self) -> bool:
        """The last validation accuracy is within the noise of guessing (``initscope.outcome``).

        Labels that were shuffled over few training samples still agree with a few by chance, and a network
        that has learned them by heart is right on as many: both samples' noise counts, 1 / (1/validation +
        1/training) guesses.
        """
        scores = last_scores(self.signals)
        if scores is None or not scores.accuracies or not self.curve.guess.classes:
            return False
        chance = self.signals.state.get("chance") or 1 / self.curve.guess.classes
        validation = self.signals.state.get("validation_samples") or ASSUMED_SAMPLES
        return scores.validation <= chance_ceiling(
            chance, 1 / (1 / validation + 1 / self.signals.train_samples)
        )

    @property
    def agrees(self) -> bool:
        """At the end the outputs agreed with their targets beyond what chance explains, on the batches they
        were about to be trained on.
        """
        late = late_targets(self.signals)
        judged = number(late.get("judged")) or 0.0
        if judged < LEAST_JUDGED:
            return False
        if (r := number(late.get("correlation"))) is not None:
            return r > CORRELATED / judged**0.5
        right, chance = number(late.get("accuracy")), number(late.get("agreement_by_chance"))
        majority = number(late.get("true_largest"))
        if right is None or chance is None or majority is None:
            return False
        base = max(chance, min(majority, 0.999))
        return right > base + AGREEMENT * (base * (1 - base) / judged) ** 0.5

    @property
    def disagrees(self) -> bool:
        """What was compared at the end shows no trace of agreement; of numbers it must have been compared,
        for noise looks like a plateau.
        """
        late = late_targets(self.signals)
        judged, r = number(late.get("judged")) or 0.0, number(late.get("correlation"))
        if self.curve.guess.kind == "mean":
            return r is not None and judged >= LEAST_JUDGED and r < 2 / judged**0.5
        return not self.agrees

    @property
    def decay_dominates(self) -> bool:
        """Weight decay, or a penalty in the loss, decided where the weights went, and they shrank or learned
        nothing.
        """
        far = (
            not self.signals.weight_decay or self.signals.decayed >= DECAYED
        )  # a decay that had no time to do it has not done it
        harmed = self.has("weights_shrunk") or (far and not self.curve.learned)
        return self.has("weight_decay_strong") and not self.curve.well and harmed

    @property
    def target_faults(self) -> bool:
        """Something about targets or their order stands between a low loss and having learned."""
        return self.has(
            "class_collapse", "labels_constant", "labels_in_order", "targets_far", "targets_outside"
        )

    @property
    def validated(self) -> bool:
        """Validation says that it works: the trainer's judgement, or an accuracy a third of the way from
        guessing to perfect.
        """
        scores, classes = (
            last_scores(self.signals),
            self.curve.guess.classes or self.signals.fact("targets", "classes") or 2,
        )
        largest = self.signals.fact("targets", "largest") or 0.0
        right = (
            scores is not None
            and scores.accuracies
            and scores.validation >= converged_floor(max(1 / classes, min(largest, 0.99)))
        )
        return self.succeeded or right

    @property
    def never_generalized(self) -> bool:
        """Training left guessing behind, and no validation loss ever was below guessing's: what was learned
        was learned by heart.

        An overconfident network may be right more often than its loss says: with an accuracy that has come
        ``SKILL`` of the way this is not said.
        """
        scores, price = last_scores(self.signals), self.curve.chance
        if scores is None or price is None or self.curve.guess.scaled or not self.has("train_validation_gap"):
            return False
        right = scores.accuracies and scores.validation >= converged_floor(
            1 / (self.curve.guess.classes or 2)
        )
        error = self.signals.fact("loss", "constant_answer_error") or 0.0
        return not right and scores.lowest_loss >= price - 2 * error

    # -- what was wrong from the start

    @property
    def frozen_on_purpose(self) -> bool:
        """All the weights that never move have requires_grad off, and others move: adapters, or a new head on
        a trained body.
        """
        frozen = set(self.findings["weights_frozen"].layers) if self.has("weights_frozen") else set()
        return (
            bool(frozen)
            and frozen <= set(self.signals.facts.get("frozen") or ())
            and not self.signals.frozen_mask.all()
        )

    @property
    def structure_at_fault(self) -> bool:
        frozen = self.has("weights_frozen") and not (self.frozen_on_purpose and self.curve.learned)
        # Units that are alike do not make a loss run away.
        return (self.has("identical_units") and not self.curve.nonfinite) or frozen

    @property
    def start_at_fault(self) -> bool:
        """Something was wrong at the first step already that outweighs whatever training did."""
        return self.at_first("signal_explosion", "dead_units", "saturated_units") or self.structure_at_fault

    @property
    def inputs_blamed(self) -> bool:
        """The inputs explain what the first layers do; large negative biases would kill units whatever the
        inputs.
        """
        return self.has("input_out_of_range") and not self.biases_negative

    @property
    def biases_negative(self) -> bool:
        """The mean bias of a dead layer is negative and larger than what its weights add."""
        if not self.has("dead_units"):
            return False
        scales = self.signals.facts.get("scales") or {}
        std = dict(zip(self.signals.rows.names, self.signals.rows.first("activation_std"), strict=True))
        return any(
            scales.get(name, {}).get("bias_mean", 0.0) < -std.get(name, 0.0)
            for name in self.findings["dead_units"].layers
        )

    @property
    def gain(self) -> float | None:
        """Median of the hidden layers' initial gains over the one that keeps the signal (sqrt 2 for ReLU, 1
        for tanh).
        """
        gains = self.signals.gains[self.signals.hidden] if len(self.signals.hidden) else np.array([])
        gains = gains[~np.isnan(gains)]
        return float(np.median(gains)) / (1.0 if self.signals.bounded else 2**0.5) if len(gains) else None

    def calm_before(self, step: int) -> bool:
        """Until ``step`` nothing was large: no loss far above its beginning, no update, gradient or
        pre-activation out of the ordinary.
        """
        v, t = self.signals, self.thresholds
        early = v.rows.steps < step
        losses = v.loss[v.loss_steps < step]
        signed = len(losses) and losses.min() < 0  # its first value says nothing about its size
        usual = float(np.median(np.abs(losses))) if signed else 0.0
        if self.has("initial_loss_off") or (
            len(losses) and losses.max() > 3 * max(abs(losses[0]), abs(self.curve.chance or 0.0), usual)
        ):
            return False
        updates, gradients, sizes = (
            v.update_total[early & (v.rows.steps >= step // 2)],  # the first steps' are long forgotten
            v.rows.values["grad_norm"][early],
            v.rms[v.rows.steps <= step],
        )
        small = (
            not (updates > (t.update_high or np.inf)).any()
            and not (gradients > (t.exploding_norm or np.inf)).any()
        )
        known = sizes[np.isfinite(sizes)]
        return small and bool(len(known)) and not (known > USUAL_SIZE).any()

    # -- signals

    @property
    def signal_lost_at_init(self) -> bool:
        """The signal was gone at the first step, and more than an optimizer that moves the weights can make
        good.

        Where the rule for the signal is switched off, as in a tool that has none, a gradient that vanished at
        the first step stands in.
        """
        if self.thresholds.signal_kept is None:
            return self.at_first("vanishing_gradient")
        if not self.at_first("signal_collapse"):
            return False
        return float(self.signals.signal_retained[0]) < SEVERE or not (
            self.signals.total_relative_update >= MOVED or self.lr_too_small
        )

    @property
    def input_ignored(self) -> bool:
        """The output still depended on nothing at the end: whatever the loss did, it did by a constant
        answer.
        """
        return self.at_first("signal_collapse") and bool((self._last_kept < SEVERE).all())

    @property
    def broke_later(self) -> bool:
        """Training itself cut the signal: units died or saturated, or what reaches the last hidden layer fell
        to next to nothing. (That it becomes fainter is no damage: a network that finds nothing to learn turns
        its signal down.)
        """
        cut = self.later("signal_collapse") and bool(np.median(self._last_kept) < SEVERE)
        off = self.later("dead_units") and not self._still_answers
        return off or self.later("saturated_units") or cut

    @property
    def _still_answers(self) -> bool:
        """The outputs differ between samples about as they did at first, and no update, spike or jump was
        large enough to have switched units off: those that are off have been turned down, not killed.
        """
        spread = self.signals.output_spread
        if self.has("update_too_large", "loss_oscillates") or self.curve.spiked or not len(spread):
            return False
        return bool(np.median(spread[-max(1, len(spread) // 10) :]) >= ALIVE * spread[0])

    @property
    def signal_recovering(self) -> bool:
        """A faint signal has grown since: updates agree on something, the plateau is ending."""
        return self.at_first("signal_collapse") and float(np.median(self._last_kept)) > WAKING * float(
            self.signals.signal_retained[0]
        )

    @property
    def _last_kept(self) -> np.ndarray:
        return self.signals.signal_retained[-max(1, len(self.signals.signal_retained) // 10) :]

    # -- updates

    @property
    def lr_too_small(self) -> bool:
        """Updates are tiny because the learning rate (or clipping) is, not because the gradients are."""
        # A loss at guessing that falls and falls goes the right way, in steps that are too short.
        standing = (
            self.signals.update_fastest * self.curve.steps < STANDING
            or self.has("epsilon_large")
            or (self.curve.at_chance and self.curve.falling and not self.curve.memorising)
        )
        # Weights of a network that an earlier step has killed stand still too: that is the damage, not its
        # cause.
        return (
            self.has("update_too_small")
            and standing
            and not (self.signals.grad_to_weight_ratio < LEAST_PULL or self.broke_later)
        )

    @property
    def updates_stay_large(self) -> bool:
        """Updates were too large and stayed large: what one batch teaches, the next one undoes, whatever the
        labels.
        """
        return self.has("update_too_large") and self.signals.update_usual >= RESTLESS

    @property
    def moved(self) -> bool:
        """The hidden layers (of a network without any, all layers) have gone far enough to have learned
        something.
        """
        v = self.signals
        return (
            v.total_relative_update >= MOVED
            if len(v.hidden)
            else v.update_fastest * self.curve.steps >= MOVED
        )

    @property
    def adversary_in_balance(self) -> bool:
        """A loss that another network computes has stayed near that of a tie, ln 2 a pass, and its gradient
        arrives: neither side has won.
        """
        loss = self.signals.loss[-max(3, len(self.signals.loss) // 5) :]
        tie = math.log(2) * (2 if self.signals.facts.get("discriminator") else 1)
        binary = any(
            name.startswith(("BinaryCrossEntropy", "Softplus", "LogSigmoid")) for name in self.signals.chain
        )
        near = (
            len(loss) > 0 and bool(np.isfinite(loss).all()) and tie / TIE < float(np.median(loss)) < tie * TIE
        )
        return binary and near and not self.has("vanishing_gradient", "update_too_small", "gradient_clipped")

    @property
    def seen_inside(self) -> bool:
        """Signals and updates were recorded, so that silence of the rules means something."""
        return bool(len(self.signals.executed)) and not np.isnan(self.signals.update_fastest)
