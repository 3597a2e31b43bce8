"""What is measured of a layer: one file a quantity, named like its first column in ``schema.LAYERS``, which
has its unit and its words.

``OF_WEIGHTS`` are told of each weight at the moments of a step that ``of_weights.WeightQuantity`` names;
``OF_OUTPUTS`` make columns of what a layer's calls have shown. A quantity that is new is a row of the schema,
a file here and its name in one of the two lists.
"""

from __future__ import annotations

from initscope.recording.quantities.activation import Activation
from initscope.recording.quantities.dead_units import DeadUnits
from initscope.recording.quantities.error_signal import ErrorSignal
from initscope.recording.quantities.gradient_norm import GradientNorm
from initscope.recording.quantities.of_outputs import OutputQuantity
from initscope.recording.quantities.of_weights import Weight, WeightQuantity
from initscope.recording.quantities.stable_rank import StableRank
from initscope.recording.quantities.update_ratio import UpdateRatio
from initscope.recording.quantities.weight_norm import WeightNorm

OF_WEIGHTS: tuple[type[WeightQuantity], ...] = (WeightNorm, UpdateRatio, GradientNorm, StableRank)
"""In the order in which they are told: the first copies the weights that the second subtracts."""
OF_OUTPUTS: tuple[OutputQuantity, ...] = (Activation(), ErrorSignal(), DeadUnits())

__all__ = ["OF_OUTPUTS", "OF_WEIGHTS", "OutputQuantity", "Weight", "WeightQuantity"]
