"""What pages read, cached. The only place with ``st.cache_*``; every key holds what the files looked like.

Frames are shared between sessions: treat them as read-only.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import streamlit as st

from core.config import RunConfig
from core.diagnosis.compare import Comparison, compare
from core.diagnosis.diagnose import Diagnosis, diagnose
from core.diagnosis.thresholds import Thresholds
from core.errors import InitScopeError, QueryError, RunFolderError
from core.schema import Verdict
from core.store import Run, RunInfo, Runs, default_root
from core.store.query import Answer
from core.store.query import query as sql_query
from core.trainability import TheoryMap, theory_map
from dashboard import access, live_rows, sides
from dashboard.figures import heatmap

ROOT = Path(__file__).resolve().parent.parent
SUMMARY_SECONDS = 120
NO_PROCESSES = "not measured: nothing is started for those who only look"


@st.cache_resource(max_entries=8, show_spinner=False)
def _runs(root: str) -> Runs:
    return Runs(root, shown="the folder of runs")


def runs() -> Runs:
    """The folder of all runs: ``INITSCOPE_RUNS`` or ``runs/``. Its path on this machine stays out of what pages say."""
    return _runs(default_root())  # one for all sessions: it remembers what it has read of ended runs


# -- the list


def info(run_id: str) -> RunInfo:
    """One run's listing entry, as its files are now."""
    return runs().info(run_id)


def listing() -> list[RunInfo]:
    """All runs, newest first. An ended run whose files have not changed costs three looks at the file system."""
    return runs().list()


def listed(run_ids: Iterable[str]) -> list[RunInfo]:
    """The entries of those runs that exist, in the order asked for."""
    there = set(runs().ids())
    return [info(run_id) for run_id in dict.fromkeys(run_ids) if run_id in there]


# -- questions in SQL


QUERY_SECONDS = 15.0
QUERY_ROWS = 1000
QUERY_BYTES = 20_000_000
_asking = threading.BoundedSemaphore(2)
"""Each question may take half a gigabyte and two cores, and whoever looks may ask."""


def query(sql: str) -> Answer:
    """The answer to one SELECT over all runs as they are now. Raises QueryError, RunFolderError."""
    if not _asking.acquire(timeout=QUERY_SECONDS):
        raise QueryError("two other questions are being answered; ask again in a moment")
    try:
        answer = sql_query(runs(), sql, QUERY_SECONDS, QUERY_ROWS)
    finally:
        _asking.release()
    if answer.rows.nbytes > QUERY_BYTES:
        raise QueryError(f"the answer takes {answer.rows.nbytes / 1e6:.0f} MB, and a page shows {QUERY_BYTES / 1e6:.0f}; ask for fewer rows or columns")
    return answer


# -- rows


@st.cache_resource(max_entries=48, show_spinner=False)
def _frame(path: str, table: str, columns: tuple[str, ...] | None, revision: tuple) -> pd.DataFrame:
    return Run(path).read(table, list(columns) if columns else None).to_pandas()


