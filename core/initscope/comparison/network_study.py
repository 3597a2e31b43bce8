"""The story's claim about depth, tested: which networks train with PyTorch's weights, which need better ones,
and what shortcuts do.

The story says: LeNet and AlexNet train without care, VGG and GoogLeNet need initialization, ResNet solved
depth. A sweep over networks holds the runs; here it becomes one row a network, one verdict a claim, and one
sentence. A network counts as training if more than half of its decided seeds converged, as in a comparison.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from initscope.comparison import sweep
from initscope.config import catalog
from initscope.config.run_config import RunConfig, quick
from initscope.store import RunInfo

INITS = ("default", "kaiming_normal")
SEEDS = 3


class Network(NamedTuple):
    """What tells networks of a sweep apart: the fields of ``sweep.NETWORK``."""

    model: str
    width: float
    batch_norm: bool

    @property
    def title(self) -> str:
        """'VGG16', 'ResNet-34 without batch norm': what differs from the paper's network is said, the width
        is not.
        """
        title, usual = catalog.model_title(self.model), catalog.own_batch_norm(self.model)
        return (
            title
            if self.batch_norm == usual
            else f"{title} {'with' if self.batch_norm else 'without'} batch norm"
        )


STUDY = (
    Network("lenet", 1.0, False),
    Network("alexnet", 0.25, False),
    Network("vgg11", 0.25, False),
    Network("vgg16", 0.25, False),
    Network("vgg19", 0.25, False),
    Network("googlenet", 0.25, False),
    Network("resnet18", 0.25, True),
    Network("resnet34", 0.25, True),
    Network("plain34", 0.25, True),
    Network("resnet34", 0.25, False),
    Network("plain34", 0.25, False),
)
"""The networks of the story in its order, LeNet-5 at its own size and the others at a quarter of theirs; and
two controls of ResNet-34: without its shortcuts, and without batch norm.
"""


def base() -> RunConfig:
    """What the study's runs share: the quick preset, a layer row every tenth step, stopped when the outcome
    is certain.
    """
    return quick().replace(stop_when_certain=True, record_every=10)


def plan(
    name: str = "", members: Sequence[RunInfo] = (), seeds: int = SEEDS, slots: int = 1
) -> list[RunConfig]:
    """Every config of a sweep over networks, a seed after the other: that of ``members`` named ``name``, or
    the study.

    Of a sweep that is there, its own networks are run with its own settings. Raises ConfigError.
    """
    study = sweep.name_of(base(), networks=True)
    own = not members or name == study
    start = base() if own else RunConfig.from_dict(members[0].config)
    networks = STUDY if own else tuple(dict.fromkeys(network_of(info) for info in members))
    configs = [
        config
        for network in networks
        for config in sweep.plan(
            start.replace(init_seed=0, **network._asdict()), INITS, seeds, study if own else name, slots=slots
        )
    ]
    return sorted(configs, key=lambda config: config.init_seed)


def network_of(info: RunInfo) -> Network:
    """The network that a run trains."""
    values: dict[str, Any] = {field: info.config.get(field) for field in Network._fields}
    return Network(**values)


def over_networks(members: Iterable[RunInfo]) -> bool:
    """Whether a sweep's runs train several networks. VGGs of several depths are one network along an axis:
    they belong on a map.
    """

    def family(model: str) -> str:
        return "vgg" if model.startswith("vgg") else model

    return (
        len({(family(str(info.config.get("model"))), info.config.get("batch_norm")) for info in members}) > 1
    )


def sweeps(infos: Iterable[RunInfo]) -> list[str]:
    """Names of the sweeps over several networks, in the order of the runs."""
    members: dict[str, list[RunInfo]] = {}
    for info in infos:
        if name := info.config.get("sweep"):
            members.setdefault(str(name), []).append(info)
    return [name for name, runs in members.items() if over_networks(runs)]


def rows(members: Iterable[RunInfo]) -> list[dict[str, Any]]:
    """``sweep.table`` by initialization and network, in the story's order; ``network`` is the ``Network``,
    ``label`` its name.
    """
    found = sweep.table(members, ("init", *sweep.NETWORK))
    for row in found:
        row["network"] = Network(*(row[field] for field in Network._fields))
    order = list(catalog.MODELS)

    def place(row: Mapping[str, Any]) -> tuple:
        network = row["network"]
        known = order.index(network.model) if network.model in order else len(order)
        control = network.batch_norm != catalog.own_batch_norm(network.model)
        return control, known, network.width, row["init"] not in INITS, row["init"]

    found.sort(key=place)
    titles = [network.title for network in dict.fromkeys(row["network"] for row in found)]
    for row in found:
        network = row["network"]
        row["label"] = (
            network.title if titles.count(network.title) == 1 else f"{network.title}, width {network.width:g}"
        )
    return found


# -- verdicts


@dataclass(frozen=True)
class Finding:
    """One claim of the story and what became of it: ``holds`` is None as long as the runs do not tell."""

    claim: str
    holds: bool | None
    text: str


Counts = dict[tuple[str, str], tuple[int, int]]
"""(label, initialization) to (converged, decided) seeds."""


def trains(count: tuple[int, int] | None) -> bool | None:
    """Whether more than half of the decided seeds converged; None if none is decided."""
    return None if count is None or not count[1] else 2 * count[0] > count[1]


def counts(table: Iterable[Mapping[str, Any]]) -> Counts:
    return {(row["label"], row["init"]): (row["converged"], row["runs"]) for row in table}


def findings(table: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The story's three claims against ``rows``."""
    told = counts(table)
    networks: dict[str, Network] = {row["label"]: row["network"] for row in table}

    def those(*names: str) -> list[str]:
        return [
            label
            for label, n in networks.items()
            if n.model.startswith(names) and n.batch_norm == catalog.own_batch_norm(n.model)
        ]

    return [
        _without_care(told, those("lenet", "alexnet")),
        _need_initialization(told, those("vgg", "googlenet")),
        _depth_solved(told, those("resnet"), networks),
    ]


