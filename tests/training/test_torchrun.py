"""One run on two real processes: what is recorded is the whole batch's, and a rank that dies takes the run
down with a reason.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.nn.functional as F

from initscope import networks
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.errors import ConfigError, DataUnavailable
from initscope.recording.layers import find_layers
from initscope.scheduling import launcher
from initscope.schema import CHECKPOINT, LIVE
from initscope.store import Run, Runs
from initscope.training.devices import in_layout
from initscope.training.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
WHOLE = ["grad_norm", "grad_rms", "weight_norm", "update_ratio"]
"""Columns that are the whole batch's; the others are of the first rank's share."""
CONFIG = RunConfig(
    model="vgg11",
    width=0.0625,
    image_size=32,
    train_samples=81,
    batch_size=16,
    epochs=4,
    threads=1,
    init="kaiming_normal",
    clip_grad_norm=0.5,
)
"""The last batch of an epoch is a single sample: the second rank has none."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Run:
    run = Runs(tmp_path_factory.mktemp("alone")).create(CONFIG)
    train(run)
    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Run:
    run = Runs(tmp_path_factory.mktemp("together")).create(CONFIG.replace(processes=2))
    train(run)
    return run


def rows(run: Run, table: str) -> pd.DataFrame:
    return run.read(table).to_pandas().drop(columns="seconds", errors="ignore")


def ranks_of(run: Run) -> dict[int, psutil.Process]:
    """The processes that train a run, by rank."""
    children = psutil.Process(run.state()["pid"]).children()
    return {
        int(child.environ()["RANK"]): child
        for child in children
        if child.cmdline()[1:4] == ["-P", "-m", "initscope.training.rank_worker"]
    }


def test_two_processes_record_the_whole_batch(alone, together):
    """Losses, accuracies and every column of weights and gradients against one process, within what summing
    in another order rounds.
    """
    assert together.state()["status"] == "finished" and together.state()["pid"] == os.getpid()
    for table, exact in (
        ("steps", ["step", "epoch", "accuracy", "learning_rate"]),
        ("epochs", ["epoch", "train_accuracy"]),
    ):
        one, other = rows(alone, table), rows(together, table)
        pd.testing.assert_frame_equal(one[exact], other[exact], check_exact=True)
        pd.testing.assert_frame_equal(one, other, rtol=1e-3)
    one, other = rows(alone, "layers"), rows(together, "layers")
    assert len(one) == len(other) == 24 * 11
    first = other["step"] == 0
    np.testing.assert_allclose(other[WHOLE][first], one[WHOLE][first], rtol=1e-4)
    np.testing.assert_allclose(other[WHOLE], one[WHOLE], rtol=0.05)


def test_the_other_columns_are_of_the_first_share(together):
    """Against plain autograd: the forward pass of the first rank's samples, and the gradient of the WHOLE
    batch's mean loss there.
    """
    torch.set_num_threads(1)
    loaded = loading.load(CONFIG)
    model = networks.build(CONFIG, in_channels=1, num_classes=10).to(memory_format=torch.channels_last)
    images, labels = next(iter(loaded.epoch(0)))
    seen = {}
    [layer] = [layer.module for layer in find_layers(model) if layer.name == "fc1"]
    layer.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), seen.update(output=output))[1]
    )
    F.cross_entropy(model(in_layout(images[:8])), labels[:8], reduction="sum").div(16).backward()
    output = seen["output"]
    row = rows(together, "layers").query("step == 0 and layer == 'fc1'").iloc[0]
    expected = {
        "activation_mean": output.mean(),
        "activation_std": output.std(correction=0),
        "signal_std": output.var(0, correction=0).mean().sqrt(),
        "activation_grad_rms": output.grad.square().mean().sqrt(),
        "dead_fraction": (output.relu().amax(0) <= 0).float().mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), rel=1e-3), name


def test_a_killed_rank_fails_the_run_and_it_resumes(runs, two_slots, trained, until):
    """Through the queue: a rank killed, resumed, stopped for all ranks, and the curve is that of an
    undisturbed run, dropout included.
    """
    config = CONFIG.replace(processes=2, dropout=0.3, epochs=100_000)
    assert launcher.threads_of(config.to_dict()) == 2
    [run] = launcher.submit(runs, [config])
    until(lambda: (run.path / CHECKPOINT).exists() and len(ranks_of(run)) == 2)
    ranks = ranks_of(run)
    listening = {
        c.laddr.ip
        for rank in ranks.values()
        for c in rank.net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    ranks[1].send_signal(signal.SIGKILL)
    until(lambda: run.state()["status"] not in LIVE)
    assert (
        run.state()["status"] == "failed"
        and "rank 1 of 2 was killed by signal 9 (SIGKILL)" in run.state()["error"]
    )
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())

    step = run.state()["step"]
    launcher.resume(runs, run)
    until(lambda: run.state()["status"] == "running" and run.state()["step"] > step + 8)
    launcher.stop(runs, run)
    until(lambda: run.state()["status"] not in LIVE)
    assert run.state()["status"] == "stopped"
    whole = trained(config.replace(max_steps=run.state()["step"]))
    for table in ("steps", "layers"):
        pd.testing.assert_frame_equal(rows(run, table), rows(whole, table), check_exact=True)

    launcher.resume(runs, run)
    until(lambda: run.state()["status"] == "running" and len(ranks_of(run)) == 2)
    ranks = ranks_of(run)
    psutil.Process(run.state()["pid"]).kill()
    until(
        lambda: not any(rank.is_running() for rank in ranks.values()),
        what="the ranks have followed the process that holds the claim",
    )
    assert run.state()["status"] == "crashed"


def test_what_a_rank_raises_is_told_as_it_is(runs, tmp_path):
    with pytest.raises(
        ConfigError,
        match="processes 4 need a sample of each batch for each: a batch_size of at least 4, not 3",
    ):
        CONFIG.replace(processes=4, batch_size=3)
    with pytest.raises(ConfigError, match="a batch_size of at least 8, not 7"):
        CONFIG.replace(processes=4, batch_size=7, batch_norm=True)
    run = runs.create(CONFIG.replace(processes=2, data=f"image_folder:{tmp_path / 'none'}"))
    with pytest.raises(DataUnavailable, match="no folder"):
        train(run)
    assert run.state()["status"] == "failed" and "no folder" in run.state()["error"]
