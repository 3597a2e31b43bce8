"""Theory against measurement: five initializations of the full-width VGG16 at two image sizes, as a Markdown
table.

    python -m tests.benchmarks.agreement            about two minutes on one core
    python -m tests.benchmarks.agreement --layers   every layer of every case as well

Each cell is the factor by which prediction and measurement differ, whichever way: at the median layer, and at
the worst.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from initscope import networks
from initscope.config.run_config import RunConfig
from initscope.theory import METRICS
from initscope.theory.probe import first_batch, predict, probe

INITS = ("default", "kaiming_normal", "xavier_normal", "normal_0.01", "tutorial")
SIZES = {32: 16, 224: 2}
"""Samples of the batch by image size."""


def compare(init: str, size: int, batch: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """(measured, predicted) rows of one case on digits."""
    config = RunConfig(init=init, image_size=size, batch_size=batch, init_seed=seed)
    images, labels, classes = first_batch(config)
    model = networks.build(config, in_channels=images.shape[1], num_classes=classes)
    return probe(model, images, labels), predict(model, config, images, labels)


def factors(measured: list[dict], predicted: list[dict], metric: str) -> list[float]:
    """max(predicted / measured, measured / predicted) for each layer."""
    ratios = [p[metric] / m[metric] for m, p in zip(measured, predicted, strict=True)]
    return [max(ratio, 1 / ratio) for ratio in ratios]


def table(cases: dict[tuple[int, str], tuple[list[dict], list[dict]]]) -> str:
    """Median and worst factor over the sixteen layers, as Markdown."""
    lines = ["| size | init | " + " | ".join(METRICS) + " |", "|---|---|" + "---|" * len(METRICS)]
    for (size, init), rows in cases.items():
        cells = []
        for metric in METRICS:
            values = factors(*rows, metric)
            cells.append(f"{statistics.median(values):.2f} / {max(values):.2f}")
        lines.append(f"| {size} | `{init}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def every_layer(measured: list[dict], predicted: list[dict]) -> str:
    """Measured and predicted values of one case, as Markdown."""
    lines = ["| layer | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for m, p in zip(measured, predicted, strict=True):
        lines.append(
            f"| {m['layer']} | " + " | ".join(f"{m[key]:.2e} / {p[key]:.2e}" for key in METRICS) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", action="store_true", help="print every layer as well (measured / predicted)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        (size, init): compare(init, size, batch, given.seed)
        for size, batch in SIZES.items()
        for init in INITS
    }
    print("Factor between prediction and measurement, median / worst of 16 layers:\n")
    print(table(cases))
    if given.layers:
        for (size, init), rows in cases.items():
            print(f"\n`{init}` at {size}x{size} (measured / predicted):\n\n{every_layer(*rows)}")


if __name__ == "__main__":
    main()
