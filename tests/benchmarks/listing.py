"""Listing runs with final loss and accuracy: from nothing, from the index in a new process, and again in the
same process.

    python -m tests.benchmarks.listing # 200, 1,000 and 10,000 runs; one changed and one added between looks
    python -m tests.benchmarks.listing --runs 1000 python -m tests.benchmarks.listing --keep FOLDER # leaves
    the runs there, to look at with the dashboard python -m tests.benchmarks.listing --there FOLDER # the runs
    that are there, such as those of tests.benchmarks.many_runs; also filtered and asked in SQL

The runs are copies of one that was really trained (its rows too), each with a config and numbers of its own,
so that a list has to read what it would have to read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from initscope.config import run_config
from initscope.config.catalog import INITS
from initscope.store import Run, Runs, write_json
from initscope.store.index import NAME, SETTLED_SECONDS
from initscope.store.query import RECIPES, query

ROUNDS = 9


def template(folder: Path) -> Run:
    """A run of the quick preset, stopped after its first epoch."""
    from initscope.training.trainer import train

    run = Runs(folder).create(run_config.preset("quick").replace(epochs=1, threads=1))
    train(run)
    return run


def fill(root: Path, like: Run, count: int) -> None:
    """``count`` runs that have ended, beside those that are there."""
    settings, state = (json.loads((like.path / name).read_bytes()) for name in ("config.json", "status.json"))
    tables = [like.path / f"{table}.parquet" for table in ("steps", "epochs", "layers")]
    draw = random.Random(count)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(sum(1 for name in os.listdir(root) if not name.startswith(".")), count):
        init, seed, loss = draw.choice(list(INITS)), number // len(INITS), draw.uniform(0.1, 2.4)
        folder = root / f"20260101-000000-{init}-s{seed}-{number:06x}"
        folder.mkdir()
        own = {"init": init, "init_seed": seed, "sweep": f"sweep-{number // 300}"}
        write_json(folder / "config.json", {**settings, "config": {**settings["config"], **own}})
        outcome = "converged" if loss < 1 else "not_converged"
        ended = {
            "loss": loss,
            "accuracy": 1 - loss / 2.5,
            "outcome": outcome,
            "created": 1767225600.0 + number,
        }
        write_json(folder / "status.json", {**state, **ended})
        for table in tables:
            os.link(table, folder / table.name)


def timed(action) -> tuple[float, object]:
    began = time.perf_counter()
    result = action()
    return (time.perf_counter() - began) * 1e3, result


def measure(root: Path) -> list[str]:
    """One line of the table. Milliseconds."""
    (root / NAME).unlink(missing_ok=True)
    time.sleep(SETTLED_SECONDS)
    rebuilt, first = timed(Runs(root).list)
    fresh = statistics.median(timed(lambda: Runs(root).list())[0] for _ in range(ROUNDS))
    same = Runs(root)
    same.list()
    warm = statistics.median(timed(same.list)[0] for _ in range(ROUNDS))
    victim = first[len(first) // 2].run  # type: ignore[index]
    path = root / victim / "status.json"
    write_json(path, json.loads(path.read_bytes()) | {"loss": 7.0})
    changed, seen = timed(same.list)
    assert next(info for info in seen if info.run == victim).loss == 7.0, "a change was not seen"  # type: ignore[union-attr]
    command = [sys.executable, "-m", "initscope", "runs", "--runs", str(root), "--json"]
    cli = statistics.median(
        timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))[0] for _ in range(3)
    )
    size = (root / NAME).stat().st_size / 1e6
    return [
        f"{len(first):,}",
        f"{warm:.1f}",
        f"{changed:.1f}",
        f"{fresh:.1f}",
        f"{rebuilt:.0f}",
        f"{cli:.0f}",
        f"{size:.1f}",
    ]  # type: ignore[arg-type]


def asked(root: Path) -> None:
    """Filtering, and the three recipes over all rows, in a process that has the list already. Seconds."""
    runs = Runs(root)
    runs.list()
    filtered = (
        statistics.median(
            timed(lambda: runs.select("init=kaiming_normal,learning_rate=0.001"))[0] for _ in range(ROUNDS)
        )
        / 1e3
    )
    told = [
        f"{name} "
        f"{statistics.median(timed(lambda name=name: query(runs, name))[0] for _ in range(3)) / 1e3:.2f}"
        for name in RECIPES
    ]
    print(f"\nfiltered by two fields {filtered:.2f} s; recipes, s: {', '.join(told)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="*", default=[200, 1000, 10_000])
    parser.add_argument("--keep", type=Path, help="leave the runs in this folder")
    parser.add_argument(
        "--there", type=Path, help="measure the runs of this folder, which stay as they are but one"
    )
    given = parser.parse_args()
    header = (
        "| runs | warm, ms | after a change | index read anew | index built | `core runs --json` | index, "
        "MB |\n|---|---|---|---|---|---|---|"
    )
    if given.there:
        print(header)
        print("| " + " | ".join(measure(given.there)) + " |", flush=True)
        asked(given.there)
        print(f"load {os.getloadavg()[0]:.1f}")
        return
    folder = given.keep or Path(tempfile.mkdtemp(prefix="listing-"))
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            like = template(Path(beside))
            print(header)
            for count in given.runs:
                fill(folder, like, count)
                print("| " + " | ".join(measure(folder)) + " |", flush=True)
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
