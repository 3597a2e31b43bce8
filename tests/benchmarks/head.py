"""What a sweep on a thousand nodes costs the one supervisor and Ray's head, measured at sizes that grow: a
look at the queue, a start, a task.

    python -m tests.benchmarks.head                          # 100 to 10,000 runs in flight, as many waiting
    python -m tests.benchmarks.head --sizes 100 1000

The supervisor is the real one with a real queue on disk and the real bookkeeping of
``initscope.scheduling.engines.ray_cluster``; nodes of eight cores are told to it and no task leaves. Ray's
part: tasks that do nothing on a cluster of one node here, and asking after as many that are pending.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from initscope.config.run_config import RunConfig
from initscope.scheduling import queue
from initscope.scheduling.engines.ray_cluster import Cluster
from initscope.scheduling.supervisor import Supervisor
from initscope.schema import Status
from initscope.store import Runs, own_process
from tests.benchmarks.scale import timed

CORES = 8
"""Of a node; a run takes one."""
TASKS = 500
STARTS = 10
"""At once: as many runs as have ended since the look before."""


class Told(Cluster):
    """A cluster that has so many nodes because we say so, and takes every run without a word."""

    def __init__(self, nodes: int):
        super().__init__()
        self._looked = math.inf
        self._take_note([{"CPU": float(CORES), "memory": 64e9} for _ in range(nodes)])

    def start(self, run) -> None:
        return


def supervised(folder: Path, size: int) -> tuple[float, float]:
    """Seconds of a look with nothing to start, and of one start, with ``size`` runs in flight and as many
    waiting.
    """
    runs = Runs(folder / str(size))
    runs.root.mkdir(parents=True)
    configs = [RunConfig(init_seed=seed, threads=1, device="cpu") for seed in range(size)]
    made = [runs.create(config, Status.QUEUED) for config in configs]
    queue.enqueue(runs, made)
    supervisor = Supervisor(runs, Told(size // CORES), own_process())
    supervisor.carried = {
        f"in-flight-{config.init_seed}": config.to_dict() for config in configs[: size // CORES * CORES]
    }
    full = min(
        timed(lambda: (supervisor._look_after(), supervisor._start_what_fits(), supervisor._tell()))
        for _ in range(3)
    )
    for name in list(supervisor.carried)[:STARTS]:
        del supervisor.carried[name]
    return full, timed(supervisor._start_what_fits) / STARTS


def on_ray(pending: list[int]) -> tuple[float, dict[int, float]]:
    """Tasks a second that do nothing, on one node of two cores; and the seconds it takes to ask after so many
    pending ones.
    """
    import ray

    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
    )
    nothing: Callable = ray.remote(num_cpus=1, max_retries=0)(lambda: 0)
    never = ray.remote(num_cpus=1, max_retries=0, resources={"nowhere": 1})(lambda: 0)
    ray.get([nothing.remote() for _ in range(20)])
    seconds = timed(lambda: ray.get([nothing.remote() for _ in range(TASKS)]))
    waiting: list = []

    def ask(count: int) -> float:
        waiting.extend(never.remote() for _ in range(count - len(waiting)))
        time.sleep(1)
        return min(timed(lambda: ray.wait(waiting, num_returns=len(waiting), timeout=0)) for _ in range(3))

    asked = {count: ask(count) for count in sorted(pending)}
    ray.shutdown()
    return TASKS / seconds, asked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 1000, 8000])
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    try:
        rate, asked = on_ray(given.sizes)
        print(
            "| runs in flight, and as many waiting | a look, nothing to start | one start | Ray asked after "
            "them |\n|---|---|---|---|"
        )
        for size in given.sizes:
            look, start = supervised(folder, size)
            print(
                f"| {size:,} | {look * 1e3:.0f} ms | {start * 1e3:.1f} ms | {asked[size] * 1e3:.1f} ms |",
                flush=True,
            )
        print(f"\nRay: {rate:,.0f} tasks a second that do nothing, on one node of two cores")
        print(
            f"so {size:,} slots are kept busy with runs of {size * max(start, 1 / rate):,.0f} s or more; "
            f"load {os.getloadavg()[0]:.1f}"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
