"""What an operator allows: a clear refusal with the figure, before anything starts; and the estimate against
real networks.
"""

from __future__ import annotations

import pytest

from initscope.__main__ import main
from initscope.config.catalog import MODELS
from initscope.config.run_config import RunConfig, quick, tutorial_224
from initscope.errors import LimitExceeded
from initscope.resources import limits
from initscope.resources.memory import estimate, size
from initscope.scheduling import launcher
from initscope.scheduling.engines.local import Local
from initscope.scheduling.supervisor import Supervisor


@pytest.mark.parametrize(
    ("setting", "value", "changes", "said"),
    [
        ("INITSCOPE_MAX_EPOCHS", "5", {"epochs": 6}, r"6 epochs are over INITSCOPE_MAX_EPOCHS=5"),
        (
            "INITSCOPE_MAX_PARAMETERS",
            "3M",
            {"width": 1.0},
            r"33,6\d\d,\d\d\d parameters, over INITSCOPE_MAX_PARAMETERS=3,000,000",
        ),
        (
            "INITSCOPE_MAX_PARAMETERS",
            "3M",
            {"model": "resnet50", "width": 1.0},
            r"23,\d\d\d,\d\d\d parameters, over INITSCOPE_MAX_PARAMETERS=3,000,000",
        ),
        (
            "INITSCOPE_MEMORY",
            "2GiB",
            {"model": "resnet34", "batch_norm": True, "batch_size": 4096, "width": 1.0, "device": "cpu"},
            r"needs about .* GB of memory",
        ),
        ("INITSCOPE_MAX_QUEUE", "1", {}, r"0 runs wait and 2 more would be over INITSCOPE_MAX_QUEUE=1"),
        (
            "INITSCOPE_DISK_QUOTA",
            "10kB",
            {},
            r"runs take .* of the 10 kB that INITSCOPE_DISK_QUOTA allows; delete some",
        ),
        (
            "INITSCOPE_MEMORY",
            "2GiB",
            {"width": 1.0, "batch_size": 1024, "device": "cpu"},
            r"needs about [2-9].* GB of memory .* there are 2.15 GB; a smaller",
        ),
        (
            "INITSCOPE_MAX_EPOCHS",
            "many",
            {},
            r"INITSCOPE_MAX_EPOCHS must be a number such as 10 or 20GB, not 'many'",
        ),
    ],
)
def test_over_a_limit_nothing_starts(runs, monkeypatch, setting, value, changes, said):
    runs.create(quick(), "finished", note="x" * 20_000)
    monkeypatch.setenv(setting, value)
    with pytest.raises(LimitExceeded, match=said):
        launcher.submit(runs, [quick(), quick().replace(**changes)])
    assert len(runs.ids()) == 1 and launcher.queued(runs) == []


def test_the_command_line_says_it_in_one_line(runs, monkeypatch, capsys):
    monkeypatch.setenv("INITSCOPE_MEMORY", "16GB")
    monkeypatch.setenv("INITSCOPE_MAX_EPOCHS", "8")
    huge = ["--batch-size", "60000", "--image-size", "224", "--width", "1", "--device", "cpu"]
    for command, said in (
        (["train", *huge], " TB of memory"),
        (["probe", *huge], " TB of memory"),
        (["train", "--epochs", "9"], "9 epochs are over"),
    ):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1 and said in told
    assert runs.ids() == []


def test_a_network_of_ones_own_is_looked_at_once_it_is_built(runs, monkeypatch, tmp_path, capsys):
    """Nobody can tell before what it needs; no step is made."""
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, "
        "40_000), nn.Linear(40_000, 10))\n"
    )
    command = ["train", "--model", f"{tmp_path}/nets.py:wide", "--image-size", "8", "--device", "cpu"]
    for setting, value, said in (
        (
            "INITSCOPE_MEMORY",
            "720MB",
            "needs about 760 MB of memory (weights 36 MB, optimizer 24 MB, what a batch takes not counted), "
            "and there are 720 MB",
        ),
        (
            "INITSCOPE_MAX_PARAMETERS",
            "1M",
            "the network has 3,000,010 parameters, over INITSCOPE_MAX_PARAMETERS=1,000,000",
        ),
    ):
        with monkeypatch.context() as at:
            at.setenv(setting, value)
            assert main(command) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        info = runs.list()[0]
        assert info.status == "failed" and said in info.error and info.state["step"] == 0


def test_concurrent_runs(runs, monkeypatch):
    """More threads than runs allowed: the supervisor keeps to the runs."""
    monkeypatch.setenv("INITSCOPE_SLOTS", "8")
    supervisor = Supervisor(runs, Local())
    for seed in range(2):
        supervisor.carried[str(seed)] = quick().to_dict()
    one = quick().to_dict()
    assert supervisor._fits(one)
    monkeypatch.setenv("INITSCOPE_MAX_RUNS", "2")
    assert not supervisor._fits(one)
    supervisor.carried.popitem()
    assert supervisor._fits(one)


NETWORKS = [
    *({"model": model} for model in MODELS),
    {"batch_norm": True},
    {"dropout": 0.5, "model": "vgg11", "in_channels": 3},
    {"image_size": 64, "num_classes": 12},
    {"model": "resnet34", "batch_norm": False, "image_size": 96},
    {"model": "googlenet", "batch_norm": True, "image_size": 96},
    {"model": "alexnet", "batch_norm": True, "image_size": 96},
    {"model": "lenet", "batch_norm": True, "image_size": 96},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_the_estimate_counts_the_network_that_is_built(changes):
    """Parameters, and the bytes that autograd keeps of a batch, against torch's own accounting."""
    import torch

    from initscope.networks import build
    from initscope.networks.outputs import training_loss

    config = RunConfig(width=0.125, batch_size=4, **{"image_size": 32, **changes})
    told = estimate(config)
    model = build(config, in_channels=config.in_channels or 1, num_classes=config.num_classes or 10)
    assert told.parameters == sum(p.numel() for p in model.parameters())

    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = training_loss(
            model(torch.rand(4, config.in_channels or 1, config.image_size, config.image_size)),
            torch.zeros(4, dtype=torch.long),
        )
    saved = sum(nbytes for key, nbytes in kept.items() if key not in weights)
    del out
    assert 0.7 < told.activations / saved < 2.0, (told.activations, saved)


def test_the_storys_own_size():
    """VGG16 at 224 pixels, batch 64, Adam: 134,300,362 parameters; what a GPU of 8 GB holds and one of 4 GB
    does not.
    """
    told = estimate(tutorial_224())
    assert told.parameters == 134_300_362 and 4e9 < told.total < 10e9, size(told.total)
    assert limits.memory() > 0
