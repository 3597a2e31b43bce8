"""Charts over networks: first the exact data, then what is drawn of it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from initscope.comparison.statistics import wilson
from initscope_dashboard.figures import bands, networks, strips


def _family_rows() -> list[dict]:
    cells = (
        ("LeNet-5", "default", 3, 3),
        ("LeNet-5", "kaiming_normal", 2, 3),
        ("VGG<16> without batch norm", "default", 0, 0),
    )
    return [
        {
            "label": label,
            "init": init,
            "converged": k,
            "runs": n,
            "low": wilson(k, n)[0],
            "high": wilson(k, n)[1],
            "undecided": 0,
        }
        for label, init, k, n in cells
    ]


def test_networks():
    drawn = networks.networks(_family_rows())
    markers = {trace.name: trace for trace in drawn.data if trace.mode == "markers"}
    assert list(markers["PyTorch default"].x) == [1.0] and list(markers["Kaiming normal"].x) == [2 / 3], (
        "a cell without decided runs is not drawn"
    )
    assert "2 of 3 converged" in markers["Kaiming normal"].text[0]
    assert list(drawn.layout.yaxis.ticktext) == ["VGG&lt;16&gt;<br>without batch norm", "LeNet-5"]
    assert networks.networks([]).layout.meta["blank"]


def _layers(values: dict[str, float], step: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"step": s, "layer": name, "depth": i, "grad_norm": v * (1 if s == step else 99)}
            for s in (step, step + 10)
            for i, (name, v) in enumerate(values.items())
        ]
    )


def test_strips():
    frames = [_layers({"c1": v, "aux1.fc": 5.0, "fc": 1.0}) for v in (1e-8, 1e-6, 1e-4)]
    one = strips.strip("A", frames, "grad_norm")
    assert one.layers == ["c1", "fc"] and list(one.values) == [1e-6, 1.0], (
        "medians at the first step, side branches left out"
    )
    assert strips.strip("B", [frames[0].iloc[:0]], "grad_norm") is None
    zero = strips.strip("Z", [_layers({"c1": 0.0, "fc": float("nan"), "out": 1e2})], "grad_norm")
    assert strips.limits([[one], [zero]]) == (-6, 2) and strips.limits([[]]) == (-8, 0)
    drawn = strips.strips([zero, one], "grad_norm", order=["A", "Z", "not run yet"])
    z = np.asarray(drawn.data[0].z)
    assert list(drawn.layout.yaxis.ticktext) == ["A", "Z"] and z.shape == (2, strips.COLUMNS)
    assert (
        z[0, 0] == -6 and z[0, -1] == 0 and z[1, -1] == 2 and np.isnan(z[1, : 2 * strips.COLUMNS // 3]).all()
    )
    special = np.asarray(drawn.data[1].z)
    assert np.nansum(special[1]) == strips.COLUMNS // 3 and np.isnan(special[0]).all(), (
        "an exact zero has its own colour"
    )
    assert "fc, layer 2 of 2: 1" in drawn.data[0].text[0, -1]
    assert strips.strips([], "grad_norm").layout.meta["blank"]


def test_bands_go_on_where_half_of_the_seeds_go_on():
    """A run that has just begun, or ended early, cuts nobody off; without a number there is no point."""

    def run(*losses: float) -> pd.DataFrame:
        return pd.DataFrame({"step": range(len(losses)), "loss": losses})

    [band] = bands.bands_data(
        {"default": [run(3, 2, 1, 1), run(2, 2, 3, np.nan), run(1), run()], "zeros": [run(np.nan)]}
    )
    assert band.init == "default" and band.runs == 3
    np.testing.assert_array_equal(
        np.array([band.steps, band.low, band.median, band.high]),
        [[0, 1, 2, 3], [1, 2, 1, 1], [2, 2, 2, 1], [3, 2, 3, 1]],
    )
    assert not bands.bands({"default": [run(3, 2)]}).layout.meta and bands.bands({}).layout.meta["blank"]
