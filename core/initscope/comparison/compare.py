"""Did changing it fix it? Two runs, or two groups of runs over seeds, and one verdict with its evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from initscope.comparison.differences import (
    INIT_FIELDS,
    INNOCENT_FIELDS,
    changed,
    is_own,
    own_config,
    seed_of,
    short,
    things,
)
from initscope.comparison.statistics import cohens_h, fisher_exact, newcombe, p_text
from initscope.config.catalog import model_title
from initscope.config.run_config import OPTIONS
from initscope.errors import ConfigError, RunFolderError
from initscope.outcome import MIN_STEPS, Basis
from initscope.schema import Outcome, Status, Verdict
from initscope.store import Run, RunInfo
from initscope.store.files import number
from initscope.store.layer_names import layer_names

SAME_RUN = (*INNOCENT_FIELDS, "stop_when_certain")
"""Fields in which a run that repeats another may differ from it."""
DECIDED = (Outcome.CONVERGED, Outcome.NOT_CONVERGED, Outcome.DIVERGED)
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """The answer of ``compare``. ``converged`` maps a and b to [k, n]; ``interval`` is of the difference of
    rates b - a.
    """

    verdict: Verdict
    headline: str
    converged: dict[str, list[int]]
    p_value: float
    interval: list[float]
    effect: float
    changed_fields: dict[str, list[Any]]
    fair: bool
    warning: str | None
    layers: list[dict[str, Any]]
    runs: dict[str, list[str]]
    labels: list[str]
    outcome_by: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(a: Sequence[Run], b: Sequence[Run]) -> Comparison:
    """Compare group ``a`` (usually the suspected initialization) with group ``b`` (usually its fix).

    A run that repeats another with the same seeds counts once. Raises ConfigError if a run is on both sides,
    RunFolderError for one that cannot be read.
    """
    if shared := {run.id for run in a} & {run.id for run in b}:
        many = (
            f"{len(shared)} runs, such as {min(shared)}, are" if len(shared) > 1 else f"run {min(shared)} is"
        )
        raise ConfigError(f"{many} on both sides; a comparison needs two groups that share none")
    infos_a, infos_b = [run.info() for run in a], [run.info() for run in b]
    if unreadable := [info for info in (*infos_a, *infos_b) if info.status == "unreadable"]:
        raise RunFolderError(unreadable[0].error or f"run {unreadable[0].run} cannot be read")
    infos_a, infos_b = distinct(infos_a), distinct(infos_b)
    count_a, count_b = _counted(infos_a, infos_b), _counted(infos_b, infos_a)
    (k_a, n_a), (k_b, n_b) = count_a.pair, count_b.pair
    p_value = fisher_exact(k_a, n_a, k_b, n_b)
    verdict = judge_rates(k_a, n_a, k_b, n_b, p_value)
    if p_value >= SIGNIFICANT and any(info.live for info in (*infos_a, *infos_b)):
        verdict = Verdict.UNDECIDED  # the runs still going can turn it
    differ = changed(infos_a, infos_b)
    own = all(map(is_own, (*infos_a, *infos_b)))
    # Of loops of somebody's own one difference is the change that is asked about; from two on it is not known
    # which it was.
    unfair = (
        ([] if things(differ) < 2 else list(differ))
        if own
        else [field for field in differ if field not in INIT_FIELDS]
    )
    uneven = [field for field in mixed_unevenly(infos_a, infos_b) if field not in unfair]
    sides = labels(infos_a, infos_b, differ)
    return Comparison(
        verdict=verdict,
        headline=headline(verdict, *sides, count_a, count_b, p_value, infos_a + infos_b),
        converged={"a": [k_a, n_a], "b": [k_b, n_b]},
        p_value=p_value,
        interval=list(newcombe(k_a, n_a, k_b, n_b)),
        effect=cohens_h(k_a, n_a, k_b, n_b),
        changed_fields=differ,
        fair=not (unfair or uneven),
        warning=_warning(unfair, uneven, own),
        layers=gradient_ratios(a, b),
        runs={"a": [run.id for run in a], "b": [run.id for run in b]},
        labels=list(sides),
        outcome_by=_bases((*infos_a, *infos_b)),
    )


def distinct(infos: Sequence[RunInfo]) -> list[RunInfo]:
    """Without repetitions: of runs with one config, seeds included, the last that is decided (else the
    first).

    A seed that was run twice is no second piece of evidence. Of a loop of somebody's own a run is a seed,
    unless its own configuration names one: runs of one name, one configuration and one seed are then
    repetitions.
    """
    kept: dict[Any, RunInfo] = {}
    for info in infos:
        if info.config.get("init_seed") is not None:
            key: Any = tuple(repr(info.config.get(field)) for field in OPTIONS if field not in SAME_RUN)
        elif is_own(info) and seed_of(info) is not None:
            key = (info.name, repr(sorted(own_config(info).items(), key=lambda item: item[0])))
        else:
            key = info.run
        if key not in kept or decided(info):
            kept[key] = info
    return list(kept.values())


def decided(info: RunInfo) -> bool:
    """A run that is live, undecided or failed says nothing about convergence."""
    return info.outcome in DECIDED and not info.live


@dataclass(frozen=True)
class Count:
    """``converged`` of ``told`` runs of a side; of these, ``within`` so many steps if some only have not
    converged as fast as the other side.
    """

    converged: int
    told: int
    within: int | None = None

    @property
    def pair(self) -> tuple[int, int]:
        return self.converged, self.told


def _counted(infos: Sequence[RunInfo], others: Sequence[RunInfo]) -> Count:
    """How many converged of those that tell.

    A run that went to its end undecided, learning a little, tells something beside one that converged: with
    at least as many steps as any run of the other side needed it has not come as far. It counts as not
    converged within those steps.
    """
    told = [info for info in infos if decided(info)]
    needed = max(
        (_steps(info) for info in others if decided(info) and info.outcome == Outcome.CONVERGED), default=0
    )
    slower = [
        info
        for info in infos
        if info.outcome == Outcome.UNDECIDED
        and info.status == Status.FINISHED
        and info.state.get("outcome_by")
        and _steps(info) >= needed >= MIN_STEPS
    ]
    within = min(map(_steps, slower)) if slower else None
    return Count(sum(info.outcome == Outcome.CONVERGED for info in told), len(told) + len(slower), within)


def _steps(info: RunInfo) -> int:
    return int(number(info.state.get("step")) or 0)


def _bases(infos: Sequence[RunInfo]) -> list[str]:
    """By what the outcomes were decided, each once."""
    return sorted(
        {str(info.state["outcome_by"]) for info in infos if info.state.get("outcome_by") and not info.live}
    )


def judge_rates(k_a: int, n_a: int, k_b: int, n_b: int, p_value: float) -> Verdict:
    """The verdict for k_a of n_a and k_b of n_b converged.

    A side "trains" if more than half of its runs converge. Where the sides differ, the difference must be
    unanimous (none against all) or significant (Fisher, p < 0.05); else it is undecided.
    """
    if not n_a or not n_b:
        return Verdict.UNDECIDED
    rate_a, rate_b = k_a / n_a, k_b / n_b
    clear = p_value < SIGNIFICANT or {rate_a, rate_b} == {0.0, 1.0}
    if (rate_a > 0.5) == (rate_b > 0.5):
        if p_value < SIGNIFICANT and rate_a > 0.5:
            return Verdict.FIXED if rate_b > rate_a else Verdict.WORSE
        return Verdict.NOT_NEEDED if rate_a > 0.5 else Verdict.NOT_FIXED
    if not clear:
        return Verdict.UNDECIDED
    return Verdict.FIXED if rate_b > rate_a else Verdict.WORSE


def mixed_unevenly(a: Sequence[RunInfo], b: Sequence[RunInfo]) -> list[str]:
    """Fields other than the initialization of which a side mixes several values, in other shares than the
    other side.

    Five runs of an easy network and one of a hard one are no match for one and five.
    """
    fields = [field for field in OPTIONS if field not in (*INIT_FIELDS, *INNOCENT_FIELDS)]
    shares_a, shares_b = ([_shares(infos, field) for field in fields] for infos in (a, b))
    return [
        field
        for field, x, y in zip(fields, shares_a, shares_b, strict=True)
        if max(len(x), len(y)) > 1 and x != y
    ]


def _shares(infos: Sequence[RunInfo], field: str) -> dict[str, float]:
    counts = Counter(repr(info.config.get(field)) for info in infos if decided(info))
    return {value: count / counts.total() for value, count in counts.items()}


def labels(a: Sequence[RunInfo], b: Sequence[RunInfo], changed: Mapping[str, list[Any]]) -> tuple[str, str]:
    """What to call the two sides: loops of somebody's own by name; else by initialization if that differs, by
    what does, or by name.
    """
    names = [sorted({info.name for info in side}) for side in (a, b)]
    named = len(names[0]) == len(names[1]) == 1 and names[0] != names[1]
    if named and all(map(is_own, (*a, *b))):
        return names[0][0], names[1][0]
    if "init" in changed:
        inits = [
            str(value) if not isinstance(value, list) else "+".join(map(str, value))
            for value in changed["init"]
        ]
        if "model" in changed:  # another network: an initialization alone would not say what was compared
            networks = [_networks(value) for value in changed["model"]]
            return f"{inits[0]} in {networks[0]}", f"{inits[1]} in {networks[1]}"
        return inits[0], inits[1]
    if "model" in changed:
        return _networks(changed["model"][0]), _networks(changed["model"][1])
    field = next((name for name in changed if name != "init_seed"), None)
    if field:
        return tuple(f"{short(field)} {value}" for value in changed[field])  # type: ignore[return-value]
    return (names[0][0], names[1][0]) if named else ("A", "B")


def _networks(value: Any) -> str:
    return " and ".join(model_title(str(one)) for one in (value if isinstance(value, list) else [value]))


def headline(
    verdict: Verdict, label_a: str, label_b: str, a: Count, b: Count, p_value: float, infos: Sequence[RunInfo]
) -> str:
    """One sentence with the number of seeds in it."""
    word = str(verdict).replace("_", " ")
    waiting = [info for info in infos if info.live]
    if waiting and verdict == Verdict.UNDECIDED:
        counted = f"{_of(b)} converge with {label_b}, {_of(a)} with {label_a}"
        so_far = f"; so far {counted}" if a.told and b.told else ""
        return f"{word}: {len(waiting)} of {len(infos)} runs are still going{so_far}"
    if not a.told or not b.told:
        missing = label_a if not a.told else label_b
        return f"{word}: no run with {missing} has come far enough to tell"
    counts = f"{_of(b)} converge with {label_b}, {_of(a)} with {label_a}"
    within = f" within {max(c.within for c in (a, b) if c.within):,} steps" if a.within or b.within else ""
    bases = [basis for basis in _bases(infos) if basis != Basis.VALIDATION]
    by = f"; by {' and '.join(bases)}" if bases and any(map(is_own, infos)) else ""
    silent = len(infos) - a.told - b.told
    left_out = f"; {silent} undecided, failed or unfinished not counted" if silent else ""
    return (
        f"{word}: {counts}{within} "
        f"({_how_sure(verdict, (label_a, a.told), (label_b, b.told), p_value)}{by}{left_out})"
    )


def _of(count: Count) -> str:
    return f"{count.converged} of {count.told}"


def _how_sure(verdict: Verdict, a: tuple[str, int], b: tuple[str, int], p_value: float) -> str:
    """The p-value, and what so few seeds are worth; ``a`` and ``b``: (label, seeds)."""
    if a[1] == b[1] == 1:
        return "one seed each: an anecdote, not yet evidence"
    if lone := next((label for label, seeds in (a, b) if seeds == 1), None):
        return f"{p_text(p_value)}; one seed with {lone}: an anecdote"
    luck = verdict in (Verdict.FIXED, Verdict.WORSE) and p_value >= SIGNIFICANT
    return f"{p_text(p_value)}{': too few seeds to rule out luck' if luck else ''}"


def _warning(unfair: Sequence[str], uneven: Sequence[str], own: bool = False) -> str | None:
    parts = []
    if unfair:
        names = ", ".join(map(short, unfair))
        parts.append(
            f"Several things differ ({names}): which of them made the difference is not told."
            if own
            else f"More than the initialization differs ({names}): the outcome may have another cause."
        )
    if uneven:
        parts.append(
            f"The sides mix several values of {', '.join(uneven)} in different shares: compare one value at "
            "a time."
        )
    return " ".join(parts) or None


BY_NAME, BY_DEPTH = "name", "relative depth"
SAME_LAYERS = 0.8
"""Share of the larger network's layers that must have a namesake in the other for layers to be paired by
name.
"""


def pair_layers(a: Sequence[str], b: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """(layer of a, layer of b) for every layer that can be compared, and how they were paired: by name where
    the networks have the same layers, else each of the shallower network's with the one as far along in the
    other: names that happen to be shared are not the same layer (the third of three is an output, of thirty
    not).
    """
    shared = [name for name in a if name in set(b)]
    if shared and len(shared) >= SAME_LAYERS * max(len(a), len(b)):
        return [(name, name) for name in shared], BY_NAME
    if not a or not b:
        return [], BY_NAME
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    at = [round(i * (len(many) - 1) / max(1, len(few) - 1)) for i in range(len(few))]
    pairs = [(few[i], many[j]) for i, j in enumerate(at)]
    return (pairs if few is a else [(y, x) for x, y in pairs]), BY_DEPTH


def gradient_ratios(a: Sequence[Run], b: Sequence[Run], metric: str = "grad_norm") -> list[dict[str, Any]]:
    """For every pair of layers: log10 of the first recorded step's gradient norm, b over a, median over runs;
    ``layer_b`` where it has another name. ``called``: the pair for a person, "layer 0 (Linear 64 to 16)".

    None where a gradient is zero or not finite.
    """
    first_a, first_b = _first_step(a, metric), _first_step(b, metric)
    pairs, _ = pair_layers(list(first_a), list(first_b))
    called_a, called_b = (
        layer_names(first, runs[0].state() if runs else {}) for first, runs in ((first_a, a), (first_b, b))
    )
    return [
        {
            "layer": x,
            **({"layer_b": y} if x != y else {}),
            "called": " against ".join(dict.fromkeys((called_a[x], called_b[y]))),
            "log10_grad_ratio": _difference(_median_log(first_b[y]), _median_log(first_a[x])),
        }
        for x, y in pairs
    ]


def _first_step(runs: Sequence[Run], metric: str) -> dict[str, list[float | None]]:
    """{layer: its first recorded values, one a run}, layers in order of depth."""
    found: dict[str, list[float | None]] = {}
    for run in runs:
        first = run.head("layers", ["step", "layer", "depth", metric]).sort_by("depth")
        if first.num_rows:
            for layer, value in zip(first["layer"].to_pylist(), first[metric].to_pylist(), strict=True):
                found.setdefault(layer, []).append(value)
    return found


def _median_log(values: Sequence[float | None]) -> float | None:
    logs = sorted(math.log10(v) for v in values if v is not None and math.isfinite(v) and v > 0)
    if len(logs) < len(values) or not logs:
        return None
    middle = len(logs) // 2
    return logs[middle] if len(logs) % 2 else (logs[middle - 1] + logs[middle]) / 2


def _difference(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else b - a
