"""A transformer encoder that does not train because of its initialization, and the one line that changes it.

    python -m initscope.examples.transformer weights from N(0, 1), as a bare nn.init.normal_(weight) draws
    them python -m initscope.examples.transformer --scaled the same with N(0, 1 / fan_in)

Twelve post-norm layers read scikit-learn's 8x8 digits as eight tokens of eight pixels, with Adam at 1e-3.
Weights from N(0, 1) are sqrt(fan_in) times too large: the first loss is several times that of guessing, each
head of the first layer puts 98 % of its attention on one token (16 % when scaled), and the normalizations
keep all that from growing from layer to layer, where one would look for it. `initscope diagnose RUN` says
init_too_large. A larger learning rate does not help. Figures: tests/benchmarks/LOG.md.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from initscope.recording.recorder import Recorder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--scaled", action="store_true", help="the change that makes it train")
parser.add_argument(
    "--steps", type=int, default=138, help="optimizer steps (default 138: six passes over the training set)"
)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--runs", help="folder of all runs (INITSCOPE_RUNS; default runs/)")
given = parser.parse_args()

WIDTH, DEPTH, BATCH = 32, 12, 64


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(torch.randn(8, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens) + self.position).mean(1))


digits = load_digits()
tokens, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
training, validation = shuffled[:1438], shuffled[1438:]

torch.manual_seed(given.seed)
model = Encoder()
for weight in model.parameters():
    if weight.dim() > 1:
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5 if given.scaled else 1.0)  # the line

optimizer = torch.optim.Adam(model.parameters(), lr=given.learning_rate)
name = "encoder, N(0, 1/fan_in)" if given.scaled else "encoder, N(0, 1)"
with Recorder(model, optimizer, name=name, runs=given.runs) as recorder:
    for step in range(given.steps):
        if step % (len(training) // BATCH) == 0:
            batches = iter(training[torch.randperm(len(training))].split(BATCH))
        batch = next(batches)
        logits = model(tokens[batch])
        loss = nn.functional.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(loss, (logits.argmax(1) == labels[batch]).float().mean())

model.eval()
with torch.no_grad():
    accuracy = (model(tokens[validation]).argmax(1) == labels[validation]).float().mean().item()
print(f"{recorder.run.id}: validation accuracy {100 * accuracy:.1f} %, guessing gives 10 %")
