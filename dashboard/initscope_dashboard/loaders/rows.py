"""One run's rows, whole or reduced to what a chart draws of them; every key holds the run's revision on
disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import streamlit as st

from initscope.errors import RunFolderError
from initscope.schema import SELDOM
from initscope.store import Run, RunInfo
from initscope.store.grid import measured
from initscope.store.run import with_loss
from initscope_dashboard.content import breakdown
from initscope_dashboard.figures import heatmap
from initscope_dashboard.live import live_rows
from initscope_dashboard.loaders.folder import runs


@st.cache_resource(max_entries=48, show_spinner=False)
def _frame(path: str, table: str, columns: tuple[str, ...] | None, revision: tuple) -> pd.DataFrame:
    rows = Run(path).read(table, list(columns) if columns else None)
    return (with_loss(rows) if table == "steps" and "loss" in rows.column_names else rows).to_pandas()


def frame(run_id: str, table: str, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of ``steps``, ``epochs`` or ``layers`` so far. Read-only. Raises RunFolderError if a file is
    damaged.
    """
    run = Run(runs().root / run_id)
    return _frame(str(run.path), table, tuple(columns) if columns else None, run.revision())


def frames(
    run_ids: Iterable[str], table: str, columns: Iterable[str] | None = None
) -> dict[str, pd.DataFrame]:
    """``frame`` of several runs by id; a run that cannot be read is left out."""
    found = {}
    for run_id in run_ids:
        try:
            found[run_id] = frame(run_id, table, columns)
        except RunFolderError:
            continue
    return found


@st.cache_resource(max_entries=64, show_spinner=False)
def _cells(path: str, metric: str, revision: tuple) -> heatmap.Cells | None:
    run = Run(path)
    if metric in SELDOM:  # what is left is little enough to be held; of nothing left the map says so
        taken = list(measured(run.grids(metric)))
        if taken:
            return heatmap.reduced(taken, metric, sum(piece.values.size for piece in taken))
    return heatmap.reduced(run.grids(metric), metric, run.count("layers"))


def cells(run_id: str, metric: str = "grad_norm") -> heatmap.Cells | None:
    """The reduced map of one run, ready for ``heatmap.heatmap``; None without rows. Read-only."""
    run = Run(runs().root / run_id)
    return _cells(str(run.path), metric, run.revision())


