"""What is sent and shown of a run while it trains: plain functions from its files to JSON, for the event
stream and the cards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from initscope.schema import LIVE, Outcome
from initscope.store import Cursor, Run
from initscope.store.files import number
from initscope.store.parts import holds_through, parts
from initscope.store.run import with_loss
from initscope_dashboard.content import headlines

CATCH_UP = 2000
"""Points a viewer that comes late gets at once; more are thinned, the newest kept."""
PACE_STEPS = 50
"""Steps that say how fast a run is."""
RECENT = 30
"""Steps whose mean loss says whether a run learns: one batch alone is noise."""


def finite(values: Any) -> list[float | None]:
    """Numbers for JSON, seven digits: NaN and infinity become None."""
    return [float(f"{v:.7g}") if v is not None and math.isfinite(v) else None for v in values]


def pace(steps: pa.Table, batch_size: int) -> tuple[float | None, float | None]:
    """(images a second, seconds a step) over the last rows, None while there are too few."""
    if steps.num_rows < 2:
        return None, None
    tail = steps.slice(max(0, steps.num_rows - PACE_STEPS))
    at, seconds = tail["step"].to_numpy(), tail["seconds"].to_numpy()
    done, took = int(at[-1] - at[0]), float(seconds[-1] - seconds[0])
    if done <= 0 or took <= 0:
        return None, None
    return done * batch_size / took, took / done


def progress(state: Mapping[str, Any], steps: pa.Table, config: Mapping[str, Any]) -> dict[str, Any]:
    """What cards and headline say of a run, from ``status.json``, the last rows of ``steps`` and the saved
    configuration.
    """
    steps = with_loss(steps)
    last = steps.slice(steps.num_rows - 1).to_pylist()[0] if steps.num_rows else {}
    step = max(int(state.get("step") or 0), last.get("step", -1) + 1)
    total, status, outcome = state.get("total_steps"), str(state.get("status")), state.get("outcome")
    batch = number(
        config.get("batch_size")
    )  # of a loop of somebody's own it is not known how many batches make a step
    speed, each = pace(steps, int(batch or 1))
    live = status in LIVE
    losses = steps["loss"].to_numpy()[-RECENT:] if steps.num_rows else np.empty(0)
    classes = headlines.classes(state, config)
    standing = headlines.standing(status, outcome, losses, math.log(classes) if classes else None)
    # A training batch is noise; what an ended run amounts to was measured on the validation samples.
    validated = (
        {}
        if live or outcome == Outcome.DIVERGED
        else {
            name: state.get(f"val_{name}")
            for name in ("loss", "accuracy")
            if state.get(f"val_{name}") is not None
        }
    )
    loss, accuracy = (validated.get(name, last.get(name)) for name in ("loss", "accuracy"))
    return {
        "status": status,
        "outcome": outcome,
        "error": state.get("error"),
        "phase": state.get("phase"),
        "step": step,
        "total_steps": total,
        "validated": bool(validated),
        "loss": finite([loss])[0],
        "broken": bool(last) and not math.isfinite(last["loss"]),
        "accuracy": finite([accuracy])[0],
        "images_per_second": finite([speed])[0] if live else None,
        "speed_unit": "images/s" if batch else "steps/s",
        "seconds_left": finite([max(0, total - step) * each])[0] if live and total and each else None,
        "standing": headlines.in_numbers(standing),
        "says": headlines.says(
            standing,
            np.array([loss]) if loss is not None and validated else losses,
            step,
            accuracy,
            classes,
            bool(validated),
            state,
        ),
    }


def thin(rows: pa.Table, most: int = CATCH_UP) -> pa.Table:
    """At most ``most`` rows: the newest quarter whole, the older ones evenly."""
    if rows.num_rows <= most:
        return rows
    newest = most // 4
    older = np.linspace(0, rows.num_rows - newest - 1, most - newest).astype(np.int64)
    return rows.take(np.concatenate([older, np.arange(rows.num_rows - newest, rows.num_rows)]))


def near_end(run: Run, table: str) -> Cursor:
    """A cursor before the newest part, so that following a long run does not begin with reading all of it."""
    listed = parts(run.path / "parts", table)
    return Cursor(listed[-2][1] if len(listed) > 1 else holds_through(run.path / f"{table}.parquet"))


def step_rows(steps: pa.Table) -> dict[str, Any]:
    return {
        "x": steps["step"].to_pylist(),
        "loss": finite(steps["loss"].to_pylist()),
        "accuracy": finite(steps["accuracy"].to_pylist()),
    }


def epoch_rows(run: Run, epochs: pa.Table) -> dict[str, Any]:
    """Validation, at the step after each epoch's last one."""
    steps = run.read("steps", ["step", "epoch"]).group_by("epoch").aggregate([("step", "max")])
    last = dict(zip(steps["epoch"].to_pylist(), steps["step_max"].to_pylist(), strict=True))
    rows = epochs.filter(pc.is_in(epochs["epoch"], pa.array(list(last), epochs["epoch"].type)))
    values = {name: finite(rows[name].to_pylist()) for name in ("val_loss", "val_accuracy")}
    return {"x": [last[epoch] + 1 for epoch in rows["epoch"].to_pylist()], **values}


def last_step(layers: pa.Table) -> pa.Table:
    """The rows of the last step, nearest the input first."""
    return layers.filter(pc.equal(layers["step"], pc.max(layers["step"]))).sort_by("depth")


def newest_layers(layers: pa.Table) -> dict[str, Any]:
    rows = last_step(layers)
    return {
        "step": rows["step"][0].as_py(),
        "names": rows["layer"].to_pylist(),
        "grad_norm": finite(rows["grad_norm"].to_pylist()),
    }
