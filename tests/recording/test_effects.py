"""What a forward pass moves on besides weights stays as in the bare loop: the Recorder's own passes
are not noticed.
"""

import copy
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from initscope import Recorder

COUNTS = {"calls": 0}
GENERATOR = torch.Generator()


class Own:
    calls = 0


class Net(nn.Module):
    """Batch norm, so that both kinds of passes of a twin are due."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.torchs, self.numpys = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.pythons, self.counter, self.own = random.Random(1), itertools.count(1), Own()
        self.array = np.zeros(1)


class TorchGenerator(Net):
    def forward(self, x):
        return self.body(x + torch.randn(x.shape, generator=self.torchs))


class NumpyGenerator(Net):
    def forward(self, x):
        return self.body(x * self.numpys.random())


class PythonGenerator(Net):
    def forward(self, x):
        return self.body(x * self.pythons.random())


class Iterator(Net):
    def forward(self, x):
        return self.body(x) * next(self.counter)


class Array(Net):
    def forward(self, x):
        self.array += 1
        return self.body(x) * float(self.array[0])


class OwnObject(Net):
    def forward(self, x):
        self.own.calls += 1
        return self.body(x) * self.own.calls


class GlobalDict(Net):
    def forward(self, x):
        return self.scaled(self.body(x))

    def scaled(self, x):
        COUNTS["calls"] += 1
        return x * COUNTS["calls"]


class GlobalGenerator(Net):
    def forward(self, x):
        return self.body(x + torch.randn(x.shape, generator=GENERATOR))


def trained(kind, runs):
    torch.manual_seed(0)
    COUNTS["calls"] = 0
    GENERATOR.manual_seed(0)
    net = kind()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    losses = []

    def step():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        return loss

    if runs is None:
        for _ in range(12):
            step()
    else:
        with Recorder(net, optimizer, runs=runs, quiet=True) as recorder:
            for _ in range(12):
                recorder.step(step())
    return losses


@pytest.mark.parametrize(
    "kind",
    [
        *(TorchGenerator, NumpyGenerator, PythonGenerator, Iterator),
        *(Array, OwnObject, GlobalDict, GlobalGenerator),
    ],
)
def test_own_state_of_a_forward_pass_stays_as_in_the_bare_loop(kind, tmp_path):
    assert trained(kind, tmp_path) == trained(kind, None)


def test_a_copy_of_a_recorder_records_nothing_and_leaves_the_run_alone(tmp_path):
    net = nn.Linear(4, 2)
    with Recorder(net, runs=tmp_path, quiet=True) as recorder:
        net.recorder = recorder
        before = torch.get_rng_state()
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert twin.recorder.step(torch.tensor(1.0)) is True
            twin.recorder.sync()
            twin.recorder.validate(loss=1.0)
            del twin.recorder
        assert torch.equal(torch.get_rng_state(), before)
        loss = net(torch.randn(3, 4)).square().mean()
        loss.backward()
        recorder.step(loss)
    assert recorder.run.state()["status"] == "finished"
    assert recorder.run.count("steps") == 1
