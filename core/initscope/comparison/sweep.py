"""Enough seeds to rule out luck: initializations x seeds (x networks, x one or two fields), each cell run
once.

A sweep is a name on its runs (the config field ``sweep``); the runs themselves are the record. Running the
same sweep again runs only what is missing, so an interrupted sweep is resumed by repeating its command.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initscope.comparison.compare import DECIDED, distinct
from initscope.comparison.statistics import wilson
from initscope.config import catalog, factory
from initscope.config.run_config import OPTIONS, RunConfig, changed_fields
from initscope.errors import ConfigError, choose_from, one_line
from initscope.schema import Outcome, Status
from initscope.store import Run, RunInfo, Runs

MAX_RUNS = 10_000
SWEEPABLE = (
    "depth",
    *[
        s.name
        for s in OPTIONS.values()
        if s.kind in (int, float, bool)
        and s.name not in ("init_seed", "threads", "processes", "stop_when_certain")
    ],
)
"""Fields that may be an axis; depth stands for the networks of the VGG family."""
NETWORK = ("model", "width", "batch_norm")
"""Fields that say which network a run trains."""
FAMILY = "family"
"""How a sweep over networks is called, before its data set."""
_COSMETIC = ("name", "tags")
_HOW = (*_COSMETIC, "threads")
"""Fields that do not change what a run is: one made with another number of threads is not run again."""


@dataclass(frozen=True)
class Axis:
    """One field and the values it takes: numbers, or the networks that a depth stands for."""

    field: str
    values: tuple[Any, ...]


def parse_axis(text: str) -> Axis:
    """``gain=0.5,1,2`` as an Axis; ``depth=11,16`` varies the network (vgg11, vgg16). Raises ConfigError for
    an unknown field, one that is neither a number nor a switch, or a bad value.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in SWEEPABLE:
        raise ConfigError(choose_from("field to vary", name, SWEEPABLE))
    if not equals:
        raise ConfigError(f"{one_line(text)}: expected {name}=1,2,…")
    prefix, field = ("vgg", "model") if name == "depth" else ("", name)
    parsed = tuple(
        dict.fromkeys(
            OPTIONS[field].parse(prefix + value.strip()) for value in values.split(",") if value.strip()
        )
    )
    if name == "depth" and (wrong := [value for value in parsed if factory.parse(value)]):
        raise ConfigError(choose_from("model", wrong[0], OPTIONS["model"].choices or ()), "model")
    if not parsed:
        raise ConfigError(f"{name}: no values given; expected {name}=1,2,…", name)
    return Axis(field, parsed)


