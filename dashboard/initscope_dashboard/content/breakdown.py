"""Where the first number that is none appeared in a run: the step, the tensor, and what was sound until
then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from initscope.store.files import number
from initscope_dashboard.content import formatting

_BEFORE_THE_LOSS = (("weight", "weight_norm"), ("output", "activation_std"))
_AFTER_THE_LOSS = (("error signal", "activation_grad_rms"), ("gradient", "grad_norm"))


class Breakdown(NamedTuple):
    """``place``: "the gradient of fc1", "the loss"; ``before``: what was sound until then; ``lasting``:
    nothing was finite again at the end.
    """

    step: int
    place: str
    before: str
    lasting: bool = True

    @property
    def sentence(self) -> str:
        if not self.lasting:
            return (
                f"NaN at step {formatting.count(self.step)} in {self.place}{self.before}; later numbers are "
                "finite again."
            )
        return f"NaN from step {formatting.count(self.step)} on: first in {self.place}{self.before}."


def breakdown(state: Mapping[str, Any], steps: pd.DataFrame, layers: pd.DataFrame) -> Breakdown | None:
    """From the fact ``first_nonfinite`` where the recorder left it, else from the rows; None if every number
    is finite.
    """
    loss, at = steps["loss"].to_numpy(dtype=float, na_value=np.nan), steps["step"].to_numpy()
    found = _told(state) or _seen(loss, at, layers)
    if found is None:
        return None
    step, place = found
    last = layers[layers["step"] == layers["step"].max()] if len(layers) else layers
    lasting = not (len(loss) and math.isfinite(loss[-1])) or bool(len(last) and (last["nonfinite"] > 0).any())
    return Breakdown(step, place, _before(loss[at < step], bool(len(at)) and step > at[0]), lasting)


def _told(state: Mapping[str, Any]) -> tuple[int, str] | None:
    facts = state.get("facts")
    told = facts.get("first_nonfinite") if isinstance(facts, Mapping) else None
    if not isinstance(told, Mapping) or number(told.get("step")) is None:
        return None
    what, where = told.get("what") or told.get("tensor"), told.get("where") or told.get("layer")
    names = ", ".join(map(str, where[:3])) if isinstance(where, list) else str(where or "")
    return int(number(told["step"]) or 0), _place(str(what or "a tensor"), names)


def _place(what: str, layer: str) -> str:
    what = "error signal" if what == "output gradient" else what
    return (
        f"the {what} of {layer}"
        if layer and what not in ("loss", "input")
        else f"the {what}s"
        if what == "input"
        else f"the {what}"
    )


def _seen(loss: np.ndarray, at: np.ndarray, layers: pd.DataFrame) -> tuple[int, str] | None:
    """By the rows of the first step that has a NaN or an infinity, in the order of computing: weights,
    outputs, the loss, gradients.
    """
    bad_loss = at[~np.isfinite(loss)]
    bad_rows = layers[layers["nonfinite"] > 0] if len(layers) and "nonfinite" in layers else layers.iloc[:0]
    first = [int(steps.min()) for steps in (bad_loss, bad_rows["step"]) if len(steps)]
    if not first:
        return None
    step = min(first)
    rows = bad_rows[bad_rows["step"] == step].sort_values("depth")
    for what, column in _BEFORE_THE_LOSS:
        if (name := _first(rows, column)) is not None:
            return step, _place(what, name)
    if step in bad_loss:
        return step, "the loss"
    for at_layer in range(len(rows) - 1, -1, -1):  # gradients come from the output, layer by layer
        for what, column in _AFTER_THE_LOSS:
            if (name := _first(rows.iloc[at_layer : at_layer + 1], column)) is not None:
                return step, _place(what, name)
    return step, _place("gradient", str(rows["layer"].iloc[-1]))


def _first(rows: pd.DataFrame, column: str) -> str | None:
    values = rows[column].to_numpy(dtype=float, na_value=np.nan)
    broken = np.flatnonzero(~np.isfinite(values))
    return str(rows["layer"].iloc[broken[0]]) if len(broken) else None


def _before(loss: np.ndarray, came: bool) -> str:
    """What was sound before."""
    finite = loss[np.isfinite(loss)]
    if not came or not len(finite):
        return ", before anything was learned"
    first, last = float(finite[0]), float(np.median(finite[-3:]))
    if not math.isfinite(first) or len(finite) < 2:
        return f"; until then the loss was {formatting.number(last)}"
    word = "fell" if last < 0.97 * first else "rose" if last > 1.03 * first else None
    return (
        f"; until then every number was finite and the loss {word} from {formatting.number(first)} to "
        f"{formatting.number(last)}"
        if word
        else (f"; until then every number was finite and the loss stayed at {formatting.number(last)}")
    )
