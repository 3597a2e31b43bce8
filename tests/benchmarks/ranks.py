"""What recording costs the first of several ranks, beside what it costs one process: processor time of
recorded steps against their unrecorded neighbours.

    python -m tests.benchmarks.ranks # one process, two ranks and one again, in turns; 32 samples each, one
    thread each python -m tests.benchmarks.ranks --blocks 6

The quick preset's network in the real training loop, every second step recorded: both kinds of step lie side
by side in one process, so that what else the machine does meets both. ``one again`` is the noise: rank
nothing that lies inside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from initscope.config.run_config import quick
from initscope.store import Run, Runs

STEPS = 60
SHARE = 32
"""Samples a rank: what each computes is the same with one process and with two."""
WARM_UP = 10


def rank(path: str, meeting: str) -> None:
    """Train as one rank; the first one prints the processor seconds of every step."""
    import torch

    from initscope.store import RunWriter
    from initscope.training import ranks
    from initscope.training.devices import pick_device
    from initscope.training.trainer import Training

    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run = Run(path)
    together = ranks.join(number, count, meeting, pick_device("cpu")) if count > 1 else ranks.Ranks()
    training = Training(run, RunWriter(run) if together.first else None, ranks=together)
    torch.set_num_threads(1)
    seconds, step = [], training._step

    def timed(*arguments) -> None:
        busy = time.process_time()
        step(*arguments)
        seconds.append(time.process_time() - busy)

    training._step = timed
    training.go()
    if together.several:
        ranks.leave()
    if together.first:
        print(json.dumps(seconds))


def block(root: Path, count: int) -> list[tuple[float, float]]:
    """(recorded, unrecorded) processor seconds of neighbouring steps of the first of ``count`` ranks."""
    config = quick().replace(
        batch_size=SHARE * count,
        processes=count,
        max_steps=STEPS,
        record_every=2,
        init="kaiming_normal",
        threads=1,
        device="cpu",
        precision="float32",
    )
    run = Runs(root).create(config)
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.ranks",
        "--rank",
        str(run.path),
        str(root / f"meeting-{run.id}"),
    ]
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(k), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]
    told = [child.communicate()[0] for child in children]
    seconds = json.loads(told[0].splitlines()[-1])[WARM_UP:]
    return list(zip(seconds[::2], seconds[1::2], strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=4, help="turns of each variant")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(*given.rank)
        return
    variants = {"one process": 1, "first of two ranks": 2, "one again": 1}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.blocks):
            for name, count in variants.items():
                pairs[name] += block(Path(folder), count)
    print(
        "| variant | pairs | unrecorded step, ms | more for a recorded one, ms | ratio, median (quartiles) "
        "|\n|---|---|---|---|---|"
    )
    for name, found in pairs.items():
        low, middle, high = statistics.quantiles([recorded / plain for recorded, plain in found], n=4)
        plain, more = (
            statistics.median(plain for _, plain in found),
            statistics.median(recorded - plain for recorded, plain in found),
        )
        print(
            f"| {name} | {len(found)} | {1e3 * plain:.1f} | {1e3 * more:.1f} | {middle:.3f} ({low:.3f} to "
            f"{high:.3f}) |"
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
