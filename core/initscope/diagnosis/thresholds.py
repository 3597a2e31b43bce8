"""Where the lines are drawn, and who drew them: ours, SageMaker Debugger's, AUTOTRAINER's.

A threshold is declared once: its title, unit, bounds and source serve the rules, the sliders of the page and
the README. ``None`` switches a rule off, as in a tool that has no such rule. Sources:

- SageMaker Debugger, built-in rules (docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html)
- AUTOTRAINER: Zhang et al. 2021, "AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System"
- TheDeepChecker: Ben Braiek and Khomh 2023
- UMLAUT: Schoop et al. 2021
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

SAGEMAKER_NAME = "SageMaker Debugger"
AUTOTRAINER_NAME = "AUTOTRAINER"
OURS_NAME = "InitScope"


@dataclass(frozen=True)
class Limit:
    """How one threshold is shown and moved. ``log``: its slider runs over powers of ten."""

    name: str
    title: str
    help: str
    default: float | None
    low: float
    high: float
    log: bool
    unit: str
    source: str


def limit(
    default: float | None,
    title: str,
    help: str,
    low: float,
    high: float,
    log: bool = False,
    unit: str = "",
    source: str = OURS_NAME,
) -> Any:
    """Declare one threshold; ``source`` says whose default it is."""
    spec = {
        "title": title,
        "help": help,
        "default": default,
        "low": low,
        "high": high,
        "log": log,
        "unit": unit,
        "source": source,
    }
    return dataclasses.field(default=default, metadata=spec)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Every line that a rule compares with. ``None``: the rule is off."""

    name: str = OURS_NAME
    moved: frozenset[str] = frozenset()
    """Lines that somebody has moved away from where ``name`` drew them."""

    # signals at the first recorded step
    signal_kept: float | None = limit(
        2e-2,
        "Signal kept",
        "Share of the input's signal that must reach the last hidden layer (Schoenholz et al. 2017)",
        1e-9,
        0.5,
        log=True,
    )
    signal_grown: float | None = limit(
        10.0, "Signal grown", "Largest pre-activation RMS, in units of the input's", 1, 1e6, log=True
    )
    initial_loss: float | None = limit(
        3.0,
        "Initial loss",
        "First loss over the loss of guessing, ln K",
        1,
        1e4,
        log=True,
        source="NeuroScope (1.5), widened",
    )
    vanishing_ratio: float | None = limit(
        1e-3,
        "Vanishing: ratio",
        "Gradient norm, first layer over last",
        1e-9,
        1,
        log=True,
        source=AUTOTRAINER_NAME,
    )
    vanishing_norm: float | None = limit(
        1e-4,
        "Vanishing: norm",
        "Gradient norm of the first layer",
        1e-12,
        1,
        log=True,
        source=AUTOTRAINER_NAME,
    )
    vanishing_rms: float | None = limit(
        1e-7,
        "Vanishing everywhere",
        "Gradient RMS of every hidden layer",
        1e-15,
        1e-2,
        log=True,
        source=SAGEMAKER_NAME,
    )
    exploding_ratio: float | None = limit(
        None,
        "Exploding: ratio",
        "Gradient norm, first layer over last (off: ratios grow with layer size)",
        1,
        1e6,
        log=True,
    )
    exploding_norm: float | None = limit(
        100.0, "Exploding: norm", "Gradient norm of any layer", 1, 1e9, log=True
    )

    # units
    dead_share: float | None = limit(
        0.9,
        "Dead units",
        "Share of a layer's ReLU units at zero for the whole batch; half is normal once signals agree",
        0.3,
        1.0,
    )
    saturated_share: float | None = limit(
        0.5, "Saturated units", "Share of a layer's outputs on the flat part", 0.1, 1.0, source=SAGEMAKER_NAME
    )
    saturated_input: float | None = limit(
        2.0,
        "Saturated from",
        "|input| of tanh from which it is flat (slope under 7 %); twice that for sigmoid",
        1,
        25,
    )

    # updates
    update_high: float | None = limit(
        0.1, "Update too large", "|change| / |weight| in one step; 1e-3 is usual", 1e-4, 100, log=True
    )
    update_low: float | None = limit(
        5e-4,
        "Update too small",
        "The fastest layer's usual |change| / |weight| a step",
        1e-12,
        1e-2,
        log=True,
    )
    shrunk: float | None = limit(
        0.6,
        "Weights shrunk",
        "The median layer's weights at the end, in units of their initial size",
        0.01,
        1.0,
    )
    frozen_share: float | None = limit(
        0.5, "Frozen weights", "Share of the weights that never move", 0.01, 1.0
    )

    # inputs
    input_high: float | None = limit(3.0, "Inputs too large", "RMS of the inputs", 1, 1e4, log=True)
    input_low: float | None = limit(0.03, "Inputs too small", "Largest |input|", 1e-6, 1, log=True)
    input_offset: float | None = limit(
        5.0, "Inputs off centre", "|mean| of the inputs over their standard deviation", 1, 1e3, log=True
    )
    input_mean: float | None = limit(
        None, "Input mean", "|mean| of the inputs (off: harmless by itself)", 0.01, 1e3, log=True
    )

    # the loss
    progress: float | None = limit(
        0.05,
        "Progress",
        "Share of the loss of guessing that must be gone before a run counts as learning",
        0.001,
        0.5,
        source="TheDeepChecker",
    )
    spike: float | None = limit(
        2.0,
        "Loss spike",
        "Highest loss over the first one (or guessing)",
        1.1,
        1e3,
        log=True,
        source="TheDeepChecker",
    )
    oscillation: float | None = limit(
        0.1,
        "Oscillation",
        "Share of the last steps with a loss well above guessing, or swings of an accuracy",
        0.01,
        1.0,
    )
    overfit_gap: float | None = limit(
        0.1,
        "Overfitting",
        "Training accuracy less validation accuracy",
        0.01,
        1.0,
        source=SAGEMAKER_NAME + " (ratio 0.1)",
    )

    def replace(self, **changes: float | None) -> Thresholds:
        """A copy with some lines moved."""
        fields: dict[str, Any] = {**changes, "moved": self.moved | set(changes)}
        return dataclasses.replace(self, **fields)

    @property
    def title(self) -> str:
        """Whose they are, and whether any was moved."""
        return f"{self.name}, {len(self.moved)} moved" if self.moved else self.name


