"""Every colour, shape and word the figures and tables share, so that one thing looks the same on every page.

Figures name colours by token, ``var(--ink)``; ``plot.js`` puts in the value for the light or the dark theme
as it draws. A token is therefore the only colour a figure may use, apart from the magnitude scale, which is
the same in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from initscope.schema import Outcome, Status, Verdict

INK = "var(--ink)"
MUTED = "var(--muted)"
LINE = "var(--line)"
PAPER = "var(--paper)"
ACCENT = "var(--accent)"
ZERO = "var(--zero)"
NONFINITE = "var(--nonfinite)"
CONV = "var(--conv)"
POOL = "var(--pool)"
LINEAR = "var(--linear)"

_INITS: dict[str, tuple[str, str, str]] = {
    # Okabe and Ito's eight and two more; darkened on paper where they would fall below a contrast of 3 to 1.
    "default": ("#D55E00", "#E8701A", "circle"),
    "tutorial": ("#009E73", "#009E73", "square"),
    "kaiming_normal": ("#0072B2", "#1C86CC", "diamond"),
    "kaiming_uniform": ("#2E96CF", "#56B4E9", "diamond-tall"),
    "xavier_normal": ("#B97F00", "#E69F00", "triangle-up"),
    "xavier_uniform": ("#948A00", "#F0E442", "triangle-down"),
    "orthogonal": ("#C2699B", "#CC79A7", "pentagon"),
    "normal_0.01": ("#22262B", "#D9DEE5", "cross"),
    "zeros": ("#858585", "#9AA0A8", "hexagon"),
    "lsuv": ("#7B5FC7", "#A78DEB", "star-square"),
    "auto": ("#8A4B2A", "#C98F6B", "bowtie"),
}
_OTHER = ("#6B7280", "#A3ADBA", "circle")
_BY_RUN = (
    "kaiming_normal",
    "default",
    "tutorial",
    "orthogonal",
    "xavier_normal",
    "lsuv",
    "kaiming_uniform",
    "normal_0.01",
)
"""Whose colours and markers runs and groups take, in order, where no initialization tells them apart."""

_TOKENS: dict[str, tuple[str, str]] = {
    "ink": ("#22262B", "#E4E8ED"),
    "muted": ("#5F6772", "#9AA5B3"),
    "faint": ("#8A919B", "#6B7685"),
    "line": ("#D3CBBB", "#344052"),
    "grid": ("#E9E4D9", "#1F2935"),
    "paper": ("#FBF9F4", "#10161E"),
    "panel": ("#F2EEE5", "#19212C"),
    "accent": ("#2B4C7E", "#8DB4E8"),
    "zero": ("#B4AFA6", "#5C6673"),
    "nonfinite": ("#C2185B", "#DE6690"),
    "conv": ("#C7D6E8", "#27415F"),
    "pool": ("#E7D9BE", "#4D4228"),
    "linear": ("#CFE0D2", "#2A4A3C"),
    "good": ("#007A58", "#35B58A"),
    "bad": ("#C04E00", "#F08A4B"),
    "less-2": ("#7A2E00", "#FFB27A"),
    "less-1": ("#D98C4A", "#A85A1E"),
    "even": ("#F1ECE2", "#1B2430"),
    "more-1": ("#5C9BD1", "#2A6FA8"),
    "more-2": ("#0B3A6B", "#8FD0FF"),
}


def slug(init: str) -> str:
    """The part of an initialization's token after ``init-``: letters, digits and dashes."""
    return "".join(char if char.isalnum() else "-" for char in init)


def tokens() -> dict[str, dict[str, str]]:
    """``{"light": {token: colour}, "dark": {...}}``: what ``plot.js`` fills in."""
    inits = (
        {f"init-{slug(name)}": colors[:2] for name, colors in _INITS.items()}
        | {"init-other": _OTHER[:2]}
        | {f"run-{i}": _INITS[name][:2] for i, name in enumerate(_BY_RUN)}
    )
    both = (
        _TOKENS
        | inits
        | {f"{name}-soft": (light + "40", dark + "40") for name, (light, dark) in inits.items()}
    )
    return {
        "light": {name: c[0] for name, c in both.items()},
        "dark": {name: c[1] for name, c in both.items()},
    }


def init_color(init: str) -> str:
    """The colour token of an initialization; grey for one that is not in the catalogue."""
    return f"var(--init-{slug(init)})" if init in _INITS else "var(--init-other)"


def group_colors(labels: Sequence[str]) -> list[str]:
    """A colour token for each of two groups or several: their initializations', others in turn for what is
    none.
    """
    others = itertools.cycle(f"var(--run-{i})" for i in range(len(_BY_RUN)))
    return [init_color(label) if label in _INITS else next(others) for label in labels]


def soft(color: str) -> str:
    """An initialization's or a group's colour at a quarter of its strength: for bands under lines."""
    return color[:-1] + "-soft)"


def init_symbol(init: str) -> str:
    """The Plotly marker of an initialization: a second channel beside the colour."""
    return _INITS.get(init, _OTHER)[2]


def hex_color(token: str, dark: bool) -> str:
    """The colour behind a token, for places that draw without ``plot.js`` (table cells)."""
    name = token.removeprefix("var(--").removesuffix(")")
    return tokens()["dark" if dark else "light"].get(name, token)