def _without_care(told: Counts, labels: list[str]) -> Finding:
    claim = "LeNet and AlexNet train without care"
    answers = [trains(told.get((label, "default"))) for label in labels]
    return Finding(claim, _all(answers), f"with default weights {_counted(told, labels, 'default')} converge")


def _need_initialization(told: Counts, labels: list[str]) -> Finding:
    """A network needs initialization if it does not train with PyTorch's weights and does with Kaiming's."""
    claim = "VGG and GoogLeNet need initialization"
    answers = []
    for label in labels:
        default, kaiming = (trains(told.get((label, init))) for init in INITS)
        answers.append(None if default is None or kaiming is None else kaiming and not default)
    split = [
        [label for label, answer in zip(labels, answers, strict=True) if answer is value]
        for value in (True, False)
    ]
    where = f"it is so for {_list(split[0])}, not for {_list(split[1])}; " if all(split) else ""
    text = (
        f"{where}with default weights {_counted(told, labels, 'default')} converge, with Kaiming's "
        f"{_counted(told, labels, 'kaiming_normal')}"
    )
    return Finding(claim, _all(answers), text)


def _depth_solved(told: Counts, labels: list[str], networks: Mapping[str, Network]) -> Finding:
    """Every ResNet must train, and somewhere the same network must not train without its shortcuts: else it
    was not they.
    """
    answers = [trains(told.get((label, "default"))) for label in labels]
    parts, decisive = [f"with default weights {_counted(told, labels, 'default')} converge"], []
    for norm in (True, False):
        found = {
            n.model: told.get((label, "default")) for label, n in networks.items() if n.batch_norm == norm
        }
        residual, plain = found.get("resnet34"), found.get("plain34")
        if trains(residual) is None or trains(plain) is None:
            continue
        decisive.append(bool(trains(residual) and not trains(plain)))
        where = f"{'with' if norm else 'without'} batch norm"
        if decisive[-1]:
            parts.append(
                f"{where} the shortcuts decide: of 34 layers {_of(residual)} with them, {_of(plain)} without"
            )
        elif trains(plain):
            parts.append(f"{where} 34 layers train without shortcuts too ({_of(plain)})")
        else:
            parts.append(
                f"{where} 34 layers train neither with shortcuts ({_of(residual)}) nor without ({_of(plain)})"
            )
    # One control is enough to say yes; only both can say no.
    control = True if True in decisive else False if len(decisive) == 2 else None
    return Finding("ResNet solved depth", _all([*answers, control]) if labels else None, "; ".join(parts))


def _all(answers: Sequence[bool | None]) -> bool | None:
    """False as soon as one network contradicts, True if all agree, None while something is missing."""
    if False in answers:
        return False
    return True if answers and None not in answers else None


def _of(count: tuple[int, int] | None) -> str:
    return "none yet" if not count or not count[1] else f"{count[0]} of {count[1]}"


def _counted(told: Counts, labels: Sequence[str], init: str) -> str:
    return ", ".join(f"{label} {_of(told.get((label, init)))}" for label in labels) or "no run yet"


def sentence(table: Sequence[Mapping[str, Any]]) -> str:
    """What the runs say, in one sentence with the number of seeds in it."""
    told = counts(table)
    labels = list(dict.fromkeys(row["label"] for row in table))
    default = {label: trains(told.get((label, "default"))) for label in labels}
    decided = [label for label in labels if default[label] is not None]
    if not decided:
        return "No network has come far enough to tell."
    lost = [label for label in decided if not default[label]]
    saved = [label for label in lost if trains(told.get((label, "kaiming_normal")))]
    unsaved = [label for label in lost if trains(told.get((label, "kaiming_normal"))) is False]
    said = f"{len(decided) - len(lost)} of {len(decided)} networks train with PyTorch's default weights"
    if saved:
        said += f"; Kaiming weights rescue {_list(saved)}" + (f", not {_list(unsaved)}" if unsaved else "")
    elif unsaved:
        said += f"; Kaiming weights do not rescue {_list(unsaved)}"
    if any(row.get("live") for row in table):
        said = f"So far {said}"
    seeds = {count[1] for count in told.values() if count[1]}
    return f"{said} ({_seeds(min(seeds), max(seeds))} each)."


def _seeds(low: int, high: int) -> str:
    return f"{low} to {high} seeds" if low < high else f"{low} seed" + ("s" if low > 1 else "")


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
