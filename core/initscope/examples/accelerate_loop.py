"""Two lines in a loop of Hugging Face Accelerate: scikit-learn's digits (`pip install accelerate`).

    python -m initscope.examples.accelerate_loop --steps 100
    accelerate launch --cpu --num_processes 2 -m initscope.examples.accelerate_loop

Several processes are one run: the first one records, with gradients that are averaged over all.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from initscope import Recorder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--runs", help="folder of all runs (INITSCOPE_RUNS; default runs/)")
given = parser.parse_args()

digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model, optimizer, loader = accelerator.prepare(
    model, optimizer, DataLoader(data, batch_size=64, shuffle=True)
)

with Recorder(
    model, optimizer, name="my accelerate loop", runs=given.runs, config=vars(given)
) as recorder:  # the first line
    step = epoch = 0
    while step < given.steps:
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if (
                not recorder.step(loss, epoch=epoch) or step == given.steps
            ):  # the second line; False: somebody pressed Stop
                step = given.steps
                break
        epoch += 1

if accelerator.is_main_process:
    print(f"{recorder.run.id}: loss {loss.item():.3f}")
accelerator.end_training()