LIMITS: dict[str, Limit] = {
    f.name: Limit(name=f.name, **f.metadata) for f in dataclasses.fields(Thresholds) if f.metadata
}
"""Every threshold's declaration, by name, in order."""

DEFAULT = Thresholds()

_OFF: dict[str, None] = dict.fromkeys(LIMITS)

SAGEMAKER = Thresholds(
    **{  # type: ignore[arg-type]
        **_OFF,
        "name": SAGEMAKER_NAME,
        "vanishing_rms": 1e-7,
        "dead_share": 0.5,
        "saturated_share": 0.5,
        "saturated_input": 9.4999,
        "update_high": 10.0,
        "update_low": 1e-8,
        "input_mean": 0.2,
        "progress": 0.001,
        "overfit_gap": 0.1,
        "frozen_share": 0.01,
    }
)
"""SageMaker Debugger's own numbers, on the quantities recorded here. It has no rule for the signal."""

AUTOTRAINER = Thresholds(
    **{  # type: ignore[arg-type]
        **_OFF,
        "name": AUTOTRAINER_NAME,
        "vanishing_ratio": 1e-3,
        "vanishing_norm": 1e-4,
        "exploding_ratio": 70.0,
        "dead_share": 0.7,
        "progress": 0.01,
        "oscillation": 0.2,
    }
)
"""AUTOTRAINER's own numbers: gradients only, and only where the run did not converge."""

PRESETS: dict[str, Thresholds] = {preset.name: preset for preset in (DEFAULT, SAGEMAKER, AUTOTRAINER)}
