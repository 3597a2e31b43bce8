"""Training: the same curve to the bit, whatever watches it and wherever it was interrupted; each option does
what it says.
"""

from __future__ import annotations

import json
import math
import resource

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from initscope import networks
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.errors import ConfigError, DataUnavailable
from initscope.schema import CHECKPOINT, EPOCHS, LAYERS, STEPS, Outcome, Status
from initscope.store import Run
from initscope.training.devices import pick_device
from initscope.training.optimizers import build_optimizer, learning_rate, planned_steps
from initscope.training.trainer import train

MOVING = {"dropout": 0.5, "batch_norm": True, "schedule": "cosine", "warmup_steps": 5}
"""Options whose state a resumed run must find again: random numbers, running statistics, the learning
rate.
"""


def losses(run: Run) -> list[float]:
    return run.read("steps", ["loss"])["loss"].to_pylist()


def assert_same_curves(a: Run, b: Run) -> None:
    """Every measured number of both runs equal to the bit; only the clock may differ."""
    for table in ("steps", "epochs", "layers"):
        one, other = (run.read(table).to_pandas().drop(columns="seconds", errors="ignore") for run in (a, b))
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=table)


class Interrupted(Exception):
    pass


def stopping_at(run: Run, step: int):
    def progress(position, total):
        if position.step == step:
            run.request_stop()

    return progress


# ---------------------------------------------------------------- the same to the bit


def plain_loop(config: RunConfig, steps: int) -> list[float]:
    """What anybody would write, with no recorder, no hook and no store."""
    torch.set_num_threads(1)
    loaded = loading.load(config)
    model = networks.build(config, in_channels=loaded.channels, num_classes=loaded.classes).to(
        memory_format=torch.channels_last
    )
    optimizer = build_optimizer(config, model)
    found, epoch = [], 0
    while len(found) < steps:
        torch.manual_seed(config.data_seed * 1_000_003 + epoch)
        for images, labels in loaded.epoch(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        epoch += 1
    return found


def test_recording_changes_no_bit(tiny, trained):
    config = tiny(dropout=0.5, batch_norm=True, init="kaiming_normal")
    watched, seldom, hardly = (trained(config.replace(record_every=every)) for every in (1, 7, 10**6))
    assert losses(watched) == plain_loop(config, 20)
    assert losses(seldom) == losses(watched)[::7] and losses(hardly) == losses(watched)[:1]
    epochs = [run.read("epochs").drop_columns("seconds") for run in (watched, seldom, hardly)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert seldom.read("layers")["step"].unique().to_pylist() == [0, 7, 14]
    assert all(run.state()["step"] == 20 for run in (watched, seldom, hardly))


def test_seeds_are_apart(tiny, trained):
    """With zero weights the loss depends on the order of the labels alone, so it is that order's
    fingerprint.
    """
    order = [
        losses(trained(tiny(init="zeros", epochs=1, init_seed=seed, data_seed=other)))
        for seed, other in ((0, 0), (1, 0), (0, 1))
    ]
    assert order[0] == order[1] != order[2]
    weights = [
        losses(trained(tiny(epochs=1, init_seed=seed, data_seed=other)))
        for seed, other in ((0, 0), (1, 0), (0, 1))
    ]
    assert weights[0][0] != weights[1][0] and weights[0] != weights[2]


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (3, MOVING),  # within the first epoch
        (10, MOVING),  # between the last batch of an epoch and its validation
        (14, {**MOVING, "optimizer": "sgd", "learning_rate": 0.05, "clip_grad_norm": 1.0, "record_every": 3}),
        (17, {**MOVING, "precision": "bfloat16", "optimizer": "adamw", "weight_decay": 0.1}),
    ],
)
def test_stop_and_resume_takes_the_undisturbed_curve(tiny, trained, runs, step, changes):
    config = tiny(epochs=3, **changes)
    whole = trained(config)
    run = runs.create(config)
    assert train(run, stopping_at(run, step)) is Outcome.UNDECIDED
    state = run.state()
    assert (state["status"], state["step"], state["outcome"]) == (Status.STOPPED, step, Outcome.UNDECIDED)
    assert (run.path / CHECKPOINT).exists() and not (run.path / "stop").exists()
    assert (run.path / "layers.parquet").exists() and losses(run) == losses(whole)[
        : math.ceil(step / config.record_every)
    ]

    assert train(run) is not None
    assert_same_curves(run, whole)
    state = run.state()
    assert (state["status"], state["step"], state["outcome"]) == (
        Status.FINISHED,
        30,
        whole.state()["outcome"],
    )
    assert state["curve"] == whole.state()["curve"], "the sparkline shows the whole run"
    assert not (run.path / CHECKPOINT).exists(), "nothing to resume any more"
    seconds = run.read("steps")["seconds"].to_pylist()
    assert seconds == sorted(seconds), "time goes on, it does not begin again"


