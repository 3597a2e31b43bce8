"""Runs in a bucket, by the clock and by the count: how soon a stop reaches a trainer elsewhere, what a live
run costs in requests, what an outage costs.

    python -m tests.benchmarks.bucket # ten stops, ten seconds of watching, an outage of ten seconds python -m
    tests.benchmarks.bucket --stops 3

Two machines are two scratch folders here, and the store is moto's S3 server on loopback, so a request takes
milliseconds; add a real store's. The trainer is a real one (VGG11 at a sixteenth of its width: a step takes
10 ms, an epoch a second).
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3

from initscope.config.run_config import RunConfig
from initscope.store import Run, Runs
from initscope.store.bucket import download
from tests.conftest import ROOT
from tests.s3 import S3

CONFIG = RunConfig(model="vgg11", width=0.0625, image_size=32, batch_size=16, epochs=100_000, threads=1)


def until(condition: Callable[[], object], seconds: float = 120) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"not within {seconds:g} s")
        time.sleep(0.01)
    return time.monotonic() - began


def begun(there: Runs, here: Runs, config: Path) -> tuple[subprocess.Popen, Run]:
    """A trainer on the machine that has ``here``; its run, once the other one sees it train."""
    known = set(here.ids())
    command = [sys.executable, "-m", "initscope", "train", "--config", str(config)]
    training = subprocess.Popen(
        command, cwd=ROOT, env=S3.on(here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: set(here.ids()) - known)
    [run_id] = set(here.ids()) - known
    until(lambda: there.info(run_id).state.get("step"))
    return training, Run(here.root / run_id)


def kinds(requests: list[str]) -> Counter[str]:
    return Counter("LIST" if "list-type" in request else request.partition(" ")[0] for request in requests)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of watching, and of the outage")
    given = parser.parse_args()
    s3 = S3()
    os.environ |= {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.resource("s3").create_bucket(Bucket="lab")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(CONFIG.to_dict()))
        machines = []
        for name in ("looks", "trains"):
            os.environ["INITSCOPE_SCRATCH"] = str(Path(folder) / name)
            machines.append(Runs("s3://lab/runs"))
        there, here = machines

        training, run = begun(there, here, config)
        seen = there.get(run.id)

        def counted(action: Callable[[], object]) -> Counter[str]:
            s3.requests.clear()
            began = time.monotonic()
            while time.monotonic() - began < given.seconds:
                action()
                time.sleep(0.05)
            return Counter(
                {kind: round(count / given.seconds, 1) for kind, count in kinds(s3.requests).items()}
            )

        alone = counted(lambda: None)
        watched = counted(lambda: (there.list(), seen.revision()))
        print(
            f"requests a second: a live run nobody watches {dict(alone)}; watched by another machine at 20 "
            f"looks a second {dict(watched)}"
        )

        before, size = run.state()["step"], seen.count("steps")
        s3.stop()
        time.sleep(given.seconds)
        during = run.state()["step"] - before
        assert seen.count("steps") >= size
        s3.start()
        at = run.state()["step"]
        back = until(lambda: (seen.revision(), seen.count("steps"))[1] >= at)
        print(
            f"store away for {given.seconds:g} s: {during} steps trained meanwhile; all of them seen "
            f"elsewhere {back:.1f} s after it was back"
        )

        waits = []
        for _ in range(given.stops):
            seen.request_stop()
            reached = until(lambda run=run: run.stop_requested() or run.state()["status"] == "stopped")
            ended = until(lambda run=run: run.state()["status"] == "stopped")
            told = until(lambda run=run: there.info(run.id).status == "stopped")
            waits.append((reached, reached + ended, reached + ended + told))
            training.wait()
            training, run = begun(there, here, config)
            seen = there.get(run.id)
        seen.request_stop()
        training.wait()
        for what, seconds in zip(
            ("the trainer's folder", "its last word", "seen where it was asked for"),
            zip(*waits, strict=True),
            strict=True,
        ):
            print(
                f"stop, {what}: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s of "
                f"{given.stops}"
            )
        until(lambda: not here._store.ours())
        time.sleep(download.REFRESH_SECONDS)
    s3.stop()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
