"""What recording costs: the same loop with and without it, in turns of two steps in one process, as a ratio
to the plain loop.

    python -m tests.benchmarks.overhead                     # quick preset: quarter-width VGG16, 32x32
    python -m tests.benchmarks.overhead --width 1 --rounds 20
    python -m tests.benchmarks.overhead --precision bfloat16
    python -m tests.benchmarks.overhead --rounds 1000 --only itself   # 2,000 steps: look at the ratio of sums
    python -m tests.benchmarks.overhead --memory            # peak memory of each variant, a process each
    python -m tests.benchmarks.overhead --parts             # the time in each of the recorder's parts
    python -m tests.benchmarks.overhead --device cuda --width 1 --size 224 --precision bfloat16

``plain again`` is the noise: rank nothing that lies inside it. On a machine that others use, look at
processor time. The recorder writes all columns to parquet. TensorBoard and Weights & Biases take part where
they are installed.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import importlib.util
import itertools
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from initscope import networks
from initscope.config import run_config
from initscope.data import loading
from initscope.recording.recorder import Recorder
from initscope.training import devices

TURN = 2
"""Steps of one variant before the next one's turn."""


class OwnTime:
    """A clock that stands still while another variant has its turn: who writes twice a second does so by its
    own time.
    """

    def __init__(self) -> None:
        self.before, self.since = 0.0, time.perf_counter()

    def __call__(self) -> float:
        return self.before + time.perf_counter() - self.since

    def stop(self) -> None:
        self.before = self()

    def start(self) -> None:
        self.since = time.perf_counter()


Watch = Callable[[nn.Module, torch.optim.Optimizer, str, OwnTime], Iterator[Any]]
"""A generator: entered before the first step, sent the loss after each, closed at the end."""


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str, clock: OwnTime) -> Iterator[Any]:
    while True:
        yield


def recorder(every: int | None) -> Watch:
    def watch(
        model: nn.Module, optimizer: torch.optim.Optimizer, folder: str, clock: OwnTime
    ) -> Iterator[Any]:
        with Recorder(model, optimizer, runs=folder, every=every) as recording:
            recording.writer._clock, recording.writer._flushed = clock, clock()
            while True:
                recording.step((yield))

    return watch


def naive(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str, clock: OwnTime) -> Iterator[Any]:
    """What a tutorial does: one ``.item()`` a layer."""
    rows = []
    while True:
        loss = yield
        rows.append([loss.item(), *(p.grad.norm().item() for p in model.parameters())])


def histograms(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: str, clock: OwnTime
) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    step = 0
    with SummaryWriter(folder) as writer:
        while True:
            loss = yield
            writer.add_scalar("loss", loss.item(), step)
            for name, parameter in model.named_parameters():
                writer.add_histogram(name, parameter, step)
                writer.add_histogram(f"{name}.grad", parameter.grad, step)
            step += 1


def wandb(frequency: int) -> Watch:
    def watch(
        model: nn.Module, optimizer: torch.optim.Optimizer, folder: str, clock: OwnTime
    ) -> Iterator[Any]:
        import wandb

        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        run.watch(model, log="all", log_freq=frequency)
        try:
            while True:
                run.log({"loss": (yield).item()})
        finally:
            run.unwatch(model)
            run.finish()

    return watch


def variants() -> dict[str, Watch]:
    found: dict[str, Watch] = {
        "plain": plain,
        "plain again": plain,
        "recorder, every step": recorder(1),
        "recorder, every tenth": recorder(10),
        "recorder, by itself": recorder(None),
    }
    found["naive .norm().item()"] = naive
    if importlib.util.find_spec("tensorboard"):
        found["TensorBoard histograms"] = histograms
    if importlib.util.find_spec("wandb"):
        found |= {"wandb.watch(all), log_freq 1": wandb(1), "wandb.watch(all), log_freq 100": wandb(100)}
    return found


