"""What rows cost on disk: writing, size and reading back, beside the trackers that install in seconds.

    python -m tests.benchmarks.store # 10,000 steps x (2 scalars + 16 layers x 6 metrics) python -m
    tests.benchmarks.store --long # a run of a million steps: one metric's heatmap, time and memory

Each peer writes the same numbers in the way its documentation shows and reads them back with its own reader.
Peers: TensorBoard, wandb (offline) and trackio, where they are installed (``pip install tensorboard wandb
trackio``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from initscope.schema import LAYER_METRICS, MISSING, Status
from initscope.store import Run, Runs, RunWriter

LAYERS = [f"conv{block}_{i}" for block in range(1, 6) for i in range(1, 4 if block > 2 else 3)] + [
    "fc1",
    "fc2",
    "fc3",
]
METRICS = ("grad_norm", "grad_rms", "weight_norm", "update_ratio", "activation_std", "signal_std")
REPEATS = 9


def numbers(steps: int, layers: int = len(LAYERS), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(steps, 2) loss and accuracy, and (steps, metrics, layers): magnitudes that wander over decades, with
    noise from step to step.
    """
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 6, steps)
    scalars = np.stack(
        [
            2.3 * np.exp(-progress) + 0.1 * rng.random(steps),
            np.round(64 * (1 - 0.9 * np.exp(-progress))) / 64,
        ],
        1,
    )
    drift = np.cumsum(rng.normal(0, 1 / np.sqrt(steps), (steps, len(METRICS), layers)).astype(np.float32), 0)
    noise = rng.normal(-3, 0.3, (steps, len(METRICS), layers)).astype(np.float32)
    return scalars.astype(np.float32), 10 ** (drift + noise)


