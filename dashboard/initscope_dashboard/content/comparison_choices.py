"""What can be compared: every run, and every group of runs that differ only in their seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from initscope.config.catalog import init_title
from initscope.config.run_config import changed_fields
from initscope.schema import Outcome
from initscope.store import RunInfo
from initscope_dashboard.content import formatting


def choices(infos: Sequence[RunInfo]) -> dict[str, str]:
    """{selection: title}: groups of a sweep first, then single runs, newest first.

    A selection is what the command line takes: a run id, or ``init=NAME,sweep=ID``. The browser sends titles back: each is unique, and
    none changes while runs go on.
    """
    found: dict[str, str] = {}
    for sweep, init in groups(infos):
        found[f"init={init},sweep={sweep}"] = f"{init_title(init)} · all seeds of sweep {sweep}"
    for info in infos:
        if info.status != "unreadable":
            found[info.run] = f"{formatting.shorten(info.name, 40)} · {info.run.rsplit('-', 1)[-1][-6:]}"
    taken = Counter(found.values())
    return {chosen: title if taken[title] == 1 else f"{title} · {chosen}" for chosen, title in found.items()}


def groups(infos: Sequence[RunInfo]) -> dict[tuple[str, str], list[RunInfo]]:
    """Runs of one sweep with one initialization, where there are at least two."""
    found: dict[tuple[str, str], list[RunInfo]] = {}
    for info in infos:
        sweep = info.config.get("sweep")
        if sweep:
            found.setdefault((str(sweep), info.init), []).append(info)
    return {key: members for key, members in found.items() if len(members) > 1}


RECENT = 60
"""Runs that are looked at for a suggestion."""


def suggested_pair(infos: Sequence[RunInfo]) -> tuple[str, str]:
    """The pair a person most likely means: the newest sweep's worst and best initialization if they differ; else the
    newest run that converged and the newest that did not but differs in initialization only, with all their seeds if
    they belong to a sweep; else the two newest."""
    recent = [info for info in infos if info.status != "unreadable"][:RECENT]
    if group_pair := _extremes(recent, recent[0].config.get("sweep") if recent else None):
        return group_pair
    good = [info for info in recent if info.outcome == Outcome.CONVERGED]
    bad = [info for info in recent if info.outcome in (Outcome.NOT_CONVERGED, Outcome.DIVERGED)]
    pairs = [(b, g) for g in good for b in bad if _differ_in_init_only(b, g)] or [(b, g) for g in good[:1] for b in bad[:1]]
    if pairs:
        b, g = max(pairs, key=lambda pair: min(pair[0].created, pair[1].created))
        return _all_seeds(b, g, infos) or (b.run, g.run)
    newest = [info.run for info in recent[:2]]
    return (newest[-1], newest[0]) if newest else ("", "")


def _extremes(infos: Sequence[RunInfo], sweep: str | None) -> tuple[str, str] | None:
    """(worst, best) group of a sweep, if the two differ."""
    rates = {
        init: sum(info.outcome == Outcome.CONVERGED for info in members) / len(members)
        for (name, init), members in groups(infos).items()
        if name == sweep
    }
    if not sweep or len(rates) < 2:
        return None
    worst, best = min(rates, key=lambda init: (rates[init], init != "default")), max(rates, key=rates.__getitem__)
    return (f"init={worst},sweep={sweep}", f"init={best},sweep={sweep}") if rates[worst] < rates[best] else None


def _all_seeds(b: RunInfo, g: RunInfo, infos: Sequence[RunInfo]) -> tuple[str, str] | None:
    """The worst and the best group of the sweep that two runs belong to, where nothing but the seed varies in their groups."""
    sweep = b.config.get("sweep")
    if not sweep or sweep != g.config.get("sweep"):
        return None
    members = [info for info in infos if info.config.get("sweep") == sweep]
    found = groups(members)
    for one in (b, g):
        seeds = found.get((str(sweep), one.init), [])
        if not seeds or any(changed_fields(one.config, other.config).keys() - {"init_seed"} for other in seeds):
            return None
    return _extremes(members, str(sweep))


def _differ_in_init_only(a: RunInfo, b: RunInfo) -> bool:
    return changed_fields(a.config, b.config).keys() == {"init"}
