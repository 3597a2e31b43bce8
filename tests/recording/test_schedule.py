"""Which steps are measured where nobody says: all at first, ever fewer later, all where something happens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from initscope.recording import schedule
from initscope.recording.recorder import Recorder
from initscope.recording.schedule import AFTER_EVENT, DENSE, PER_DOUBLING, Schedule
from initscope.store import Run


def measured(made: Schedule, steps: int, losses: np.ndarray | None = None) -> list[int]:
    """The steps of a loop that are measured, with the losses it sees."""
    found = []
    for step in range(steps):
        if made.measures(step):
            found.append(step)
        if losses is not None:
            made.saw_loss(step, float(losses[step]))
    return found


def test_a_long_run_has_a_bounded_number_of_rows() -> None:
    steps = measured(Schedule(), 200_000)
    assert steps[:DENSE] == list(range(DENSE))
    gaps = np.diff(steps)
    assert (np.diff(gaps) >= 0).all(), "ever rarer"
    assert len([s for s in steps if 65_536 <= s < 131_072]) == PER_DOUBLING
    assert len(steps) < DENSE + PER_DOUBLING * math.log2(200_000 / DENSE) + PER_DOUBLING
    assert set(measured(Schedule(), 3_000)) == {s for s in steps if s < 3_000}, "the same of a shorter run"


def test_every_is_every() -> None:
    assert measured(Schedule(7), 50, np.full(50, np.nan)) == list(range(0, 50, 7))
    made = Schedule(7)
    assert [s for s in range(50) if made.keeps_loss(s)] == list(range(0, 50, 7))
    assert [s for s in range(2000) if made.measures(s) and made.thoroughly(s)] == [0, 700, 1400]


@pytest.mark.parametrize("odd", [9.0, -9.0, math.nan, math.inf])
def test_a_jump_of_the_loss_is_followed_at_once(odd: float) -> None:
    losses = 2 + 0.1 * np.random.default_rng(0).standard_normal(4_000)
    calm = measured(Schedule(), 4_000, losses)
    assert calm == measured(Schedule(), 4_000), "noise is no event"
    losses[2_000] = odd
    jumped = measured(Schedule(), 4_000, losses)
    assert set(jumped) - set(calm) <= set(range(2_001, 2_001 + AFTER_EVENT))
    assert set(range(2_001, 2_001 + AFTER_EVENT)) <= set(jumped)


def test_many_jumps_cost_a_bounded_share() -> None:
    losses = np.random.default_rng(0).standard_cauchy(20_000)
    assert len(measured(Schedule(), 20_000, losses)) < 0.12 * 20_000


def test_a_changed_rate_is_followed_and_a_schedule_is_not() -> None:
    made = Schedule()
    found = []
    for step in range(2_900):
        found += [step] if made.measures(step) else []
        made.saw_rate(step, 0.1 * (1 + math.cos(math.pi * step / 3_000)) * (0.1 if step >= 2_000 else 1))
    assert set(range(2_001, 2_001 + AFTER_EVENT)) <= set(found)
    assert len(found) == len(set(measured(Schedule(), 2_900)) | set(range(2_001, 2_001 + AFTER_EVENT)))


def recorded(folder: Path, steps: int, **options: object) -> Run:
    """A short regression whose loss jumps once, at step 200."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, runs=folder, quiet=True, **options) as recorder:
        for step in range(recorder.next_step, steps):
            x = torch.randn(16, 4)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean() * (100 if step == 200 else 1)
            optimizer.zero_grad()
            loss.backward()
            if step != 200:
                optimizer.step()
            recorder.step(loss)
    return recorder.run


def test_a_recorder_keeps_every_loss_and_the_layers_that_tell(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(schedule, "DENSE", 64)
    monkeypatch.setattr(schedule, "PER_DOUBLING", 8)
    run = recorded(tmp_path / "a", 400)
    assert run.read("steps")["step"].to_pylist() == list(range(400))
    layers = sorted(set(run.read("layers")["step"].to_pylist()))
    assert layers[:64] == list(range(64)) and set(range(201, 201 + AFTER_EVENT)) <= set(layers)
    assert len(layers) < 64 + 3 * 8 + AFTER_EVENT
    again = recorded(tmp_path / "b", 400)
    assert again.read("layers").equals(run.read("layers")), "equal seeds, equal rows"
    whole = recorded(tmp_path / "c", 400, every=1)
    rows = whole.read("layers").to_pandas()
    rows = rows[rows["step"].isin(layers)].drop(columns="stable_rank").reset_index(drop=True)
    assert rows.equals(run.read("layers").to_pandas().drop(columns="stable_rank")), "of what every step has"
    assert whole.read("steps", ["loss"]).equals(run.read("steps", ["loss"]))


def test_a_loop_that_goes_on_is_measured_from_where_it_does(tmp_path) -> None:
    layers = recorded(tmp_path, 10_100, step=10_000).read("layers")["step"].to_pylist()
    assert sorted(set(layers))[:AFTER_EVENT] == list(range(10_000, 10_000 + AFTER_EVENT))