def loop(options: argparse.Namespace, watch: Watch, folder: str) -> Iterator[None]:
    """Training on the digits of the quick preset; one step at each ``next``."""
    run = run_config.quick().replace(
        width=options.width, image_size=options.size, init=options.init, batch_size=options.batch
    )
    model = networks.build(run, in_channels=1, num_classes=10).to(options.device)
    devices.channels_last(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    clock = OwnTime()
    watcher = watch(model, optimizer, folder, clock)
    next(watcher)
    try:
        for x, y in itertools.cycle(batches(run, torch.device(options.device))):
            clock.start()
            optimizer.zero_grad()
            with devices.precision(options.precision, x.device):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            loss.backward()
            optimizer.step()
            watcher.send(loss)
            clock.stop()
            yield
    finally:
        watcher.close()


@functools.cache
def batches(run: run_config.RunConfig, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first few full batches, ready to be trained on: what it costs to make them is not the question
    here.
    """
    loaded = loading.load(run.replace(train_samples=16 * run.batch_size), device)
    return [
        (devices.in_layout(images), labels)
        for images, labels in loaded.epoch(0)
        if len(labels) == run.batch_size
    ]


def in_turns(options: argparse.Namespace) -> None:
    chosen = {
        name: watch
        for name, watch in variants().items()
        if not options.only or name in ("plain", "plain again") or options.only in name
    }
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: loop(options, watch, os.path.join(folder, str(k)))
            for k, (name, watch) in enumerate(chosen.items())
        }
        seconds: dict[str, list[float]] = {name: [] for name in running}
        worked: dict[str, list[float]] = {name: [] for name in running}
        synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
        for turn in range(options.rounds + 1):
            names = list(running)
            for name in (
                names[turn % len(names) :] + names[: turn % len(names)]
            ):  # nobody always follows the same neighbour
                began, busy = time.perf_counter(), time.process_time()
                for _ in range(TURN):
                    next(running[name])
                synchronize()
                if turn:  # the first turn warms up
                    seconds[name].append((time.perf_counter() - began) / TURN)
                    worked[name].append((time.process_time() - busy) / TURN)
        for loop_of in running.values():
            loop_of.close()
    setting = (
        f"width {options.width}, {options.size}x{options.size}, batch {options.batch}, {options.init}, "
        f"{options.precision}"
    )
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} thread"
    print(f"\n{setting}, {where}, {options.rounds} turns of {TURN} steps; load {os.getloadavg()[0]:.1f}")
    print(
        "| variant | ms a step | ratio to plain, median (quartiles) | the same of processor time | fastest "
        "of each | sums |\n|---|---|---|---|---|---|"
    )
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(_ratios(times, seconds["plain"]), n=4)
        busy = statistics.quantiles(_ratios(worked[name], worked["plain"]), n=4)
        best = min(worked[name]) / min(worked["plain"])
        columns = (
            f"{1e3 * statistics.median(times):.1f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {busy[1]:.3f} "
            f"({busy[0]:.3f} to {busy[2]:.3f})"
        )
        whole = sum(worked[name]) / sum(worked["plain"])
        print(f"| {name} | {columns} | {best:.3f} | {whole:.3f} |")


def _ratios(times: list[float], base: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(times, base, strict=True)]


def memory(options: argparse.Namespace) -> None:
    """Peak memory (resident, or of the GPU) after twelve steps, each variant in a process of its own."""
    base = None
    for name in variants():
        command = [sys.executable, "-m", "tests.benchmarks.overhead", "--peak", name]
        for key in ("width", "size", "batch", "threads", "init", "precision", "device"):
            command += [f"--{key}", str(getattr(options, key))]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        base = base or peak
        print(f"| {name} | {peak:.0f} MB | +{peak - base:.0f} MB |")


def peak(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        running = loop(options, variants()[options.peak], folder)
        for _ in range(12):
            next(running)
        running.close()
    gpu = options.device == "cuda"
    print(
        torch.cuda.max_memory_allocated() / 2**20
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def parts(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        running = loop(options, recorder(1), folder)
        next(running)
        with cProfile.Profile(time.process_time) as profile:
            for _ in range(options.rounds):
                next(running)
        running.close()
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--init", default="kaiming_normal")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="beside plain, only variants whose name holds this")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (peak if options.peak else memory if options.memory else parts if options.parts else in_turns)(options)


if __name__ == "__main__":
    main()
