"""The sentence at the top of a page: what the picture under it proves, computed from the same data. Plain text, no Streamlit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.schema import Outcome, Status
from core.store import RunInfo
from dashboard import text
from dashboard.figures import base, heatmap
from dashboard.figures.architecture import Layer, parameters

RECENT = 30
"""Steps whose mean loss says whether a live run learns: one batch alone is noise."""


def classes(info: RunInfo) -> int:
    """Classes of the run's data; ten if nothing says so."""
    from core.catalog import DATA

    entry = DATA.get(str(info.config.get("data")))
    return int(info.config.get("num_classes") or (entry.classes if entry and entry.classes else 10))


# -- live


def standing(info: RunInfo, steps: pd.DataFrame | None) -> str:
    """One word for a run: 'waiting', 'learning', 'guessing', 'rising', 'broken', or how it ended."""
    if info.status == Status.QUEUED or steps is None or steps.empty:
        return "waiting" if info.live else "empty"
    if info.status in (Status.CRASHED, Status.FAILED):
        return str(info.status)
    if not info.live and info.outcome:
        return str(info.outcome)
    recent = steps["loss"].to_numpy()[-RECENT:]
    chance = math.log(classes(info))
    if not np.isfinite(recent).all():
        return "broken"
    level = float(recent.mean())
    return "learning" if level < 0.93 * chance else "rising" if level > 1.1 * chance else "guessing"


def _said(word: str, info: RunInfo, steps: pd.DataFrame | None) -> str:
    chance = f"ln {classes(info)} = {math.log(classes(info)):.3f}"
    if word in ("waiting", "empty"):
        return "waits to start" if word == "waiting" else "has no rows"
    last = float(steps["loss"].to_numpy()[-RECENT:].mean())
    at = f"after {text.count(int(steps['step'].iloc[-1]) + 1)} steps"
    return {
        "learning": f"is learning: loss {text.fixed(last)} {at}",
        "guessing": f"guesses so far: loss {text.fixed(last)} {at}, and {chance} is a guess",
        "rising": f"gets worse than a guess: loss {text.fixed(last)} {at}",
        "broken": "has broken: its loss is not a number any more",
        "crashed": "crashed",
        "failed": "failed",
        Outcome.CONVERGED: f"converged: accuracy {text.percent(info.accuracy)}, loss {text.fixed(info.loss)}",
        Outcome.NOT_CONVERGED: f"did not converge: loss {text.fixed(info.loss)}, and {chance} is a guess",
        Outcome.DIVERGED: "diverged: its loss left every bound",
        Outcome.UNDECIDED: f"is undecided: loss {text.fixed(info.loss)} {at}",
    }.get(word, f"is {word}")


_PLURALS = {
    "learning": "learning", "guessing": "guessing so far", "rising": "worse than a guess", "broken": "broken", "waiting": "waiting",
    "crashed": "crashed", "failed": "failed", "empty": "without rows", Outcome.CONVERGED: "converged",
    Outcome.NOT_CONVERGED: "did not converge", Outcome.DIVERGED: "diverged", Outcome.UNDECIDED: "undecided",
}


def live(infos: Sequence[RunInfo], steps: Mapping[str, pd.DataFrame]) -> str:
    """What the chosen runs are doing: one or two by name, more in numbers."""
    if not infos:
        return "Choose runs to watch."
    words = [standing(info, steps.get(info.run)) for info in infos]
    if len(infos) <= 2:
        parts = [f"{text.shorten(info.name, 40)} {_said(word, info, steps.get(info.run))}" for info, word in zip(infos, words, strict=True)]
        return "; ".join(parts) + "."
    counted = ", ".join(f"{words.count(word)} {_PLURALS.get(word, word)}" for word in dict.fromkeys(words))
    return f"Of {len(infos)} runs: {counted}."


# -- gradients


def first_step(frame: pd.DataFrame, metric: str) -> str:
    """How the metric at the first layer compares with the last one, at the first recorded step."""
    step = int(frame["step"].iloc[0])
    rows = frame[frame["step"] == step].sort_values("depth", kind="stable")
    names, values = [str(name) for name in rows["layer"]], rows[metric].to_numpy(dtype=np.float64)
    when = "At the first step" if step == 0 else f"At step {text.count(step)}"
    what = {"grad_norm": "the gradient", "grad_rms": "the gradient RMS", "update_ratio": "the update ratio", "signal_std": "the signal",
            "activation_grad_rms": "the error signal", "dead_fraction": "the share of dead units"}.get(metric, metric)
    first, last = float(values[0]), float(values[-1])
    if not np.isfinite(values).all():
        bad = names[int(np.flatnonzero(~np.isfinite(values))[0])]
        return f"{when} {what} at {bad} is not a number."
    if metric in heatmap.LINEAR:
        worst = int(values.argmax())
        return f"{when} {what} is largest at {names[worst]}: {text.percent(float(values[worst]))}."
    if not values.any():
        return f"{when} {what} is exactly zero in every layer: nothing can learn."
    if first == 0 or last == 0:
        return f"{when} {what} at {names[0] if first == 0 else names[-1]} is exactly zero."
    forward = metric == "signal_std"
    here, there = (names[-1], names[0]) if forward else (names[0], names[-1])
    ratio = last / first if forward else first / last
    verdict = "" if not 1 / 30 < ratio < 30 else ": it gets through" if metric in ("grad_norm", "activation_grad_rms", "signal_std") else ""
    if max(first, last) < 1e-9:
        verdict = ", but both are below 10⁻⁹"
    return f"{when} {what} at {here} is {text.decades(math.log10(ratio)).replace('equal', 'the same size')} {'as' if abs(math.log10(ratio)) < 0.02 else 'than'} at {there}{verdict}."


def layer_table(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric at the first, middle and last recorded step, a row a layer, the input first."""
    steps = frame["step"].unique()
    shown = dict.fromkeys([int(steps[0]), int(steps[len(steps) // 2]), int(steps[-1])])
    table = pd.DataFrame({"layer": base.layers_in_order(frame)})
    for step in shown:
        at = frame[frame["step"] == step]
        values = dict(zip(at["layer"].astype(str), at[metric], strict=True))
        table[f"step {step:,}"] = table["layer"].map(values)
    return table


# -- model


def model(title: str, network: Sequence[Layer]) -> str:
    """'VGG16 has 134,300,362 parameters in 16 layers; 76.5 % of them are in fc1.'"""
    weighted = [layer for layer in network if layer.parameters]
    total = parameters(network)
    biggest = max(weighted, key=lambda layer: layer.parameters)
    share = text.percent(biggest.parameters / total)
    return f"{title} has {text.count(total)} parameters in {len(weighted)} layers; {share} of them are in {biggest.name}."
