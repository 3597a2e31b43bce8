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

from core.schema import Outcome

MIN_STEPS = 50
"""Fewer steps than this decide nothing."""
NOISE_SIGMAS = 3.0
"""How many standard errors of guessing still count as guessing (p about 0.001)."""
SKILL = 1 / 3
"""Share of the way from chance to perfect from which a run has converged."""


def chance_ceiling(chance: float, samples: int) -> float:
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