def test_stopping_again_and_again(tiny, trained, runs):
    config = tiny(epochs=2, **MOVING)
    run = runs.create(config)
    for step in range(1, 20):
        train(run, stopping_at(run, step))
        assert run.state()["status"] == Status.STOPPED and len(losses(run)) == step
    train(run)
    assert_same_curves(run, trained(config))


KILLED = """
import os, signal, sys
from initscope.store import Run, writer
from initscope.training.trainer import train
writer.FLUSH_SECONDS = 0  # every row is on disk at once
for path, last in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    def progress(position, total):
        if position.step == last:
            os.kill(os.getpid(), signal.SIGKILL)
    if not os.fork():
        train(Run(path), progress)
        os._exit(0)
    os.wait()
"""


def test_another_process_takes_the_same_curve_and_may_die_on_the_way(tiny, trained, runs, python):
    """One trains to its end; two are killed within an epoch, with rows on disk that no checkpoint stands for.
    Resumed, those are dropped and made again.
    """
    config = tiny(epochs=2, **MOVING)
    whole, early, late = made = [runs.create(config) for _ in range(3)]
    process = python(
        KILLED,
        *[argument for run, step in zip(made, (0, 6, 17), strict=True) for argument in (run.path, step)],
    )
    assert process.wait(200) == 0, process.stderr.read()
    here = trained(config)
    assert_same_curves(whole, here)
    for run, step in ((early, 6), (late, 17)):
        state = run.state()
        assert state["status"] == Status.CRASHED and state["error"]
        assert len(losses(run)) == step and (run.path / CHECKPOINT).exists() == (run is late)
        train(run)
        assert_same_curves(run, here)
        assert run.state()["status"] == Status.FINISHED and run.state()["error"] is None


def test_an_error_marks_the_run_and_arrives(tiny, runs, trained):
    def progress(position, total):
        if position.step == 13:
            raise Interrupted("first line\nsecond line")

    config = tiny(epochs=2, **MOVING)
    run = runs.create(config)
    with pytest.raises(Interrupted):
        train(run, progress)
    state = run.state()
    assert (state["status"], state["error"]) == (Status.FAILED, "first line")
    assert len(pd.read_parquet(run.path / "steps.parquet")) == 13, (
        "what was recorded until then is in its place"
    )
    train(run)  # a failed run can be resumed, from the checkpoint of its first epoch
    assert_same_curves(run, trained(config))


# ---------------------------------------------------------------- what came out


def test_a_run_folder_is_complete(tiny, trained):
    run = trained(tiny(epochs=2, checkpoint="keep", name="näme", tags=("a", "b c")))
    assert {p.name for p in run.path.iterdir()} == {
        "config.json",
        "status.json",
        "steps.parquet",
        "epochs.parquet",
        "layers.parquet",
        "log.txt",
        "parts",
        CHECKPOINT,
    }
    assert not list((run.path / "parts").iterdir())
    for table, columns in (("steps", STEPS), ("epochs", EPOCHS), ("layers", LAYERS)):
        frame = pd.read_parquet(run.path / f"{table}.parquet")
        assert list(frame.columns) == [column.name for column in columns]
    assert len(frame) == 20 * 11 and frame["step"].is_monotonic_increasing
    assert list(frame["layer"][:11]) == [
        "conv1_1",
        "conv2_1",
        "conv3_1",
        "conv3_2",
        "conv4_1",
        "conv4_2",
        "conv5_1",
        "conv5_2",
        "fc1",
        "fc2",
        "fc3",
    ]
    assert list(frame["depth"][:11]) == list(range(11)) and set(frame["kind"]) == {"conv2d", "linear"}
    rare = ["dead_fraction", "stable_rank"]
    assert frame["dead_fraction"].isna().sum() == 20 and not frame.drop(columns=rare).isna().any().any()
    assert list(frame.loc[frame["stable_rank"].notna(), "step"]) == [0] * 11, "one recorded step in a hundred"

    saved = json.loads((run.path / "config.json").read_text())
    assert RunConfig.from_dict(saved["config"]) == run.config()
    assert (
        saved["versions"]["torch"] == torch.__version__.split("+")[0]
        and "git" in saved
        and "platform" in saved
    )
    state = run.state()
    assert {
        "status",
        "outcome",
        "step",
        "total_steps",
        "heartbeat",
        "pid",
        "started",
        "ended",
        "error",
    } <= set(state)
    assert (state["step"], state["total_steps"], state["device"]) == (20, 20, "cpu") and state[
        "started"
    ] <= state["ended"]


