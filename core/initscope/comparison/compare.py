"""Did changing it fix it? Two runs, or two groups of runs over seeds, and one verdict with its evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from initscope.comparison.statistics import cohens_h, fisher_exact, newcombe, p_text
from initscope.config.run_config import OPTIONS
from initscope.errors import ConfigError, RunFolderError
from initscope.schema import Outcome, Verdict
from initscope.store import Run, RunInfo

INIT_FIELDS = ("init", "gain", "init_seed")
"""Fields that may differ in a fair comparison of initializations."""
INNOCENT_FIELDS = ("name", "tags", "sweep", "record_every", "checkpoint", "threads")
"""Fields that change no training outcome worth the name."""
SAME_RUN = (*INNOCENT_FIELDS, "stop_when_certain")
"""Fields in which a run that repeats another may differ from it."""
DECIDED = (Outcome.CONVERGED, Outcome.NOT_CONVERGED, Outcome.DIVERGED)
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """The answer of ``compare``. ``converged`` maps a and b to [k, n]; ``interval`` is of the difference of rates b - a."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(a: Sequence[Run], b: Sequence[Run]) -> Comparison:
    """Compare group ``a`` (usually the suspected initialization) with group ``b`` (usually its fix).

    A run that repeats another with the same seeds counts once. Raises ConfigError if a run is on both sides, RunFolderError for one that
    cannot be read.
    """
    if shared := {run.id for run in a} & {run.id for run in b}:
        many = f"{len(shared)} runs, such as {min(shared)}, are" if len(shared) > 1 else f"run {min(shared)} is"
        raise ConfigError(f"{many} on both sides; a comparison needs two groups that share none")
    infos_a, infos_b = [run.info() for run in a], [run.info() for run in b]
    if unreadable := [info for info in (*infos_a, *infos_b) if info.status == "unreadable"]:
        raise RunFolderError(unreadable[0].error or f"run {unreadable[0].run} cannot be read")
    infos_a, infos_b = distinct(infos_a), distinct(infos_b)
    (k_a, n_a), (k_b, n_b) = _count(infos_a), _count(infos_b)
    p_value = fisher_exact(k_a, n_a, k_b, n_b)
    verdict = judge_rates(k_a, n_a, k_b, n_b, p_value)
    changed = changed_between([i.config for i in infos_a], [i.config for i in infos_b])
    unfair = [field for field in changed if field not in INIT_FIELDS]
    uneven = [field for field in mixed_unevenly(infos_a, infos_b) if field not in unfair]
    sides = labels(infos_a, infos_b, changed)
    return Comparison(
        verdict=verdict,
        headline=headline(verdict, *sides, (k_a, n_a), (k_b, n_b), p_value, infos_a + infos_b),
        converged={"a": [k_a, n_a], "b": [k_b, n_b]},
        p_value=p_value,
        interval=list(newcombe(k_a, n_a, k_b, n_b)),
        effect=cohens_h(k_a, n_a, k_b, n_b),
        changed_fields=changed,
        fair=not (unfair or uneven),
        warning=_warning(unfair, uneven),
        layers=gradient_ratios(a, b),
        runs={"a": [run.id for run in a], "b": [run.id for run in b]},
        labels=list(sides),
    )


def distinct(infos: Sequence[RunInfo]) -> list[RunInfo]:
    """Without repetitions: of runs with one config, seeds included, the last that is decided (else the first).

    A seed that was run twice is no second piece of evidence. Runs of loops that tell no seed are all kept.
    """
    kept: dict[Any, RunInfo] = {}
    for info in infos:
        told = "init_seed" in info.config
        key = tuple(repr(info.config.get(field)) for field in OPTIONS if field not in SAME_RUN) if told else info.run
        if key not in kept or _decided(info):
            kept[key] = info
    return list(kept.values())


def _decided(info: RunInfo) -> bool:
    """A run that is live, undecided or failed says nothing about convergence."""
    return info.outcome in DECIDED and not info.live


def _count(infos: Sequence[RunInfo]) -> tuple[int, int]:
    """(converged, decided)."""
    decided = [info for info in infos if _decided(info)]
    return sum(info.outcome == Outcome.CONVERGED for info in decided), len(decided)


def judge_rates(k_a: int, n_a: int, k_b: int, n_b: int, p_value: float) -> Verdict:
    """The verdict for k_a of n_a and k_b of n_b converged.

    A side "trains" if more than half of its runs converge. Where the sides differ, the difference must be unanimous
    (none against all) or significant (Fisher, p < 0.05); else it is undecided.
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


def changed_between(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{field: [value in a, value in b]} for fields whose values differ between the groups; several values as a list."""
    changed = {}
    for field in OPTIONS:
        if field in INNOCENT_FIELDS:
            continue
        values_a, values_b = _distinct(c.get(field) for c in a), _distinct(c.get(field) for c in b)
        if values_a != values_b:
            changed[field] = [_single(values_a), _single(values_b)]
    return changed


