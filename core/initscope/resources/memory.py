"""How much memory a training will take, told from its configuration alone: no torch, no network built.

Four bytes a number: the weights, their gradients, one copy of the weights for the recorder's update ratio,
the optimizer's averages (two a weight for Adam, one for SGD with momentum), and what the backward pass needs
of a batch: every activation's output, every pooling's output with the positions of its maxima (eight bytes
each), and the largest map with its gradient once more. A lower bound: kernels take room of their own (1.6 to
2 times the part that depends on the network was measured), so that what is refused could not have run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from initscope.config.run_config import RunConfig
from initscope.config.shapes import inputs_and_classes
from initscope.resources.sizes import NUMBER, size_of

FIXED = 700_000_000
"""Python and torch: what a training process takes before its first layer (778 MB measured with torch 2.14 on
Linux).
"""
WEIGHT_COPIES = 3
AVERAGES = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Estimate:
    """``parameters`` is a count; the rest are bytes: weights with their copies, optimizer's averages, a
    batch's activations.

    Of several ``processes`` each has weights and averages of its own and a share of the activations.
    """

    parameters: int
    weights: int
    optimizer: int
    activations: int
    processes: int = 1

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.activations + FIXED * self.processes

    @property
    def words(self) -> str:
        batch = (
            f"activations {size(self.activations)}" if self.activations else "what a batch takes not counted"
        )
        return f"weights {size(self.weights)}, optimizer {size(self.optimizer)}, {batch}"

    @property
    def advice(self) -> str:
        """Which of the settings helps most."""
        maps = self.activations > self.weights + self.optimizer
        return (
            "a smaller batch_size or image_size needs less" if maps else "a smaller width or model needs less"
        )


def estimate(config: RunConfig) -> Estimate | None:
    """What a training of ``config`` takes; None for a network that cannot be told without building it."""
    network = size_of(config, *inputs_and_classes(config))
    if network is None:
        return None
    return replace(
        at_least(config, network.parameters),
        activations=config.batch_size * (network.kept + 2 * NUMBER * network.largest),
    )


def at_least(config: RunConfig, parameters: int) -> Estimate:
    """The same for a network of which the parameters are known, and nothing else: one of somebody's own, once
    it has been built.
    """
    averages = AVERAGES[config.optimizer] if config.optimizer != "sgd" or config.momentum else 0
    return Estimate(
        parameters=parameters,
        weights=WEIGHT_COPIES * NUMBER * parameters * config.processes,
        optimizer=averages * NUMBER * parameters * config.processes,
        activations=0,
        processes=config.processes,
    )


def size(count: float) -> str:
    """Bytes in words: '640 kB', '2.1 GB'."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.3g} {unit}"
    return f"{count:.0f} bytes"