def test_steps_and_epochs_agree_with_each_other_and_with_the_model(tiny, trained):
    config = tiny(
        init="kaiming_normal", checkpoint="keep", train_samples=150
    )  # the last batch of an epoch has 6 samples
    run = trained(config)
    steps, epochs = (run.read(table).to_pandas() for table in ("steps", "epochs"))
    assert (
        list(steps["epoch"]) == [0] * 10 + [1] * 10
        and list(steps["step"]) == list(range(20))
        and list(epochs["epoch"]) == [0, 1]
    )
    sizes = np.array([16] * 9 + [6])
    for epoch in (0, 1):
        rows = steps[steps["epoch"] == epoch]
        assert epochs["train_loss"][epoch] == pytest.approx((rows["loss"] * sizes).sum() / 150, rel=1e-6)
        assert epochs["train_accuracy"][epoch] == pytest.approx(
            (rows["accuracy"] * sizes).sum() / 150, rel=1e-6
        )
        assert epochs["seconds"][epoch] >= rows["seconds"].max()

    loaded = loading.load(config)
    model = networks.build(config, in_channels=1, num_classes=10)
    model.load_state_dict(torch.load(run.path / CHECKPOINT, weights_only=True)["model"])
    with torch.no_grad():
        logits = model.eval()(loaded.validation.images)
    assert epochs["val_loss"][1] == pytest.approx(
        F.cross_entropy(logits, loaded.validation.labels).item(), rel=1e-4
    )
    assert epochs["val_accuracy"][1] == pytest.approx(
        (logits.argmax(1) == loaded.validation.labels).double().mean().item(), abs=0.006
    )
    assert run.state()["val_accuracy"] == epochs["val_accuracy"][1]


@pytest.mark.parametrize("every", [1, 1000])
def test_divergence_is_an_outcome(tiny, trained, every):
    run = trained(
        tiny(optimizer="sgd", learning_rate=1000, epochs=5, init="kaiming_normal", record_every=every)
    )
    state = run.state()
    assert (state["status"], state["outcome"], state["error"]) == (Status.FINISHED, Outcome.DIVERGED, None)
    assert 1 < state["step"] < 50
    frame = pd.read_parquet(run.path / "layers.parquet")
    if every == 1:
        kept = losses(run)
        assert (
            len(kept) == state["step"] and all(map(math.isfinite, kept[:-1])) and not math.isfinite(kept[-1])
        )
        assert frame["step"].nunique() == state["step"] and frame["nonfinite"].iloc[-11:].max() > 0
    assert frame["nonfinite"][frame["step"] == 0].sum() == 0
    assert run.info().outcome == "diverged" and json.loads((run.path / "status.json").read_bytes())


def test_a_sharp_minimum_of_memory_is_said(tiny, runs, monkeypatch):
    """The CPU's allocator reports exhaustion as a plain RuntimeError."""

    def exhausted(*_, **__):
        torch.empty(2**62, dtype=torch.int8)

    monkeypatch.setattr(networks, "build", exhausted)
    run = runs.create(tiny())
    with pytest.raises(RuntimeError):
        train(run)
    assert run.state()["error"].startswith("out of memory") and "batch_size" in run.state()["error"]