# -- scales

SEQUENTIAL: list[list] = [
    # viridis: perceptually uniform; dark is dead, bright is alive
    [0.0, "#440154"],
    [0.1, "#482878"],
    [0.2, "#3E4989"],
    [0.3, "#31688E"],
    [0.4, "#26828E"],
    [0.5, "#1F9E89"],
    [0.6, "#35B779"],
    [0.7, "#6DCD59"],
    [0.8, "#B4DE2C"],
    [0.9, "#E1E21B"],
    [1.0, "#FDE725"],
]
"""Magnitudes: log10 of a positive number, or a share from 0 to 1."""

DIVERGING: list[list] = [
    [0.0, "var(--less-2)"],
    [0.25, "var(--less-1)"],
    [0.5, "var(--even)"],
    [0.75, "var(--more-1)"],
    [1.0, "var(--more-2)"],
]
"""Differences in decades: orange is smaller, blue is larger, the paper's own colour is equal."""


# -- words and shapes


@dataclass(frozen=True)
class Mark:
    """How a state is shown: never by colour alone."""

    word: str
    shape: str
    """One character of text."""
    symbol: str
    """The same shape as a Plotly marker."""
    color: str
    """A token."""
    badge: str
    """The nearest of Streamlit's badge colours."""

    @property
    def text(self) -> str:
        return f"{self.shape} {self.word}"


OUTCOMES: dict[str, Mark] = {
    Outcome.CONVERGED: Mark("converged", "●", "circle", "var(--good)", "green"),
    Outcome.NOT_CONVERGED: Mark("did not converge", "■", "square", "var(--bad)", "orange"),
    Outcome.DIVERGED: Mark("diverged", "▲", "triangle-up", "var(--nonfinite)", "red"),
    Outcome.UNDECIDED: Mark("undecided", "◆", "diamond", "var(--muted)", "gray"),
}

STATUSES: dict[str, Mark] = {
    Status.QUEUED: Mark("queued", "○", "circle-open", "var(--muted)", "gray"),
    Status.RUNNING: Mark("running", "▶", "triangle-right", "var(--accent)", "blue"),
    Status.STOPPING: Mark("stopping", "◧", "square-open", "var(--muted)", "gray"),
    Status.FINISHED: Mark("finished", "✓", "circle", "var(--muted)", "gray"),
    Status.STOPPED: Mark("stopped", "◼", "square", "var(--muted)", "gray"),
    Status.FAILED: Mark("failed", "✕", "x", "var(--nonfinite)", "red"),
    Status.CRASHED: Mark("crashed", "✕", "x", "var(--nonfinite)", "red"),
}

VERDICTS: dict[str, Mark] = {
    Verdict.FIXED: Mark("fixed", "●", "circle", "var(--good)", "green"),
    Verdict.NOT_FIXED: Mark("not fixed", "■", "square", "var(--bad)", "orange"),
    Verdict.NOT_NEEDED: Mark("not needed", "○", "circle-open", "var(--muted)", "gray"),
    Verdict.WORSE: Mark("worse", "▲", "triangle-up", "var(--nonfinite)", "red"),
    Verdict.UNDECIDED: Mark("undecided", "◆", "diamond", "var(--muted)", "gray"),
}

_UNKNOWN = Mark("unreadable", "?", "x", "var(--muted)", "gray")


def outcome_mark(outcome: str | None, status: str = Status.FINISHED) -> Mark:
    """The mark of a run: its outcome once there is one and it has ended well, else its status."""
    if outcome in OUTCOMES and (
        status == Status.FINISHED or (status == Status.STOPPED and outcome != Outcome.UNDECIDED)
    ):
        return OUTCOMES[outcome]
    return STATUSES.get(status, _UNKNOWN)


# -- several runs in one picture


@dataclass(frozen=True)
class Style:
    """How one run's line is drawn."""

    color: str
    dash: str
    symbol: str
    opacity: float


_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def styles(inits: Iterable[str]) -> list[Style]:
    """One style a run, in order: colour and marker by initialization, dash (then fading) by how often it came
    before.

    Where initialization tells nothing apart (all runs have the same, or one that is not in the catalogue)
    each run has a colour of its own.
    """
    names = list(inits)
    unknown = [init for init in names if init not in _INITS]
    alike = len(names) > 1 and len(set(names)) == 1
    by_run = alike or len(unknown) > 1 or (bool(unknown) and len(unknown) == len(names))
    free = [
        i for i, name in enumerate(_BY_RUN) if alike or name not in names
    ]  # no run looks like an initialization that is in the picture
    seen: dict[str, int] = {}
    result = []
    for init in names:
        own = by_run and (alike or init not in _INITS)
        before = seen.setdefault("" if own else init, 0)
        seen["" if own else init] += 1
        which = free[before % len(free)]
        nth, token = (before // len(free), f"var(--run-{which})") if own else (before, init_color(init))
        symbol = init_symbol(_BY_RUN[which] if own else init)
        fade = max(0.35, 1 - 0.2 * (nth // len(_DASHES)))
        result.append(Style(token, _DASHES[nth % len(_DASHES)], symbol, fade))
    return result
