"""All rules: what is out of the ordinary in a run's rows and facts.

A finding is no verdict yet: which of them explain the loss is decided in ``causes``.
"""

from __future__ import annotations

from collections.abc import Callable

from initscope.diagnosis import (
    rules_layers,
    rules_loss,
    rules_optimizer,
    rules_outputs,
    rules_path,
    rules_run,
    rules_structure,
    rules_targets,
)
from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds

Rule = Callable[[RunSignals, Curve, Thresholds], Finding | None]

RULES: tuple[Rule, ...] = (
    rules_loss.loss_nonfinite,
    rules_loss.loss_plateau_at_chance,
    rules_loss.loss_not_decreasing,
    rules_loss.loss_oscillates,
    rules_loss.loss_spike,
    rules_loss.initial_loss_off,
    rules_structure.first_nonfinite,
    rules_targets.loss_unjudged,
    rules_run.weights_frozen,
    rules_run.frozen_fresh,
    rules_structure.layers_unregistered,
    rules_structure.layers_not_optimized,
    rules_structure.gradients_kept,
    rules_structure.samples_mixed,
    rules_run.identical_units,
    rules_outputs.outputs_misused,
    rules_outputs.outputs_flat,
    rules_targets.targets_outside,
    rules_targets.labels_constant,
    rules_targets.labels_in_order,
    rules_targets.targets_far,
    rules_targets.class_collapse,
    rules_targets.outputs_loud,
    rules_run.input_out_of_range,
    rules_path.signal_cut,
    rules_layers.signal_collapse,
    rules_layers.signal_explosion,
    rules_path.loud_between,
    rules_layers.vanishing_gradient,
    rules_layers.exploding_gradient,
    rules_layers.dead_units,
    rules_layers.saturated_units,
    rules_layers.update_too_large,
    rules_layers.update_too_small,
    rules_path.updates_undone,
    rules_layers.weights_shrunk,
    rules_structure.network_linear,
    rules_structure.dropout_high,
    rules_structure.modes_disagree,
    rules_optimizer.weight_decay,
    rules_optimizer.rate_fell,
    rules_optimizer.epsilon_large,
    rules_optimizer.gradient_clipped,
    rules_run.gradient_blocked,
    rules_loss.loss_zero,
    rules_run.train_validation_gap,
)
"""In the order in which a reader wants them: the symptom, then what may cause it, upstream first."""


def find(signals: RunSignals, curve: Curve, thresholds: Thresholds) -> list[Finding]:
    """Every rule's finding, in the order of the rules."""
    found = (rule(signals, curve, thresholds) for rule in RULES)
    return [finding for finding in found if finding is not None]