def test_config_and_data_that_do_not_fit_fail_in_one_line(tiny, runs, tmp_path):
    for changes, kind in (
        ({"data": f"image_folder:{tmp_path / 'none'}"}, DataUnavailable),
        ({"device": "cuda" if not torch.cuda.is_available() else "mps"}, ConfigError),
    ):
        run = runs.create(tiny(**changes))
        with pytest.raises(kind) as caught:
            train(run)
        assert run.state()["status"] == Status.FAILED and run.state()["error"] == str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 3, "epochs": 9}, 3),
        ({"max_steps": 13}, 13),
        ({"max_steps": 10**9, "epochs": 1}, 10),
        ({"record_every": 10**6, "max_steps": 2}, 2),
        ({"train_samples": 1, "batch_norm": True, "epochs": 3}, 3),
        ({"train_samples": 17, "batch_norm": True, "epochs": 3}, 3),
        ({"train_samples": 1, "batch_size": 65_536, "normalize": "standardize", "epochs": 1}, 1),
        ({"num_classes": 100, "in_channels": 3, "max_steps": 2}, 2),
        ({"width": 0.001, "max_steps": 2}, 2),
        ({"gain": 1e-30, "max_steps": 2}, 2),
        ({"gain": 1000, "max_steps": 1}, 1),
        ({"warmup_steps": 10**7, "max_steps": 2}, 2),
        ({"image_size": 96, "max_steps": 1, "train_samples": 4}, 1),
    ],
)
def test_odd_configs_train_all_the_same(tiny, trained, changes, steps):
    run = trained(tiny(**changes))
    state = run.state()
    assert (state["status"], state["step"], state["total_steps"]) == (Status.FINISHED, steps, steps)
    assert len(run.read("epochs")) >= 1 and run.read("steps")["step"][0].as_py() == 0
    assert state["outcome"] == Outcome.UNDECIDED, "fewer than fifty steps decide nothing"
    assert all(v is None or math.isfinite(v) for v in losses(run))


def test_stop_when_certain(tiny, trained, runs):
    """A network that learns ends as soon as that is settled; one at chance with no signal at half time."""
    learns = {
        "init": "kaiming_normal",
        "batch_norm": True,
        "train_samples": 800,
        "epochs": 30,
        "stop_when_certain": True,
    }
    run = trained(tiny(**learns))
    assert run.state()["outcome"] == Outcome.CONVERGED and run.state()["status"] == Status.FINISHED
    assert 50 <= run.state()["step"] < 30 * 50
    silent = trained(tiny(model="vgg19", train_samples=480, epochs=4, stop_when_certain=True))
    assert silent.state()["outcome"] == Outcome.NOT_CONVERGED and len(silent.read("epochs")) == 2

    # Resumed where nothing is recorded any more, it still knows what it saw.
    run = runs.create(silent.config().replace(record_every=10**6))
    train(run, stopping_at(run, 40))
    train(run)
    assert (run.state()["outcome"], run.state()["step"]) == (Outcome.NOT_CONVERGED, 60)


# ---------------------------------------------------------------- optimizers, schedules, clipping


def by_hand(config: RunConfig, gradients: list[np.ndarray], w: np.ndarray) -> np.ndarray:
    """Adam (Kingma and Ba 2015, algorithm 1), AdamW (Loshchilov and Hutter 2019, algorithm 2), SGD with
    momentum, in float64.
    """
    lr, beta1, beta2, decay = config.learning_rate, config.momentum, 0.999, config.weight_decay
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if config.optimizer == "adamw":
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if config.optimizer == "sgd":
            m = beta1 * m + g if t > 1 else g
            w = w - lr * m
        else:
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    return w


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_by_hand(optimizer, weight_decay, momentum):
    config = RunConfig(optimizer=optimizer, weight_decay=weight_decay, momentum=momentum, learning_rate=0.03)
    random = np.random.default_rng(0)
    layer = nn.Linear(7, 5, bias=False)
    start, gradients = layer.weight.detach().double().numpy(), [random.normal(size=(5, 7)) for _ in range(6)]
    made = build_optimizer(config, layer)
    for g in gradients:
        layer.weight.grad = torch.from_numpy(g).float()
        made.step()
    np.testing.assert_allclose(
        layer.weight.detach().numpy(), by_hand(config, gradients, start), rtol=2e-5, atol=2e-6
    )


def test_schedules():
    def rates(total=100, **changes):
        config = RunConfig(learning_rate=0.2, **changes)
        return [learning_rate(config, step, total) for step in range(total)]

    assert rates() == [0.2] * 100
    assert rates(warmup_steps=4)[:6] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    cosine = rates(schedule="cosine")
    assert (
        cosine[0] == 0.2
        and cosine[50] == pytest.approx(0.1)
        and cosine[-1] < 1e-3
        and cosine == sorted(cosine, reverse=True)
    )
    assert cosine == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 100)) for t in range(100)])
    assert rates(schedule="step") == pytest.approx([0.2] * 50 + [0.02] * 25 + [0.002] * 25)
    both = rates(schedule="cosine", warmup_steps=20)
    assert (
        max(both) == pytest.approx(0.2)
        and both.index(max(both)) in (19, 20)
        and both[60] == pytest.approx(0.1)
    )
    assert all(rate >= 0 for rate in rates(total=3, schedule="cosine", warmup_steps=10))
    assert (
        planned_steps(RunConfig(epochs=3), 7) == 21
        and planned_steps(RunConfig(epochs=3, max_steps=20), 7) == 20
    )


