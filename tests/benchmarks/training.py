"""Training against the loop a tutorial's reader would write: the same model, data, batch and optimizer.

    python -m tests.benchmarks.training # quick preset: images a second, in turns of a few steps in one
    process python -m tests.benchmarks.training --outcomes # five seeds of both initializations in both
    precisions (slow where bfloat16 is emulated) python -m tests.benchmarks.training --size 224 --width 1
    --batch 2 --rounds 3 python -m tests.benchmarks.training --story # on a GPU: 20 epochs of 60,000 images at
    224x224, projected from 200 steps

The reader's loop: images through PIL and torchvision's transforms in a DataLoader, float32, the default
memory format, ``loss.item()`` at every step. Ours records every layer at every step while it is timed, unless
its line says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from initscope import networks
from initscope.config import run_config
from initscope.config.run_config import RunConfig
from initscope.data import datasets
from initscope.recording.recorder import Recorder
from initscope.schema import Status
from initscope.store import Runs, RunWriter
from initscope.training import devices, trainer

TURN = 4
"""Steps of one variant before the next one's turn."""
VGG16_FORWARD = 15.47e9
"""Multiplications with addition of VGG16's convolutions and linear layers for one image of 224x224 (Simonyan
and Zisserman 2014, table 1).
"""
DENSE_BFLOAT16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12}
"""Floating-point operations a second of the makers' data sheets, without sparsity."""


class Pictures(torch.utils.data.Dataset):
    """The digits as a tutorial has them: PIL images, resized and turned into tensors one at a time."""

    def __init__(self, raw: datasets.RawData, size: int):
        pixels = (raw.train.images[:, 0] * (255 / raw.white)).numpy().astype(np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        self.labels = raw.train.labels.tolist()
        self.transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def reader(run: RunConfig, device: torch.device) -> Iterator[None]:
    """The tutorial's loop; one step at each ``next``."""
    raw = datasets.read(run.data, run.image_size)
    model = networks.build(run, in_channels=1, num_classes=10).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    criterion = nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(
        Pictures(raw, run.image_size), batch_size=run.batch_size, shuffle=True, drop_last=True
    )
    model.train()
    while True:
        running, correct = 0.0, 0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
            correct += (outputs.argmax(1) == labels).sum().item()
            yield


def ours(run: RunConfig, folder: str, record: bool = True) -> Iterator[None]:
    """The project's own training, recorder and all; one step at each ``next``."""
    made = Runs(folder).create(run.to_dict(), Status.RUNNING)
    training = trainer.Training(made, RunWriter(made), lambda position, total: None)
    training.model.train()
    with Recorder(
        training.model, training.optimizer, run=made, writer=training.writer, every=1 if record else 10**9
    ) as recorder:
        for epoch in itertools.count():
            for images, labels in training.data.epoch(epoch):
                if len(labels) == run.batch_size:
                    training._step(images, labels, recorder)
                    training._finite(recorder)
                    yield


def in_turns(
    variants: dict[str, Iterator[None]], rounds: int, turn: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each turn of each variant, one variant after the other; the first round warms up and is not
    counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, steps in variants.items():
            synchronize()
            began = time.perf_counter()
            for _ in range(turn):
                next(steps)
            synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def throughput(run: RunConfig, rounds: int, bfloat16: bool) -> None:
    device = devices.pick_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "reader's loop": reader(run, device),
            "reader's loop again (noise)": reader(run, device),
            "ours, float32": ours(run, folder),
            "ours, float32, not recording": ours(run, folder, record=False),
        }
        if bfloat16 or devices.pick_precision("auto", device) == "bfloat16":
            variants["ours, bfloat16"] = ours(run.replace(precision="bfloat16"), folder)
            variants["ours, bfloat16, not recording"] = ours(
                run.replace(precision="bfloat16"), folder, record=False
            )
        synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        seconds = in_turns(variants, rounds, TURN if run.batch_size > 8 else 1, synchronize)
    first = seconds["reader's loop"]
    turn = TURN if run.batch_size > 8 else 1
    print(
        f"{device}, {torch.get_num_threads()} threads, auto is {devices.pick_precision('auto', device)}; "
        f"medians of {rounds} turns\n"
    )
    print("| loop | images/s | times the reader's |\n|---|---|---|")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        print(f"| {name} | {run.batch_size * turn / statistics.median(taken):.1f} | {ratio:.2f} |")
    for steps in variants.values():
        steps.close()


def outcomes(seeds: int) -> None:
    print("| precision | init | outcomes | validation accuracy |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for init, precision in itertools.product(("default", "kaiming_normal"), ("float32", "bfloat16")):
            ended = []
            for seed in range(seeds):
                run = Runs(folder).create(
                    run_config.quick()
                    .replace(init=init, precision=precision, init_seed=seed, threads=0, record_every=10)
                    .to_dict(),
                    Status.QUEUED,
                )
                outcome = trainer.train(run)
                ended.append((str(outcome), run.state()["val_accuracy"]))
            accuracies = ", ".join(f"{100 * accuracy:.1f}" for _, accuracy in ended)
            print(
                f"| {precision} | {init} | {', '.join(sorted({outcome for outcome, _ in ended}))} | "
                f"{accuracies} % |",
                flush=True,
            )


def story(steps: int = 200, epochs: int = 20, samples: int = 60_000, batch: int = 64) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("--story needs a CUDA GPU; none is here")
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    raw = datasets.RawData(
        *(
            datasets.Split(
                torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (n,))
            )
            for n in (samples, 10_000)
        ),
        10,
        255.0,
    )
    for init in ("default", "kaiming_normal"):
        run = run_config.tutorial_224().replace(init=init, precision="auto", batch_size=batch)
        with tempfile.TemporaryDirectory() as folder:
            datasets.read = lambda *_: raw  # FashionMNIST's shape, without its files
            loop = ours(run, folder)
            for _ in range(20):
                next(loop)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(steps):
                next(loop)
            torch.cuda.synchronize()
            rate = steps * batch / (time.perf_counter() - began)
        peak = next((value for key, value in DENSE_BFLOAT16.items() if key in name), None)
        share = f", {rate * 6 * VGG16_FORWARD / peak:.0%} of its bfloat16 matrix rate" if peak else ""
        print(
            f"{name}, {init}: {rate:.0f} images/s{share}; {epochs} epochs of {samples} images: "
            f"{epochs * samples / rate / 60:.1f} minutes"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outcomes", action="store_true")
    parser.add_argument("--story", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bfloat16", action="store_true", help="also where the processor has to emulate it")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    asked = parser.parse_args()
    if asked.story:
        story()
    elif asked.outcomes:
        outcomes(asked.seeds)
    else:
        quick = run_config.quick().replace(
            init="kaiming_normal",
            image_size=asked.size,
            width=asked.width,
            batch_size=asked.batch,
            threads=asked.threads,
        )
        throughput(quick, asked.rounds, asked.bfloat16)
