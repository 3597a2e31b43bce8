"""What differs between two groups of runs: configuration fields, a loop's own configuration, and what was
recorded of the loop anyway.

A field is named ``learning_rate`` (the project's own), ``own.lr`` (``Recorder(config={"lr": ...})``) or
``recorded.optimizer``.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from initscope.config.run_config import OPTIONS
from initscope.store import RunInfo
from initscope.store.files import number, optimizer_setting

INIT_FIELDS = ("init", "gain", "init_seed")
"""Fields that may differ in a fair comparison of initializations."""
INNOCENT_FIELDS = ("name", "tags", "sweep", "record_every", "checkpoint", "threads")
"""Fields that change no training outcome worth the name."""
OWN, RECORDED = "own.", "recorded."
SEEDS = ("seed", "init_seed", "random_seed", "manual_seed", "torch_seed", "data_seed", "seed_everything")
"""Keys of an own configuration that hold a seed."""
SAME_SCALE = 0.15
"""Weights whose size differs by less than this share began alike: seeds differ by as much."""
_LOSSES = {
    "NllLoss": "cross-entropy",
    "MseLoss": "mean squared error",
    "L1Loss": "mean absolute error",
    "SmoothL1Loss": "smooth L1",
    "HuberLoss": "Huber",
    "BinaryCrossEntropy": "binary cross-entropy",
    "KlDiv": "Kullback-Leibler divergence",
}


def is_own(info: RunInfo) -> bool:
    """Whether the run comes from a loop of somebody's own."""
    return info.state.get("source") == "recorder"


def own_config(info: RunInfo) -> dict[str, Any]:
    """What a loop told of its configuration, nested names joined by dots; empty where it told nothing."""
    found = info.config.get("own")
    return dict(_flat(found)) if isinstance(found, Mapping) else {}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def seed_of(info: RunInfo) -> Any:
    """The seed that tells a run from its repetitions: the config's, or what an own configuration calls one;
    None if nobody told it.
    """
    if info.config.get("init_seed") is not None:
        return info.config["init_seed"]
    seeds = {key: value for key, value in own_config(info).items() if is_seed(key)}
    return tuple(sorted((key, repr(value)) for key, value in seeds.items())) or None


def is_seed(key: str) -> bool:
    return key.rpartition(".")[2].lower() in SEEDS


def recorded(info: RunInfo) -> dict[str, Any]:
    """What was recorded of a loop whatever it told: model, optimizer and its settings, batch, inputs,
    parameters, activations, loss, weights.
    """
    facts = info.state.get("facts")
    facts = facts if isinstance(facts, Mapping) else {}
    found: dict[str, Any] = {"model": info.config.get("model"), "optimizer": facts.get("optimizer")}
    for name, key in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("momentum", "momentum")):
        found[f"optimizer.{name}"] = optimizer_setting(facts, key)
    found |= {key: facts.get(key) for key in ("batch_size", "input_shape", "parameters")}
    if isinstance(activations := facts.get("activations"), Mapping) and activations:
        found["activations"] = ", ".join(
            f"{name} ×{count}" if count > 1 else str(name)
            for name, count in sorted(Counter(map(str, activations.values())).items())
        )
    if (loss := _loss(facts.get("loss"))) is not None:
        found["loss"] = loss
    if (gain := _gain(facts.get("scales"))) is not None:
        found["weights"] = gain
    return {key: value for key, value in found.items() if value is not None}


def _loss(facts: Any) -> str | None:
    facts = facts if isinstance(facts, Mapping) else {}
    if facts.get("name"):
        return str(facts["name"])
    chain = facts.get("chain")
    if not isinstance(chain, list) or not chain:
        return None
    known = next(
        (title for step in chain for word, title in _LOSSES.items() if str(step).startswith(word)), None
    )
    return known or " of ".join(map(str, chain[:3]))


