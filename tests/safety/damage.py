"""Run folders damaged at random, and what every reader makes of them: shared by the suite and the
benchmark.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from initscope.comparison.compare import compare
from initscope.config.run_config import RunConfig
from initscope.diagnosis.diagnose import diagnose
from initscope.errors import InitScopeError
from initscope.schema import LAYER_METRICS, LIVE, TABLES, Status
from initscope.store import Run, Runs, RunWriter
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.live import live_rows

ODD = [
    None,
    True,
    -1,
    0,
    3.7,
    10**400,
    -(10**30),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "abc",
    "\ud800",
    "\u202e\u0000",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"a": {}},
    ["\ud800", 1, None],
    "<img src=x onerror=alert(1)>",
    "nan",
    "running",
    "finished",
    [float("nan")] * 50,
    "../..",
    "2026-13-45",
]


def template(runs: Runs, live: bool = False, sweep: str = "") -> Run:
    """A small run with all files: two hundred steps, five epochs, three layers; live: rows still in parts."""
    run = runs.create(
        RunConfig(name="a run", tags=("one", "two"), epochs=5, sweep=sweep),
        "running",
        total_steps=200,
        num_classes=10,
        chance=0.1,
        pid=0,
    )
    writer = RunWriter(run)
    names = pa.DictionaryArray.from_arrays(pa.array(range(3), pa.int32()), ["conv1_1", "conv1_2", "fc1"])
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1], pa.int32()), ["conv2d", "linear"])
    values = np.ones((len(LAYER_METRICS), 3), np.float32)
    values[LAYER_METRICS.index("nonfinite")] = 0
    for step in range(200):
        writer.step(step, step // 40, 2.3 - 0.01 * step, 0.1 + 0.004 * step, 1e-3, 0.1 * step)
        writer.layers(step, names, kinds, pa.array(range(3), pa.int32()), values)
        if step % 40 == 39:
            writer.epoch(step // 40, 2.3, 0.1, 2.2, 0.15 * (step // 40), 0.1 * step)
            writer.flush()
    (run.path / "log.txt").write_text("one line\n")
    run.edit(notes="a note")
    if not live:
        writer.compact()
    end = {"status": "stopped"} if live else {"status": "finished", "outcome": "converged"}
    writer.update(
        **end,
        step=200,
        loss=0.3,
        accuracy=0.9,
        val_accuracy=0.6,
        validation_samples=359,
        curve=[2.3, 1.0, 0.3],
        ended=time.time(),
    )
    return run


def mutate(folder: Path, chance: random.Random) -> str:
    """Damage one file of a run folder; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = chance.choice(files)
    kind = chance.choice(
        [
            "truncate",
            "flip",
            "flip",
            "delete",
            "garbage",
            "folder",
            "link",
            "grow",
            "json",
            "json",
            "json",
            "json",
            "swap",
            "foreign",
        ]
    )
    data = path.read_bytes()
    if kind == "truncate":
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif kind == "flip" and data:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 3, 50])):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
    elif kind == "delete":
        path.unlink()
    elif kind == "garbage":
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 100, 5000])))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "link":
        path.unlink()
        if chance.random() < 0.5:
            os.mkfifo(path)  # a reader that opens it waits for ever
            return f"pipe {path.name}"
        path.symlink_to(chance.choice(["/dev/zero", "/proc/self/mem", path.name, "/nowhere", "/etc"]))
    elif kind == "grow":
        path.write_bytes(data + chance.randbytes(100))
    elif kind == "swap":
        other = chance.choice(files).read_bytes()
        path.write_bytes(other)
    elif kind == "foreign":
        (folder / "parts").mkdir(exist_ok=True)
        (
            folder
            / chance.choice(
                [
                    "x.parquet",
                    "steps.parquet~",
                    "parts/steps-1-2.parquet",
                    "parts/steps-99999999-99999999.parquet",
                    "\u202e.json",
                ]
            )
        ).write_bytes(b"PAR1")
    else:
        path = folder / chance.choice(["status.json", "config.json", "meta.json"])
        try:
            value = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        except ValueError:
            return "nothing"
        if not isinstance(value, dict):
            return "nothing"
        inner = (
            value["config"]
            if path.name == "config.json" and isinstance(value.get("config"), dict) and chance.random() < 0.9
            else value
        )
        inner[chance.choice([*inner, "facts", "error", "phase", "source", "host", "device"])] = chance.choice(
            ODD
        )
        path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
    return f"{kind} {path.name}"


def read_everything(runs: Runs, run_id: str, other: Run) -> str:
    """All that lists, pages and commands do with a run, beside an ``other`` one that is whole; returns its
    status, or "refused" where a reader said why. Anything else is raised.
    """
    info = runs.info(run_id)
    assert info.status in [*Status, "unreadable"], info.status
    assert all(
        isinstance(value, str) for value in (info.run, info.name, info.status, info.init, *info.tags)
    ), info
    json.dumps([info.name, info.error, *info.tags], ensure_ascii=False).encode(
        "utf-8"
    )  # what a browser can be sent
    theme.outcome_mark(info.outcome, info.status)
    (
        formatting.ago(info.created, time.time()),
        formatting.fixed(info.loss),
        formatting.percent(info.state.get("val_accuracy") or info.accuracy),
    )
    formatting.shorten(info.name, 24), info.progress
    if info.status == "unreadable":
        assert info.error
        return "unreadable"
    run, said = Run(runs.root / run_id), info.status
    run.log_tail(), run.revision()
    try:
        steps = run.read("steps")
        for table in TABLES:
            rows = run.read(table)
            assert rows.schema.names == [column.name for column in TABLES[table]]
            rows.to_pandas()
            run.tail(table)
        live_rows.progress(
            {**info.state, "status": info.status}, steps.slice(max(0, steps.num_rows - 50)), info.config
        )
        live_rows.epoch_rows(run, run.read("epochs"))
    except InitScopeError as error:
        assert str(error) and "\n" not in str(error)
        said = "refused"
    for judge in (lambda: diagnose(run), lambda: compare([other], [run])):
        try:
            judge()
        except InitScopeError as error:
            assert str(error)
            said = "refused"
    return said


def fuzz(folder: Path, count: int, seed: int) -> tuple[Counter, list[str]]:
    """Damage ``count`` copies of a run, one to three times each; (what readers said, what went wrong)."""
    source = Runs(folder / "source")
    whole = [template(source), template(source, live=True)]
    chance, told, wrong = random.Random(seed), Counter(), []
    runs = Runs(folder / "runs")
    runs.root.mkdir()
    healthy = template(runs)
    for i in range(count):
        target = runs.root / f"damaged-{i:05d}"
        shutil.copytree(chance.choice(whole).path, target)
        done = []
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            if not any(path.is_file() and not path.is_symlink() for path in target.rglob("*")):
                break
            done.append(mutate(target, chance))
        if not os.path.lexists(target / "status.json") and not os.path.lexists(target / "config.json"):
            told["no run"] += 1
            shutil.rmtree(target)
            continue
        try:
            told[read_everything(runs, target.name, healthy)] += 1
        except Exception as error:  # a finding: told with how to make it again
            wrong.append(f"{i}: {', '.join(done)}: {type(error).__name__}: {error}"[:300])
        if i % 50 == 49:
            if {info.run for info in runs.list()} != set(runs.ids()) or runs.info(healthy.id).status not in (
                "finished",
                *LIVE,
            ):
                wrong.append(f"{i}: the list lost a run")
            for path in runs.root.glob("damaged-*"):
                shutil.rmtree(path)
    return told, wrong