def test_the_schedule_is_what_the_optimizer_gets(tiny, trained):
    config = tiny(
        schedule="cosine",
        warmup_steps=3,
        learning_rate=0.05,
        optimizer="sgd",
        momentum=0.0,
        init="kaiming_normal",
    )
    run = trained(config)
    assert run.read("steps")["learning_rate"].to_pylist() == pytest.approx(
        [learning_rate(config, step, 20) for step in range(20)]
    )
    rows = run.read("layers").to_pandas().set_index(["step", "layer"])
    rates = rows.index.get_level_values("step").map(lambda step: learning_rate(config, step, 20))
    moved = rows["update_ratio"] * rows["weight_norm"]  # plain SGD: learning rate times gradient
    np.testing.assert_allclose(moved, rates * rows["grad_norm"], rtol=2e-3, atol=1e-7)


def test_clipping_bounds_the_step_and_not_the_record(tiny, trained):
    common = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "learning_rate": 0.01,
        "init": "kaiming_normal",
        "epochs": 1,
    }
    free, clipped, loose = (trained(tiny(**common, clip_grad_norm=limit)) for limit in (None, 0.01, 1e9))
    rows = clipped.read("layers").to_pandas().query("step == 0")
    unclipped = free.read("layers").to_pandas().query("step == 0")
    pd.testing.assert_series_equal(
        rows["grad_norm"], unclipped["grad_norm"], obj="the gradient before clipping"
    )
    assert np.sqrt((rows["grad_norm"] ** 2).sum()) > 0.1
    moved = np.sqrt(((rows["update_ratio"] * rows["weight_norm"]) ** 2).sum())
    assert 0.6e-4 < moved <= 0.01 * 0.01 * 1.001, (
        "the whole step, biases included, is the learning rate times the limit"
    )
    assert losses(loose) == losses(free) != losses(clipped)


def test_bfloat16(tiny, trained):
    plain, half = (trained(tiny(init="kaiming_normal", precision=p)) for p in ("float32", "bfloat16"))
    assert losses(half) != losses(plain) and losses(half) == pytest.approx(losses(plain), rel=0.15)
    rows = half.read("layers").to_pandas()
    assert not rows["nonfinite"].any() and (rows["grad_norm"] > 0).all()
    first, reference = (run.read("layers").to_pandas().query("step == 0") for run in (half, plain))
    for metric in ("grad_norm", "signal_std", "activation_std", "activation_grad_rms", "weight_norm"):
        np.testing.assert_allclose(first[metric], reference[metric], rtol=0.1, err_msg=metric)


def test_automatic_precision_is_one_of_the_two(tiny, trained):
    automatic = trained(tiny(precision="auto"))
    chosen = automatic.state()["precision"]
    assert losses(automatic) == losses(trained(tiny(precision=chosen)))


def test_devices():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device cuda is not available on this machine; available: cpu"):
            pick_device("cuda")


# ---------------------------------------------------------------- the real thing, once


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_step_of_the_full_network_at_224(tmp_path, trained):
    """134 million parameters, images of 224x224: one optimizer step, and its run folder is whole."""
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{i}.png"
            )
    run = trained(
        RunConfig(
            data=f"image_folder:{tmp_path / 'images'}",
            in_channels=1,
            num_classes=10,
            batch_size=2,
            epochs=1,
            max_steps=1,
            threads=2,
        )
    )
    state, rows = run.state(), pd.read_parquet(run.path / "layers.parquet")
    assert (state["status"], state["step"], state["parameters"]) == (Status.FINISHED, 1, 134_300_362)
    assert len(rows) == 16 and (rows["weight_norm"] > 0).all() and not rows["nonfinite"].any()
    assert rows["grad_norm"].iloc[0] < 1e-3 * rows["grad_norm"].iloc[-1], (
        "the story: the gradient is gone at the first convolution"
    )
    assert (
        len(pd.read_parquet(run.path / "steps.parquet"))
        == len(pd.read_parquet(run.path / "epochs.parquet"))
        == 1
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 12e9, (
        "it fits a machine of 24 GB twice"
    )
