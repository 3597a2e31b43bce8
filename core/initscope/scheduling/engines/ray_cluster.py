"""Runs as tasks of a Ray cluster: each asks for its cores, memory and GPUs, and Ray finds the node.

Ray carries no state of ours. What waits is in the queue on disk, what trains says so in its folder and holds
its claim there; a run whose node, driver or head is lost is queued again and goes on from its checkpoint. All
nodes see the folder of runs under one path.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from initscope.config import factory
from initscope.config.run_config import OPTIONS, RunConfig
from initscope.errors import ConfigError, EngineTrouble, one_line
from initscope.resources import limits
from initscope.resources.memory import estimate, size
from initscope.resources.slots import processes_of, slots, threads_of
from initscope.scheduling.engine import OWN, here
from initscope.store import Run

LOOK_SECONDS = 1.0
"""How often the cluster is asked for its nodes."""
CONNECT_SECONDS = 5.0
OBJECT_STORE_BYTES = 100_000_000
"""Runs go through the file system: Ray's own store stays all but empty."""
SIZED = tuple(name for name in OPTIONS if name not in ("name", "tags", "sweep", "init_seed", "data_seed"))
"""Fields that may decide what a run takes; without those in which the runs of a sweep differ, thousands of
them are a few estimates.
"""
PASSED_ON = ("INITSCOPE_DATA", *limits.SETTINGS)
"""Settings of this machine that hold for a run wherever it trains."""


