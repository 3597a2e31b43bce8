"""How cost grows with layers and steps: recording, files, and the map of one metric on a page.

    python -m tests.benchmarks.growth # 16, 100, 500 layers x 1e3, 1e5, 1e6 steps, as far as --most rows go
    python -m tests.benchmarks.growth --plot FILE.html # the same as a picture

A row is a layer at a step. Overhead: a network of so many small linear layers, one thread, with and without
the recorder in turns. The map is what the Gradients page reads and reduces before it draws, in a process of
its own. All times are of the processor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from initscope.recording.recorder import Recorder
from tests.benchmarks.store import make_long, map_of, size

LAYERS = (16, 100, 500)
STEPS = (1_000, 100_000, 1_000_000)
WIDTH, BATCH = 64, 64
ROUNDS, TURN = 12, 4


class Cell(NamedTuple):
    """One size of a run: written, held, and looked at."""

    layers: int
    steps: int
    write_us: float
    megabytes: float
    map_seconds: float
    map_megabytes: float


def training(layers: int, folder: str | None) -> Iterator[None]:
    """A chain of linear layers; one step at each ``next``."""
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(BATCH, WIDTH)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    if folder is None:
        while True:
            step()
            yield
    with Recorder(model, optimizer, runs=folder) as recorder:
        while True:
            recorder.step(step())
            yield


def overhead(layers: int) -> tuple[float, float]:
    """(milliseconds a plain step, milliseconds that recording adds), in processor time: the medians over
    turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        loops = training(layers, None), training(layers, folder)
        taken: tuple[list[float], list[float]] = [], []
        for turn in range(ROUNDS + 1):
            for loop, times in zip(loops, taken, strict=True):
                began = time.process_time()
                for _ in range(TURN):
                    next(loop)
                if turn:  # the first one warms up
                    times.append((time.process_time() - began) / TURN)
        for loop in loops:
            loop.close()
    plain, recorded = (1e3 * statistics.median(times) for times in taken)
    return plain, recorded - plain


def cell(layers: int, steps: int) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = make_long(Path(folder), steps, layers, piece=max(100, min(steps, 300_000 // layers)))
        took = time.process_time() - began
        held = sum(size(run.path / name) for name in ("steps.parquet", "layers.parquet"))
        _, busy, _, peak = map_of(run)
    return Cell(layers, steps, 1e6 * took / steps, held / 1e6, busy, peak)


def plot(cells: list[Cell], added: dict[int, float], file: Path) -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(
        1,
        3,
        subplot_titles=("Recording: ms added to a step", "Files: MB", "Map of one metric: s"),
        horizontal_spacing=0.08,
    )
    figure.add_scatter(
        x=list(added),
        y=list(added.values()),
        mode="lines+markers",
        name="layers",
        showlegend=False,
        row=1,
        col=1,
    )
    for layers, colour in zip(LAYERS, ("#0072B2", "#E69F00", "#009E73"), strict=True):
        mine = [c for c in cells if c.layers == layers]
        for column, values in ((2, [c.megabytes for c in mine]), (3, [c.map_seconds for c in mine])):
            figure.add_scatter(
                x=[c.steps for c in mine],
                y=values,
                mode="lines+markers",
                name=f"{layers} layers",
                line_color=colour,
                showlegend=column == 2,
                row=1,
                col=column,
            )
    figure.update_xaxes(type="log", dtick=1, title="steps").update_xaxes(title="layers", row=1, col=1)
    figure.update_yaxes(type="log", dtick=1).update_layout(
        template="simple_white", width=1100, height=360, margin={"t": 40, "b": 50, "l": 50, "r": 20}
    )
    figure.write_html(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=2e7, help="rows of the largest run that is made")
    parser.add_argument("--plot", type=Path, help="an HTML file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{WIDTH} wide linear layers, batch {BATCH}, one thread, every step; load {os.getloadavg()[0]:.1f}\n"
    )
    print("| layers | plain step | recording adds | a layer |\n|---|---|---|---|")
    added = {}
    for layers in LAYERS:
        plain, added[layers] = overhead(layers)
        print(
            f"| {layers} | {plain:.2f} ms | {added[layers]:.2f} ms | {1e3 * added[layers] / layers:.0f} us |",
            flush=True,
        )
    print(
        "\n| layers | steps | write | files | map of one metric | its process's memory "
        "|\n|---|---|---|---|---|---|"
    )
    cells = []
    for layers in LAYERS:
        for steps in STEPS:
            if layers * steps > given.most:
                print(
                    f"| {layers} | {steps} | left out: {layers * steps:.0e} rows are more than --most | | | |"
                )
                continue
            cells.append(found := cell(layers, steps))
            shown = (
                f"{found.write_us:.0f} us/step | {found.megabytes:.1f} MB | {found.map_seconds:.2f} s | "
                f"{found.map_megabytes:.0f} MB"
            )
            print(f"| {layers} | {steps} | {shown} |", flush=True)
    if given.plot:
        plot(cells, added, given.plot)


if __name__ == "__main__":
    main()
