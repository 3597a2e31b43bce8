"""From findings and the loss symptom to one cause, by mechanism.

Every cause states when it is possible (findings together with a loss symptom that they can explain, and
nothing further upstream that explains both) and what else one would then expect to see: its evidence, with
weights. The possible cause with the largest share of its evidence is named; between equals the one further
upstream (structure, loss, inputs, initialization, learning rate, labels), because what is upstream explains
what is downstream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.evidence import MOVED, Evidence
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.rules_run import last_scores
from initscope.diagnosis.rules_structure import agreement_lately, averages_lag
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.outcome import MIN_STEPS
from initscope.schema import Cause

MISUSES = (
    "loss_negated",
    "loss_of_raw_outputs",
    "outputs_are_probabilities",
    "loss_below_zero",
    "targets_broadcast",
    "outputs_indexed_across",
    "targets_outside",
    "softmax_across_batch",
    "softmax_of_one",
    "divergence_of_probabilities",
)
ELSEWHERE = (
    "layers_unregistered",
    "layers_not_optimized",
    "gradients_kept",
    "samples_mixed",
    "dropout_high",
    "signal_cut",
    "updates_undone",
    "network_linear",
)
"""What makes a plateau too: with one of these nothing can be said against the labels."""
VERY_LOUD = 10.0
"""A first loss this many times that of guessing is blamed even if the run then recovers."""
CLEAR_GAP = 0.15
"""A smaller gap between training and validation accuracy is overfitting only if the validation loss has risen
too.
"""
NEARLY_PERFECT = 0.9
"""Frozen weights are forgiven when this share of the loss of guessing is gone all the same."""
OVERSIZED = 3.0
"""Weights this many times the size that keeps the signal are too large, also where a normalization hides that
from the pre-activations.
"""
SLOW = 0.1
"""A run at a tiny learning rate that has lost less than this share of its loss is too slow, not learning."""
TINY = 1e-4
"""Updates below this are too small beyond doubt."""
STRONGLY_MIXED = 0.1
"""Of a run that learns something, samples that touch each other this much are blamed; less may be meant (a
minibatch's statistics).
"""
MOSTLY_UNHELD = 0.5
"""A network of which half cannot be trained is broken however well the rest does."""
MOSTLY_OTHER = 0.5
"""Evaluation mode that gives fewer samples than this the same answer is at fault, also where nothing was
validated.
"""
FAR_BEYOND = 30.0
"""Targets of such an RMS make a loss that blew up their fault rather than the learning rate's."""
CREEPING = 0.03
"""A loss that falls and has lost this share of guessing's is learning something; random labels give at most
0.026 in a few epochs.
"""


@dataclass(frozen=True)
class Case:
    """Whether a cause is possible, and its expected evidence: (weight, is it there)."""

    possible: bool
    evidence: Sequence[tuple[float, bool]] = ()

    @property
    def share(self) -> float:
        total = sum(weight for weight, _ in self.evidence)
        return sum(weight for weight, there in self.evidence if there) / total if total else 0.0


def not_updating(e: Evidence) -> Case:
    """Most of the weights never move, though gradients should move them."""
    # Weights that were frozen on purpose are no fault of a run that learns, nor where those that are trained
    # cannot become different.
    fresh = e.has("frozen_fresh") and not (e.curve.well or e.validated)
    harmless = e.curve.learned or e.validated or e.has("identical_units")
    meant = e.frozen_on_purpose and harmless and not fresh
    frozen = e.has("weights_frozen") and not meant
    # Units that are off, branches that begin at zero on both sides, and a loss whose parts cancel have no
    # gradient either.
    alike = ("identical_units", "loss_zero")
    off = e.has("dead_units", "saturated_units", "signal_collapse", "signal_cut", *alike, *MISUSES)
    blocked = e.has("gradient_blocked") and not (off or e.curve.well)
    possible = (frozen or blocked) and e.curve.progress < NEARLY_PERFECT
    most = max(e.value("weights_frozen"), e.value("gradient_blocked") if blocked else 0.0)
    return Case(possible, [(3, possible), (1, most > 0.9), (1, not e.curve.learned)])


def symmetric_init(e: Evidence) -> Case:
    """Units of a hidden layer begin alike, so they stay alike, and the loss does not come far."""
    same = set(e.findings["identical_units"].layers) if e.has("identical_units") else set()
    end = e.signals.facts.get("end")
    stayed = end is None or bool(same & set(end.get("identical_units") or ()))
    poor = not e.curve.learned or (end is not None and stayed and not e.curve.well)
    finite = not e.curve.nonfinite  # units that are alike do not make a loss run away
    possible = bool(same) and poor and finite and (e.frozen_on_purpose or not e.has("weights_frozen"))
    return Case(possible, [(3, possible), (1, e.failing), (1, stayed)])


def loss_misuse(e: Evidence) -> Case:
    """Loss function and outputs do not fit together."""
    harmful = e.has(*MISUSES) or (e.has("outputs_rectified") and not (e.curve.well or e.validated))
    possible = harmful and not e.structure_at_fault
    return Case(possible, [(4, possible), (1, not e.curve.well)])


def unregistered_layers(e: Evidence) -> Case:
    """Layers run, get gradients and are never updated, since nobody holds them."""
    share = max(e.value("layers_unregistered"), e.value("layers_not_optimized"))
    bug = e.has("layers_unregistered") and (share >= MOSTLY_UNHELD or not e.curve.well)
    forgotten = e.has("layers_not_optimized") and not e.curve.learned
    possible = (bug or forgotten) and not e.has("weights_frozen") and not e.succeeded
    return Case(
        possible,
        [(4, possible), (1, share >= MOSTLY_UNHELD or not e.curve.well), (1, not e.curve.learned or bug)],
    )


def gradient_accumulates(e: Evidence) -> Case:
    """Gradients are never cleared between updates, and the loss does not come far."""
    possible = e.has("gradients_kept") and not (e.curve.well or e.succeeded or e.structure_at_fault)
    return Case(possible, [(4, possible), (1, e.failing or not e.curve.well)])


def samples_mixed(e: Evidence) -> Case:
    """Samples of a batch change each other's outputs, and the network does not learn as it should."""
    strong = e.value("samples_mixed") >= STRONGLY_MIXED
    poor = not (e.curve.well or e.succeeded) and (strong or not e.curve.learned)
    # Where no signal was left at the first step, what samples do to each other was measured on its rounding.
    measured = not e.signal_lost_at_init
    possible = e.has("samples_mixed") and measured and poor and not (e.structure_at_fault or e.loss_diverges)
    return Case(possible, [(4, possible), (1, strong), (1, not e.curve.learned)])


def numeric_fault(e: Evidence) -> Case:
    """A number that is none came out of usual sizes: a function at the edge of its domain, or a number type
    at its end.
    """
    origin = e.signals.nonfinite_origin
    if origin is None or origin["what"] == "input" or not e.curve.nonfinite:
        return Case(False)
    half = origin.get("type") == "float16"
    possible = (e.calm_before(int(origin["step"])) or half) and not e.has("input_out_of_range", *MISUSES)
    adjacent = origin.get("since") is not None and origin["step"] - origin["since"] == 1
    known = origin["what"] in ("gradient", "update", "loss") or half
    return Case(possible, [(4, possible), (1, known), (1, adjacent or origin["step"] == 0)])


def batchnorm_statistics(e: Evidence) -> Case:
    """Training works and evaluation does not, because running averages do not stand for the batches."""
    worse = e.has("train_validation_gap") or e.validation_at_chance or e.never_generalized
    scores = last_scores(e.signals)
    lag = averages_lag(e.signals)
    lasting = (agreement_lately(e.signals) or 1.0) < MOSTLY_OTHER and e.curve.steps >= MIN_STEPS
    catching_up = not lag and scores is not None and scores.last_loss < 0.9 * scores.earlier_loss
    trouble = (worse and not catching_up) or (scores is None and lasting and lag)
    possible = e.has("modes_disagree") and e.curve.learning and trouble and not e.structure_at_fault
    return Case(possible, [(4, possible), (1, worse), (1, e.curve.learned)])


def input_scale(e: Evidence) -> Case:
    """The inputs' size or offset, not the weights, makes the first layer loud, faint or constant."""
    harm = e.value("initial_loss_off") > VERY_LOUD or e.loss_diverges or not (e.curve.learned or e.succeeded)
    possible = e.has("input_out_of_range") and harm and not e.structure_at_fault
    effect = e.has("initial_loss_off") or e.loss_diverges or e.curve.stuck
    return Case(
        possible, [(3, possible), (1, e.failing), (1, effect), (1, not e.at_first("signal_explosion"))]
    )


def dead_relu(e: Evidence) -> Case:
    """Nearly all rectified units of a layer were off before any update."""
    possible = e.at_first("dead_units") and not (e.curve.well or e.structure_at_fault or e.inputs_blamed)
    return Case(possible, [(3, possible), (1, e.curve.stuck), (1, e.biases_negative)])


def saturated_activation(e: Evidence) -> Case:
    """Bounded units sat on their flat part before any update, and not because of the inputs' size."""
    possible = e.at_first("saturated_units") and not (e.curve.well or e.structure_at_fault or e.inputs_blamed)
    most = e.has("saturated_units") and len(e.findings["saturated_units"].layers) >= len(e.signals.hidden) / 2
    return Case(possible, [(3, possible), (1, most), (1, not e.curve.learned or e.has("initial_loss_off"))])


def init_too_large(e: Evidence) -> Case:
    """Pre-activations grow from layer to layer, or normalizations hold back what oversized weights do: the
    first outputs are huge.
    """
    loud = e.value("initial_loss_off")
    hidden = (
        bool(e.signals.facts.get("normalization")) and e.gain is not None and e.gain >= OVERSIZED and loud > 0
    )
    harm = not (e.curve.learned or e.succeeded) or loud > VERY_LOUD or (loud > 0 and not e.curve.well)
    behind = e.has("outputs_loud") and not e.has("input_out_of_range")
    loud_start = (e.at_first("signal_explosion") and not e.has("loud_between")) or hidden or behind
    possible = (
        loud_start and harm and not (e.structure_at_fault or e.at_first("saturated_units") or e.has(*MISUSES))
    )
    large = behind or e.gain is None or e.gain > 1.2
    return Case(
        possible,
        [
            (3, possible),
            (1, loud > 0 or e.curve.guess.kind != "classes"),
            (1, behind or e.at_first("exploding_gradient")),
            (1, large),
        ],
    )


def init_too_small(e: Evidence) -> Case:
    """The signal is gone before the last hidden layer at the first step, and the loss has not left its
    plateau.
    """
    explained = (
        e.structure_at_fault
        or e.inputs_blamed
        or e.at_first("dead_units", "saturated_units", "signal_explosion", "signal_cut")
    )
    waiting = not e.curve.learning and (e.curve.stuck or e.curve.steps < MIN_STEPS / 2)
    possible = (
        e.signal_lost_at_init
        and (waiting or e.input_ignored)
        and not (e.loss_diverges or explained or e.has(*MISUSES))
    )
    small = e.gain is None or e.gain < 0.85
    return Case(possible, [(3, possible), (1, e.curve.stuck), (1, e.has("vanishing_gradient")), (1, small)])


def lr_too_high(e: Evidence) -> Case:
    """The start was sound; then updates broke it: the loss blew up or jumps, or units that were alive are
    dead.
    """
    c = e.curve
    elsewhere = (
        e.decay_dominates
        or e.has("labels_in_order", "labels_constant")
        or (e.has("targets_far") and e.value("targets_far") >= FAR_BEYOND)
    )
    lost = e.broke_later
    damage = (lost and c.stuck) or e.later("signal_explosion", "exploding_gradient")
    large = e.has("update_too_large")
    large_and_shown = large and (e.loss_diverges or (lost and c.spiked) or (damage and e.failing))
    broken = c.stuck and (
        c.spiked or e.updates_stay_large or (lost and e.signals.total_relative_update >= MOVED)
    )
    explained = (
        e.start_at_fault
        or e.has("input_out_of_range", *MISUSES)
        or (e.signal_lost_at_init and not e.loss_diverges)
    )
    dropped = (
        e.has("dropout_high") and not large
    )  # what is left of the units is scaled up, and the loss jumps by that
    possible = (large_and_shown or broken) and not (
        c.well or e.succeeded or explained or dropped or elsewhere
    )
    return Case(
        possible,
        [
            (2, possible),
            (2, large),
            (2, e.loss_diverges or e.updates_stay_large),
            (1, damage),
            (1, not e.at_first("signal_collapse")),
        ],
    )


def lr_too_low(e: Evidence) -> Case:
    """Sound signals and gradients, and weights that hardly move."""
    slow = not (e.loss_diverges or e.succeeded) and e.curve.progress < SLOW
    killed = e.broke_later or e.has(
        "update_too_large"
    )  # what has been killed by one large step looks timid afterwards
    explained = e.signal_lost_at_init or e.start_at_fault or killed or e.has("input_out_of_range", *MISUSES)
    possible = e.lr_too_small and slow and not (explained or e.has("targets_far", "labels_constant"))
    sound = not e.at_first("signal_collapse") and not e.has("vanishing_gradient")
    return Case(
        possible, [(3, possible), (1, e.curve.stuck), (1, sound), (1, e.signals.update_fastest < TINY)]
    )


def labels_unrelated(e: Evidence) -> Case:
    """Everything works and nothing can be learned: loss at guessing, or labels memorised with validation at
    guessing.
    """
    c = e.curve
    guesses = e.validation_at_chance or e.never_generalized
    memorised = c.learning and guesses
    creeping = c.falling and c.progress > CREEPING and not (c.memorising or e.validation_at_chance)
    # Guessing's price must be known, and the weights must have gone somewhere: a plateau alone is no evidence
    # about labels.
    at_price = (
        c.at_chance and not (creeping or e.signal_recovering) and e.disagrees and (memorised or e.moved)
    )
    unmoved = at_price and c.steps >= 0.8 * MIN_STEPS and e.seen_inside
    damaged = (e.broke_later or e.has("weights_shrunk")) and not memorised
    sound = not (
        damaged
        or e.signal_lost_at_init
        or e.lr_too_small
        or e.start_at_fault
        or e.has("input_out_of_range", *MISUSES)
    )
    calm = not (e.has("loss_oscillates") or c.spiked or e.updates_stay_large)
    # A plateau alone does not tell labels without a pattern from a network that cannot see it: without a
    # validation at guessing nothing is said.
    searched = memorised or e.signals.total_relative_update >= MOVED
    elsewhere = e.has(*ELSEWHERE) or e.target_faults or e.decay_dominates
    # Modes that disagree explain a validation at guessing, not a training loss that stays there.
    by_heart = memorised and not e.has("modes_disagree")
    possible = e.has("labels_constant") or (
        (by_heart or (unmoved and calm and guesses)) and sound and not elsewhere
    )
    return Case(
        possible,
        [
            (2, possible),
            (1, memorised or c.chance is not None),
            (1, memorised or c.settled),
            (1, searched),
            (2, guesses),
            # A training that guesses makes the validation guess: that is one witness, not two.
            (3, memorised or e.has("labels_constant")),
        ],
    )


def data_order(e: Evidence) -> Case:
    """The samples of a batch have the same label: each batch teaches its own, and the network forgets the
    others.
    """
    possible = e.has("labels_in_order") and not (e.structure_at_fault or e.validated)
    return Case(possible, [(4, possible), (1, not e.validated), (1, e.curve.steps >= MIN_STEPS)])


def target_scale(e: Evidence) -> Case:
    """The targets are so far away, or so small, that the outputs do not come to them."""
    broke = e.loss_diverges and e.value("targets_far") < FAR_BEYOND
    possible = e.has("targets_far") and not (
        e.structure_at_fault or e.has(*MISUSES) or e.inputs_blamed or broke
    )
    return Case(possible, [(4, possible), (1, not e.curve.learned), (1, not e.start_at_fault)])


def weight_decay_too_high(e: Evidence) -> Case:
    """Weight decay pulls harder at the weights than the loss does, and they shrink or learn nothing."""
    # Where nothing of the input arrives there is no gradient, and the faintest decay is stronger than none.
    upstream = e.structure_at_fault or e.inputs_blamed or e.signal_lost_at_init or e.has(*MISUSES)
    possible = e.decay_dominates and not (upstream or e.curve.nonfinite)
    return Case(possible, [(4, possible), (1, e.has("weights_shrunk")), (1, not e.curve.learned)])


def class_collapse(e: Evidence) -> Case:
    """One class of unequal ones is predicted for nearly every sample, and nothing else stands in the way of
    learning.
    """
    fault = (
        e.start_at_fault
        or e.loss_diverges
        or e.lr_too_small
        or e.broke_later
        or e.signal_lost_at_init
        or e.decay_dominates
    )
    inputs = e.has("input_out_of_range") and not e.curve.learned  # they have not stood in the way
    possible = (
        e.has("class_collapse")
        and e.curve.steps >= MIN_STEPS
        and not (fault or inputs or e.has(*MISUSES) or e.validated)
    )
    return Case(possible, [(4, possible), (1, e.moved), (1, not e.curve.well)])


def overfitting(e: Evidence) -> Case:
    """Training goes on improving, validation has stopped well above guessing."""
    scores = last_scores(e.signals)
    risen = scores is not None and scores.last_loss > 1.1 * scores.lowest_loss
    improving = scores is not None and scores.last_loss < 0.9 * scores.earlier_loss
    clear = (e.value("train_validation_gap") >= CLEAR_GAP or risen) and not improving
    generalizes = not (e.validation_at_chance or e.never_generalized)
    possible = (
        e.has("train_validation_gap")
        and clear
        and e.curve.learned
        and generalizes
        and not (e.has("modes_disagree") or e.target_faults)
    )
    return Case(possible, [(3, possible), (1, risen), (1, e.curve.well)])


def healthy(e: Evidence) -> Case:
    """The loss falls, or too little was recorded for it to and nothing stands in its way."""
    c = e.curve
    hindered = (
        e.start_at_fault
        or e.loss_diverges
        or e.at_first("signal_collapse", "update_too_large")
        or e.has("update_too_small")
    )
    early = c.steps < MIN_STEPS and not hindered
    # At guessing's price random labels that are learned by heart fall as slowly; without a price falling is
    # all there is.
    slowly = c.falling and not (c.at_chance or c.above_chance or e.start_at_fault or c.memorising)
    guesses = (e.validation_at_chance or e.never_generalized) and c.steps >= MIN_STEPS
    # Little can be learned of noisy numbers, and that is learned.
    at_floor = (
        c.guess.kind == "mean"
        and c.steps >= MIN_STEPS
        and not (c.above_chance or e.has("weights_shrunk", "update_too_small"))
    )
    floor = e.agrees and at_floor and not e.start_at_fault
    balanced = c.unjudged and not hindered and e.moved and e.adversary_in_balance
    possible = (c.learning or e.succeeded or early or slowly or floor or balanced) and c.count > 0
    one_answer = e.has("outputs_flat") and not e.validated
    elsewhere = e.has("loss_zero", "targets_drift")
    faulty = c.nonfinite or guesses or one_answer or e.target_faults or elsewhere
    possible = possible and not (faulty or (c.unjudged and not balanced))
    works = c.learning or e.succeeded or floor
    return Case(
        possible,
        [
            (2, works or balanced),
            (1, c.learned or e.succeeded),
            (1, not (c.unjudged or e.validation_at_chance)),
            (1, last_scores(e.signals) is not None),  # else what is learned by heart looks the same
        ],
    )


CAUSES: dict[Cause, Callable[[Evidence], Case]] = {
    Cause.NOT_UPDATING: not_updating,
    Cause.SYMMETRIC_INIT: symmetric_init,
    Cause.LOSS_MISUSE: loss_misuse,
    Cause.UNREGISTERED_LAYERS: unregistered_layers,
    Cause.GRADIENT_ACCUMULATES: gradient_accumulates,
    Cause.SAMPLES_MIXED: samples_mixed,
    Cause.NUMERIC_FAULT: numeric_fault,
    Cause.INPUT_SCALE: input_scale,
    Cause.TARGET_SCALE: target_scale,
    Cause.DATA_ORDER: data_order,
    Cause.DEAD_RELU: dead_relu,
    Cause.SATURATED_ACTIVATION: saturated_activation,
    Cause.INIT_TOO_LARGE: init_too_large,
    Cause.INIT_TOO_SMALL: init_too_small,
    Cause.WEIGHT_DECAY_TOO_HIGH: weight_decay_too_high,
    Cause.LR_TOO_HIGH: lr_too_high,
    Cause.LR_TOO_LOW: lr_too_low,
    Cause.BATCHNORM_STATISTICS: batchnorm_statistics,
    Cause.CLASS_COLLAPSE: class_collapse,
    Cause.LABELS_UNRELATED: labels_unrelated,
    Cause.OVERFITTING: overfitting,
}
"""Faults, upstream first."""


def choose(
    signals: RunSignals, curve: Curve, findings: Sequence[Finding], thresholds: Thresholds
) -> tuple[Cause, float]:
    """(cause, confidence).

    Confidence is the share of the named cause's expected evidence that is present, 0 to 1, times how much of
    a run was seen: sqrt(steps / 50), at least a half and at most 1; a loss that is not finite has been seen
    to its end. For ``unknown`` it is 0.
    """
    picture = Evidence(signals, curve, {finding.id: finding for finding in findings}, thresholds)
    seen = 1.0 if curve.nonfinite else min(1.0, max(0.5, (curve.steps / MIN_STEPS) ** 0.5))
    cases = {cause: case(picture) for cause, case in CAUSES.items()}
    possible = {cause: case.share for cause, case in cases.items() if case.possible}
    if possible:
        cause = max(possible, key=lambda name: possible[name])  # the first of equals: upstream
        return cause, round(possible[cause] * seen, 2)
    well = healthy(picture)
    if well.possible and well.share:
        return Cause.HEALTHY, round(well.share * seen, 2)
    return Cause.UNKNOWN, 0.0
