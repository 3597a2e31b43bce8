"""The story on its own data: how soon each initialization leaves chance on FashionMNIST, by learning rate and
seed.

    python -m tests.benchmarks.story train what is missing in story.csv (resumable), then the tables python -m
    tests.benchmarks.story --table the tables only python -m tests.benchmarks.story --width 1 --steps 400
    --seeds 3 the story's own width; 0.6 s a step with AVX-512, 4 s without

A cell trains VGG16 without batch norm at 32 pixels, batch 64, Adam, float32, until it has left chance or
``--steps`` are over. It has left chance at the step at which the mean accuracy of the last 20 batches is
above 25 %: 1,280 images that guess reach 12.7 % in one of a thousand tries. The data are Debian's package
dataset-fashion-mnist, or what INITSCOPE_DATA holds.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".csv")
FIELDS = ("width", "init", "gain", "learning_rate", "seed", "steps", "left_at", "loss", "accuracy", "seconds")
LEFT = 0.25
WINDOW = 20
GAINS = {"orthogonal": 2**0.5}


def cells(arguments: argparse.Namespace) -> Iterator[dict]:
    """Seeds outermost: broken off early, every cell has some."""
    for seed in range(arguments.seeds):
        for rate in arguments.rates:
            for init in arguments.inits:
                yield {
                    "width": arguments.width,
                    "init": init,
                    "gain": GAINS.get(init, 1.0),
                    "learning_rate": rate,
                    "seed": seed,
                }


def done() -> list[dict]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return [
            {key: value if key == "init" else float(value or "nan") for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def covered(cell: dict, rows: list[dict], steps: int) -> bool:
    same = [row for row in rows if all(row[key] == value for key, value in cell.items())]
    return any(row["steps"] >= steps or not math.isnan(row["left_at"]) for row in same)


def train(cell: dict, steps: int, data) -> dict:
    import torch

    from initscope import networks
    from initscope.config import RunConfig
    from initscope.networks.inits import initialize

    config = RunConfig(
        data="fashion_mnist", image_size=32, width=cell["width"], init=cell["init"], gain=cell["gain"]
    )
    torch.manual_seed(cell["seed"])
    model = networks.build(config.replace(init="default", gain=1.0), in_channels=1, num_classes=10)
    initialize(
        model,
        cell["init"],
        gain=cell["gain"],
        seed=cell["seed"],
        sample=data.prepare(data.train.images[:64]) if cell["init"] == "lsuv" else None,
    )
    optimizer = torch.optim.Adam(model.parameters(), cell["learning_rate"])
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(cell["seed"]))
    recent: deque[float] = deque(maxlen=WINDOW)
    began, left = time.perf_counter(), math.nan
    for step in range(steps):
        at = order[step * 64 % (len(order) - 64) :][:64]
        images = data.train.images[at] if data.train_ready else data.prepare(data.train.images[at])
        outputs, labels = model(images), data.train.labels[at]
        loss = torch.nn.functional.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append((outputs.argmax(1) == labels).float().mean().item())
        if len(recent) == WINDOW and sum(recent) / WINDOW > LEFT:
            left = step + 1
            break
        if not math.isfinite(loss.item()):
            break
    seconds = round(time.perf_counter() - began)
    return {
        **cell,
        "steps": step + 1,
        "left_at": left,
        "loss": round(loss.item(), 4),
        "accuracy": round(sum(recent) / len(recent), 4),
        "seconds": seconds,
    }


def tables(rows: list[dict]) -> None:
    from initscope.comparison.statistics import wilson

    for width in sorted({row["width"] for row in rows}):
        mine = [row for row in rows if row["width"] == width]
        longest = (
            max(int(row["steps"]) for row in mine if math.isnan(row["left_at"]))
            if any(math.isnan(r["left_at"]) for r in mine)
            else max(int(r["left_at"]) for r in mine)
        )
        marks = [step for step in (50, 100, 200, 300, 400, 600, 938) if step <= longest] or [longest]
        print(
            f"\nwidth {width:g}: seeds that have left chance by step n, with the 95 % interval of the last "
            "column"
        )
        print(
            "| init | rate | "
            + " | ".join(map(str, marks))
            + " | 95 % |\n|---|---|"
            + "---|" * (len(marks) + 1)
        )
        for init, rate in sorted(
            {(row["init"], row["learning_rate"]) for row in mine}, key=lambda key: (key[0], -key[1])
        ):
            seeds = [row for row in mine if (row["init"], row["learning_rate"]) == (init, rate)]
            parts = []
            for mark in marks:
                watched = [row for row in seeds if row["left_at"] <= mark or row["steps"] >= mark]
                gone = sum(row["left_at"] <= mark for row in watched)
                parts.append(f"{gone} of {len(watched)}" if watched else "-")
            low, high = wilson(gone, len(watched)) if watched else (0, 1)
            print(f"| {init} | {rate:g} | " + " | ".join(parts) + f" | {low:.2f} to {high:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--rates", type=lambda text: [float(x) for x in text.split(",")], default=[1e-3, 3e-4, 1e-4]
    )
    parser.add_argument(
        "--inits",
        type=lambda text: text.split(","),
        default=["default", "tutorial", "kaiming_normal", "orthogonal", "lsuv"],
    )
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        import torch

        from initscope.config import RunConfig
        from initscope.data import loading

        torch.set_num_threads(1)
        data = loading.load(RunConfig(data="fashion_mnist", image_size=32))
        for cell in cells(arguments):
            if covered(cell, done(), arguments.steps):
                continue
            row = train(cell, arguments.steps, data)
            new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerow(
                    {
                        key: "" if value is math.nan or str(value) == "nan" else value
                        for key, value in row.items()
                    }
                )
            print(row, flush=True)
    tables(done())


if __name__ == "__main__":
    main()
