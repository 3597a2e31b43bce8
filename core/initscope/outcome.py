"""What became of a training run: the definition, written down once.

Let K be the number of classes, N the number of validation samples, acc the validation accuracy after the last epoch, and
chance the larger of 1/K and the share of the most frequent class in the validation split.

- **diverged**: a training loss was NaN or infinite.
- **undecided**: fewer than ``MIN_STEPS`` optimizer steps, or no validation yet.
- **not_converged**: acc is within the noise of guessing, acc <= chance + 3 sqrt(chance (1 - chance) / N).
- **converged**: acc closes at least a third of the way from chance to perfect, (acc - chance) / (1 - chance) >= 1/3,
  and is beyond that noise.
- otherwise **undecided**: it left chance behind and has not come far; train longer to know.

For ten balanced classes and 359 validation samples: at chance up to 14.8 %, converged from 40 %.
"""

from __future__ import annotations

import math

from initscope.schema import Outcome

MIN_STEPS = 50
"""Fewer steps than this decide nothing."""
NOISE_SIGMAS = 3.0
"""How many standard errors of guessing still count as guessing (p about 0.001)."""
SKILL = 1 / 3
"""Share of the way from chance to perfect from which a run has converged."""


def chance_ceiling(chance: float, samples: float) -> float:
    """The highest accuracy that guessing explains: chance + 3 standard errors of ``samples`` guesses."""
    return chance + NOISE_SIGMAS * math.sqrt(chance * (1 - chance) / samples)


def converged_floor(chance: float) -> float:
    """The accuracy from which a run counts as converged."""
    return chance + SKILL * (1 - chance)


def judge(*, loss_finite: bool, steps: int, accuracy: float | None, chance: float, samples: int) -> Outcome:
    """The outcome by the definition above.

    ``accuracy`` is the last validation accuracy in 0..1 (None: none yet), over ``samples`` samples; ``steps`` the
    optimizer steps taken.
    """
    if not loss_finite:
        return Outcome.DIVERGED
    if accuracy is None or samples == 0 or steps < MIN_STEPS:
        return Outcome.UNDECIDED
    if accuracy <= chance_ceiling(chance, samples):
        return Outcome.NOT_CONVERGED
    return Outcome.CONVERGED if accuracy >= converged_floor(chance) else Outcome.UNDECIDED


CERTAIN_SKILL = 0.6
"""Share of the way from chance to perfect from which convergence is certain: nearly twice what ``converged`` asks for."""
CERTAIN_SIGNAL = 1e-4
"""Signal over size of the output below which the output does not depend on the input: 1/1000 of what bfloat16 resolves."""
CERTAIN_EPOCHS = 2
"""So many epochs in a row must have ended at chance."""
CERTAIN_SHARE = 0.5
"""Share of the planned steps that must be done. PyTorch's default weights do escape from chance now and then, late and after a
slow climb of the signal; one that shows nothing at half time has not been seen to (tests/benchmarks/LOG.md)."""


def certain(*, accuracies: list[float], steps: int, planned: int, chance: float, samples: int, relative_signal: float) -> bool:
    """Whether training on would not change the outcome; for sweeps that want outcomes, not final accuracies.

    ``accuracies``: validation accuracy of every epoch so far; ``steps`` of ``planned`` are done; ``relative_signal``: the last
    layer's signal_std over the RMS of its pre-activation at the latest recorded step. Certain to have converged: the accuracy
    has come ``CERTAIN_SKILL`` of the way. Certain not to: ``CERTAIN_SHARE`` of the run is over, ``CERTAIN_EPOCHS`` epochs in a
    row ended at chance, and the output still does not depend on the input.
    """
    if not accuracies or steps < MIN_STEPS:
        return False
    if accuracies[-1] >= chance + CERTAIN_SKILL * (1 - chance):
        return True
    recent = accuracies[-CERTAIN_EPOCHS:]
    at_chance = len(recent) == CERTAIN_EPOCHS and max(recent) <= chance_ceiling(chance, samples)
    return at_chance and steps >= CERTAIN_SHARE * planned and relative_signal < CERTAIN_SIGNAL