@st.cache_resource(max_entries=32, show_spinner=False)
def _one_layer(path: str, layer: str, metric: str, revision: tuple) -> pd.DataFrame:
    pieces = [
        (grid.steps, grid.values[row], grid.present[row])
        for grid in Run(path).grids(metric)
        for row in [grid.layers.index(layer) if layer in grid.layers else -1]
        if row >= 0
    ]
    steps, values, there = (
        (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        if pieces
        else (np.empty(0, np.int32), np.empty(0), np.empty(0, bool))
    )
    return pd.DataFrame({"step": steps, "layer": layer, metric: values}, copy=False)[there].reset_index(
        drop=True
    )


def one_layer(run_id: str, layer: str, metric: str) -> pd.DataFrame:
    """The measured rows of one layer: step, layer and the metric."""
    run = Run(runs().root / run_id)
    return _one_layer(str(run.path), layer, metric, run.revision())


@st.cache_resource(max_entries=1000, show_spinner=False)
def _kinds(path: str, revision: tuple) -> frozenset[str]:
    return frozenset(Run(path).head("layers", ["step", "kind"])["kind"].to_pylist())


def kinds(run_id: str) -> frozenset[str]:
    """Classes of a run's layers, in lower case. Raises RunFolderError if its rows are damaged."""
    run = Run(runs().root / run_id)
    return _kinds(str(run.path), run.revision())


@st.cache_resource(max_entries=1000, show_spinner=False)
def _first_layers(path: str, metric: str, revision: tuple) -> pd.DataFrame:
    return Run(path).head("layers", ["step", "layer", "depth", metric]).to_pandas()


def first_layers(run_ids: Iterable[str], metric: str) -> dict[str, pd.DataFrame]:
    """Step, layer, depth and the metric at each run's first recorded step; a run that cannot be read is left
    out.
    """
    found = {}
    for run_id in run_ids:
        run = Run(runs().root / run_id)
        with contextlib.suppress(RunFolderError):  # damaged: the list of runs says so
            found[run_id] = _first_layers(str(run.path), metric, run.revision())
    return found


def last_layers(run_ids: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Step, layer, depth and gradient norm at each run's last recorded step."""
    found = {}
    for run_id in run_ids:
        run = Run(runs().root / run_id)
        try:
            found[run_id] = _last_layers(str(run.path), run.revision())
        except RunFolderError:
            continue
    return found


@st.cache_resource(max_entries=48, show_spinner=False)
def _last_layers(path: str, revision: tuple) -> pd.DataFrame:
    run = Run(path)
    rows, _ = run.tail("layers", live_rows.near_end(run, "layers"))
    rows = rows if rows.num_rows else run.read("layers", ["step", "layer", "depth", "grad_norm"])
    return live_rows.last_step(rows).to_pandas()


@st.cache_resource(max_entries=200, show_spinner=False)
def _recent_steps(path: str, revision: tuple) -> pa.Table:
    run = Run(path)
    rows, _ = run.tail("steps", live_rows.near_end(run, "steps"))
    rows = rows if rows.num_rows >= live_rows.PACE_STEPS else run.read("steps")
    return rows.slice(max(0, rows.num_rows - live_rows.PACE_STEPS)).combine_chunks()


def progress(run: RunInfo) -> dict[str, Any]:
    """What cards and headline say of a run before the event stream takes over."""
    folder = Run(runs().root / run.run)
    try:
        recent = _recent_steps(str(folder.path), folder.revision())
    except RunFolderError:
        recent = pa.table({})  # ``damage`` says why
    return live_rows.progress({**run.state, "status": run.status}, recent, run.config)


@st.cache_resource(max_entries=200, show_spinner=False)
def _damage(path: str, revision: tuple) -> str:
    run = Run(path)
    try:
        for table, columns in (("steps", None), ("epochs", None), ("layers", ["step", "layer", "depth"])):
            run.read(table, columns)
    except RunFolderError as error:
        return str(error)
    return ""


def notes(run_id: str) -> str:
    """What a person wrote about a run; empty where nobody did, or where it cannot be read."""
    with contextlib.suppress(RunFolderError):  # damaged: the list of runs says so
        return str(Run(runs().root / run_id).meta().get("notes") or "")
    return ""


def damage(infos: Iterable[RunInfo]) -> dict[str, str]:
    """{run id: what cannot be read of it}, for those runs whose files are damaged."""
    found = {}
    for info in infos:
        run = Run(runs().root / info.run)
        # A live run's rows come and go; what its own process cannot read ends it.
        found[info.run] = (
            (info.error or "")
            if info.status == "unreadable"
            else ""
            if info.live
            else _damage(str(run.path), run.revision())
        )
    return {run: reason for run, reason in found.items() if reason}


@st.cache_resource(max_entries=64, show_spinner=False)
def _breakdown(path: str, revision: tuple) -> breakdown.Breakdown | None:
    run = Run(path)
    columns = [
        "step",
        "layer",
        "depth",
        "weight_norm",
        "activation_std",
        "activation_grad_rms",
        "grad_norm",
        "nonfinite",
    ]
    return breakdown.breakdown(
        run.state(),
        with_loss(run.read("steps", ["step", "loss"])).to_pandas(),
        run.read("layers", columns).to_pandas(),
    )


def first_break(info: RunInfo) -> breakdown.Breakdown | None:
    """Where the run's first number that is none appeared. Raises RunFolderError if its rows are damaged."""
    run = Run(runs().root / info.run)
    return _breakdown(str(run.path), run.revision())


def log_tail(run_id: str, lines: int = 30) -> str:
    """The end of a run's log."""
    return Run(runs().root / run_id).log_tail(lines)