def models_axis(text: str) -> Axis:
    """``lenet,vgg16`` as an Axis over registered networks. Raises ConfigError for an unknown one or none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"models: no networks given; available: {', '.join(catalog.MODELS)}", "model")
    for name in names:
        if name not in catalog.MODELS:
            raise ConfigError(choose_from("network", name, catalog.MODELS), "model")
    return Axis("model", names)


def name_of(base: RunConfig, networks: bool = False, axes: Sequence[Axis] = ()) -> str:
    """A sweep's name made from what its runs share and which fields its ``axes`` vary, so that the same
    command, or more seeds or values of it, is the same sweep, and a sweep over anything else is another one:
    its runs are never poured into the first.

    ``networks``: the sweep is over networks; any of them belongs to it, with batch norm or without, at any
    width.
    """
    fields = sorted(axis.field for axis in axes if not (networks and axis.field in NETWORK))
    varied = ("init", "init_seed", "sweep", *_COSMETIC, *(NETWORK if networks else ()), *fields)
    shared = {key: value for key, value in base.to_dict().items() if key not in varied} | (
        {"varied": fields} if fields else {}
    )
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:6]
    network = FAMILY if networks else base.model
    return (
        "-".join(re.sub(r"[^\w.:-]", "-", factory.title(name))[:20] for name in (network, base.data))
        + f"-{digest}"
    )


def plan(
    base: RunConfig, inits: Sequence[str], seeds: int, sweep: str, axes: Sequence[Axis] = (), slots: int = 1
) -> list[RunConfig]:
    """Every cell's config: all seeds of a cell vary ``init_seed`` from the base's on; the data's order stays.

    Where the config leaves the threads open and there are at least as many runs as ``slots``, each gets one
    thread: many runs side by side finish sooner than one after the other on all cores.

    Seeds are the outermost loop, so that a sweep broken off half way has some seeds everywhere. Raises
    ConfigError.
    """
    if len(axes) > 2:
        raise ConfigError(
            "a sweep takes at most two fields besides initialization and seed (the networks count as one)"
        )
    if len({axis.field for axis in axes}) < len(axes):
        raise ConfigError(f"a sweep takes {axes[0].field} once, not twice", axes[0].field)
    total = len(inits) * seeds
    for axis in axes:
        total *= len(axis.values)
    if not 1 <= total <= MAX_RUNS:
        raise ConfigError(f"a sweep has between 1 and {MAX_RUNS:,} runs, not {total:,}")
    if base.threads == 0 and total >= slots > 1:
        base = base.replace(threads=1)
    return [
        base.replace(
            init=init,
            init_seed=base.init_seed + seed,
            sweep=sweep,
            name="",
            **dict(zip([a.field for a in axes], cell, strict=True)),
        )
        for seed in range(seeds)
        for cell in itertools.product(*[axis.values for axis in axes])
        for init in inits
    ]


def missing(configs: Iterable[RunConfig], infos: Iterable[RunInfo]) -> list[RunConfig]:
    """The configs that no run covers: none with the same config is live or has ended with an outcome."""
    covering = [i for i in infos if i.live or (i.status == Status.FINISHED and i.outcome is not None)]
    by_key: dict[Any, list[RunInfo]] = {}
    for info in covering:
        by_key.setdefault(_key(info.config), []).append(info)
    return [
        config
        for config in configs
        if not any(
            not changed_fields(config.to_dict(), info.config, _HOW)
            for info in by_key.get(_key(config.to_dict()), ())
        )
    ]


def _key(config: Mapping[str, Any]) -> tuple:
    return tuple(config.get(field) for field in ("sweep", "init", "init_seed"))


def covering(configs: Iterable[RunConfig], runs: Runs) -> list[str]:
    """Ids of the runs that cover ``configs``, newest first where several do."""
    infos = runs.list()
    found = []
    for config in configs:
        wanted = config.to_dict()
        fits = [
            i for i in infos if _key(i.config) == _key(wanted) and not changed_fields(wanted, i.config, _HOW)
        ]
        fits.sort(key=lambda info: (info.live or info.outcome in DECIDED, info.created))
        found += [fits[-1].run] if fits else []
    return found


def watch(runs: Runs, run_ids: Sequence[str], every: float = 0.3) -> Iterator[tuple[int, float]]:
    """(how many of these runs have ended, share of all their steps that is done), told until all have
    ended.
    """
    waiting = set(run_ids)
    while True:
        live = [info for run_id in waiting if goes_on(info := Run(runs.root / run_id).info())]
        waiting = {info.run for info in live}
        ended = len(run_ids) - len(waiting)
        yield ended, (ended + sum(info.progress for info in live)) / max(1, len(run_ids))
        if not waiting:
            return
        time.sleep(every)


def goes_on(info: RunInfo) -> bool:
    """Whether a run is live, or lost on a cluster and about to be queued again: nobody has written its
    end.
    """
    return info.live or (
        info.status == Status.CRASHED and info.state.get("engine") == "ray" and not info.state.get("ended")
    )


def underway(infos: Sequence[RunInfo]) -> tuple[float, float | None]:
    """(share that is done, seconds left) of a sweep's runs; None: too early to say.

    The share is that of all runs: ended ones, and what the live ones have done. Time left: what a run takes,
    by those that have ended (before the first has, by the pace of those that train), times the runs' worth of
    steps to come, over how many train at once.
    """
    live = [info for info in infos if info.live]
    done = len(infos) - len(live) + sum(info.progress for info in live)
    share = done / max(1, len(infos))
    began = min(
        (info.created for info in live), default=0.0
    )  # what had ended before a sweep was extended tells nothing of this machine now
    taken = [
        seconds
        for info in infos
        if info.created >= began and info.status == Status.FINISHED and (seconds := info.state.get("seconds"))
    ]
    taken = taken or [
        seconds / info.progress for info in live if (seconds := info.state.get("seconds")) and info.progress
    ]
    if not taken or not live:
        return share, None
    together = max(1, sum(info.status in (Status.RUNNING, Status.STOPPING) for info in live))
    return share, statistics.fmean(taken) * (len(infos) - done) / together


def names(infos: Iterable[RunInfo]) -> list[str]:
    """Names of all sweeps, in the order of the runs."""
    return list(dict.fromkeys(str(info.config["sweep"]) for info in infos if info.config.get("sweep")))


def members(infos: Sequence[RunInfo], sweep: str) -> list[RunInfo]:
    """Of a list of runs, newest first, those of a sweep, oldest first."""
    return [info for info in reversed(infos) if info.config.get("sweep") == sweep]


def table(infos: Iterable[RunInfo], by: Sequence[str] = ("init",)) -> list[dict[str, Any]]:
    """One row a cell: {init, converged, runs, low, high, ...}: k of n with its Wilson 95 % interval, in order
    of appearance; a seed counts once.

    ``runs`` counts decided runs; ``undecided`` and ``live`` are those that say nothing (yet).
    """
    cells: dict[tuple, list[RunInfo]] = {}
    for info in distinct(list(infos)):
        cells.setdefault(tuple(info.config.get(field) for field in by), []).append(info)
    rows = []
    for cell, group in cells.items():
        ended = [info for info in group if not info.live]
        decided = [info for info in ended if info.outcome in DECIDED]
        converged = sum(info.outcome == Outcome.CONVERGED for info in decided)
        low, high = wilson(converged, len(decided))
        rows.append(
            {
                **dict(zip(by, cell, strict=True)),
                "converged": converged,
                "runs": len(decided),
                "low": low,
                "high": high,
                "undecided": len(ended) - len(decided),
                "live": len(group) - len(ended),
            }
        )
    return rows


def best_against_rest(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on a sweep's table, with the numbers of seeds in it."""
    told = [row for row in rows if row["runs"]]
    if not told:
        return "No run of this sweep has come far enough to tell."
    parts = [
        f"{row['converged']} of {row['runs']} with {row['init']}"
        for row in sorted(told, key=lambda r: -r["converged"] / r["runs"])
    ]
    so_far = " so far" if any(row.get("live") for row in rows) else ""
    return f"Converged{so_far}: " + ", ".join(parts) + "."
