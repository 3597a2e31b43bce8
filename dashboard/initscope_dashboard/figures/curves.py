"""Loss or accuracy over the steps of one to many runs.

Tells apart a network that learns from one that guesses: a loss that lies on ln K, and an accuracy on 1/K, is
a network whose output does not depend on its input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from tsdownsample import NaNMinMaxLTTBDownsampler

from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base
from initscope_dashboard.figures.base import Subject

POINTS = 1600
"""Points a curve keeps: about one a pixel."""

VALIDATION = {"loss": "val_loss", "accuracy": "val_accuracy"}


class Curve(NamedTuple):
    """One run's line. ``broke_at`` is the first step whose value is NaN or infinite, None if there is
    none.
    """

    subject: Subject
    steps: np.ndarray
    values: np.ndarray
    validation_steps: np.ndarray
    validation: np.ndarray
    broke_at: int | None
    recorded: int


def thin(steps: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about ``points`` of a line, extremes and gaps kept."""
    if len(values) <= points:
        return steps, values
    kept = NaNMinMaxLTTBDownsampler().downsample(np.ascontiguousarray(values, dtype=np.float64), n_out=points)
    return steps[kept], values[kept]


def epoch_ends(steps: pd.DataFrame, epochs: pd.DataFrame) -> np.ndarray:
    """For every row of ``epochs`` the step after its last one: where its validation was measured."""
    last = steps.groupby("epoch")["step"].max() + 1
    return last.reindex(epochs["epoch"]).to_numpy(dtype=np.float64)


