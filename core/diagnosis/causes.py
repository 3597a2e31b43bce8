"""From findings and the loss symptom to one cause, by mechanism.

Every cause states what must hold for it to be possible (``needs``: findings together with a loss symptom they can explain, and
nothing further upstream that explains them better) and what else one would then expect to see (``evidence``, with weights). The
possible cause with the largest share of its evidence is named; between equals the one further upstream (structure, loss, inputs,
initialization, learning rate, labels) is, because what is upstream explains what is downstream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.diagnosis.curve import Curve
from core.diagnosis.finding import Finding
from core.diagnosis.rules_run import last_scores
from core.diagnosis.vitals import Vitals
from core.outcome import MIN_STEPS, chance_ceiling
from core.schema import Cause, Outcome

MISUSES = (
    "loss_negated",
    "loss_of_raw_outputs",
    "outputs_are_probabilities",
    "loss_below_zero",
    "targets_broadcast",
    "softmax_across_batch",
)
VERY_LOUD = 10.0
"""A first loss this many times that of guessing is blamed even if the run then recovers."""
SEVERE = 1e-3
"""Less signal than this is a plateau's cause whatever the optimizer does; Adam gets through what is left above it."""
MOVED = 0.1
"""Hidden layers that have gone at least this far (sum of update ratios) have had their chance to leave a mild collapse."""
CLEAR_GAP = 0.15
"""A smaller gap between training and validation accuracy is overfitting only if the validation loss has risen too."""
NEARLY_PERFECT = 0.9
"""Frozen weights are forgiven when this share of the loss of guessing is gone all the same."""
SLOW = 0.1
"""A run at a tiny learning rate that has lost less than this share of its loss is too slow, not learning."""
STANDING = 0.03
"""A network whose fastest layer has not even gone this far (sum of update ratios) has hardly moved yet."""
CREEPING = 0.02
"""A loss that falls and has lost this share of guessing's is learning something, however slowly."""
LEAST_PUSH = 0.01
"""|change| / |weight| a step per unit of learning rate, below which not the learning rate is what is small."""


