"""What can be compared: every run, and every group of runs that differ in their seed only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from initscope.comparison.compare import SAME_RUN, decided
from initscope.comparison.differences import is_own
from initscope.config.catalog import init_title
from initscope.config.run_config import OPTIONS, changed_fields
from initscope.schema import Outcome
from initscope.store import RunInfo
from initscope_dashboard.content import formatting

_VARIES = tuple(name for name in OPTIONS if name not in (*SAME_RUN, "init", "init_seed"))
"""Fields whose values part the runs of one sweep and one initialization into groups."""


class Group(NamedTuple):
    """Runs that differ in nothing but their seed. ``frame``: what two groups share that can be compared:
    their sweep and its varied fields.
    """

    selection: str
    title: str
    frame: tuple
    members: tuple[RunInfo, ...]

    @property
    def rate(self) -> float | None:
        """Share that converged of those that are decided; None if none is."""
        told = [
            info
            for info in self.members
            if info.outcome in (Outcome.CONVERGED, Outcome.NOT_CONVERGED, Outcome.DIVERGED)
        ]
        return sum(info.outcome == Outcome.CONVERGED for info in told) / len(told) if told else None


def choices(infos: Sequence[RunInfo]) -> dict[str, str]:
    """{selection: title}: groups of a sweep and of a name first, then single runs, newest first.

    A selection is what the command line takes: a run id, ``init=NAME,sweep=ID`` or ``name=NAME``. The browser
    sends titles back: each is unique, and none changes while runs go on.
    """
    found = {group.selection: group.title for group in groups(infos)}
    for info in infos:
        if info.status != "unreadable":
            found[info.run] = f"{formatting.shorten(info.name, 40)} · {info.run.rsplit('-', 1)[-1][-6:]}"
    taken = Counter(found.values())
    return {chosen: title if taken[title] == 1 else f"{title} · {chosen}" for chosen, title in found.items()}


def groups(infos: Sequence[RunInfo]) -> list[Group]:
    """Groups of at least two runs: those of one sweep and one initialization, cell by cell where the sweep
    varies something else besides, and loops of somebody's own by name and by tag.
    """
    return [*_of_sweeps(infos), *_own(infos)]


def _of_sweeps(infos: Sequence[RunInfo]) -> list[Group]:
    sweeps: dict[str, list[RunInfo]] = {}
    for info in infos:
        if info.config.get("sweep"):
            sweeps.setdefault(str(info.config["sweep"]), []).append(info)
    found = []
    for sweep, members in sweeps.items():
        varied = [field for field in _VARIES if len({repr(info.config.get(field)) for info in members}) > 1]
        cells: dict[tuple, list[RunInfo]] = {}
        for info in members:
            cells.setdefault((info.init, *(repr(info.config.get(field)) for field in varied)), []).append(
                info
            )
        for (init, *_), cell in cells.items():
            if len(cell) > 1:
                values = [(field, cell[0].config.get(field)) for field in varied]
                terms = "".join(f",{field}={_typed(value)}" for field, value in values)
                words = "".join(
                    f", {OPTIONS[field].title.lower()} {_typed(value)}" for field, value in values
                )
                frame = (sweep, *(repr(value) for _, value in values))
                found.append(
                    Group(
                        f"init={init},sweep={sweep}{terms}",
                        f"{init_title(init)}{words} · all seeds of sweep {sweep}",
                        frame,
                        tuple(cell),
                    )
                )
    return found


def _typed(value: Any) -> str:
    """A value as the command line takes it."""
    return (
        ""
        if value is None
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _own(infos: Sequence[RunInfo]) -> list[Group]:
    """Loops of somebody's own with one name or one tag. Only names that are said once of other runs, too,
    would name more than these.
    """
    own = [info for info in infos if is_own(info)]
    by: dict[tuple[str, str], list[RunInfo]] = {}
    for info in own:
        by.setdefault(("name", info.name), []).append(info)
        for tag in info.tags:
            by.setdefault(("tags", tag), []).append(info)
    titles = {"name": "all runs named {}", "tags": "all runs tagged {}"}
    return [
        Group(
            f"{field}={value}",
            titles[field].format(formatting.shorten(value, 48)),
            ("own", field),
            tuple(members),
        )
        for (field, value), members in by.items()
        if len(members) > 1
    ]


RECENT = 60
"""Runs that are looked at for a suggestion."""


def suggested_pair(infos: Sequence[RunInfo]) -> tuple[str, str]:
    """The pair a person most likely means: the newest sweep's (or the newest own runs') worst and best group
    if they differ; else the newest run that converged and the newest that did not but differs in
    initialization only, with all their seeds if they belong to a sweep; else the two newest.
    """
    recent = [info for info in infos if info.status != "unreadable"][:RECENT]
    if not recent:
        return "", ""
    if is_own(recent[0]):
        if (pair := _own_pair(recent)) is not None:
            return pair
    elif group_pair := _extremes(recent, recent[0].config.get("sweep")):
        return group_pair
    good = [info for info in recent if info.outcome == Outcome.CONVERGED]
    bad = [info for info in recent if info.outcome in (Outcome.NOT_CONVERGED, Outcome.DIVERGED)]
    pairs = [(b, g) for g in good for b in bad if _differ_in_init_only(b, g)] or [
        (b, g) for g in good[:1] for b in bad[:1]
    ]
    if pairs:
        b, g = max(pairs, key=lambda pair: min(pair[0].created, pair[1].created))
        return _all_seeds(b, g, infos) or (b.run, g.run)
    newest = [info.run for info in recent[:2]]
    return (newest[-1], newest[0]) if newest else ("", "")


def _extremes(infos: Sequence[RunInfo], sweep: str | None) -> tuple[str, str] | None:
    """(worst, best) group of a sweep, if the two differ: of a sweep that varies something else besides, the
    first frame where they do.
    """
    if not sweep:
        return None
    frames: dict[tuple, list[Group]] = {}
    for group in _of_sweeps(infos):
        if group.frame[0] == sweep:
            frames.setdefault(group.frame, []).append(group)
    for found in frames.values():
        told = [(group.rate, group) for group in found if group.rate is not None]
        if len(told) < 2:
            continue
        worst = min(told, key=lambda pair: (pair[0], pair[1].members[0].init != "default"))
        best = max(told, key=lambda pair: pair[0])
        if worst[0] < best[0]:
            return worst[1].selection, best[1].selection
    return None


def _own_pair(recent: Sequence[RunInfo]) -> tuple[str, str] | None:
    """The two names of own runs of one network that were used last, groups before single runs; the one that
    was there first is A, unless it is the one that trains.
    """
    networks: dict[str, dict[str, list[RunInfo]]] = {}
    for info in recent:
        if is_own(info):
            networks.setdefault(str(info.config.get("model")), {}).setdefault(info.name, []).append(info)
    repeated = ({name: runs for name, runs in sides.items() if len(runs) > 1} for sides in networks.values())
    told = (
        {name: runs for name, runs in sides.items() if any(decided(info) for info in runs)}
        for sides in networks.values()
    )
    for sides in (*repeated, *told):  # groups are evidence, single runs an anecdote
        if len(sides) > 1:
            newer, older = list(sides)[:2]
            pair = [f"name={name}" if len(sides[name]) > 1 else sides[name][0].run for name in (older, newer)]
            rates = [
                sum(info.outcome == Outcome.CONVERGED for info in sides[name]) / len(sides[name])
                for name in (older, newer)
            ]
            return (pair[1], pair[0]) if rates[0] > rates[1] else (pair[0], pair[1])
    return None


def _all_seeds(b: RunInfo, g: RunInfo, infos: Sequence[RunInfo]) -> tuple[str, str] | None:
    """The worst and the best group of the sweep that two runs belong to, where nothing but the seed varies in
    their groups.
    """
    sweep = b.config.get("sweep")
    if not sweep or sweep != g.config.get("sweep"):
        return None
    members = [info for info in infos if info.config.get("sweep") == sweep]
    for one in (b, g):
        seeds = [info for info in members if info.init == one.init]
        if len(seeds) < 2 or any(
            changed_fields(one.config, other.config).keys() - {"init_seed"} for other in seeds
        ):
            return None
    return _extremes(members, str(sweep))


def _differ_in_init_only(a: RunInfo, b: RunInfo) -> bool:
    return changed_fields(a.config, b.config).keys() == {"init"}