def mixed_unevenly(a: Sequence[RunInfo], b: Sequence[RunInfo]) -> list[str]:
    """Fields other than the initialization of which a side mixes several values, in other shares than the other side.

    Five runs of an easy network and one of a hard one are no match for one and five.
    """
    fields = [field for field in OPTIONS if field not in (*INIT_FIELDS, *INNOCENT_FIELDS)]
    shares_a, shares_b = ([_shares(infos, field) for field in fields] for infos in (a, b))
    return [field for field, x, y in zip(fields, shares_a, shares_b, strict=True) if max(len(x), len(y)) > 1 and x != y]


def _shares(infos: Sequence[RunInfo], field: str) -> dict[str, float]:
    counts = Counter(repr(info.config.get(field)) for info in infos if _decided(info))
    return {value: count / counts.total() for value, count in counts.items()}


def _distinct(values: Any) -> list[Any]:
    return sorted({repr(value): value for value in values}.values(), key=repr)


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def labels(a: Sequence[RunInfo], b: Sequence[RunInfo], changed: Mapping[str, list[Any]]) -> tuple[str, str]:
    """What to call the two sides: by initialization if that differs, else by what does, else by name."""
    if "init" in changed:
        return tuple(str(value) if not isinstance(value, list) else "+".join(map(str, value)) for value in changed["init"])  # type: ignore[return-value]
    field = next((name for name in changed if name != "init_seed"), None)
    if field:
        return tuple(f"{field} {value}" for value in changed[field])  # type: ignore[return-value]
    return (a[0].name, b[0].name) if len(a) == len(b) == 1 and a[0].name != b[0].name else ("A", "B")


def headline(
    verdict: Verdict,
    label_a: str,
    label_b: str,
    a: tuple[int, int],
    b: tuple[int, int],
    p_value: float,
    infos: Sequence[RunInfo],
) -> str:
    """One sentence with the number of seeds in it."""
    word = str(verdict).replace("_", " ")
    if not a[1] or not b[1]:
        waiting = [info for info in infos if info.live]
        if waiting:
            return f"{word}: {len(waiting)} of {len(infos)} runs are still going"
        missing = label_a if not a[1] else label_b
        return f"{word}: no run with {missing} has come far enough to tell"
    counts = f"{b[0]} of {b[1]} converge with {label_b}, {a[0]} of {a[1]} with {label_a}"
    silent = sum(not _decided(info) for info in infos)
    left_out = f"; {silent} undecided, failed or unfinished not counted" if silent else ""
    return f"{word}: {counts} ({_how_sure(verdict, (label_a, a[1]), (label_b, b[1]), p_value)}{left_out})"


def _how_sure(verdict: Verdict, a: tuple[str, int], b: tuple[str, int], p_value: float) -> str:
    """The p-value, and what so few seeds are worth; ``a`` and ``b``: (label, seeds)."""
    if a[1] == b[1] == 1:
        return "one seed each: an anecdote, not yet evidence"
    if lone := next((label for label, seeds in (a, b) if seeds == 1), None):
        return f"{p_text(p_value)}; one seed with {lone}: an anecdote"
    luck = verdict in (Verdict.FIXED, Verdict.WORSE) and p_value >= SIGNIFICANT
    return f"{p_text(p_value)}{': too few seeds to rule out luck' if luck else ''}"


def _warning(unfair: Sequence[str], uneven: Sequence[str]) -> str | None:
    parts = []
    if unfair:
        parts.append(f"More than the initialization differs ({', '.join(unfair)}): the outcome may have another cause.")
    if uneven:
        parts.append(f"The sides mix several values of {', '.join(uneven)} in different shares: compare one value at a time.")
    return " ".join(parts) or None


def gradient_ratios(a: Sequence[Run], b: Sequence[Run], metric: str = "grad_norm") -> list[dict[str, Any]]:
    """For every layer both groups have: log10 of the first recorded step's gradient norm, b over a, median over runs.

    None where a gradient is zero or not finite.
    """
    first_a, first_b = _first_step(a, metric), _first_step(b, metric)
    return [
        {"layer": layer, "log10_grad_ratio": _difference(_median_log(first_b[layer]), _median_log(values))}
        for layer, values in first_a.items()
        if layer in first_b
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