@dataclass(frozen=True)
class Picture:
    """All that a cause is judged by."""

    vitals: Vitals
    curve: Curve
    findings: Mapping[str, Finding]

    def has(self, *ids: str) -> bool:
        return any(name in self.findings for name in ids)

    def at_first(self, *ids: str) -> bool:
        """Found at the first recorded step: before training could have done it."""
        return any(name in self.findings and self.findings[name].first for name in ids)

    def later(self, *ids: str) -> bool:
        return any(name in self.findings and not self.findings[name].first for name in ids)

    @property
    def violent(self) -> bool:
        """The loss shows that steps were too large: not finite, far above its beginning, or jumping."""
        spiked = self.curve.spiked and not self.curve.learned
        return self.curve.nonfinite or spiked or self.curve.worsened or self.has("loss_oscillates")

    @property
    def succeeded(self) -> bool:
        """The trainer's own judgement, by validation accuracy."""
        return self.vitals.state.get("outcome") == Outcome.CONVERGED

    @property
    def failing(self) -> bool:
        return not self.succeeded and (self.curve.nonfinite or self.curve.stuck or self.has("loss_oscillates"))

    @property
    def faded(self) -> bool:
        """The signal was gone at the first step, and more than an optimizer that moves the weights can make good."""
        if not self.at_first("signal_collapse"):
            return False
        return float(self.vitals.kept[0]) < SEVERE or not (self.vitals.path >= MOVED or self.timid)

    @property
    def timid(self) -> bool:
        """Updates are tiny because the learning rate is, not because the gradients are."""
        rates = self.vitals.learning_rate[np.isfinite(self.vitals.learning_rate)]
        rate = float(np.median(rates)) if len(rates) else 0.0
        push = self.vitals.update_fastest / rate if rate > 0 else float("nan")
        standing = self.vitals.update_fastest * self.curve.steps < STANDING
        return self.has("update_too_small") and standing and not push < LEAST_PUSH

    @property
    def blind(self) -> bool:
        """The output still depended on nothing at the end: whatever the loss did, it did by a constant answer."""
        kept = self.vitals.kept[-max(1, len(self.vitals.kept) // 10) :]
        return self.at_first("signal_collapse") and bool((kept < SEVERE).all())

    @property
    def validation_at_chance(self) -> bool:
        """The last validation accuracy is within the noise of guessing (``core.outcome``)."""
        scores = last_scores(self.vitals)
        if scores is None or not self.curve.guess.classes:
            return False
        chance = self.vitals.state.get("chance") or 1 / self.curve.guess.classes
        samples = self.vitals.state.get("validation_samples") or 400
        return scores.validation <= chance_ceiling(chance, samples)

    @property
    def structure_at_fault(self) -> bool:
        return self.has("identical_units", "weights_frozen")

    @property
    def start_at_fault(self) -> bool:
        """Something was wrong at the first step already that outweighs whatever training did."""
        return self.at_first("signal_explosion", "dead_units", "saturated_units") or self.structure_at_fault


@dataclass(frozen=True)
class Case:
    """Whether a cause is possible, and the expected evidence: (weight, is it there)."""

    possible: bool
    evidence: Sequence[tuple[float, bool]] = ()

    @property
    def share(self) -> float:
        total = sum(weight for weight, _ in self.evidence)
        return sum(weight for weight, there in self.evidence if there) / total if total else 0.0


def not_updating(p: Picture) -> Case:
    """Most of the weights never move, though gradients should move them."""
    frozen = p.findings.get("weights_frozen")
    possible = frozen is not None and p.curve.progress < NEARLY_PERFECT
    share = frozen.value if frozen and frozen.value else 0.0
    return Case(possible, [(3, possible), (1, share > 0.9), (1, not p.curve.learned)])


def symmetric_init(p: Picture) -> Case:
    """Units of a hidden layer begin alike, so they stay alike, and the loss does not come far."""
    ended = set((p.vitals.facts.get("end") or {}).get("identical_units") or ())
    same = set(p.findings["identical_units"].layers) if p.has("identical_units") else set()
    known = "end" in p.vitals.facts
    possible = bool(same) and not p.curve.learned and not p.has("weights_frozen")
    return Case(possible, [(3, possible), (1, p.failing), (1, bool(same & ended) or not known)])


def loss_misuse(p: Picture) -> Case:
    """Loss function and outputs do not fit together."""
    possible = p.has(*MISUSES) and not p.structure_at_fault
    return Case(possible, [(4, possible), (1, not p.curve.well)])


def input_scale(p: Picture) -> Case:
    """The inputs' size or offset, not the weights, makes the first layer loud, faint or constant."""
    shout = p.has("initial_loss_off") and (p.findings["initial_loss_off"].value or 0) > VERY_LOUD
    loud = p.has("initial_loss_off") or p.violent
    harm = shout or p.violent or not (p.curve.learned or p.succeeded)
    possible = p.has("input_out_of_range") and harm and not p.structure_at_fault
    own = not p.at_first("signal_explosion")
    return Case(possible, [(3, possible), (1, p.failing), (1, loud or p.curve.stuck), (1, own)])


def dead_relu(p: Picture) -> Case:
    """Nearly all ReLU units of a layer were off before any update."""
    possible = p.at_first("dead_units") and not p.curve.well and not p.structure_at_fault and not _inputs_blamed(p)
    return Case(possible, [(3, possible), (1, p.curve.stuck), (1, _biases_negative(p))])


def saturated_activation(p: Picture) -> Case:
    """Bounded units sat on their flat part before any update, in most layers and not by the inputs' size."""
    possible = p.at_first("saturated_units") and not p.curve.well and not p.structure_at_fault and not _inputs_blamed(p)
    layers = len(p.findings["saturated_units"].layers) if p.has("saturated_units") else 0
    hidden = max(1, len(p.vitals.hidden))
    return Case(possible, [(3, possible), (1, layers >= hidden / 2), (1, not p.curve.learned or p.has("initial_loss_off"))])


def init_too_large(p: Picture) -> Case:
    """Pre-activations grow from layer to layer: the first outputs are huge, whatever the inputs."""
    loud = p.findings.get("initial_loss_off")
    unforgiven = not (p.curve.learned or p.succeeded) or (loud is not None and (not p.curve.well or (loud.value or 0) > VERY_LOUD))
    possible = p.at_first("signal_explosion") and unforgiven and not p.structure_at_fault and not p.at_first("saturated_units")
    gains = _gains(p)
    large = gains is None or gains > 1.2
    return Case(possible, [(3, possible), (1, loud is not None or p.curve.guess.kind != "classes"), (1, p.at_first("exploding_gradient")), (1, large)])


def init_too_small(p: Picture) -> Case:
    """The signal is gone before the last hidden layer at the first step, and the loss has not left its plateau."""
    explained = p.structure_at_fault or p.at_first("dead_units", "saturated_units", "signal_explosion") or _inputs_blamed(p)
    waiting = (not p.curve.learning and (p.curve.stuck or p.curve.steps < MIN_STEPS / 2)) or p.blind
    possible = p.faded and waiting and not p.violent and not explained and not p.has(*MISUSES)
    gains = _gains(p)
    return Case(possible, [(3, possible), (1, p.curve.stuck), (1, p.has("vanishing_gradient")), (1, gains is None or gains < 0.85)])


def lr_too_high(p: Picture) -> Case:
    """The start was sound; then updates broke it: the loss blew up or jumps, or units that were alive are dead."""
    lost = p.later("dead_units", "signal_collapse", "saturated_units") and p.curve.stuck
    damage = lost or p.later("signal_explosion", "exploding_gradient")
    large = p.has("update_too_large")
    shown = (large and p.violent) or (large and p.failing and damage) or (lost and p.vitals.path >= MOVED)
    explained = p.start_at_fault or p.has("input_out_of_range", *MISUSES) or (p.faded and not p.violent)
    possible = shown and not (p.curve.well or p.succeeded) and not explained
    return Case(possible, [(2, possible), (2, large), (2, p.violent), (1, damage), (1, not p.at_first("signal_collapse"))])


def lr_too_low(p: Picture) -> Case:
    """Sound signals and gradients, and weights that hardly move."""
    slow = not p.violent and not p.succeeded and p.curve.progress < SLOW
    possible = p.timid and slow and not p.faded and not p.start_at_fault and not p.has("input_out_of_range", *MISUSES)
    sound = not p.at_first("signal_collapse")
    return Case(possible, [(3, possible), (1, sound), (1, p.curve.stuck), (1, not p.has("vanishing_gradient"))])


def labels_unrelated(p: Picture) -> Case:
    """Everything works and nothing can be learned: loss at guessing, or labels memorised with validation at guessing."""
    c = p.curve
    memorised = c.learning and p.validation_at_chance
    creeping = c.falling and c.progress > CREEPING
    unmoved = c.stuck and not c.above_chance and not creeping and c.steps >= 0.8 * MIN_STEPS
    damaged = p.later("dead_units", "signal_collapse", "saturated_units") and not memorised
    sound = not (p.faded or damaged or p.start_at_fault or p.timid or p.has("input_out_of_range", *MISUSES))
    possible = (memorised or unmoved) and sound and not p.has("loss_oscillates") and not c.spiked
    return Case(
        possible,
        [
            (2, possible),
            (1, memorised or c.chance is not None),
            (1, memorised or c.settled),
            (1, memorised or p.vitals.path >= MOVED),
            (1, p.validation_at_chance),
        ],
    )


def overfitting(p: Picture) -> Case:
    """Training goes on improving, validation has stopped well above guessing."""
    scores = last_scores(p.vitals)
    risen = scores is not None and scores.last_loss > 1.1 * scores.lowest_loss
    clear = scores is not None and (scores.gap >= CLEAR_GAP or risen)
    possible = p.has("train_validation_gap") and clear and not p.validation_at_chance and p.curve.learned
    return Case(possible, [(3, possible), (1, risen), (1, p.curve.well)])


def healthy(p: Picture) -> Case:
    """The loss falls, or too little was recorded for it to and nothing stands in its way."""
    c = p.curve
    short = c.steps < MIN_STEPS and not p.at_first("signal_collapse", "update_too_large") and not p.start_at_fault
    early = short and not p.violent and not p.has("update_too_small")
    going = c.learning or early or p.succeeded or (c.falling and not c.above_chance and not p.start_at_fault)
    guesses = p.validation_at_chance and c.steps >= MIN_STEPS
    possible = going and not c.nonfinite and c.count > 0 and not guesses
    return Case(possible, [(2, c.learning or p.succeeded), (1, c.learned or p.succeeded), (1, not p.validation_at_chance)])


CAUSES: dict[Cause, Callable[[Picture], Case]] = {
    Cause.NOT_UPDATING: not_updating,
    Cause.SYMMETRIC_INIT: symmetric_init,
    Cause.LOSS_MISUSE: loss_misuse,
    Cause.INPUT_SCALE: input_scale,
    Cause.DEAD_RELU: dead_relu,
    Cause.SATURATED_ACTIVATION: saturated_activation,
    Cause.INIT_TOO_LARGE: init_too_large,
    Cause.INIT_TOO_SMALL: init_too_small,
    Cause.LR_TOO_HIGH: lr_too_high,
    Cause.LR_TOO_LOW: lr_too_low,
    Cause.LABELS_UNRELATED: labels_unrelated,
    Cause.OVERFITTING: overfitting,
}
"""Faults, upstream first."""


def choose(vitals: Vitals, curve: Curve, findings: Sequence[Finding]) -> tuple[Cause, float]:
    """(cause, confidence).

    Confidence is the share of the named cause's expected evidence that is present, 0 to 1, times how much of a run was seen:
    sqrt(steps / 50), at least a half and at most 1; a loss that is not finite has been seen to its end. For ``unknown`` it is 0.
    """
    picture = Picture(vitals, curve, {finding.id: finding for finding in findings})
    seen = 1.0 if curve.nonfinite else min(1.0, max(0.5, (curve.steps / MIN_STEPS) ** 0.5))
    cases = {cause: case(picture) for cause, case in CAUSES.items()}
    possible = {cause: case.share for cause, case in cases.items() if case.possible}
    if possible:
        cause = max(possible, key=lambda name: possible[name])  # the first of equals: upstream
        return cause, round(possible[cause] * seen, 2)
    well = healthy(picture)
    if well.possible:
        return Cause.HEALTHY, round(well.share * seen, 2)
    return Cause.UNKNOWN, 0.0


def _inputs_blamed(p: Picture) -> bool:
    return p.has("input_out_of_range") and not _biases_negative(p)


def _biases_negative(p: Picture) -> bool:
    """Whether the mean bias of a dead layer is negative and larger than what its weights add."""
    dead = p.findings.get("dead_units")
    if dead is None:
        return False
    scales = p.vitals.facts.get("scales") or {}
    std = dict(zip(p.vitals.rows.names, p.vitals.rows.first("activation_std"), strict=True))
    return any(scales.get(name, {}).get("bias_mean", 0.0) < -std.get(name, 0.0) for name in dead.layers)


def _gains(p: Picture) -> float | None:
    """Median of the hidden layers' initial gains over the one that keeps the signal (sqrt 2 for ReLU, 1 for tanh)."""
    gains = p.vitals.gains[p.vitals.hidden] if len(p.vitals.hidden) else np.array([])
    gains = gains[~np.isnan(gains)]
    if not len(gains):
        return None
    return float(np.median(gains)) / (1.0 if p.vitals.bounded else 2**0.5)
