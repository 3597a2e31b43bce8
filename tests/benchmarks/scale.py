"""What a thousand machines and a million runs would meet first: figures measured here, and what follows from
them.

    python -m tests.benchmarks.scale # the parts that are this program's: index, cards, the shipper's rounds;
    1,000 to 30,000 runs python -m tests.benchmarks.scale --runs 1000 # a quicker look

Requests are counted, not timed, on a file system that fsspec keeps in memory: a store's own time is not this
program's, and is put in as a figure (``LATENCY``). What is measured at several sizes is carried on along its
measured slope; the table says which lines are measured and which are carried on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from initscope.store import Runs
from initscope.store.bucket import upload
from initscope.store.bucket.download import REFRESH_SECONDS
from initscope.store.bucket.folder import store_of
from tests.benchmarks.listing import fill, template

LATENCY = 0.03
"""Seconds of one request to an object store in the same region: an assumption."""
PER_PREFIX = {"GET and LIST": 5500, "PUT and DELETE": 3500}
"""Requests a second that S3's documentation promises for one prefix."""
PAGE = 1000
"""Names in one answer to a LIST."""


class Counted(MemoryFileSystem):
    """An object store in memory that counts what it is asked."""

    protocol = "counted"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    asked: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("counted://", "memory://", 1))

    def find(self, *arguments, **options):
        found = super().find(*arguments, **options)
        self.asked["LIST"] += max(1, -(-len(found) // PAGE))
        return found

    def cat_file(self, *arguments, **options):
        self.asked["GET"] += 1
        return super().cat_file(*arguments, **options)

    def pipe_file(self, *arguments, **options):
        self.asked["PUT"] += 1
        return super().pipe_file(*arguments, **options)

    def put_file(self, *arguments, **options):
        self.asked["PUT"] += 1
        return super().put_file(*arguments, **options)

    def rm_file(self, *arguments, **options):
        self.asked["DELETE"] += 1
        return super().rm_file(*arguments, **options)


def timed(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def local(folder: Path, like, count: int) -> tuple[float, float, float]:
    """Seconds to list ``count`` runs of a plain folder warm and with the index read anew, and its bytes a
    run.
    """
    fill(folder, like, count)
    runs = Runs(folder)
    runs.list()
    time.sleep(2.1)
    runs.list()
    warm = min(timed(runs.list) for _ in range(5))
    anew = min(timed(lambda: Runs(folder).list()) for _ in range(3))
    return warm, anew, (folder / ".index.sqlite").stat().st_size / count


def remote(like, count: int) -> tuple[float, float, int, int]:
    """Seconds of our own to list ``count`` runs of a store the first time and again, and the requests of
    both.
    """
    text = {
        "config": json.loads((like.path / "config.json").read_bytes()),
        "status": json.loads((like.path / "status.json").read_bytes()),
    }
    card = json.dumps(text).encode()
    fs = fsspec.filesystem("counted")
    for number in range(count):
        fs.pipe_file(f"/lab-{count}/.runs/run-{number:07}~card", card)
    runs = Runs(f"counted://lab-{count}")
    Counted.asked.clear()
    first = timed(runs.list)
    asked_first = Counted.asked.total()
    time.sleep(2.1)
    runs.list()
    time.sleep(REFRESH_SECONDS)
    Counted.asked.clear()
    again = timed(runs.list)
    return first, again, asked_first, Counted.asked.total()


def shipping(rounds: int = 64) -> tuple[Counter[str], float]:
    """Requests and seconds of our own of a live run's shipper, a round of about a second: new rows in two
    tables, a status, stops.
    """
    from initscope.store import RunWriter, own_process
    from tests.store.test_store import write_step

    runs = Runs("counted://live")
    store = store_of(runs.root)
    assert store is not None
    store.ensure_shipper = lambda: None  # type: ignore[method-assign]  (this process is the shipper here)
    run = runs.create({"init": "default"}, "running", **own_process())  # type: ignore[arg-type]
    writer, shipper = RunWriter(run), upload.Shipper(store)
    shipper.cargo = {run.id: upload.RunUpload(store, run.id)}
    spent = 0.0
    for step in range(rounds + 1):
        write_step(writer, step)
        writer.flush()
        if step == 1:
            Counted.asked.clear()
            spent = 0.0
        spent += timed(lambda: (shipper._pass_on_stops(), shipper.cargo[run.id].ship()))
    return Counter(
        {kind: round(number / rounds, 2) for kind, number in Counted.asked.items()}
    ), spent / rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="*", default=[1000, 10_000, 30_000])
    given = parser.parse_args()
    fsspec.register_implementation("counted", Counted, clobber=True)
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    os.environ["INITSCOPE_SCRATCH"] = str(folder / "scratch")
    try:
        like = template(folder / "like")
        asked, spent = shipping()
        each = sum(asked.values())
        print(
            "a live run's shipper, a round a second: "
            + ", ".join(f"{number:g} {kind}" for kind, number in asked.items())
            + f", {spent * 1e3:.0f} ms of its own"
        )
        print(
            "\n| runs | folder, warm | index read anew | index, bytes a run | store, first look | again | "
            "requests, first | again |"
        )
        print("|---|---|---|---|---|---|---|---|")
        rows = []
        for count in given.runs:
            rows.append((count, *local(folder / "runs", like, count), *remote(like, count)))
            warm, anew, size, first, again, many, few = rows[-1][1:]
            print(
                f"| {count:,} | {warm * 1e3:.0f} ms | {anew * 1e3:.0f} ms | {size:,.0f} | {first:.1f} s | "
                f"{again * 1e3:.0f} ms | {many:,} | {few} |",
                flush=True,
            )
        count, warm, anew, size, first, again, many, few = rows[-1]
        million = 1e6 / count
        print(
            f"\nCarried on to 1,000,000 runs: warm {warm * million:.1f} s, index read anew "
            f"{anew * million:.0f} s and {size * 1e6 / 1e9:.1f} GB;"
        )
        print(
            f"from a store: {few * million:,.0f} LIST a refresh, {few * million * LATENCY:.0f} s one after "
            f"the other at {LATENCY * 1e3:g} ms; the first look {many * million:,.0f} requests."
        )
        nodes, runs_each = 1000, 8
        writes = nodes * runs_each * (asked["PUT"] + asked["DELETE"])
        print(
            f"{nodes:,} machines with {runs_each} live runs: {nodes * runs_each * each:,.0f} requests a "
            f"second, {writes:,.0f} of them PUT and DELETE"
        )
        print(
            f"({writes / PER_PREFIX['PUT and DELETE']:.0f} times what one S3 prefix is promised; runs have "
            "prefixes of their own, cards share one: "
            f"{nodes * runs_each:,} PUT a second on `.runs/`), and {nodes:,} LIST a second on `.stops/`."
        )
    finally:
        shutil.rmtree(folder)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
