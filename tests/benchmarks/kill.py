"""Trainings killed with SIGKILL at random moments and in the middle of every kind of write, resumed until
they finish.

    python -m tests.benchmarks.kill [--kills 200] [--seed 0]

Prints how many kills of each kind there were, the most that was lost, how soon `crashed` was shown, and
whether every run ended on the curve of an undisturbed one, to the bit.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import tempfile
from pathlib import Path

from initscope.config.run_config import RunConfig
from initscope.store import Runs
from initscope.training.loading import load_training
from tests.safety.kills import MOMENTS, kill, same_curve, start

KILLS_A_RUN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, kills, runs_made, wrong = random.Random(given.seed), [], 0, 0
    load_training()
    with tempfile.TemporaryDirectory() as folder:
        runs, notes = Runs(Path(folder) / "runs"), Path(folder) / "notes"
        config = RunConfig(
            model="vgg11",
            width=0.0625,
            image_size=32,
            train_samples=480,
            batch_size=16,
            epochs=5,
            threads=1,
            dropout=0.3,
        )

        def finish(run) -> None:
            assert os.waitpid(start(run, notes), 0)[1] == 0, run.info()

        whole = runs.create(config)
        finish(whole)
        while len(kills) < given.kills:
            run = runs.create(config)
            runs_made += 1
            for _ in range(KILLS_A_RUN):
                pid = start(run, notes)
                at = chance.choice(["", "", *MOMENTS])
                # At a moment of a kind, but not always its first one: after a while of its own.
                happened = kill(
                    run, pid, notes, **({"at": at, "after": 12.0} if at else {"after": chance.uniform(0, 4)})
                )
                if happened is None:
                    break
                kills.append(happened)
                if len(runs.list()) != runs_made + 1 or any(
                    info.error and info.status == "unreadable" for info in runs.list()
                ):
                    wrong += 1
            if run.state()["status"] != "finished":
                finish(run)
            if not same_curve(run, whole):
                wrong += 1
            print(f"{len(kills)} kills, {runs_made} runs, {wrong} wrong", flush=True)
    kinds = collections.Counter(k.moment if not k.moment.startswith("after") else "random" for k in kills)
    print(dict(kinds))
    lost = sorted(k.lost_seconds for k in kills)
    seen = sorted(k.seen_seconds for k in kills)
    print(
        f"rows lost: median {lost[len(lost) // 2]:.2f} s, most {lost[-1]:.2f} s; crashed shown after "
        f"{seen[-1]:.2f} s at most"
    )
    print(f"{runs_made} runs resumed to their end, {wrong} differ from the undisturbed run")


if __name__ == "__main__":
    main()
