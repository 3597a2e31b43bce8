"""The forecast against what happened: short trainings over initialization x gain x depth x width x optimizer
x seed.

    python -m tests.benchmarks.forecast train what is missing in forecast.csv (resumable), then score python
    -m tests.benchmarks.forecast --score score only

Each cell trains a small VGG on digits at 32x32 for at most eight epochs (184 steps, one thread, 2 to 10 s).
The thresholds of ``initscope.theory.forecast`` were chosen on the cells whose hashed name is even. The form
of the rules was found looking at all cells of the grid, so the matrix that counts most is that of the fresh
cells, which nobody had seen.
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
from multiprocessing import Pool
from pathlib import Path

import torch
import torch.nn.functional as F

from initscope import networks
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.outcome import CERTAIN_SKILL, judge
from initscope.theory.forecast import forecast
from initscope.theory.probe import first_batch, predict, probe
from initscope.training import trainer
from initscope.training.optimizers import build_optimizer

RESULTS = Path(__file__).with_suffix(".csv")
SEED = 20261123
FIRST, ALL, FRESH = 123, 300, 80
"""Of the cells on the grid the first keep each optimizer's usual learning rate, the others vary it. The fresh
cells are off the grid (any gain, any learning rate) and were trained after rules and thresholds were final.
"""
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
    """All cells in the order of training."""
    return grid_cells() + fresh_cells()


def grid_cells() -> list[dict]:
    """A fixed random sample of the grid without repetitions."""
    rng, chosen = random.Random(SEED), {}
    while len(chosen) < ALL:
        cell = {key: rng.choice(values) for key, values in AXES.items()}
        rates = LEARNING_RATES[cell["optimizer"]]
        cell["learning_rate"] = rates[0] if len(chosen) < FIRST else rng.choice(rates)
        chosen.setdefault(name_of(cell), cell)
    return list(chosen.values())


def fresh_cells() -> list[dict]:
    """As above with gain and learning rate drawn log-uniformly; two digits, so that names are short."""
    rng, result = random.Random(SEED + 1), []
    for _ in range(FRESH):
        cell = {key: rng.choice(values) for key, values in AXES.items()}
        cell["gain"] = float(f"{math.exp(rng.uniform(math.log(0.35), math.log(4))):.2g}")
        low, high = {"adam": (1e-5, 1e-2), "sgd": (1e-4, 1e-1)}[cell["optimizer"]]
        cell["learning_rate"] = float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}")
        result.append(cell)
    return result


def name_of(cell: dict, keys: tuple[str, ...] = KEYS) -> str:
    return "/".join(f"{key}={cell[key]}" for key in keys)


GROUPS = ("thresholds chosen on these", "held out", "fresh")


def group_of(cell: dict, fresh: set[str]) -> str:
    """Which of GROUPS the cell is in; ``fresh``: the names of the fresh cells. All seeds of a setting fall on
    one side.
    """
    if name_of(cell) in fresh:
        return GROUPS[2]
    name = name_of(cell, tuple(key for key in KEYS if key != "init_seed"))
    return GROUPS[hashlib.sha256(name.encode()).digest()[0] % 2]


def config_of(cell: dict) -> RunConfig:
    return RunConfig(**{key: cell[key] for key in KEYS}, image_size=32, threads=1, epochs=EPOCHS)


def run_cell(cell: dict) -> dict:
    """Train one cell; its row of the results."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    result = train(config_of(cell))
    return {**cell, **result, "seconds": round(time.perf_counter() - began, 2)}


def train(config: RunConfig) -> dict:
    """The trainer's loop without its records: outcome by ``initscope.outcome``, ending early at certain
    convergence or a bad loss.
    """
    loaded = loading.load(config)
    model = networks.build(config, in_channels=loaded.channels, num_classes=loaded.classes)
    model.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(config, model)
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
        accuracy = trainer.evaluate(model, loaded)[1]
        best = max(best, accuracy)
        if steps >= 50 and accuracy >= loaded.chance + CERTAIN_SKILL * (1 - loaded.chance):
            break
    outcome = judge(
        loss_finite=math.isfinite(loss),
        steps=steps,
        accuracy=accuracy,
        chance=loaded.chance,
        samples=len(loaded.validation),
    )
    return {
        "outcome": str(outcome),
        "accuracy": accuracy,
        "best_accuracy": best,
        "loss": loss,
        "steps": steps,
    }


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
            print(
                f"{i}/{len(missing)} {name_of(row)}: {row['outcome']} {row['accuracy']} in {row['seconds']} "
                "s",
                flush=True,
            )


OUTCOMES = ("converged", "not_converged", "diverged")


def forecasts(rows: list[dict]) -> list[tuple[dict, dict]]:
    """For each row of the results, the forecast from the measurement and the one from theory. Minutes for
    hundreds of rows.
    """
    torch.set_num_threads(1)
    images, labels, classes = first_batch(config_of(rows[0]))
    result = []
    for row in rows:
        config = config_of(row)
        model = networks.build(config, in_channels=images.shape[1], num_classes=classes)
        result.append(
            (
                forecast(probe(model, images, labels), config),
                forecast(predict(model, config, images, labels), config),
            )
        )
    return result


def score(rows: list[dict], said: list[dict]) -> str:
    """The confusion matrix as Markdown, and the misses."""
    counts = Counter((row["outcome"], words["outcome"]) for row, words in zip(rows, said, strict=True))
    lines = ["| happened \\ forecast | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * len(OUTCOMES)]
    for happened in (*OUTCOMES, "undecided"):
        lines.append(
            f"| {happened} | " + " | ".join(str(counts[happened, outcome]) for outcome in OUTCOMES) + " |"
        )
    decided = sum(n for (happened, _), n in counts.items() if happened in OUTCOMES)
    right = sum(n for (happened, outcome), n in counts.items() if happened == outcome)
    lines += ["", f"{right} of {decided} decided runs right ({right / max(decided, 1):.1%}); misses:"]
    for row, words in zip(rows, said, strict=True):
        if row["outcome"] in OUTCOMES and words["outcome"] != row["outcome"]:
            best = f"{row['best_accuracy']:.2f}"
            lines.append(
                f"- {name_of(row)}: {row['outcome']} (best accuracy {best}), forecast {words['outcome']}: "
                f"{words['reason']}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV file, made or continued")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--score", action="store_true", help="train nothing")
    given = parser.parse_args()
    if not given.score:
        collect(given.results, given.processes)
    rows = read(given.results)
    said, fresh = forecasts(rows), {name_of(cell) for cell in fresh_cells()}
    for group in GROUPS:
        part = [(row, words) for row, words in zip(rows, said, strict=True) if group_of(row, fresh) == group]
        for source, index in (("measured", 0), ("predicted", 1)):
            print(f"\n## {group}: {len(part)} runs, {source}\n")
            print(score([row for row, _ in part], [words[index] for _, words in part]))


if __name__ == "__main__":
    main()