def curves_data(
    subjects: Sequence[Subject],
    steps: Mapping[str, pd.DataFrame],
    epochs: Mapping[str, pd.DataFrame],
    column: str = "loss",
) -> list[Curve]:
    """One curve a run, in order; a run without rows yet has empty arrays."""
    result = []
    points = max(300, min(POINTS, 4 * POINTS // max(1, len(subjects))))
    for who in subjects:
        frame, ends = steps.get(who.run), epochs.get(who.run)
        none = np.empty(0, np.float32)
        if frame is None or frame.empty:
            result.append(Curve(who, np.empty(0, np.int32), none, none, none, None, 0))
            continue
        values = frame[column].to_numpy(dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        at = frame["step"].to_numpy(dtype=np.int32)
        broken = np.flatnonzero(np.isnan(values))
        x, y = thin(at, values, points)
        marks = none, none
        if ends is not None and not ends.empty:
            ended = epoch_ends(frame, ends)
            measured = ends[VALIDATION[column]].to_numpy(dtype=np.float64)
            good = np.isfinite(ended) & np.isfinite(measured)
            marks = ended[good].astype(np.float32), measured[good].astype(np.float32)
        result.append(
            Curve(
                who, x, y.astype(np.float32), *marks, int(at[broken[0]]) if broken.size else None, len(values)
            )
        )
    return result


def curves(
    subjects: Sequence[Subject],
    steps: Mapping[str, pd.DataFrame],
    epochs: Mapping[str, pd.DataFrame],
    column: str = "loss",
    *,
    classes: int | None = None,
    log: bool = False,
    height: int = 340,
    legend: bool = True,
) -> go.Figure:
    """Loss or accuracy of each run; validation as markers; a reference line where a guess among ``classes``
    would lie.
    """
    title = COLUMN[column].title
    if not subjects:
        return base.blank(title, "No run is selected.", height)
    data = curves_data(subjects, steps, epochs, column)
    log = log and column == "loss"
    drawn = base.figure(
        title, height, hovermode="x unified" if len(data) <= 6 else "closest", showlegend=legend
    )
    top = _top(data, classes) if column == "loss" else 1.02
    looks = theme.styles(who.init for who in subjects)
    for curve, name, look in zip(data, base.labels(subjects), looks, strict=True):
        group = {"legendgroup": curve.subject.run, "name": name, "opacity": look.opacity}
        drawn.add_scatter(
            x=curve.steps,
            y=curve.values,
            mode="lines",
            line={"color": look.color, "width": 1.4, "dash": look.dash},
            hovertemplate="%{fullData.name}: %{y:.3g}<extra></extra>"
            if column == "loss"
            else "%{fullData.name}: %{y:.1%}<extra></extra>",
            meta={"run": curve.subject.run, "table": "steps", "y": column},
            **group,
        )
        drawn.add_scatter(
            x=curve.validation_steps,
            y=curve.validation,
            mode="markers",
            showlegend=False,
            marker={
                "color": look.color,
                "symbol": look.symbol,
                "size": 8,
                "line": {"color": theme.PAPER, "width": 1.2},
            },
            hovertemplate="validation: "
            + ("%{y:.3g}" if column == "loss" else "%{y:.1%}")
            + "<extra></extra>",
            meta={"run": curve.subject.run, "table": "epochs", "y": VALIDATION[column]},
            **group,
        )
        if curve.broke_at is not None and column == "loss":
            drawn.add_scatter(
                x=[curve.broke_at],
                y=[top * 0.94],
                mode="markers+text",
                showlegend=False,
                legendgroup=curve.subject.run,
                marker={"symbol": "triangle-up", "size": 12, "color": theme.NONFINITE},
                text=[" NaN"],
                textposition="middle right",
                textfont={"color": theme.NONFINITE},
                hovertemplate="not a number from step %{x}<extra></extra>",
            )
    drawn.update_xaxes(title={"text": "step", "standoff": 6}, rangemode="tozero", automargin=True)
    if column == "loss":
        if classes:
            reference(
                drawn, math.log(classes), f"ln {classes} = {math.log(classes):.3f}: a guess", log, above=True
            )
        drawn.update_yaxes(
            title={"text": loss_title(classes), "standoff": 8},
            automargin=True,
            uirevision="log" if log else "linear",
        )
        if log:
            drawn.update_yaxes(type="log", exponentformat="power")
        elif classes:
            drawn.update_yaxes(range=[0, top])
            drawn.update_layout(meta={"tops": _tops(classes)})  # a spike that comes while live
    else:
        accuracy_axis(drawn, classes)
    return drawn


def loss_title(classes: int | None) -> str:
    """Of a loss axis: what is measured, where that is known."""
    return "cross-entropy, nats" if classes else "loss"


def accuracy_axis(drawn: go.Figure, classes: int | None) -> None:
    """An axis from 0 to 100 %, with the line where a guess would lie."""
    if classes:
        reference(
            drawn,
            1 / classes,
            f"1/{classes} = {formatting.percent(1 / classes)}: a guess",
            False,
            above=False,
        )
    at = [0, 0.2, 0.4, 0.6, 0.8, 1]
    drawn.update_yaxes(
        range=[0, 1.02], tickvals=at, ticktext=[formatting.percent(v) for v in at], automargin=True
    )


def _top(data: Sequence[Curve], classes: int | None) -> float:
    """The upper end of a linear loss axis: a run that explodes leaves through the top instead of flattening
    the others.
    """
    highest = max(
        (float(np.nanmax(c.values)) for c in data if np.isfinite(c.values).any()),
        default=math.log(classes or 10),
    )
    if classes is None:
        return highest
    low, high = _tops(classes)
    return low if highest <= low else high


def _tops(classes: int) -> list[float]:
    """The two upper ends a loss axis can have: a little above a guess, or twice a guess."""
    chance = math.log(classes)
    return [1.25 * chance, 2 * chance]


def reference(drawn: go.Figure, level: float, words: str, log: bool, above: bool) -> None:
    """A dotted line with its meaning written on it."""
    drawn.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref="paper",
        y0=level,
        y1=level,
        line={"color": theme.MUTED, "width": 1, "dash": "dot"},
    )
    drawn.add_annotation(
        text=words,
        x=1,
        xref="paper",
        xanchor="right",
        y=math.log10(level) if log else level,
        yanchor="bottom",
        yshift=3 if above else 12,
        showarrow=False,
        font={"size": 12, "color": theme.MUTED},
        bgcolor=theme.PAPER,
        opacity=0.85,
        borderpad=1,
    )
