"""What a notebook shows of a Recorder: the loss curve, the weakest layer, how the run stands, and where to
see all of it.

Displayed once, the card goes on to follow the training, also from later cells. Plain HTML and SVG: no script,
nothing from outside, colours that read on a light page and on a dark one.
"""

from __future__ import annotations

import html
import math
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from initscope.schema import LAYER_METRICS, MISSING, Status
from initscope.store.layer_names import layer_names

if TYPE_CHECKING:
    from initscope.recording.recorder import Recorder

UPDATE_SECONDS = 1.0
"""A card that is on screen is drawn anew at most this often."""
DASHBOARD = "http://localhost:8501"
"""Where `initscope ui` serves unless it is told otherwise."""
WIDTH, HEIGHT = 240, 48
_BOX = (
    "font:13px/1.5 system-ui,sans-serif;border:1px solid #8886;border-radius:6px;padding:10px "
    "14px;display:inline-block;max-width:640px"
)
_BLUE, _VERMILION = "#0072B2", "#D55E00"


class LiveCard:
    """One Recorder's card; knows where it is on screen, if it is."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0

    def show(self, recorder: Recorder) -> None:
        """Display the card in the cell that is being executed. Only IPython calls this."""
        from IPython.display import HTML, display

        self._handle = display(HTML(self.html(recorder)), display_id=True)
        self._drawn = time.monotonic()

    def update(self, recorder: Recorder, last: bool = False) -> None:
        """Draw a card that is on screen anew, if it is time or the run's end."""
        if self._handle is not None and (last or time.monotonic() - self._drawn >= UPDATE_SECONDS):
            from IPython.display import HTML

            with recorder.guard("drawing its card"):
                self._drawn = time.monotonic()
                self._handle.update(HTML(self.html(recorder)))

    def html(self, recorder: Recorder) -> str:
        """The card as it stands."""
        run = recorder.run
        if run is None:
            text = (
                "records nothing in this process"
                if not recorder.recording
                else "has not begun: use it in a with block"
            )
            return f'<div style="{_BOX}">This Recorder {text}.</div>'
        state = recorder._writer.state if recorder._writer is not None else {}
        name = str((recorder._new_run.get("name") if recorder.owns_run else "") or run.id)
        lines = [
            f"<b>{html.escape(name)}</b> · {html.escape(standing(state))}",
            sparkline(state.get("curve") or ()),
            html.escape(loss_line(state)),
            html.escape(weakest_line(recorder.rows.measured, state)),
        ]
        if error := (state.get("facts") or {}).get("recording_error"):
            lines.append(f'<span style="color:{_VERMILION}">Recording: {html.escape(str(error))}</span>')
        page = f"{DASHBOARD}/diagnosis?run={quote(run.id)}"
        command = f"initscope ui --runs {shlex.quote(str(run.path.parent))}"
        lines.append(
            f'<a href="{page}" target="_blank">Open in the dashboard</a>, started by '
            f"<code>{html.escape(command)}</code>"
        )
        return f'<div style="{_BOX}">' + "".join(f"<div>{line}</div>" for line in lines if line) + "</div>"


def standing(state: Any) -> str:
    """ "running, step 120", "finished after 500 steps: diverged"."""
    status, step = state.get("status", ""), state.get("step") or 0
    if status == Status.RUNNING:
        return f"running, step {step}"
    outcome = str(state.get("outcome") or "").replace("_", " ")
    error = f", {state['error']}" if state.get("error") else ""
    return f"{status} after {step} step{'' if step == 1 else 's'}: {outcome}{error}"


def loss_line(state: Any) -> str:
    """The newest loss and accuracy in words."""
    loss, accuracy = state.get("loss"), state.get("accuracy")
    if loss is None:
        return "No loss yet."
    return f"Loss {loss:.4g}" + (
        f", accuracy {100 * accuracy:.1f} %" if accuracy is not None and math.isfinite(accuracy) else ""
    )


def weakest_line(measured: tuple[Sequence[str], np.ndarray] | None, state: Any) -> str:
    """The layer with the smallest RMS gradient at the newest step, against the median of all layers."""
    if measured is None:
        return ""
    names, values = [*layer_names(measured[0], state).values()], measured[1]
    rms = values[LAYER_METRICS.index("grad_rms")].astype(float)
    known = np.isfinite(rms) & (rms != MISSING) & (rms > np.float32(MISSING))
    if (bad := ~np.isfinite(rms)).any():
        return f"The gradient of {names[int(bad.argmax())]} is not finite."
    if not known.any():
        return "No gradient measured."
    weakest = int(np.where(known, rms, np.inf).argmin())
    median = float(np.median(rms[known]))
    if rms[weakest] == 0:
        return f"Weakest gradient: zero at {names[weakest]}."
    share = rms[weakest] / median
    beside = f", {share:.2g} of the layers' median" if known.sum() > 1 else ""
    return f"Weakest gradient: {names[weakest]}, RMS {rms[weakest]:.2g}{beside}."


def sparkline(curve: Sequence[float]) -> str:
    """The loss curve as SVG; it ends in a cross where the loss is no number any more."""
    finite = [value for value in curve if math.isfinite(value)]
    if len(curve) < 2 or not finite:
        return ""
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    points, end = [], None
    for i, value in enumerate(curve):
        x = 4 + (WIDTH - 8) * i / (len(curve) - 1)
        if not math.isfinite(value):
            end = x
            break
        points.append(f"{x:.1f},{4 + (HEIGHT - 8) * (high - value) / span:.1f}")
    cross = ""
    if end is not None:
        cross = f'<path d="M{end - 4:.1f} 4l8 8m0 -8l-8 8" stroke="{_VERMILION}" stroke-width="2"/>'
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="loss from {curve[0]:.4g} to '
        f'{curve[-1]:.4g}">'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{_BLUE}" stroke-width="2"/>{cross}</svg>'
    )
