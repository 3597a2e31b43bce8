"""Two lines in a loop of one's own: a small convolutional network on scikit-learn's digits.

    python -m initscope.examples.own_loop --steps 200

Then `initscope diagnose RUN` with the id it prints, or the dashboard.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from initscope.recording.recorder import Recorder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--runs", help="folder of all runs (INITSCOPE_RUNS; default runs/)")
given = parser.parse_args()

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

with Recorder(model, optimizer, name="my own loop", runs=given.runs) as recorder:  # the first line
    for _ in range(given.steps):
        batch = torch.randint(len(images), (64,))
        logits = model(images[batch])
        loss = nn.functional.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (logits.argmax(1) == labels[batch]).float().mean()
        recorder.step(loss, accuracy)  # the second line; the accuracy may be left out

print(f"{recorder.run.id}: loss {loss.item():.3f}, accuracy {100 * accuracy.item():.0f} %")
