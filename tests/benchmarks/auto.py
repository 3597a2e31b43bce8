"""Does an initialization that is computed for the network train what others do not? ``python -m
tests.benchmarks.auto``.

Networks without normalization on the embedded digits (16x16), Adam and plain SGD, all else equal: for each
initialization the share of seeds that come under a set training loss (0.5, chance is 2.3) and the median
number of steps to it. Every cell runs on one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initscope.networks import inits

SCHEMES = ("default", "kaiming_normal", "xavier_normal", "orthogonal", "lsuv", "auto")
SIDE = 16


def vgg(width: int = 8, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Sixteen convolutions in four blocks, narrow; no normalization."""
    layers: list[nn.Module] = []
    channels = 1
    for block, out in enumerate((width, 2 * width, 2 * width, 4 * width)):
        for _ in range(4):
            layers += [nn.Conv2d(channels, out, 3, padding=1), activation()]
            channels = out
        if block < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 4, 10))


def mlp(depth: int, activation: Callable[[], nn.Module], width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(SIDE**2, width)]
    for _ in range(depth):
        layers += [activation(), nn.Linear(width, width)]
    return nn.Sequential(*layers, activation(), nn.Linear(width, 10))


class Residual(nn.Module):
    """An MLP of residual blocks without normalization."""

    def __init__(self, depth: int = 20, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(SIDE**2, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Transformer(nn.Module):
    """Six blocks of attention and two linear layers over 16 patches, without normalization."""

    def __init__(self, depth: int = 6, width: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2, width))
        self.attention = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
            for _ in range(depth)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for attention, mlp_ in zip(self.attention, self.mlp, strict=True):
            b, t, d = x.shape
            q, k, v = (z.view(b, t, 4, d // 4).transpose(1, 2) for z in attention["qkv"](x).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
            x = x + attention["out"](mixed)
            x = x + mlp_(x)
        return self.head(x.mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "tanh": lambda: mlp(30, nn.Tanh),
    "residual": Residual,
    "transformer": Transformer,
    "gelu": lambda: vgg(activation=nn.GELU),
}


def data() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    x = F.interpolate((x - x.mean()) / x.std(), scale_factor=2, mode="nearest")
    return x, torch.tensor(labels)


def train(name: str, scheme: str, seed: int, optimizer: str, steps: int, goal: float) -> int | None:
    """Steps until the mean training loss of the last ten steps is below ``goal``; None where it is not."""
    x, y = data()
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    inits.initialize(model, scheme, seed=seed, sample=x[:64])
    if optimizer == "adam":
        updates: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    else:
        updates = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    recent: list[float] = []
    for step in range(1, steps + 1):
        at = torch.randint(len(x), (64,), generator=generator)
        loss = F.cross_entropy(model(x[at]), y[at])
        if not math.isfinite(loss.item()):
            return None
        recent = [*recent[-9:], loss.item()]
        if len(recent) == 10 and statistics.mean(recent) < goal:
            return step
        updates.zero_grad()
        loss.backward()
        updates.step()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(inits.SCHEMES))
    parser.add_argument("--optimizers", nargs="+", default=["adam", "sgd"], choices=["adam", "sgd"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--goal", type=float, default=0.5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    print("| network | optimizer | " + " | ".join(options.schemes) + " |")
    print("|---" * (len(options.schemes) + 2) + "|")
    for name in options.networks:
        for optimizer in options.optimizers:
            cells = []
            for scheme in options.schemes:
                found = [
                    train(name, scheme, seed, optimizer, options.steps, options.goal)
                    for seed in range(options.seeds)
                ]
                reached = [steps for steps in found if steps is not None]
                middle = f", {statistics.median(reached):.0f} steps" if reached else ""
                cells.append(f"{len(reached)} of {len(found)}{middle}")
            print(f"| {name} | {optimizer} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
