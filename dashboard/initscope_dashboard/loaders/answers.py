"""What is computed from runs: comparisons, diagnoses, maps of theory, and answers in SQL."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from initscope.comparison import survival
from initscope.comparison.compare import Comparison, compare, distinct
from initscope.config.run_config import RunConfig
from initscope.diagnosis.diagnose import Diagnosis, diagnose
from initscope.diagnosis.thresholds import Thresholds
from initscope.errors import InitScopeError, QueryError, RunFolderError
from initscope.schema import Verdict
from initscope.store import Run, RunInfo
from initscope.store.query import Answer
from initscope.store.query import query as sql_query
from initscope.theory import predict, typical_stats, vgg_layers
from initscope.theory.forecast import inputs_and_classes
from initscope.theory.trainability import TheoryMap, theory_map
from initscope_dashboard.content import comparison_choices as sides
from initscope_dashboard.loaders.folder import info, runs

QUERY_SECONDS = 15.0
QUERY_ROWS = 1000
QUERY_BYTES = 20_000_000
_asking = threading.BoundedSemaphore(4)
"""Each question may take a gigabyte and two cores, and whoever looks may ask."""


@st.cache_resource(max_entries=64, show_spinner=False)
def _comparison(a: tuple[str, ...], b: tuple[str, ...], revisions: tuple) -> Comparison:
    return compare([Run(path) for path in a], [Run(path) for path in b])


def comparison(a: str, b: str, infos: Sequence[RunInfo]) -> Comparison:
    """The comparison of two selections (a run id, or a group such as ``init=default,sweep=ID``) of the listed
    runs. Raises InitScopeError.
    """
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


@st.cache_resource(max_entries=2000, show_spinner=False)
def _left_at(path: str, chance: float, batch: int, revision: tuple) -> int | None:
    rows = Run(path).read("steps", list(survival.COLUMNS))
    return survival.left_at(*(rows[name].to_numpy() for name in survival.COLUMNS), chance, batch)


def left_chance(members: Sequence[RunInfo]) -> dict[str, survival.Survival]:
    """{initialization: how many of its seeds have left chance by step n}; runs that cannot be read, or of
    which chance is not known, are left out.
    """
    groups: dict[str, list[survival.Seen]] = {}
    for member in distinct(members):
        known, run = survival.chance_of(member), Run(runs().root / member.run)
        if known is not None:
            with contextlib.suppress(RunFolderError):  # damaged: the list of runs says so
                left = _left_at(str(run.path), *known, run.revision())
                groups.setdefault(member.init, []).append(survival.seen(member, left))
    curves = {init: survival.survival(group) for init, group in groups.items()}
    return {init: curve for init, curve in curves.items() if curve is not None}


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
    """What theory foresees in the plane of two fields of these runs, which differ in nothing else but the
    seed; None where it cannot say.
    """
    seen = [{run.config.get(field) for run in members} for field in (x, y)]
    if any(None in values for values in seen):
        return None  # a folder that does not say it
    xs, ys = (tuple(sorted(values)) for values in seen)
    try:
        return _theory_map(json.dumps(dict(members[0].config), sort_keys=True), x, xs, y, ys)
    except InitScopeError:
        # a folder written by another version, whose config this one does not take: its map has no theory
        return None


@st.cache_data(max_entries=256, show_spinner=False)
def _theory_rows(config_json: str) -> list[dict]:
    config = RunConfig.from_json(config_json)
    channels, classes = inputs_and_classes(config)
    layers = vgg_layers(config, in_channels=channels, num_classes=classes)
    return predict(layers, typical_stats(config, in_channels=channels, num_classes=classes))


def theory_rows(config: RunConfig) -> list[dict]:
    """Theory's row for every layer of a VGG before training, of data that are as usual. Milliseconds, no
    data. Raises TheoryUnavailable where the weights' variance is not known in advance.
    """
    return _theory_rows(json.dumps(config.to_dict(), sort_keys=True))


def query(sql: str) -> Answer:
    """The answer to one SELECT over all runs as they are now. Raises QueryError, RunFolderError."""
    if not _asking.acquire(timeout=QUERY_SECONDS):
        raise QueryError("four other questions are being answered; ask again in a moment")
    try:
        return sql_query(runs(), sql, QUERY_SECONDS, QUERY_ROWS, QUERY_BYTES)
    finally:
        _asking.release()
