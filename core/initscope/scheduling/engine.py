"""Where queued runs train: in processes of this machine, or as tasks of a Ray cluster.

The launcher has three verbs, ``submit``, ``stop`` and ``state``, and all three only read and write the folder
of runs. What works its queue off is an ``Engine``; the supervisor alone knows that there is more than one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from initscope.errors import ConfigError, choose_from
from initscope.store import Run

ENGINES = {"local": "This machine", "ray": "Ray cluster"}
RAY = "ray==2.60.0"
"""The version that the tests pass with."""


@dataclass(frozen=True)
class State:
    """What is known of a queue: the engine, its slots (processor threads it carries at once) and how many are
    free, None while no supervisor has told; runs that wait and that train; ``trouble``: what keeps the engine
    from working, in one line.
    """

    engine: str
    slots: int | None
    free: int | None
    waiting: int
    running: int
    trouble: str = ""


class Engine(Protocol):
    """Carries runs for the supervisor, which holds the folder's lock and asks all of this from one thread."""

    name: str
    address: str
    """Of its cluster, as ``choose`` gives it."""
    restarts: int
    """How often in a row a run whose process is lost is queued again, to go on from its checkpoint, without
    getting any further.
    """

    def open(self) -> None:
        """Load or reach what it works with. Raises EngineTrouble."""

    def close(self) -> None:
        """Let go of it."""

    def slots(self) -> int:
        """Threads that it carries at once."""

    def threads_of(self, config: Mapping[str, Any]) -> int:
        """Threads that a run with this config takes of them."""

    def unmet_requirement(self, config: Mapping[str, Any]) -> str:
        """What a run needs that is nowhere to be had at present; empty if it only has to wait for its
        turn.
        """

    def fits(self, config: Mapping[str, Any], busy: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run fits in beside those with the configs ``busy``."""

    def start(self, run: Run) -> None:
        """Begin the run, or hand it over to who will. Raises EngineTrouble."""

    def ended(self) -> Iterator[tuple[Run, str]]:
        """The runs whose processes are over since the last call, and how: right only for one that has written
        no end.
        """

    def wait(self, seconds: float) -> None:
        """Until so much later, or until a run's process is over, where that can be known at once."""


def choose(name: str, current: tuple[str, str] = ("local", "")) -> tuple[str, str]:
    """(engine, address of its cluster): the one named, else ``INITSCOPE_ENGINE``, else the ``current`` one of
    the folder.

    Raises ConfigError for one that does not exist or is not installed.
    """
    name = name or os.environ.get("INITSCOPE_ENGINE", "").strip() or current[0]
    if name not in ENGINES:
        raise ConfigError(choose_from("engine", name, ENGINES))
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            f"engine ray needs Ray, which is not installed: pip install {RAY}; available without it: local"
        )
    address = os.environ.get("RAY_ADDRESS", "").strip() or (current[1] if current[0] == name else "")
    return name, address if name == "ray" else ""


OWN = ("", "local")
"""Addresses that stand for a cluster on this machine which lives as long as its supervisor."""


def here(address: str) -> bool:
    """Whether all nodes of the cluster at ``address`` are sure to be on this machine."""
    return address in OWN or address.startswith(("127.", "localhost:"))


def engine(name: str, address: str = "") -> Engine:
    """A new engine, not opened yet; ``address`` is a Ray cluster's, empty for one of its own on this
    machine.
    """
    if name == "ray":
        from initscope.scheduling.engines.ray_cluster import Cluster

        return Cluster(address)
    from initscope.scheduling.engines.local import Local

    return Local()
