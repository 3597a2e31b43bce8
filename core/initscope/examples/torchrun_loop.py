"""Two lines in a loop of several processes under torchrun: DistributedDataParallel on scikit-learn's digits.

    torchrun --nproc-per-node 2 -m initscope.examples.torchrun_loop --steps 100

The first process records, and all of them run the same lines. Gradients are those that
DistributedDataParallel has averaged; the loss is the first process's own share of the batch. A stop reaches
the first process, which tells the others.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from initscope import Recorder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--runs", help="folder of all runs (INITSCOPE_RUNS; default runs/)")
given = parser.parse_args()

dist.init_process_group("gloo")
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
sampler: DistributedSampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=32, sampler=sampler)
torch.manual_seed(0)
model = DistributedDataParallel(
    nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

with Recorder(
    model, optimizer, name="my torchrun loop", runs=given.runs, config=vars(given)
) as recorder:  # the first line
    step = epoch = 0
    while step < given.steps:
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            go_on = torch.tensor(recorder.step(loss, epoch=epoch))  # the second line
            dist.broadcast(go_on, src=0)
            if not go_on or step == given.steps:
                step = given.steps
                break
        epoch += 1

if dist.get_rank() == 0:
    print(f"{recorder.run.id}: loss {loss.item():.3f}")
dist.barrier()
dist.destroy_process_group()