def frame(run_id: str, table: str, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of ``steps``, ``epochs`` or ``layers`` so far. Read-only. Raises RunFolderError if a file is damaged."""
    run = Run(runs().root / run_id)
    return _frame(str(run.path), table, tuple(columns) if columns else None, run.revision())


def frames(run_ids: Iterable[str], table: str, columns: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
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
    return heatmap.reduced(run.grids(metric), metric, run.count("layers"))


def cells(run_id: str, metric: str = "grad_norm") -> heatmap.Cells | None:
    """The reduced map of one run, ready for ``heatmap.heatmap``; None without rows. Read-only."""
    run = Run(runs().root / run_id)
    return _cells(str(run.path), metric, run.revision())


@st.cache_resource(max_entries=32, show_spinner=False)
def _one_layer(path: str, layer: str, metric: str, revision: tuple) -> pd.DataFrame:
    pieces = [(grid.steps, grid.values[row], grid.present[row]) for grid in Run(path).grids(metric)
              for row in [grid.layers.index(layer) if layer in grid.layers else -1] if row >= 0]
    steps, values, there = (np.concatenate(parts) for parts in zip(*pieces, strict=True)) if pieces else (np.empty(0, np.int32), np.empty(0), np.empty(0, bool))
    return pd.DataFrame({"step": steps, "layer": layer, metric: values}, copy=False)[there].reset_index(drop=True)


def one_layer(run_id: str, layer: str, metric: str) -> pd.DataFrame:
    """The measured rows of one layer: step, layer and the metric."""
    run = Run(runs().root / run_id)
    return _one_layer(str(run.path), layer, metric, run.revision())


@st.cache_resource(max_entries=1000, show_spinner=False)
def _first_layers(path: str, metric: str, revision: tuple) -> pd.DataFrame:
    return Run(path).head("layers", ["step", "layer", "depth", metric]).to_pandas()


def first_layers(run_ids: Iterable[str], metric: str) -> dict[str, pd.DataFrame]:
    """Step, layer, depth and the metric at each run's first recorded step; a run that cannot be read is left out."""
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


def damage(infos: Iterable[RunInfo]) -> dict[str, str]:
    """{run id: what cannot be read of it}, for those runs whose files are damaged."""
    found = {}
    for info in infos:
        run = Run(runs().root / info.run)
        # A live run's rows come and go; what its own process cannot read ends it.
        found[info.run] = (info.error or "") if info.status == "unreadable" else "" if info.live else _damage(str(run.path), run.revision())
    return {run: reason for run, reason in found.items() if reason}


def log_tail(run_id: str, lines: int = 30) -> str:
    """The end of a run's log."""
    return Run(runs().root / run_id).log_tail(lines)


# -- the model


@st.cache_data(max_entries=32, show_spinner="Building the network to measure it …")
def torchinfo_table(config_json: str) -> tuple[bool, str]:
    """(whether it worked, torchinfo's table or why there is none). torch lives in another process: this one never loads it."""
    command = [sys.executable, "-m", "core.models.summary", config_json]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SUMMARY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False, f"torchinfo took longer than {SUMMARY_SECONDS} seconds"
    if done.returncode:
        last = done.stderr.strip().splitlines()
        return False, last[-1] if last else f"exit status {done.returncode}"
    return True, done.stdout


def torchinfo(config: RunConfig) -> tuple[bool, str]:
    """``torchinfo_table`` of a configuration; what does not change the network does not change the cache's key."""
    if not access.may_change():
        return False, NO_PROCESSES
    shape = ("model", "width", "image_size", "in_channels", "num_classes", "batch_norm", "dropout", "data")
    values = config.to_dict()
    return torchinfo_table(json.dumps({key: values[key] for key in shape}, sort_keys=True))


# -- comparisons


@st.cache_resource(max_entries=64, show_spinner=False)
def _comparison(a: tuple[str, ...], b: tuple[str, ...], revisions: tuple) -> Comparison:
    return compare([Run(path) for path in a], [Run(path) for path in b])


def comparison(a: str, b: str, infos: Sequence[RunInfo]) -> Comparison:
    """The comparison of two selections (a run id, or a group such as ``init=default,sweep=ID``) of the listed runs. Raises InitScopeError."""
    sides = [tuple(str(run.path) for run in runs().select(side, infos)) for side in (a, b)]
    # Whether a live run still lives is not in its files: its state joins the key.
    seen = tuple((Run(path).revision(), info(Path(path).name).status) for side in sides for path in side)
    return _comparison(sides[0], sides[1], seen)


def latest_comparison(infos: Sequence[RunInfo]) -> Comparison | None:
    """The comparison a person most likely waits for, if its runs have come far enough to tell."""
    a, b = sides.suggested_pair(infos)
    if not a or a == b:
        return None
    try:
        found = comparison(a, b, infos)
    except InitScopeError:
        return None  # a run was deleted or is damaged: its row in the table says so
    return found if found.verdict != Verdict.UNDECIDED else None


# -- probes


PROBE_SECONDS = 300


@st.cache_data(max_entries=256, show_spinner=False)
def _probe(config_json: str, seeds: int) -> tuple[bool, Any]:
    """(whether it worked, the probe's JSON or why there is none), measured in a process of its own: it needs torch."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(config_json)
        file.flush()
        command = [sys.executable, "-m", "core", "probe", "--config", file.name, "--seeds", str(seeds), "--json"]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False, f"the probe took longer than {PROBE_SECONDS} seconds"
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].removeprefix("error: ")
    return True, json.loads(done.stdout.splitlines()[-1])


def probes(config: RunConfig, inits: Sequence[str], seeds: int) -> tuple[dict[str, dict], dict[str, str]]:
    """({initialization: probe}, {initialization: why it has none}); those not seen before are measured side by side."""
    if not access.may_change():
        return {}, dict.fromkeys(inits, NO_PROCESSES)
    configs = [json.dumps(config.replace(init=init, name="", tags=()).to_dict(), sort_keys=True) for init in inits]
    with st.spinner("Sending one batch through the network …"), ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda text: _probe(text, seeds), configs))
    good = {init: value for init, (worked, value) in zip(inits, results, strict=True) if worked}
    return good, {init: value for init, (worked, value) in zip(inits, results, strict=True) if not worked}


# -- diagnosis


@st.cache_resource(max_entries=128, show_spinner=False)
def _diagnosis(path: str, thresholds: Thresholds, revision: tuple, status: str) -> Diagnosis:
    return diagnose(Run(path), thresholds)


def diagnosis(run_id: str, thresholds: Thresholds) -> Diagnosis:
    """Why the run went as it went, by these thresholds. Raises RunFolderError if its rows cannot be read."""
    run = Run(runs().root / run_id)
    return _diagnosis(str(run.path), thresholds, run.revision(), info(run_id).status)


@st.cache_data(max_entries=64, show_spinner=False)
def _theory_map(config_json: str, x: str, xs: tuple, y: str, ys: tuple) -> TheoryMap | None:
    return theory_map(RunConfig.from_json(config_json), x, xs, y, ys)


def theory(members: Sequence[RunInfo], x: str, y: str) -> TheoryMap | None:
    """What theory foresees in the plane of two fields of these runs, which differ in nothing else but the seed; None where it cannot say."""
    seen = [{run.config.get(field) for run in members} for field in (x, y)]
    if any(None in values for values in seen):
        return None  # a folder that does not say it
    xs, ys = (tuple(sorted(values)) for values in seen)
    try:
        return _theory_map(json.dumps(dict(members[0].config), sort_keys=True), x, xs, y, ys)
    except InitScopeError:
        return None  # a folder written by another version, whose config this one does not take: its map has no theory
