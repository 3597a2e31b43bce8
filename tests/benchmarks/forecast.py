"""The forecast against what happened: short trainings over initialization x gain x depth x width x optimizer x seed.

    python -m tests.benchmarks.forecast --results FILE.csv             train what is missing (resumable), then score
    python -m tests.benchmarks.forecast --results FILE.csv --score     score only

Each cell trains a small VGG on digits at 32x32 for at most eight epochs (184 steps, one thread, 2 to 10 s). The thresholds of
``core.forecast`` were chosen on the cells whose hashed name is even; the confusion matrix that counts is that of the odd ones.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing import Pool
from pathlib import Path

import torch
import torch.nn.functional as F

from core import data, models, trainer
from core.config import RunConfig
from core.forecast import forecast
from core.outcome import CERTAIN_SKILL, judge
from core.probe import first_batch, predict, probe

SEED = 20261123
FIRST, ALL = 123, 300
"""The first cells keep each optimizer's usual learning rate; the others vary it."""
AXES = {
    "init": ("default", "kaiming_normal", "xavier_normal", "tutorial", "normal_0.01", "orthogonal"),
    "gain": (0.35, 0.5, 0.71, 0.84, 1.0, 1.0, 1.0, 1.19, 1.41, 2.0, 2.83, 4.0),
    "model": ("vgg11", "vgg13", "vgg16", "vgg16", "vgg19"),
    "width": (0.125, 0.125, 0.25),
    "optimizer": ("adam", "adam", "adam", "sgd"),
    "batch_norm": (False,) * 9 + (True,),
    "init_seed": (0, 1, 2, 3, 4),
}
LEARNING_RATES = {"adam": (1e-3, 1e-4, 3e-4, 3e-3, 1e-2), "sgd": (1e-2, 1e-3, 3e-2, 1e-1)}
"""The usual one first."""
EPOCHS = 8
KEYS = (*AXES, "learning_rate")
COLUMNS = (*KEYS, "outcome", "accuracy", "best_accuracy", "loss", "steps", "seconds")


def cells() -> list[dict]:
    """The cells in the order of training: a fixed random sample of the grid without repetitions."""
    rng, chosen = random.Random(SEED), {}
    while len(chosen) < ALL:
        cell = {key: rng.choice(values) for key, values in AXES.items()}
        rates = LEARNING_RATES[cell["optimizer"]]
        cell["learning_rate"] = rates[0] if len(chosen) < FIRST else rng.choice(rates)
        chosen.setdefault(name_of(cell), cell)
    return list(chosen.values())


def name_of(cell: dict, keys: tuple[str, ...] = KEYS) -> str:
    return "/".join(f"{key}={cell[key]}" for key in keys)


def for_choosing(cell: dict) -> bool:
    """Whether the cell is in the half on which thresholds are chosen. All seeds of a setting fall on one side."""
    name = name_of(cell, tuple(key for key in KEYS if key != "init_seed"))
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def config_of(cell: dict) -> RunConfig:
    return RunConfig(**{key: cell[key] for key in KEYS}, image_size=32, threads=1, epochs=EPOCHS)


def run_cell(cell: dict) -> dict:
    """Train one cell; its row of the results."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    result = train(config_of(cell))
    return {**cell, **result, "seconds": round(time.perf_counter() - began, 2)}


def train(config: RunConfig) -> dict:
    """The trainer's loop without its records: outcome by ``core.outcome``, ending early at certain convergence or a bad loss."""
    loaded = data.load(config)
    model = models.build(config, in_channels=loaded.channels, num_classes=loaded.classes)
    model.to(memory_format=torch.channels_last).train()
    optimizer = trainer.build_optimizer(config, model)
    steps, loss, accuracy, best = 0, math.nan, None, 0.0
    for epoch in range(config.epochs):
        for images, labels in loaded.epoch(epoch):
            optimizer.zero_grad(set_to_none=True)
            batch_loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            batch_loss.backward()
            optimizer.step()
            steps, loss = steps + 1, batch_loss.item()
            if not math.isfinite(loss):
                break
        if not math.isfinite(loss):
            break
        accuracy = trainer.evaluate(model, loaded, config)[1]
        best = max(best, accuracy)
        if steps >= 50 and accuracy >= loaded.chance + CERTAIN_SKILL * (1 - loaded.chance):
            break
    outcome = judge(
        loss_finite=math.isfinite(loss), steps=steps, accuracy=accuracy, chance=loaded.chance, samples=len(loaded.validation)
    )
    return {"outcome": str(outcome), "accuracy": accuracy, "best_accuracy": best, "loss": loss, "steps": steps}


def read(path: Path) -> list[dict]:
    """The rows of a results file, numbers as numbers."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: _parsed(key, value) for key, value in row.items()} for row in csv.DictReader(file)]


def _parsed(key: str, value: str):
    if key in ("init", "model", "optimizer", "outcome"):
        return value
    if key == "batch_norm":
        return value == "True"
    if key in ("init_seed", "steps"):
        return int(value)
    return float(value) if value else None


def collect(path: Path, processes: int) -> None:
    """Train the cells that the file lacks; a row is written as soon as it is there."""
    done = {name_of(row) for row in read(path)}
    missing = [cell for cell in cells() if name_of(cell) not in done]
    with path.open("a", newline="") as file, contextlib.ExitStack() as stack:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        run = map if processes == 1 else stack.enter_context(Pool(processes)).imap_unordered
        for i, row in enumerate(run(run_cell, missing), start=1):
            writer.writerow(row)
            file.flush()
            print(f"{i}/{len(missing)} {name_of(row)}: {row['outcome']} {row['accuracy']} in {row['seconds']} s", flush=True)


OUTCOMES = ("converged", "not_converged", "diverged")


def score(rows: Iterable[dict], source: str) -> str:
    """The confusion matrix as Markdown, and the misses. ``source``: 'measured' or 'predicted' features."""
    counts: Counter[tuple[str, str]] = Counter()
    misses = []
    for row in rows:
        config = config_of(row)
        said = forecast({name: row[f"{source}_{name}"] for name in FEATURES}, config)
        counts[row["outcome"], said["outcome"]] += 1
        if row["outcome"] in OUTCOMES and said["outcome"] != row["outcome"]:
            misses.append(f"- {name_of(row)}: {row['outcome']} ({row['accuracy']}), forecast: {said['outcome']}, {said['reason']}")
    lines = ["| happened \\ forecast | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * len(OUTCOMES)]
    for happened in (*OUTCOMES, "undecided"):
        lines.append(f"| {happened} | " + " | ".join(str(counts[happened, said]) for said in OUTCOMES) + " |")
    decided = sum(n for (happened, _), n in counts.items() if happened in OUTCOMES)
    right = sum(n for (happened, said), n in counts.items() if happened == said)
    return "\n".join([*lines, "", f"{right} of {decided} decided runs right ({right / max(decided, 1):.1%}); misses:", *misses])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="CSV file, made or continued")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--score", action="store_true", help="train nothing")
    given = parser.parse_args()
    if not given.score:
        collect(given.results, given.processes)
    rows = read(given.results)
    for half, wanted in (("thresholds chosen on these", True), ("held out", False)):
        part = [row for row in rows if for_choosing(row) is wanted]
        for source in ("measured", "predicted"):
            print(f"\n## {half}: {len(part)} runs, {source}\n\n{score(part, source)}")


if __name__ == "__main__":
    main()
