"""Charts: first the exact data (empty, partial, zero, NaN, normal), then that they draw, then what they
send.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.comparison import survival
from initscope.comparison.survival import Seen
from initscope.config.run_config import RunConfig
from initscope.config.shapes import inputs_and_classes
from initscope.recording.recorder import Recorder
from initscope.theory.trainability import Edge, TheoryMap
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.figures import (
    architecture,
    bands,
    base,
    blocks,
    curves,
    depth,
    heatmap,
    kernels,
    layer_bar,
    layer_curve,
    layer_values,
    profile,
    ratio,
    trainability,
)
from initscope_dashboard.figures import survival as survival_figure
from initscope_dashboard.figures.base import Subject
from initscope_dashboard.live import live_rows
from initscope_dashboard.widgets.plot import plain

A, B = Subject("a", "default · seed 0", "default"), Subject("b", "kaiming_normal · seed 0", "kaiming_normal")
LAYERS = ["conv1_1", "conv1_2", "conv2_1", "fc1"]


def steps_frame(losses: list[float], per_epoch: int = 2) -> pd.DataFrame:
    n = len(losses)
    return pd.DataFrame(
        {
            "step": np.arange(n, dtype=np.int32),
            "epoch": np.arange(n) // per_epoch,
            "loss": losses,
            "accuracy": [0.1] * n,
        }
    )


def epochs_frame(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(len(values)), "val_loss": values, "val_accuracy": values})


def layers_frame(
    value: Callable[[int, int], float], steps: int = 3, every: int = 1, layers: list[str] = LAYERS
) -> pd.DataFrame:
    rows = [
        {
            "step": every * s,
            "layer": name,
            "depth": d,
            "grad_norm": np.float32(value(s, d)),
            "dead_fraction": np.float32(0.25),
        }
        for s in range(steps)
        for d, name in enumerate(layers)
    ]
    return pd.DataFrame(rows).astype({"layer": "category"})


POWERS = layers_frame(lambda s, d: 10.0 ** (d - s))


# -- curves


def test_a_curve_holds_the_rows_and_the_validation_after_each_epoch():
    [curve] = curves.curves_data(
        [A], {"a": steps_frame([2.3, 2.2, 2.1, 2.0, 1.9])}, {"a": epochs_frame([2.25, 2.05])}
    )
    np.testing.assert_array_equal(curve.steps, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(curve.values, [2.3, 2.2, 2.1, 2.0, 1.9], rtol=1e-6)
    np.testing.assert_array_equal(curve.validation_steps, [2, 4])
    np.testing.assert_allclose(curve.validation, [2.25, 2.05], rtol=1e-6)
    assert curve.broke_at is None


def test_a_curve_names_the_step_at_which_the_loss_broke_and_has_a_gap_from_there():
    [curve] = curves.curves_data(
        [A], {"a": steps_frame([2.3, 9e9, math.inf, math.nan])}, {"a": epochs_frame([math.nan])}
    )
    assert curve.broke_at == 2
    assert np.isnan(curve.values).tolist() == [False, False, True, True]
    assert len(curve.validation) == 0


def test_a_run_without_rows_has_an_empty_curve_beside_one_that_has_some():
    first, second = curves.curves_data([A, B], {"b": steps_frame([1.0])}, {})
    assert len(first.values) == 0
    assert len(second.values) == 1


def test_thinning_keeps_the_ends_and_a_single_spike_among_a_hundred_thousand_points():
    values = np.full(100_000, 2.3)
    values[54_321] = 40.0
    x, y = curves.thin(np.arange(100_000, dtype=np.int32), values)
    assert len(x) <= curves.POINTS
    assert x[0] == 0
    assert x[-1] == 99_999
    assert y[x == 54_321] == [40.0]


def test_the_loss_axis_is_not_flattened_by_a_run_that_explodes():
    frames = {"a": steps_frame([2.3, 1e6, math.nan]), "b": steps_frame([2.3, 1.0, 0.5])}
    drawn = curves.curves([A, B], frames, {}, classes=10)
    assert drawn.layout.yaxis.range == (0, 2 * math.log(10))
    assert "NaN" in "".join(t.text[0] for t in drawn.data if t.text is not None)


def test_reference_lines_say_what_a_guess_is():
    loss = curves.curves([A], {"a": steps_frame([2.3])}, {}, classes=10)
    accuracy = curves.curves([A], {"a": steps_frame([2.3])}, {}, "accuracy", classes=4)
    assert loss.layout.annotations[0].text == "ln 10 = 2.303: a guess"
    assert accuracy.layout.annotations[0].text.startswith("1/4 = 25")
    on_log = curves.curves([A], {"a": steps_frame([2.3])}, {}, classes=10, log=True)
    assert on_log.layout.annotations[0].y == pytest.approx(math.log10(math.log(10)))


def test_a_guess_is_claimed_only_where_the_loss_is_known(tmp_path):
    """Of loops of one's own: four classes cost ln 4; a sum over the batch, a regression and a plain number
    have no such line.
    """
    losses = {
        4: lambda outputs: F.cross_entropy(outputs, torch.arange(16) % 4),
        "sum": lambda outputs: F.cross_entropy(outputs, torch.arange(16) % 4, reduction="sum"),
        "regression": lambda outputs: outputs.square().mean(),
    }
    infos = {}
    for name, loss_fn in losses.items():
        torch.manual_seed(0)
        model = nn.Linear(3, 4)
        with Recorder(model, runs=tmp_path) as recorder:
            loss = loss_fn(0.01 * model(torch.randn(16, 3)))
            loss.backward()
            recorder.step(loss)
        infos[name] = recorder.run.info()
        told = live_rows.progress(
            {**infos[name].state, "status": "running"}, recorder.run.read("steps"), infos[name].config
        )
        assert ("ln\u00a04" in told["says"]) == (name == 4), told["says"]
    assert [headlines.classes(info.state, info.config) for info in infos.values()] == [4, None, None]
    assert (
        headlines.common_classes([infos[4], infos[4]]) == 4
        and headlines.common_classes(infos.values()) is None
    )
    assert "tell the Recorder" in headlines.nothing_differs(infos.values())
    unknown = [
        curves.curves([A], {"a": steps_frame([3.0, 1.0])}, {}, column) for column in ("loss", "accuracy")
    ]
    assert [len(drawn.layout.annotations) for drawn in unknown] == [0, 0] and unknown[
        0
    ].layout.yaxis.title.text == "loss"


# -- maps


def test_a_map_is_log10_with_the_input_in_the_first_row():
    cells = heatmap.heatmap_data(POWERS)
    assert cells.layers == LAYERS
    np.testing.assert_array_equal(cells.steps, [0, 1, 2])
    np.testing.assert_allclose(cells.z, [[0, -1, -2], [1, 0, -1], [2, 1, 0], [3, 2, 1]], atol=1e-6)
    assert cells.z.dtype == np.float32
    assert not cells.zero.any()
    assert not cells.bad.any()
    assert cells.per == 1


def test_zero_and_nan_are_marked_and_have_no_place_on_the_scale():
    frame = layers_frame(lambda s, d: {0: 0.0, 1: math.nan, 2: math.inf}.get(d, 1.0))
    cells = heatmap.heatmap_data(frame)
    assert cells.zero.all(axis=1).tolist() == [True, False, False, False]
    assert cells.bad.all(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(cells.z[:3]).all()
    names = {trace.name for trace in heatmap.heatmap(cells).data}
    assert {"exact zero", "NaN or infinite"} <= names
    assert "exact zero" not in {trace.name for trace in heatmap.heatmap(heatmap.heatmap_data(POWERS)).data}


def test_columns_are_medians_and_the_chart_says_so():
    frame = layers_frame(lambda s, d: 10.0 ** (s % 5), steps=1000)
    cells = heatmap.heatmap_data(frame, columns=200)
    assert cells.per == 5
    assert cells.z.shape == (4, 200)
    np.testing.assert_allclose(cells.z, 2, rtol=1e-6)
    assert "median of 5" in heatmap.heatmap(cells).layout.xaxis.title.text


def test_medians_of_odd_even_and_partly_empty_columns():
    values = np.array([[1, 10, 100, 1000, 1, 0, 0, np.nan]], np.float32)
    present = np.array([[True] * 7 + [False]])
    z, zero, bad = heatmap.binned(values, present, 4, False)
    assert z[0, 0] == pytest.approx(1.5)  # between 10 and 100
    assert zero.tolist() == [[False, True]]  # two of three are zero
    assert not bad.any()  # what is absent is not NaN


def test_one_nan_among_many_shows():
    values = np.ones((1, 8), np.float32)
    values[0, 6] = np.nan
    _, _, bad = heatmap.binned(values, np.ones((1, 8), bool), 4, False)
    assert bad.tolist() == [[False, True]]


def test_a_layer_that_joins_late_leaves_a_gap():
    frame = pd.concat(
        [
            layers_frame(lambda s, d: 1.0, 1, layers=LAYERS[:2]),
            layers_frame(lambda s, d: 1.0, 2).query("step == 1"),
        ]
    )
    cells = heatmap.heatmap_data(frame)
    assert np.isnan(cells.z[2, 0])
    assert not cells.bad.any()
    assert not cells.zero.any()


def test_a_share_is_drawn_from_0_to_1_without_logarithm():
    cells = heatmap.heatmap_data(POWERS, "dead_fraction")
    assert cells.linear
    np.testing.assert_allclose(cells.z, 0.25)
    drawn = heatmap.heatmap(cells)
    assert (drawn.data[0].zmin, drawn.data[0].zmax) == (0, 1)


def test_maps_share_one_range_and_its_ticks_are_powers_of_ten():
    small = heatmap.heatmap_data(layers_frame(lambda s, d: 3e-8))
    limits = heatmap.shared_limits([small, heatmap.heatmap_data(POWERS), None])
    assert limits == (-8, 3)
    drawn = heatmap.heatmap(small, limits=limits)
    assert (drawn.data[0].zmin, drawn.data[0].zmax) == limits
    assert drawn.data[0].colorbar.ticktext[0] == "10⁻⁸"


def test_blocks_are_parted_by_lines():
    assert base.boundaries(LAYERS) == [1.5, 2.5]
    assert base.boundaries(["a", "b", "c"]) == []


def test_the_ratio_is_in_decades_on_common_steps_and_layers():
    a = layers_frame(lambda s, d: 1e-6, steps=6)
    b = layers_frame(lambda s, d: 1e-3, steps=3, every=2, layers=LAYERS[1:])
    data = ratio.ratio_data(heatmap.heatmap_data(a), heatmap.heatmap_data(b))
    assert data.layers == LAYERS[1:]
    np.testing.assert_array_equal(data.steps, [0, 2, 4])
    np.testing.assert_allclose(data.z, 3, atol=1e-5)


def test_the_ratio_marks_zeros_and_nan_of_either_side():
    a = layers_frame(lambda s, d: 0.0 if d == 0 else 1.0)
    b = layers_frame(lambda s, d: math.nan if d == 1 else 1.0)
    data = ratio.ratio_data(heatmap.heatmap_data(a), heatmap.heatmap_data(b))
    assert data.zero.all(axis=1).tolist() == [True, False, False, False]
    assert data.bad.all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "other", [None, layers_frame(lambda s, d: 1.0).iloc[:0], layers_frame(lambda s, d: 1.0, layers=["x"])]
)
def test_runs_with_nothing_in_common_have_no_ratio(other):
    assert ratio.ratio_data(heatmap.heatmap_data(POWERS), heatmap.heatmap_data(other)) is None


# -- when seeds leave chance


def test_a_survival_curve_holds_its_stairs_band_and_marks():
    """Three of four leave, one is stopped before the last; the other group left early, and stays at all."""
    slow = survival.survival([Seen(10, True), Seen(20, False), Seen(30, True), Seen(30, True)])
    data = survival_figure.survival_data({"default": slow, "mine": survival.survival([Seen(5, True)] * 2)})
    assert [stairs.name for stairs in data] == ["PyTorch default", "mine"]
    assert data[0].marks == ([20], [0.25])
    assert data[1].curve.steps.tolist() == [0, 5, 30] and data[1].curve.share.tolist() == [0, 1, 1]
    assert data[1].words[-1].startswith("100\u00a0% by step 30, 95 % band 34 to 100 %, 0 of 2")
    drawn = survival_figure.survival({"default": slow})
    assert [trace.name for trace in drawn.data if trace.showlegend is not False] == [
        "PyTorch default (3 of 4)"
    ]
    assert {trace.line.shape for trace in drawn.data if trace.mode == "lines"} == {"hv"}
    assert survival_figure.survival({}).layout.meta["blank"].startswith("Appears with")


# -- layers at one moment, one layer over time


def test_depth_shows_the_first_step_and_the_bar_the_last():
    [first] = layer_values.first([A, B], {"a": POWERS}, "grad_norm")
    [last] = layer_values.newest([A, B], {"a": POWERS}, "grad_norm")
    assert (first.layers, first.step, last.step) == (LAYERS, 0, 2)
    np.testing.assert_allclose(first.values, [1, 10, 100, 1000])
    np.testing.assert_allclose(last.values, [0.01, 0.1, 1, 10])


def test_zero_lies_on_the_lower_edge_and_nan_on_the_upper_and_the_axis_says_so():
    frame = layers_frame(lambda s, d: {0: 0.0, 1: math.nan}.get(d, 1e-3))
    drawn = depth.depth([A], {"a": frame})
    trace, axis = drawn.data[0], drawn.layout.yaxis
    assert axis.ticktext[0] == "0"
    assert axis.ticktext[-1] == "NaN"
    assert trace.marker.symbol[:2] == ("circle-open", "x")
    assert trace.y[0] == axis.tickvals[0]
    assert trace.y[1] == axis.tickvals[-1]


def test_a_layers_curve_lists_its_zeros_and_breaks():
    frame = layers_frame(lambda s, d: [1e-3, 0.0, math.inf][s])
    [curve] = layer_curve.layer_curve_data([A, B], {"a": frame}, "conv1_2")
    assert curve.values[0] == pytest.approx(1e-3)
    assert np.isnan(curve.values[1:]).all()
    assert curve.zeros.tolist() == [1]
    assert curve.bad.tolist() == [2]
    assert layer_curve.layer_curve_data([A], {"a": frame}, "no such layer") == []


# -- the model


def test_the_storys_network_has_134_300_362_parameters():
    network = architecture.layers(RunConfig())
    assert architecture.parameters(network) == 134_300_362
    assert [layer.size for layer in network if layer.kind == "pool"] == [112, 56, 28, 14, 7]


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 0.25, "image_size": 32, "batch_norm": True},
        {"data": "cifar10", "num_classes": 17, "width": 1.5},
    ],
)
def test_shapes_and_counts_are_the_real_networks(name, changes):
    import torch

    from initscope import networks

    config = RunConfig(model=name, **changes)
    channels, classes = inputs_and_classes(config)
    with torch.device("meta"):
        real = networks.build(config, in_channels=channels, num_classes=classes)
    network = {layer.name: layer for layer in architecture.layers(config)}
    assert sum(layer.parameters for layer in network.values()) == sum(p.numel() for p in real.parameters())
    image = torch.empty(1, channels, config.image_size, config.image_size, device="meta")
    for layer, module in real.named_children():
        image = module(image)
        if layer in network:
            assert (
                tuple(image.shape[1:3]) == (network[layer].channels, network[layer].size)[: image.dim() - 1]
            )
            assert network[layer].weights == (module.weight.numel() if hasattr(module, "weight") else 0)


def test_two_small_kernels_see_five_pixels_with_18_against_25():
    two, three = kernels.stack(2, 10), kernels.stack(3, 10)
    assert (two.field, two.stacked, two.single) == (5, 1800, 2500)
    assert (three.field, three.stacked, three.single) == (7, 2700, 4900)
    assert round(two.saving, 2) == 0.28


# -- drawing

NASTY = Subject("n", "<b>evil</b> & <img src=x onerror=alert(1)> %{x}", "not in the catalogue")


def every_figure(subjects: list[Subject], steps: dict, epochs: dict, layers: dict) -> list[go.Figure]:
    first = next(iter(layers.values()), None)
    cells = heatmap.heatmap_data(first)
    return [
        curves.curves(subjects, steps, epochs),
        curves.curves(subjects, steps, epochs, log=True),
        curves.curves(subjects, steps, epochs, "accuracy"),
        heatmap.heatmap(cells, title=NASTY.label),
        ratio.ratio(ratio.ratio_data(cells, cells), title=NASTY.label),
        layer_bar.layer_bar(subjects, layers),
        depth.depth(subjects, layers),
        layer_curve.layer_curve(subjects, layers, "fc1"),
        architecture.architecture(architecture.layers(RunConfig()), title=NASTY.label),
        kernels.receptive_field(),
        kernels.parameters(),
    ]


BROKEN = layers_frame(lambda s, d: [0.0, math.nan, 1e-38][s])
STATES = {
    "nothing chosen": ([], {}, {}, {}),
    "no rows yet": ([A], {}, {}, {}),
    "empty frames": ([A], {"a": steps_frame([])}, {"a": epochs_frame([])}, {"a": POWERS.iloc[:0]}),
    "one row": ([A], {"a": steps_frame([2.3])}, {}, {"a": POWERS.query("step == 0")}),
    "broken": ([A], {"a": steps_frame([math.nan])}, {"a": epochs_frame([math.nan])}, {"a": BROKEN}),
    "all zero": ([A], {"a": steps_frame([0.0])}, {}, {"a": layers_frame(lambda s, d: 0.0)}),
    "normal": (
        [A, B],
        {"a": steps_frame([2.3, 2.2]), "b": steps_frame([2.3])},
        {"a": epochs_frame([2.2])},
        {"a": POWERS, "b": POWERS},
    ),
    "nasty name": ([NASTY], {"n": steps_frame([2.3])}, {}, {"n": POWERS}),
    "many runs": (
        [Subject(str(i), f"seed {i}", "default") for i in range(30)],
        {str(i): steps_frame([2.3]) for i in range(30)},
        {},
        {"0": POWERS},
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_every_figure_draws_in_every_state_with_a_title_and_as_json(state):
    for drawn in every_figure(*STATES[state]):
        assert drawn.layout.title.text
        sent = json.dumps(plain(drawn.to_dict()), allow_nan=False)
        assert "<img" not in sent
        assert "%{x} " not in sent.replace("step %{x}", "")


def test_without_data_a_figure_says_what_to_do():
    for drawn in every_figure([A], {}, {}, {})[3:7]:
        assert drawn.layout.meta["blank"]
        assert drawn.layout.meta["blank"] == drawn.layout.annotations[0].text


def test_figures_use_tokens_and_the_magnitude_scale_and_no_other_colour():
    known = {color for _, color in theme.SEQUENTIAL}
    tokens = set(theme.tokens()["light"])
    for drawn in every_figure(*STATES["normal"]):
        drawn.layout.template = None
        sent = json.dumps(plain(drawn.to_dict()))
        assert set(re.findall(r"#[0-9A-Fa-f]{3,8}\b", sent)) <= known
        assert set(re.findall(r"var\(--([\w-]+)\)", sent)) <= tokens
        assert "rgb(" not in sent


def test_a_long_run_is_sent_in_little():
    frame = layers_frame(
        lambda s, d: 1.0 + s, steps=5000, layers=[f"conv{b}_{i}" for b in range(1, 5) for i in range(1, 5)]
    )
    drawn = heatmap.heatmap(heatmap.heatmap_data(frame))
    drawn.layout.template = None
    assert len(json.dumps(plain(drawn.to_dict()))) < 75_000
    loss = curves.curves([A], {"a": steps_frame([2.3] * 50_000)}, {"a": epochs_frame([])})
    loss.layout.template = None
    assert len(json.dumps(plain(loss.to_dict()))) < 25_000


def test_one_initialization_has_one_colour_and_seeds_differ_in_dash():
    looks = theme.styles(["default", "kaiming_normal", "default", "unknown"])
    assert looks[0].color == looks[2].color != looks[1].color
    assert looks[0].dash != looks[2].dash
    assert looks[3].color == "var(--init-other)"


def test_runs_that_no_initialization_tells_apart_have_a_colour_each():
    for inits in (["custom"] * 4, ["kaiming_normal"] * 4, ["custom", "custom", "default"]):
        looks = theme.styles(inits)
        tokens = theme.tokens()["light"]
        colors = [tokens[look.color.removeprefix("var(--").removesuffix(")")] for look in looks]
        assert len(set(colors)) == len(inits), colors


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_can_be_told_from_the_background(mode):
    colors = theme.tokens()[mode]
    paper = luminance(colors["paper"])
    for name, least in [
        *((n, 3.0) for n in colors if n.startswith("init-")),
        ("good", 3),
        ("bad", 3),
        ("nonfinite", 3),
        ("ink", 7),
        ("muted", 4.5),
    ]:
        bright, dark = max(paper, luminance(colors[name])), min(paper, luminance(colors[name]))
        assert (bright + 0.05) / (dark + 0.05) >= least, name


# -- numbers in words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.302585, "2.3"),
        (0.04321, "0.0432"),
        (134_300_362, "134,000,000"),
        (3.3e-8, "3.3 × 10⁻⁸"),
        (1e-13, "10⁻¹³"),
        (-0.5, "−0.5"),
        (0, "0"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (None, "–"),
        (999.6, "1,000"),
        (1e-310, "10⁻³¹⁰"),
    ],
)
def test_numbers_have_three_digits(value, words):
    assert formatting.number(value) == words


def test_ratios_times_and_shares_in_words():
    assert formatting.times(2_060_000) == "2,100,000 times"
    assert formatting.decades(3) == "1,000 times larger"
    assert formatting.decades(-1.301) == "20 times smaller"
    assert formatting.percent(0.1) == "10\u00a0%"
    assert [formatting.duration(s) for s in (0.2, 8, 125, 332 * 60, None)] == [
        "under 1 s",
        "8 s",
        "2 min 5 s",
        "5 h 32 min",
        "–",
    ]
    assert formatting.fixed(2.3) == "2.30"


def test_a_name_that_is_too_long_for_its_axis_keeps_what_tells_it_apart():
    names = [f"layer {i} (Linear 64 to 64)" for i in (0, 2)]
    assert blocks.short(names) == ["layer 0", "layer 2"] and blocks.short(names, 40) == names


def test_names_are_shown_as_typed():
    assert formatting.escape("<b>a</b> & %{x}") == "&lt;b&gt;a&lt;/b&gt; &amp; %\u200b{x}"
    assert len(formatting.shorten("x" * 100)) == 30
    assert formatting.markdown("a_b [c](d) $e$") == r"a\_b \[c\]\(d\) \$e\$"


def test_powers_of_ten_are_typeset():
    said = "differ by 6e-07 (1.5e-10), below epsilon (1e-8), of 3e+02 at fc2e-7 in v1.2e3"
    assert (
        formatting.typeset(said)
        == "differ by 6\u00a0×\u00a010⁻⁷ (1.5\u00a0×\u00a010⁻¹⁰), below epsilon (10⁻⁸), of "
        "3\u00a0×\u00a010² at fc2e-7 in v1.2e3"
    )


def test_not_measured_is_not_called_not_a_number() -> None:
    """The last layer has no ReLU after it: its dead share is missing, not NaN; a gradient that is NaN is
    one.
    """
    rows = pd.DataFrame(
        {
            "step": [0, 0, 0],
            "layer": ["conv1", "fc1", "fc2"],
            "depth": [0, 1, 2],
            "dead_fraction": [0.5, 0.4, np.nan],
            "grad_norm": [1.0, np.nan, np.nan],
            "nonfinite": [0, 1, 0],
        }
    )
    assert heatmap.heatmap_data(rows, "dead_fraction").bad.sum() == 0
    assert heatmap.heatmap_data(rows, "grad_norm").bad[:, 0].tolist() == [False, True, False]


# -- the trainability map


def cell(gain: float, model: str, converged: int, runs: int = 2) -> dict:
    return {"gain": gain, "model": model, "converged": converged, "runs": runs}


def test_trainability_map_draws_rates_the_boundary_and_where_theory_was_wrong():
    rows = [
        cell(0.1, "vgg11", 0),
        cell(1.0, "vgg11", 2),
        cell(10.0, "vgg11", 2),
        cell(0.1, "vgg19", 0),
        cell(1.0, "vgg19", 0),
        cell(10.0, "vgg19", 0, 0),
    ]
    theory = TheoryMap(
        {(gain, model): gain > 0.5 for gain in (0.1, 1.0, 10.0) for model in ("vgg11", "vgg19")},
        (Edge(True, ((0.316, "vgg11"), (1.02, "vgg19"))),),
    )
    drawn = trainability.trainability(rows, "gain", "model", theory=theory)
    heat, _, line, numbers, wrong = drawn.data
    np.testing.assert_array_equal(heat.z, np.array([[0, 1, 1], [0, 0, np.nan]], np.float32))
    # Half way between 0.1 and 1 on a log scale; a step of a whole line each.
    np.testing.assert_allclose(line.x, [0.5, 0.5, 1.0, 1.0], atol=0.01)
    assert list(line.y) == [-0.5, 0.5, 0.5, 1.5]
    assert list(numbers.text) == ["0/2", "2/2", "2/2", "0/2", "0/2"]
    assert all(abs(x - 1.0) > 0.2 for x, y in zip(numbers.x[3:], numbers.y[3:], strict=True)), (
        "beside the line, not under it"
    )
    assert (len(wrong.x), round(wrong.x[0]), round(wrong.y[0])) == (1, 1, 1)
    assert list(drawn.layout.yaxis.ticktext) == ["VGG11", "VGG19"]
    assert (
        "Appears when"
        in trainability.trainability([cell(1.0, "vgg11", 0, 0)], "gain", "model").layout.meta["blank"]
    )


def probed(signal: list[float], correlation: list[float], band: bool = False) -> dict:
    """The JSON of a probe of ``LAYERS``: theory says half of what is measured."""
    rows = [
        {
            "layer": name,
            "measured": {"signal_std": s, "correlation": c},
            "predicted": {"signal_std": s / 2, "correlation": c},
        }
        for name, s, c in zip(LAYERS, signal, correlation, strict=True)
    ]
    seeds = [
        {
            "layer": name,
            "signal_std": {"min": s / 4, "median": s, "max": 4 * s},
            "correlation": {"min": c - 0.05, "median": c, "max": c + 0.02},
        }
        for name, s, c in zip(LAYERS, signal, correlation, strict=True)
    ]
    return {"layers": rows, **({"band": seeds} if band else {})}


def test_a_profile_lays_measured_dots_on_predicted_lines() -> None:
    drawn = profile.profile({"default": probed([1, 0.1, 0.01, 0], [0.5, 0.9, 0.95, 0.96], band=True)})
    line, dots = drawn.data
    assert (line.mode, dots.mode) == (
        "lines",
        "markers",
    ) and line.line.color == dots.marker.color == theme.init_color("default")
    assert list(line.x) == list(dots.x) == LAYERS and np.allclose(line.y[:3], [0.5, 0.05, 0.005])
    assert np.allclose(dots.y[:3], [1, 0.1, 0.01]) and dots.marker.symbol[3] != dots.marker.symbol[0], (
        "an exact zero has a mark of its own"
    )
    assert np.allclose(dots.error_y.array[:3], [3, 0.3, 0.03]) and np.allclose(
        dots.error_y.arrayminus[:3], [0.75, 0.075, 0.0075]
    )


def test_a_profile_of_correlations_shows_what_is_left_to_one() -> None:
    drawn = profile.profile({"default": probed([1] * 4, [0.5, 0.9, 0.95, 0.96], band=True)}, "difference")
    line, dots = drawn.data
    assert np.allclose(line.y, [0.5, 0.1, 0.05, 0.04]) and np.allclose(dots.y, line.y)
    assert np.allclose(dots.error_y.array, 0.05) and np.allclose(dots.error_y.arrayminus, 0.02), (
        "the least alike seed is the upper end"
    )


def test_bands_are_median_and_range_of_each_side() -> None:
    """Two sides that no initialization tells apart are not drawn in one colour."""
    losses = [[2.0, 1.0, 0.5], [2.2, 1.4, 0.1], [2.4, 1.2, math.nan]]
    sides = {
        "learning_rate 0.1": [steps_frame(x) for x in losses],
        "learning_rate 0.001": [steps_frame([2.3, 2.3])],
    }
    one, two = bands.bands_data(sides)
    assert (
        np.allclose(one.median, [2.2, 1.2, 0.3])
        and np.allclose(one.low, [2.0, 1.0, 0.1])
        and np.allclose(one.high, [2.4, 1.4, 0.5])
    )
    assert (one.runs, two.runs) == (3, 1)
    colors = [trace.line.color for trace in bands.bands(sides).data if trace.name]
    assert len(set(colors)) == 2 and [theme.init_color("zeros")] == theme.group_colors(["zeros"])