class Cluster:
    """Hands each run to Ray as one task. ``address`` as in ``RAY_ADDRESS``; empty: a cluster of its own with
    this machine's slots.
    """

    name = "ray"
    restarts = 3

    def __init__(self, address: str = ""):
        self.address = address
        self._tasks: dict[Any, Run] = {}
        self._looked = -LOOK_SECONDS
        self._take_note([])

    def open(self) -> None:
        _check_reachable(self.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if here(self.address):
            os.environ.setdefault(
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
            )  # else Ray takes the machine's outer address for 127.0.0.1
        import ray

        own: dict[str, Any] = {
            "num_cpus": slots(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
        try:
            with self._reporting():
                if self.address in OWN:
                    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **own)
                else:
                    ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (RuntimeError, OSError, ValueError) as error:
            raise EngineTrouble(
                f"engine ray can neither start nor join a cluster here ({one_line(str(error))}); mend that, "
                "or use --engine local"
            ) from error
        self._look()

    def close(self) -> None:
        import ray

        ray.shutdown()

    def slots(self) -> int:
        self._look()
        return int(sum(node.get("CPU", 0) for node in self._nodes))

    def threads_of(self, config: Mapping[str, Any]) -> int:
        return threads_of(config, self._widest)

    def unmet_requirement(self, config: Mapping[str, Any]) -> str:
        self._look()
        needed = self._needed(config)
        if any(all(node.get(kind, 0) >= amount for kind, amount in needed.items()) for node in self._nodes):
            return ""
        cores = f"{needed['CPU']:g} core{'s' if needed['CPU'] > 1 else ''}"
        gpus = [f"{needed['GPU']:g} GPU"] if needed["GPU"] else []
        return f"a node with {', '.join([cores, *gpus])} and {size(needed['memory'])} of memory"

    def fits(self, config: Mapping[str, Any], busy: Sequence[Mapping[str, Any]]) -> bool:
        self._look()
        together = [self._needed(one) for one in (*busy, config)]
        return all(
            sum(one[kind] for one in together) <= sum(node.get(kind, 0) for node in self._nodes)
            for kind in ("CPU", "GPU", "memory")
        )

    def start(self, run: Run) -> None:
        import ray

        needed = self._needed(run.info().config)
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # No retries of Ray's: a lost run goes through the queue on disk, which also survives this driver and
        # the head.
        options = {
            "num_cpus": needed["CPU"],
            "num_gpus": needed["GPU"],
            "memory": needed["memory"],
            "max_retries": 0,
            "name": run.id,
        }
        with self._reporting():
            task = ray.remote(train).options(**options).remote(str(run.path.resolve()), environment)
        self._tasks[task] = run

    def ended(self) -> Iterator[tuple[Run, str]]:
        import ray

        if not self._tasks:
            return
        with self._reporting():
            done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for task in done:
            how = "over without a word"
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                how = f"lost ({type(error).__name__})"
            yield self._tasks.pop(task), how

    def wait(self, seconds: float) -> None:
        import ray

        if not self._tasks:
            time.sleep(seconds)
            return
        with self._reporting():
            ray.wait(list(self._tasks), num_returns=1, timeout=seconds)

    def _needed(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Cores, GPUs and bytes of memory of a run. With the device left open it asks for a GPU where the
        cluster has any.
        """
        wants_gpu = config.get("device") == "cuda" or (config.get("device") == "auto" and self._gpus)
        share = gpu_share() * processes_of(config) if wants_gpu else 0.0
        return {
            "CPU": self.threads_of(config),
            "GPU": share,
            "memory": _memory(tuple(map(config.get, SIZED))),
        }

    def _look(self) -> None:
        """What the living nodes have; asked for at most once in ``LOOK_SECONDS``."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            import ray

            with self._reporting():
                self._take_note([node["Resources"] for node in ray.nodes() if node["Alive"]])
            self._looked = time.monotonic()

    def _take_note(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """What the nodes have, and what is asked of them again and again."""
        self._nodes = nodes
        self._widest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        self._gpus = any(node.get("GPU", 0) for node in nodes)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """What Ray raises because the cluster has gone, as EngineTrouble."""
        import ray

        try:
            yield
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise EngineTrouble(
                f"the Ray cluster {self.address or 'of this machine'} has gone ({one_line(str(error))}); "
                "its runs go on once it is back"
            ) from error


@functools.lru_cache(maxsize=4096)
def _memory(values: tuple) -> float:
    """Bytes that a run with these values of ``SIZED`` takes at least; 0 where that is not known without
    building its network.
    """
    try:
        told = estimate(
            RunConfig.from_dict(
                {name: value for name, value in zip(SIZED, values, strict=True) if value is not None}
            )
        )
    except ConfigError:
        return 0.0  # its task will say what is wrong with it
    return float(told.total) if told else 0.0


def gpu_share() -> float:
    """GPUs that a process of a run asks for: ``INITSCOPE_GPU_SHARE``, 0.25 for four runs on one; default 1.
    Raises EngineTrouble for no such number.
    """
    text = os.environ.get("INITSCOPE_GPU_SHARE", "").strip() or "1"
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise EngineTrouble(f"INITSCOPE_GPU_SHARE must be a number above 0, at most 1, not {text[:40]!r}")


def _check_reachable(address: str) -> None:
    """Raises EngineTrouble at once where ``ray.init`` would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # empty, "local" or "auto": Ray knows where to look
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineTrouble(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start it, or use --engine "
            "local"
        ) from None


def train(path: str, environment: Mapping[str, str]) -> int:
    """The task: train the run in that folder, from its checkpoint if it has one; the exit status of
    ``main_in_child``.
    """
    from initscope.scheduling.engines.local import NICENESS
    from initscope.training.run_log import output_to
    from initscope.training.worker import main_in_child

    os.environ.update(environment)
    os.nice(max(0, NICENESS - os.nice(0)))
    run = Run(Path(path))
    outputs = [os.dup(number) for number in (1, 2)]
    # A node that is taken down is a node lost, and its run goes on elsewhere: neither stopped, as SIGTERM has
    # it here, nor failed, as Ray has it.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        output_to(run)
        with factory.trusted():
            return main_in_child(run, Cluster.name, graceful=False)
    finally:
        signal.signal(signal.SIGTERM, handler)
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
            os.close(output)
