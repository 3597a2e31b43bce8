"""One callback in PyTorch Lightning: scikit-learn's digits, gradients accumulated over two batches (`pip
install lightning`).

python -m initscope.examples.lightning_fit --steps 100
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from initscope.integrations.lightning import InitScopeCallback, lightning

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--runs", help="folder of all runs (INITSCOPE_RUNS; default runs/)")
given = parser.parse_args()


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
lightning.seed_everything(0)
callback = InitScopeCallback(name="my Lightning fit", runs=given.runs)  # the one line, and `callbacks=` below
trainer = lightning.Trainer(
    max_steps=given.steps,
    accumulate_grad_batches=2,
    callbacks=[callback],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
)
trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True))

print(f"{callback.recorder.run.id}: loss {callback.recorder.last_loss:.3f}")