def columns(names: list[str]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Names, kinds and depths as ``RunWriter.layers`` takes them."""
    index = pa.array(range(len(names)), pa.int32())
    kinds = pa.DictionaryArray.from_arrays(pa.array([0] * len(names), pa.int32()), ["conv2d"])
    return pa.DictionaryArray.from_arrays(index, names), kinds, index


def write(
    run: Run, scalars: np.ndarray, values: np.ndarray, names: list[str], every: int | None = None
) -> float:
    """Seconds to write a whole run as a recorder does. A part is written when it is due, or after ``every``
    steps.
    """
    where = [LAYER_METRICS.index(metric) for metric in METRICS]
    began = time.perf_counter()
    writer, axis = RunWriter(run), columns(names)
    row = np.full((len(LAYER_METRICS), len(names)), MISSING, np.float32)
    row[-1] = 0
    for step, ((loss, accuracy), measured) in enumerate(zip(scalars.tolist(), values, strict=True)):
        row[where] = measured
        writer.step(step, 0, loss, accuracy, 1e-3, 0.05 * step)
        writer.layers(step, *axis, row)
        if every is None:
            writer.flush_if_due()
        elif step % every == every - 1:
            writer.flush()
    writer.compact()
    return time.perf_counter() - began


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


Seconds = tuple[float, float]
"""Of several looks: the median, and the fastest."""
Result = tuple[float, int, Seconds | None, Seconds | None]
"""Seconds to write, bytes, seconds to read everything, seconds to read one metric; None where there is no
such way.
"""


def seconds(look: Callable[[], object], repeats: int = REPEATS) -> Seconds:
    """The first look, which warms caches and imports, is not counted where there are several."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        look()
        taken.append(time.perf_counter() - began)
    taken = taken[1:] or taken
    return statistics.median(taken), min(taken)


def initscope(folder: Path, scalars: np.ndarray, values: np.ndarray, every: int | None = None) -> Result:
    run = Runs(folder).create({"init": "custom"}, Status.RUNNING)
    took = write(run, scalars, values, LAYERS, every)
    held = sum(size(run.path / name) for name in ("steps.parquet", "layers.parquet"))

    def everything() -> None:
        assert len(run.read("steps")) == len(scalars) and len(run.read("layers")) == len(scalars) * len(
            LAYERS
        )

    return took, held, seconds(everything), seconds(lambda: list(run.grids("grad_norm")))


def plain_parquet(folder: Path, scalars: np.ndarray, values: np.ndarray) -> Result:
    """The same tidy rows in one go with pyarrow's defaults."""
    began = time.perf_counter()
    names, _, depths = columns(LAYERS)
    repeated = pa.DictionaryArray.from_arrays(np.tile(names.indices, len(values)), names.dictionary)
    table = {
        "step": np.repeat(np.arange(len(values), dtype=np.int32), len(LAYERS)),
        "layer": repeated,
        "depth": np.tile(depths, len(values)),
    }
    pq.write_table(
        pa.table(table | {metric: values[:, k].reshape(-1) for k, metric in enumerate(METRICS)}),
        folder / "layers.parquet",
        compression="zstd",
    )
    pq.write_table(
        pa.table({"step": range(len(scalars)), "loss": scalars[:, 0], "accuracy": scalars[:, 1]}),
        folder / "steps.parquet",
        compression="zstd",
    )
    took = time.perf_counter() - began
    one = seconds(lambda: pq.read_table(folder / "layers.parquet", columns=["step", "layer", "grad_norm"]))
    return (
        took,
        size(folder),
        seconds(lambda: [pq.read_table(file) for file in folder.glob("*.parquet")]),
        one,
    )


def raw_array(folder: Path, scalars: np.ndarray, values: np.ndarray) -> Result:
    """What no format can beat without compressing: the float32 numbers as they are."""
    whole = np.concatenate([scalars, values.reshape(len(values), -1)], 1)
    began = time.perf_counter()
    with open(folder / "rows", "wb") as file:
        for row in whole:
            file.write(row.tobytes())
    took = time.perf_counter() - began
    back = seconds(lambda: np.fromfile(folder / "rows", np.float32).reshape(len(whole), -1))
    return took, size(folder), back, back


def _named(loss: float, accuracy: float, measured: np.ndarray) -> dict[str, float]:
    found = {"loss": loss, "accuracy": accuracy}
    return found | {
        f"{metric}/{layer}": v
        for metric, row in zip(METRICS, measured.tolist(), strict=True)
        for layer, v in zip(LAYERS, row, strict=True)
    }


def tensorboard(folder: Path, scalars: np.ndarray, values: np.ndarray) -> Result:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    began = time.perf_counter()
    with SummaryWriter(str(folder)) as writer:
        for step, ((loss, accuracy), measured) in enumerate(zip(scalars.tolist(), values, strict=True)):
            for tag, value in _named(loss, accuracy, measured).items():
                writer.add_scalar(tag, value, step)
    took = time.perf_counter() - began
    return (
        took,
        size(folder),
        seconds(lambda: EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload(), 1),
        None,
    )


def wandb(folder: Path, scalars: np.ndarray, values: np.ndarray) -> Result:
    """Its offline file has no reader in Python: wandb's own programme uploads it, and what is read back comes
    from a server.
    """
    import wandb

    began = time.perf_counter()
    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True))
    for (loss, accuracy), measured in zip(scalars.tolist(), values, strict=True):
        run.log(_named(loss, accuracy, measured))
    run.finish()
    return time.perf_counter() - began, size(next(folder.rglob("*.wandb"))), None, None


def trackio(folder: Path, scalars: np.ndarray, values: np.ndarray) -> Result:
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="rows", name="run", embed=False)
        for (loss, accuracy), measured in zip(scalars.tolist(), values, strict=True):
            trackio.log(_named(loss, accuracy, measured))
        trackio.finish()
    took = time.perf_counter() - began
    return took, size(folder), seconds(lambda: SQLiteStorage.get_logs("rows", "run"), 1), None


PEERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def table(steps: int, peer_steps: int) -> None:
    print(
        f"{steps} steps ({peer_steps} for peers) x (2 scalars + {len(LAYERS)} layers x {len(METRICS)} "
        f"metrics); load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| store | write us/step | bytes a value | read all, median (fastest) | one metric "
        "|\n|---|---|---|---|---|"
    )
    ours = {
        "raw array": raw_array,
        "parquet, one go, pyarrow's defaults and zstd": plain_parquet,
        "InitScope, as fast as it goes": initscope,
        "InitScope, a part every 100 steps": lambda *given: initscope(*given, every=100),
    }
    for name, store in {**ours, **PEERS}.items():
        if name in PEERS and importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
            continue
        n = peer_steps if name in PEERS else steps
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            took, held, everything, one = store(Path(folder), *numbers(n))
        bytes_a_value = held / n / (2 + len(LAYERS) * len(METRICS))
        print(
            f"| {name} | {1e6 * took / n:.0f} | {bytes_a_value:.2f} | {_ms(everything)} | {_ms(one)} |",
            flush=True,
        )


def _ms(taken: Seconds | None) -> str:
    return "" if taken is None else f"{1e3 * taken[0]:.1f} ms ({1e3 * taken[1]:.1f})"


def make_long(runs: Path, steps: int, layers: int, piece: int = 20_000) -> Run:
    """A run of many steps, written piece by piece like one that has trained for weeks."""
    run = Runs(runs).create({"init": "custom"}, Status.RUNNING)
    writer, axis = RunWriter(run), columns([f"layer{i}" for i in range(layers)])
    row = np.full((len(LAYER_METRICS), layers), MISSING, np.float32)
    row[-1] = 0
    where = [LAYER_METRICS.index(metric) for metric in METRICS]
    for start in range(0, steps, piece):
        scalars, values = numbers(min(piece, steps - start), layers, seed=start)
        for step, ((loss, accuracy), measured) in enumerate(
            zip(scalars.tolist(), values, strict=True), start
        ):
            row[where] = measured
            writer.step(step, 0, loss, accuracy, 1e-3, 0.05 * step)
            writer.layers(step, *axis, row)
        writer.flush()
    writer.compact()
    return run


def open_map(path: str) -> None:
    """One metric's map, as the Gradients page makes it: prints its seconds, those of the processor, and the
    process's memory before and after in MB.
    """
    from initscope_dashboard.figures import heatmap

    run, before = Run(path), peak_megabytes()
    began, busy = time.perf_counter(), time.process_time()
    heatmap.reduced(run.grids("grad_norm"), "grad_norm", run.count("layers"))
    print(time.perf_counter() - began, time.process_time() - busy, before, peak_megabytes())


def peak_megabytes() -> float:
    """Of this programme: what ``getrusage`` says includes the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def map_of(run: Run) -> tuple[float, float, float, float]:
    """What ``open_map`` says in a process of its own: the best of three."""
    command = [sys.executable, "-m", "tests.benchmarks.store", "--map", str(run.path)]
    return min(
        tuple(map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))
        for _ in range(3)
    )


def long(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = make_long(Path(folder), steps, len(LAYERS))
        made = time.perf_counter() - began
        took, busy, before, after = map_of(run)
        held = size(run.path / "layers.parquet")
    print(
        f"{steps} steps x {len(LAYERS)} layers: {held / 1e6:.0f} MB, made in {made:.0f} s; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(
        f"map of one metric: {took:.2f} s ({busy:.2f} s of processor time), peak memory {after:.0f} MB "
        f"({before:.0f} MB before the first row)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--peer-steps", type=int, default=1_000, help="peers take up to a thousand times as long"
    )
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--long-steps", type=int, default=1_000_000)
    parser.add_argument("--map", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.map:
        open_map(given.map)
    elif given.long:
        long(given.long_steps)
    else:
        table(given.steps, given.peer_steps)


if __name__ == "__main__":
    main()
