"""What other tools read from an exported run, with their own readers."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from torch import nn

from initscope.__main__ import main
from initscope.recording.recorder import Recorder
from initscope.schema import LAYER_METRICS
from initscope.store.export import export
from initscope.store.files import number


@pytest.fixture
def odd(runs):
    """A recorded run with NaN and infinite losses, a frozen layer, and no accuracy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with Recorder(model, optimizer, name="odd", runs=runs.root, every=2) as recorder:
        for factor in (1.0, 1.0, math.inf, 1.0, math.nan):
            loss = nn.functional.cross_entropy(model(torch.rand(8, 4)), torch.arange(8) % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss.detach() * factor)
    return recorder.run


def same(a: float | None, b: float | None) -> bool:
    return a is None and b is None if None in (a, b) else a == pytest.approx(b, rel=1e-6, nan_ok=True)


def test_tensorboard_reads_every_value_at_its_step(trained, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tiny(max_steps=12, batch_size=16, epochs=2, record_every=3))
    log = EventAccumulator(
        str(export(run, "tensorboard", tmp_path / "logs" / "run")), size_guidance={"scalars": 0}
    ).Reload()
    tags = set(log.Tags()["scalars"])
    steps = run.read("steps").to_pylist()
    for name in ("loss", "accuracy", "learning_rate"):
        assert [(e.step, e.value) for e in log.Scalars(f"steps/{name}")] == [
            (row["step"], pytest.approx(row[name], rel=1e-6)) for row in steps
        ]
    began = run.state()["started"]
    assert [e.wall_time for e in log.Scalars("steps/loss")] == pytest.approx(
        [began + row["seconds"] for row in steps]
    )
    rows = run.read("layers").to_pylist()
    for layer in ("conv1_1", "fc3"):
        for metric in LAYER_METRICS:
            expected = [
                (row["step"], row[metric])
                for row in rows
                if row["layer"] == layer and row[metric] is not None
            ]
            events = log.Scalars(f"{metric}/{layer}") if f"{metric}/{layer}" in tags else []
            assert [e.step for e in events] == [step for step, _ in expected]
            assert all(same(e.value, value) for e, (_, value) in zip(events, expected, strict=True))
    epochs = run.read("epochs").to_pylist()
    assert [e.value for e in log.Scalars("epochs/val_loss")] == pytest.approx(
        [row["val_loss"] for row in epochs], rel=1e-6
    )


def test_csv_and_json_tell_nan_from_what_was_not_measured(odd, tmp_path):
    folder, path = export(odd, "csv", tmp_path / "csv"), export(odd, "json", tmp_path / "run.json")
    text = (folder / "steps.csv").read_text().splitlines()
    assert [line.split(",")[2].strip('"') for line in text[2:]] == ["inf", "nan"]
    for name in ("steps", "layers"):
        pd.testing.assert_frame_equal(
            pd.read_csv(folder / f"{name}.csv", dtype={"layer": str}),
            odd.read(name).to_pandas().astype({"layer": str, "kind": str} if name == "layers" else {}),
            check_dtype=False,
            rtol=1e-6,
        )
    frozen = next(
        line for line in (folder / "layers.csv").read_text().splitlines() if line.startswith('0,"0"')
    )
    assert frozen.split(",")[4] == "", "no gradient was measured: an empty cell, not nan"

    saved = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (
        saved["run"] == odd.id
        and saved["config"]["config"]["name"] == "odd"
        and saved["status"]["outcome"] == "diverged"
    )
    assert saved["steps"]["loss"][1:] == ["inf", "nan"] and saved["layers"]["grad_norm"][0] is None
    for name in ("steps", "layers"):
        for column, values in odd.read(name).to_pydict().items():
            found = [
                number(value) if column not in ("layer", "kind") else value for value in saved[name][column]
            ]
            assert all(
                same(a, b) if not isinstance(b, str) else a == b for a, b in zip(found, values, strict=True)
            ), column


def test_tensorboard_shows_no_point_where_nothing_was_measured(odd, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(export(odd, "tensorboard", tmp_path / "tb"))).Reload()
    tags = set(log.Tags()["scalars"])
    assert {"steps/loss", "grad_norm/2"} <= tags and not tags & {"steps/accuracy", "grad_norm/0"}
    assert [(e.step, str(e.value)) for e in log.Scalars("steps/loss")][1:] == [(2, "inf"), (4, "nan")]


def test_no_name_is_a_formula_in_csv(runs, tmp_path):
    """A layer may be called anything in a run that comes from elsewhere; JSON keeps what it is called."""
    model = nn.ModuleDict({"=1+1": nn.Linear(4, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=runs.root) as recorder:
        loss = model["=1+1"](torch.rand(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    folder = export(recorder.run, "csv", tmp_path / "csv")
    assert list(pd.read_csv(folder / "layers.csv")["layer"]) == ["'=1+1"]
    path = export(recorder.run, "json", tmp_path / "run.json")
    assert json.loads(path.read_text())["layers"]["layer"] == ["=1+1"]


def test_mistakes_are_one_line_and_nothing_is_half_written(odd, tmp_path, capsys, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, why in (
        (("no-such-run", "--format", "csv", "--output", tmp_path / "x"), "no run"),
        ((odd.id, "--format", "xml", "--output", tmp_path / "x"), "invalid choice"),
        ((odd.id, "--format", "csv", "--output", tmp_path / "there"), "exists already"),
        ((odd.id, "--format", "csv", "--output", tmp_path / "file" / "below"), "cannot write"),
    ):
        status = main(["export", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (status, out, len(err.splitlines())) == (2, "", 1) and why in err, err
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)  # as if it were not installed
    assert main(["export", odd.id, "--format", "tensorboard", "--output", str(tmp_path / "tb")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs", "there"]
    assert main(["export", odd.id, "--format", "json", "--output", str(tmp_path / "run.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["output"] == str(tmp_path / "run.json")
