"""Advice moves in the direction it names, whatever rate was in force."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initscope.diagnosis.curve import read_curve
from initscope.diagnosis.findings import find
from initscope.diagnosis.remedies import rate_in_force, remedy, suggested_rate
from initscope.diagnosis.run_signals import RunSignals, read_signals
from initscope.diagnosis.thresholds import DEFAULT
from initscope.schema import LAYER_METRICS, Cause

OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Adagrad")
STEPS = 40


def signals(
    rates: list[float],
    updates: list[float],
    optimizer: str,
    momentum: float,
    decay: float,
    config: dict[str, Any] | None = None,
) -> RunSignals:
    """A run of two layers at guessing with these learning rates and update ratios."""
    steps = np.arange(len(rates))
    curve = pd.DataFrame({"step": steps, "epoch": 0, "loss": 2.3, "learning_rate": rates})
    values = dict.fromkeys(LAYER_METRICS, 0.5)
    rows = [
        {
            **values,
            "step": step,
            "layer": name,
            "depth": depth,
            "kind": "linear",
            "weight_norm": 5.0,
            "update_ratio": update,
            "nonfinite": 0,
        }
        for step, update in zip(steps, updates, strict=True)
        for depth, name in enumerate(("fc1", "fc2"))
    ]
    facts = {
        "optimizer": optimizer,
        "optimizers": [{"lr": rates[0], "momentum": momentum, "weight_decay": decay}],
    }
    return read_signals(curve, pd.DataFrame(), pd.DataFrame(rows), {"facts": facts}, config or {})


positive = st.floats(1e-9, 1e3)
schedules = st.one_of(
    positive.map(lambda rate: [rate] * STEPS),
    st.tuples(positive, positive).map(lambda ends: np.geomspace(*ends, STEPS).tolist()),
    positive.map(lambda rate: np.linspace(0, rate, STEPS).tolist()),
    st.tuples(positive, st.integers(1, STEPS - 1)).map(lambda s: [s[0]] * s[1] + [0.0] * (STEPS - s[1])),
)
runs = st.builds(
    signals,
    schedules,
    st.lists(
        st.one_of(st.just(0.0), st.floats(1e-12, 1e6), st.just(float("inf"))), min_size=STEPS, max_size=STEPS
    ),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from([0.0, 0.9, 0.99, 1.0]),
    st.floats(0, 10),
)


@settings(deadline=None, max_examples=150)
@given(runs)
def test_a_suggested_rate_lies_beyond_the_rates_in_force(v: RunSignals) -> None:
    force = rate_in_force(v)
    lower, higher = suggested_rate(v, "Lower"), suggested_rate(v, "Raise")
    assert (lower is None) == (higher is None)
    if lower is not None:
        assert 0 < lower < force.highest < higher


@settings(deadline=None, max_examples=100)
@given(runs, st.sampled_from(list(Cause)), st.booleans())
def test_every_remedy_moves_the_way_it_says(v: RunSignals, cause: Cause, ours: bool) -> None:
    curve = read_curve(v, DEFAULT)
    found = {finding.id: finding for finding in find(v, curve, DEFAULT)}
    if ours:
        force = rate_in_force(v)
        rate = min(1e3, force.highest) if force else 0.1
        v = RunSignals(
            **{
                **vars_of(v),
                "config": {"learning_rate": rate, "warmup_steps": 5, "weight_decay": v.weight_decay},
            }
        )
    text, changes = (advice := remedy(cause, v, found)).text, advice.changes
    assert text and text[0].isupper()
    for verb, was, to in re.findall(
        r"(Lower|Raise) the (?:learning rate|weight decay) from (?:its highest, )?([\d.e+-]+),? to about "
        r"([\d.e+-]*\d)",
        text,
    ):
        assert float(to) < float(was) if verb == "Lower" else float(to) > float(was)
    if cause is Cause.LR_TOO_HIGH and "learning_rate" in changes:
        assert changes["learning_rate"] < rate_in_force(v).highest
    if cause is Cause.LR_TOO_LOW and "learning_rate" in changes:
        assert changes["learning_rate"] > rate_in_force(v).highest
    if cause is Cause.WEIGHT_DECAY_TOO_HIGH and "weight_decay" in changes:
        assert changes["weight_decay"] < v.weight_decay


def vars_of(v: RunSignals) -> dict[str, Any]:
    return {name: getattr(v, name) for name in RunSignals.__dataclass_fields__}


def advice(cause: Cause, rates: list[float], update: float = 1e-6, optimizer: str = "Adam") -> str:
    v = signals(rates, [update] * len(rates), optimizer, 0.0, 0.0)
    found = {finding.id: finding for finding in find(v, read_curve(v, DEFAULT), DEFAULT)}
    return remedy(cause, v, found).text


def test_a_rate_that_fell_away_says_from_what_to_what_and_where() -> None:
    text = advice(Cause.LR_TOO_LOW, [1e-3] * 8 + [1e-8] * 32)
    assert "fell from 0.001 to 1e-08" in text and "step 8 on" in text


def test_a_rate_that_still_rises_says_so() -> None:
    assert "shorter warm-up" in advice(Cause.LR_TOO_LOW, np.geomspace(1e-12, 1e-3, 40).tolist())


@pytest.mark.parametrize(("rate", "update"), [(0.03, 1e-5), (0.01, 3.0), (1e-4, 1e-4)])
def test_no_advice_contradicts_itself(rate: float, update: float) -> None:
    for cause, verb in ((Cause.LR_TOO_LOW, "Raise"), (Cause.LR_TOO_HIGH, "Lower")):
        text = advice(cause, [rate] * 40, update)
        to = float(re.search(r"to about ([\d.e+-]*\d)", text)[1])
        assert text.startswith(verb) and (to > rate if verb == "Raise" else to < rate)
