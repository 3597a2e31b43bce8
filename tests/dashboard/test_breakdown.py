"""What a page says first of a run that something ended, and of one whose numbers broke."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from initscope import Recorder
from initscope.diagnosis.diagnose import diagnose
from initscope.schema import Status
from initscope.store.layer_names import layer_names
from initscope_dashboard.content import headlines
from initscope_dashboard.content.breakdown import breakdown
from initscope_dashboard.figures import heatmap


def recorded(tmp_path, breaks_at: int = 60, fails_at: int | None = None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(64, 8)
    recorder = Recorder(model, optimizer, name="mine", runs=tmp_path, quiet=True)
    try:
        with recorder:
            for step in range(80):
                outputs = model(x)
                if step == breaks_at:
                    outputs.register_hook(lambda gradient: gradient * math.nan)
                loss = nn.functional.cross_entropy(outputs, x[:, :4].argmax(1))
                if step == fails_at:
                    raise RuntimeError("shapes cannot be multiplied")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.step(loss)
    except RuntimeError:
        pass
    return recorder.run


def first_break(run):
    return breakdown(run.state(), run.read("steps").to_pandas(), run.read("layers").to_pandas())


@pytest.mark.parametrize("facts", [True, False])
def test_a_nan_is_named_by_step_and_tensor_with_what_was_sound_before(tmp_path, facts):
    run = recorded(tmp_path)
    state = run.state() if facts else {}
    found = breakdown(state, run.read("steps").to_pandas(), run.read("layers").to_pandas())
    assert (
        found is not None
        and found.step == 60
        and found.place in ("the error signal of 2", "the gradient of 2")
    )
    assert found.sentence.startswith(
        f"NaN from step 60 on: first in {found.place}; until then every number was finite and the loss fell "
        "from "
    )
    told = diagnose(run)
    assert headlines.cause(told, "finished", None, found) == found.sentence
    assert "more steps" not in headlines.advice(told) and "nothing recorded says why" not in headlines.beside(
        told, "finished", found
    )
    cells = heatmap.heatmap_data(run.read("layers").to_pandas())
    sentence = headlines.first_step(cells)
    assert (
        "gets through" not in sentence and "from step 60 on it is not a number in 2 of 2 layers" in sentence
    )


def test_what_ended_a_run_is_the_first_line(tmp_path):
    run = recorded(tmp_path, breaks_at=-1, fails_at=70)
    info, told = run.info(), diagnose(run)
    assert info.status == Status.FAILED and first_break(run) is None
    line = headlines.cause(told, info.status, info.error, None, 70)
    assert line == "It failed after 70 steps: RuntimeError: shapes cannot be multiplied."
    assert "nothing needs mending" not in line + headlines.beside(
        told, info.status
    ) and "more steps" not in headlines.advice(told, info.status)


def test_a_step_without_a_loss_is_no_nan(tmp_path):
    steps = pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]})
    assert breakdown({}, steps, pd.DataFrame({"step": [], "nonfinite": []})) is None


def test_a_map_of_zeros_does_not_get_through():
    layers = pd.DataFrame(
        {
            "step": [0, 0, 1, 1],
            "layer": ["a", "b"] * 2,
            "depth": [0, 1] * 2,
            "grad_norm": np.float32([1, 1, 0, 0]),
            "nonfinite": 0,
        }
    )
    assert headlines.first_step(heatmap.heatmap_data(layers)).endswith(
        "; at the end it is exactly zero in every layer."
    )


def test_numbered_layers_say_what_they_are(tmp_path):
    run = recorded(tmp_path, breaks_at=-1)
    assert list(layer_names(["0", "2"], run.state()).values()) == [
        "layer 0 (Linear 8 to 16)",
        "layer 2 (Linear 16 to 4)",
    ]
    assert layer_names(["0", "fc"], {}) == {"0": "layer 0", "fc": "fc"}