def _gain(scales: Any) -> float | None:
    """The median layer's weight std times sqrt(fan_in) before training."""
    rows = scales.values() if isinstance(scales, Mapping) else ()
    gains = [
        gain
        for row in rows
        if isinstance(row, Mapping) and (gain := number(row.get("gain"))) is not None and math.isfinite(gain)
    ]
    return statistics.median(gains) if gains else None


def changed_between(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{field: [value in a, value in b]} for the project's own fields whose values differ between the groups;
    several values as a list.
    """
    return _changed(a, b, [field for field in OPTIONS if field not in INNOCENT_FIELDS])


def changed(a: Sequence[RunInfo], b: Sequence[RunInfo]) -> dict[str, list[Any]]:
    """The same of two groups of runs, with what loops of somebody's own told and what was recorded of them.
    Seeds of own loops are left out: that a group has several is what it is for.
    """
    if not any(map(is_own, (*a, *b))):
        return changed_between([info.config for info in a], [info.config for info in b])
    if not all(
        map(is_own, (*a, *b))
    ):  # a loop of one's own against a run of the trainer: their fields are not the same things
        return changed_between([info.config for info in a], [info.config for info in b])
    told = [
        [{OWN + key: value for key, value in own_config(info).items() if not is_seed(key)} for info in side]
        for side in (a, b)
    ]
    seen = [
        [{RECORDED + key: value for key, value in recorded(info).items()} for info in side] for side in (a, b)
    ]
    found = _changed(told[0], told[1], _keys(told)) | _changed(seen[0], seen[1], _keys(seen))
    sizes = found.get(RECORDED + "weights")
    if sizes is not None:
        middles = [statistics.median(value) if isinstance(value, list) else value for value in sizes]
        if (
            None in middles
            or (min(middles) > 0 and max(middles) / min(middles) < 1 + SAME_SCALE)
            or max(middles) == 0
        ):
            del found[RECORDED + "weights"]
        else:
            found[RECORDED + "weights"] = [float(f"{middle:.2g}") for middle in middles]
    return found


def _keys(sides: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(key for side in sides for values in side for key in values))


def _changed(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], fields: Iterable[str]
) -> dict[str, list[Any]]:
    found = {}
    for field in fields:
        values_a, values_b = _distinct(c.get(field) for c in a), _distinct(c.get(field) for c in b)
        if values_a != values_b:
            found[field] = [_single(values_a), _single(values_b)]
    return found


def _distinct(values: Any) -> list[Any]:
    return sorted({repr(value): value for value in values}.values(), key=repr)


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


_RECORDED_TITLES: dict[str, str] = {
    "model": "Model",
    "optimizer": "Optimizer",
    "batch_size": "Batch size",
    "input_shape": "Input shape",
    "parameters": "Parameters",
    "activations": "Activations",
    "loss": "Loss",
    "weights": "Weights at the start, std × √fan_in",
}


def title(field: str) -> str:
    """What a person calls a field: "Learning rate", "lr", "Optimizer, weight decay"."""
    if field.startswith(OWN):
        return field.removeprefix(OWN)
    if field.startswith(RECORDED):
        name = field.removeprefix(RECORDED)
        return _RECORDED_TITLES.get(name) or "Optimizer, " + name.removeprefix("optimizer.").replace("_", " ")
    return OPTIONS[field].title if field in OPTIONS else field


def short(field: str) -> str:
    """A field in a sentence: "learning_rate", "lr", "weights"."""
    return field.removeprefix(OWN).removeprefix(RECORDED)


_NETWORK = ("model", "parameters", "activations", "weights")


def things(differ: Iterable[str]) -> int:
    """How many things differ between loops of somebody's own: layers bring parameters and activations along,
    and what a configuration calls ``lr`` is recorded as the optimizer's, too.
    """
    fields = list(differ)
    told = sum(field.startswith(OWN) for field in fields)
    seen = {
        "network" if name in _NETWORK else name.partition(".")[0]
        for field in fields
        if field.startswith(RECORDED) and (name := field.removeprefix(RECORDED))
    }
    return max(told, len(seen)) if all(field.startswith((OWN, RECORDED)) for field in fields) else len(fields)
