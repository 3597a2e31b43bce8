"""Makes run folders that look like trained ones, a few milliseconds each: what the benchmarks of lists, pages
and long runs read.

    python -m tests.benchmarks.many_runs FOLDER # 1,000 runs as long as the quick preset's python -m
    tests.benchmarks.many_runs FOLDER --count 2 --steps 100000 # two long ones: default and kaiming_normal

The files, columns and sizes are the trainer's: losses that fall or stay at ln 10, gradients that fade with
depth or do not, NaN where a run diverges, facts and all. Half of the runs belong to sweeps; some are tagged,
some were stopped, failed or crashed. No torch is loaded.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from initscope.config.run_config import RunConfig, quick
from initscope.schema import LAYER_METRICS, SELDOM, Outcome, Status
from initscope.store import Run, Runs, write_json
from initscope.store.parts import SCHEMAS, concatenate, part_name, write_table

EPOCHS = 5
SLOPES = {
    "default": 0.42,
    "normal_0.01": 0.75,
    "xavier_normal": 0.2,
    "kaiming_normal": 0.03,
    "orthogonal": 0.06,
    "lsuv": 0.02,
}
"""Decades of gradient lost a layer on the way back to the input, about as measured."""
TRAINS = ("kaiming_normal", "orthogonal", "lsuv")
PAIR = ("default", "kaiming_normal")
SWEEP = 10
"""Runs of a sweep: two initializations, five seeds each."""
THOROUGHLY_EVERY = 100
"""Recorded steps of which one has the metrics that are taken seldom."""
TOGETHER = 20_000
"""Steps of a long run that are made at once."""
VGG16 = (
    "conv1_1",
    "conv1_2",
    "conv2_1",
    "conv2_2",
    "conv3_1",
    "conv3_2",
    "conv3_3",
    "conv4_1",
    "conv4_2",
    "conv4_3",
    "conv5_1",
    "conv5_2",
    "conv5_3",
    "fc1",
    "fc2",
    "fc3",
)


def make(folder: str | Path, count: int = 1000, steps: int = 115, layers: int = 16) -> list[Run]:
    """``count`` runs of so many steps and layers, the oldest first, ten minutes apart. Every tenth did not
    come to its end.
    """
    runs = Runs(folder)
    now = time.time()
    made = []
    for i in range(count):
        sweep = f"sweep-{i // SWEEP:03d}" if i // SWEEP % 2 and i // SWEEP * SWEEP + SWEEP <= count else ""
        init = PAIR[i % 2] if sweep or count <= len(PAIR) else list(SLOPES)[i % len(SLOPES)]
        config = quick().replace(
            init=init, init_seed=i % SWEEP // 2, sweep=sweep, tags=("baseline",) if i % 7 == 0 else ()
        )
        status = (
            (Status.STOPPED, Status.FAILED, Status.CRASHED)[i // 10 % 3]
            if i % 10 == 9 and not sweep
            else Status.FINISHED
        )
        made.append(one(runs, config, status, steps, layers, seed=i, created=now - 600 * (count - i)))
    return made


def one(
    runs: Runs, config: RunConfig, status: Status, steps: int, layers: int, seed: int, created: float
) -> Run:
    """One run folder. A run that did not finish has half of its steps; every twentieth finished one
    diverged.
    """
    random = np.random.default_rng(seed)
    done = steps if status is Status.FINISHED else max(1, steps // 2)
    broken = seed % 20 == 13 and status is Status.FINISHED
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created))
    run = runs.create(config, status, f"{stamp}-{config.init}-s{config.init_seed}-{seed:06x}")
    names = (
        list(VGG16[:layers])
        if layers <= len(VGG16)
        else [f"block{i // 8}.layer{i % 8}" for i in range(layers)]
    )
    loss, accuracy = _curves(config.init in TRAINS, done, broken, random)
    each = -(-steps // EPOCHS)
    _write_steps(run, loss, accuracy, each)
    ends = _write_epochs(run, loss, accuracy, each)
    _write_layers(run, names, done, SLOPES[config.init], broken, random)
    outcome = (
        Outcome.UNDECIDED
        if status is not Status.FINISHED
        else Outcome.DIVERGED
        if broken
        else Outcome.CONVERGED
        if config.init in TRAINS
        else Outcome.NOT_CONVERGED
    )
    state = run.json_file("status.json") | {
        "outcome": str(outcome),
        "step": done,
        "total_steps": steps,
        "created": created,
        "started": created,
        "ended": created + 20,
        "heartbeat": created + 20,
        "error": None
        if status in (Status.FINISHED, Status.STOPPED)
        else "the training process was killed by signal 9 (SIGKILL)",
        "pid": 4321,
        "host": "elsewhere",
        "device": "cpu",
        "precision": "float32",
        "num_classes": 10,
        "chance": 0.103,
        "validation_samples": 359,
        "train_samples": 1438,
        "parameters": 2_112_442,
        "facts": _facts(names),
        "epoch": min(EPOCHS, done // each),
        "loss": float(loss[-1]),
        "accuracy": float(accuracy[-1]),
        "val_accuracy": float(ends[-1]) if len(ends) else None,
        "curve": [float(v) for v in loss[:: max(1, done // 30)]],
        "seconds": 0.06 * done,
    }
    write_json(run.path / "status.json", state)
    return run


def _curves(
    trains: bool, steps: int, broken: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy of every step, with a batch's noise."""
    along = np.linspace(0, 1, steps)
    mean = math.log(10) * np.exp(-4.0 * along) if trains else np.full(steps, math.log(10))
    loss = mean * np.exp(random.normal(0, 0.25 if trains else 0.01, steps))
    accuracy = np.clip(
        np.where(trains, 1 - 0.9 * np.exp(-5.0 * along), 0.1) + random.normal(0, 0.03, steps), 0, 1
    )
    if broken:
        loss[-max(1, steps // 10) :] = math.nan
    return loss, accuracy


def _write_steps(run: Run, loss: np.ndarray, accuracy: np.ndarray, each: int) -> None:
    step = np.arange(len(loss), dtype=np.int32)
    columns = [step, step // np.int32(each), loss, accuracy, np.full(len(loss), 1e-3), 0.06 * (step + 1.0)]
    write_table(_table("steps", columns), run.path / "steps.parquet", holds=0)


def _write_epochs(run: Run, loss: np.ndarray, accuracy: np.ndarray, each: int) -> np.ndarray:
    """The epochs that were completed; returns their validation accuracies."""
    whole = len(loss) // each
    means = [
        np.nanmean(values[: whole * each].reshape(whole, each), axis=1) if whole else np.empty(0)
        for values in (loss, accuracy)
    ]
    columns = [
        np.arange(whole, dtype=np.int32),
        *means,
        means[0] * 1.05,
        means[1] * 0.98,
        0.06 * each * np.arange(1.0, whole + 1),
    ]
    write_table(_table("epochs", columns), run.path / "epochs.parquet", holds=0)
    return columns[4]


def _write_layers(
    run: Run, names: list[str], steps: int, slope: float, broken: bool, random: np.random.Generator
) -> None:
    """All rows of ``layers``: magnitudes by depth, drifting and noisy over the steps."""
    count = len(names)
    depth = np.arange(count, dtype=np.int32)
    profile = 10.0 ** (-slope * (count - 1 - depth))
    scale = np.array([0.5, 5e-3, 16.0, 3e-3, 0.1, 0.6, 0.2, 2e-4, 0.3, 8.0])
    fades = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0, 0])
    pieces = []
    for first in range(0, steps, TOGETHER):
        step = np.arange(first, min(steps, first + TOGETHER), dtype=np.int32)
        drift = np.exp(np.cumsum(random.normal(0, 0.02, len(step))) * 0.1)
        values = []
        for kind, (size, fading) in enumerate(zip(scale, fades, strict=True)):
            grid = (
                size
                * (profile if fading else 1.0)
                * drift[:, None]
                * np.exp(random.normal(0, 0.15 if kind != 2 else 0.001, (len(step), count)))
            )
            if LAYER_METRICS[kind] in SELDOM:
                grid = np.where(step[:, None] % THOROUGHLY_EVERY == 0, grid, np.nan)
            values.append(np.clip(grid, 0, 0.95) if LAYER_METRICS[kind] == "dead_fraction" else grid)
        if broken:
            gone = step >= steps - max(1, steps // 10)
            values[0][gone] = values[1][gone] = math.nan
        nonfinite = np.repeat(np.where(broken & (step >= steps - max(1, steps // 10)), 1, 0), count).astype(
            np.int32
        )
        layer = pa.DictionaryArray.from_arrays(pa.array(np.tile(depth, len(step))), pa.array(names))
        kinds = pa.DictionaryArray.from_arrays(
            pa.array(np.tile(np.where(depth >= count - 3, 1, 0).astype(np.int32), len(step))),
            pa.array(["conv2d", "linear"]),
        )
        columns = [
            np.repeat(step, count),
            layer,
            np.tile(depth, len(step)),
            kinds,
            *(
                pa.array(grid.ravel().astype(np.float32), from_pandas=metric in SELDOM)
                for metric, grid in zip(LAYER_METRICS, values, strict=False)
            ),
            nonfinite,
        ]
        pieces.append(_table("layers", columns))
    if len(pieces) == 1:
        write_table(pieces[0], run.path / "layers.parquet", holds=0)
        return
    sources = [run.path / "parts" / part_name("layers", i, i) for i in range(len(pieces))]
    for piece, path in zip(pieces, sources, strict=True):
        write_table(piece, path)
    concatenate(sources, run.path / "layers.parquet", holds=len(pieces) - 1, schema=SCHEMAS["layers"])
    for path in sources:
        path.unlink()


def _table(name: str, columns: list[Any]) -> pa.Table:
    schema = SCHEMAS[name]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _facts(names: list[str]) -> dict[str, Any]:
    """As many as the recorder notes, so that ``status.json`` is as long."""
    return {
        "parameters": 2_112_442,
        "trainable_share": 1.0,
        "weights": dict.fromkeys(names, 147_456),
        "identical_units": [],
        "normalization": False,
        "frozen": [],
        "scales": {
            name: {
                "gain": 1.4126735925674438,
                "mean": 7.942242518765852e-06,
                "bias_mean": 0.0,
                "bias_std": 0.0,
            }
            for name in names
        },
        "optimized_share": 1.0,
        "unoptimized": [],
        "optimizer": "Adam",
        "batch_size": 64,
        "input_shape": [1, 32, 32],
        "outputs": 10,
        "input": {
            "mean": 0.29718017578125,
            "std": 0.3192061185836792,
            "low": 0.0,
            "high": 1.0,
            "signal": 0.2124751581509793,
            "nonfinite": 0,
        },
        "activations": dict.fromkeys(names[:-1], "ReLU"),
        "normalized": [],
        "end": {"identical_units": []},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=115)
    parser.add_argument("--layers", type=int, default=16)
    asked = parser.parse_args()
    began = time.perf_counter()
    found = make(asked.folder, asked.count, asked.steps, asked.layers)
    print(f"{len(found)} runs in {asked.folder} after {time.perf_counter() - began:.1f} s")
