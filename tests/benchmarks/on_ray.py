"""A sweep of hundreds of tiny runs on a Ray cluster of several nodes on loopback: are its slots busy, and is
the table the local engine's?

    python -m tests.benchmarks.on_ray # 200 runs of 12 steps of a narrow LeNet, three nodes of one core python
    -m tests.benchmarks.on_ray --runs 300 --nodes 4

The shorter a run, the harder it is to keep a slot busy: what lies between two runs on one slot is all that
counts here. A slot is busy from a run's ``started`` to its ``ended``; the time looked at begins with the last
node's first run and ends when nothing waits any more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from initscope.comparison import sweep
from initscope.config.run_config import RunConfig
from initscope.scheduling import launcher
from initscope.store import Runs
from tests.conftest import supervisors
from tests.scheduling.nodes import Nodes

TENTHS = 10


def trained(root: Path, configs: list[RunConfig], engine: str) -> tuple[Runs, list[str], float]:
    """The runs of a sweep, their ids in the order of the queue, and the seconds from launch to the last
    end.
    """
    runs, began = Runs(root), time.time()
    made = [run.id for run in launcher.submit_missing(runs, configs, engine)]
    try:
        for _ in sweep.watch(runs, made):
            pass
    finally:
        for process in supervisors(root):
            process.kill()
    return runs, made, max(runs.info(run_id).state["ended"] for run_id in made) - began


def busy(spans: list[tuple[float, float]], low: float, high: float, slots: int) -> float:
    """Share of the slots' time between two moments in which a run was there."""
    return sum(max(0.0, min(end, high) - max(start, low)) for start, end in spans) / (slots * (high - low))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    folder = Path(
        tempfile.mkdtemp(prefix="ray", dir="/tmp")
    )  # the path of a socket has at most 107 characters
    base = RunConfig(
        model="lenet",
        width=0.5,
        image_size=32,
        train_samples=64,
        batch_size=16,
        epochs=100,
        max_steps=given.steps,
        threads=1,
    )
    configs = sweep.plan(base, ["default", "kaiming_normal"], given.runs // 2, "many")
    os.environ["INITSCOPE_SLOTS"] = str(given.nodes)
    nodes = Nodes(folder)
    try:
        for k in range(given.nodes):
            nodes.start("head" if not k else f"node {k}")
        os.environ["RAY_ADDRESS"] = nodes.address
        runs, made, seconds = trained(folder / "on-ray", configs, "ray")
    finally:
        nodes.close()
    here, local, local_seconds = trained(folder / "here", configs, "local")

    states = [runs.info(run_id).state for run_id in made]
    spans, slots = [(state["started"], state["ended"]) for state in states], defaultdict(list)
    for span, state in zip(spans, states, strict=True):
        slots[state["pid"]].append(span)
    begin, end = max(min(own)[0] for own in slots.values()), min(max(own)[0] for own in slots.values())
    edges = [begin + (end - begin) * k / TENTHS for k in range(TENTHS + 1)]
    gaps = [
        after[0] - before[1] for own in slots.values() for before, after in itertools.pairwise(sorted(own))
    ]
    late = sum(after < before for before, after in itertools.pairwise(start for start, _ in spans))
    tables = [
        sweep.table([where.info(run_id) for run_id in ids]) for where, ids in ((runs, made), (here, local))
    ]
    same = all(
        runs.get(one).read(table, names).equals(here.get(other).read(table, names))
        for one, other in zip(made, local, strict=True)
        for table in ("steps", "epochs", "layers")
        for names in [[name for name in runs.get(one).read(table).column_names if name != "seconds"]]
    )
    print(
        f"{len(made)} runs of {given.steps} steps on {given.nodes} nodes of one core: {seconds:.0f} s on "
        f"Ray, {local_seconds:.0f} s with the local engine of as many slots"
    )
    print(
        f"a run: median {statistics.median(stop - start for start, stop in spans):.2f} s; {len(slots)} "
        f"worker processes; {sum(state.get('restarts') or 0 for state in states)} restarts"
    )
    print(
        f"slots busy: {busy(spans, begin, end, given.nodes):.1%}; by tenths of the time: "
        + ", ".join(f"{busy(spans, *pair, given.nodes):.0%}" for pair in itertools.pairwise(edges))
    )
    print(
        f"from a run to the next on its slot: median {statistics.median(gaps):.2f} s, most {max(gaps):.2f} "
        f"s; begun before their predecessor in the queue: {late}"
    )
    print(f"table equal: {tables[0] == tables[1]}; every row equal: {same}; load {os.getloadavg()[0]:.1f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
