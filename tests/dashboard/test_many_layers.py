"""Many layers and many steps: blocks from names, rows from a view, and a map that is read in pieces."""

from __future__ import annotations

import base64
import math
import zlib

import numpy as np
import pyarrow as pa
import pytest

from initscope.config.run_config import RunConfig
from initscope.schema import LAYER_METRICS
from initscope.store import Run, Runs, RunWriter, grid, parts
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.figures import base, blocks, heatmap, ratio, rows
from initscope_dashboard.widgets import plot

TRANSFORMER = [
    "embed",
    *(
        f"encoder.layers.{i}.{part}"
        for i in range(84)
        for part in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
    ),
    "head",
]
VGG = ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "fc1", "fc2", "fc3"]
RESNET = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)), "fc"]
FLAT = [str(2 * i) for i in range(500)]


def write(run: Run, values: np.ndarray, layers: list[str], flush_every: int = 10**9) -> None:
    """``values``: (steps, layers), every metric the same; NaN is written as it is, -1 as null (not
    measured).
    """
    writer = RunWriter(run)
    names = pa.DictionaryArray.from_arrays(pa.array(range(len(layers)), pa.int32()), pa.array(layers))
    kinds = pa.DictionaryArray.from_arrays(pa.array([0] * len(layers), pa.int32()), pa.array(["linear"]))
    depths = pa.array(range(len(layers)), pa.int32())
    for step, row in enumerate(values):
        cells = [None if value == -1 else float(value) for value in row]
        numbers = [[0] * len(layers) if metric == "nonfinite" else cells for metric in LAYER_METRICS]
        writer.layers(step, names, kinds, depths, numbers)
        if step % flush_every == flush_every - 1:
            writer.flush()
    writer.flush()
    writer.compact()


def cells_of(run: Run, metric: str = "grad_norm", columns: int | None = None) -> heatmap.Cells:
    found = heatmap.reduced(run.grids(metric), metric, run.count("layers"), columns)
    assert found is not None
    return found


# -- blocks


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (VGG, ["conv1", "conv2", "conv3", "fc"]),
        (RESNET, ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        (TRANSFORMER, ["embed", *(f"encoder.layers.{i}" for i in range(84)), "head"]),
        (
            [
                "embed.weight",
                "lstm.weight_ih_l0",
                "lstm.weight_hh_l0",
                "lstm.weight_ih_l1",
                "lstm.weight_hh_l1",
                "head",
            ],
            ["embed.weight", "lstm", "head"],
        ),
        (["a", "b", "c"], ["a", "b", "c"]),
        ([], []),
    ],
)
def test_blocks_come_from_the_names_of_any_network(layers, names):
    assert list(dict.fromkeys(blocks.blocks(layers))) == names


def test_a_plain_sequential_is_grouped_by_neighbours():
    assert list(dict.fromkeys(blocks.groups(FLAT)))[:2] == ["0 … 48", "50 … 98"]
    assert base.boundaries(FLAT) == []


def test_names_on_an_axis_are_short_and_differ():
    shown = blocks.short(TRANSFORMER)
    assert shown[0] == "embed"
    assert shown[1] == "0.self_attn.in_proj"
    assert max(map(len, shown)) <= 24
    assert len(set(shown)) == len(TRANSFORMER)


def test_an_axis_of_many_layers_carries_every_name_and_the_blocks_for_seeing_from_afar():
    sent = base.names_axis("yaxis", TRANSFORMER)["rows"]
    assert sent["keys"] == TRANSFORMER
    assert [tuple(group[1:]) for group in sent["groups"]][:3] == [(0, 0), (1, 6), (7, 12)]


# -- rows


def made(values: dict[str, float], metric: str = "grad_norm") -> heatmap.Cells:
    """A map of three equal columns; values as measured, NaN is bad, 0 is an exact zero."""
    linear = metric in formatting.LINEAR_METRICS
    raw = np.repeat(np.array(list(values.values()), np.float32)[:, None], 3, axis=1)
    z, zero, bad = heatmap.binned(raw, np.ones(raw.shape, bool), 1, linear)
    return heatmap.Cells(metric, list(values), np.arange(3), z, zero, bad, 1, linear)


VANISHING = {"conv1_1": 1e-8, "conv1_2": 1e-7, "conv2_1": 1e-5, "conv2_2": 1e-4, "fc1": 1e-1, "fc2": 1.0}


def test_the_worst_gradient_is_the_farthest_from_the_output_and_nan_and_zero_come_first():
    assert rows.choose([made(VANISHING)], rows.View(order="worst")).layers[::-1] == list(VANISHING)
    broken = made({**VANISHING, "conv2_2": 0.0, "fc1": math.nan})
    assert rows.choose([broken], rows.View(order="worst")).layers[::-1][:3] == ["fc1", "conv2_2", "conv1_1"]
    shares = made({"a": 0.1, "b": 0.9, "c": 0.0}, "dead_fraction")
    assert rows.choose([shares], rows.View(order="worst")).layers[::-1] == ["b", "a", "c"]
    updates = made({"a": 1e-3, "b": 1.0, "c": 1e-9}, "update_ratio")
    assert rows.choose([updates], rows.View(order="worst")).layers[::-1] == ["c", "b", "a"]


def test_a_block_becomes_its_worst_or_median_layer_and_opens():
    whole = made(VANISHING)
    worst = rows.choose([whole], rows.View(blocks="worst"))
    assert worst.layers == ["conv1_1", "conv2_1", "fc1"]
    assert worst.shown == ("conv1", "conv2", "fc")
    assert worst.notes[0] == "worst of 2 in conv1"
    opened = rows.choose([whole], rows.View(blocks="worst", opened=frozenset({"conv1"})))
    assert opened.layers == ["conv1_1", "conv1_2", "conv2_1", "fc1"]
    median = rows.choose(
        [made({"conv1_1": 1e-9, "conv1_2": 1e-3, "conv1_3": 1.0, "fc1": 1.0})], rows.View(blocks="median")
    )
    assert median.layers == ["conv1_2", "fc1"]
    np.testing.assert_allclose(rows.arranged(whole, worst).z[:, 0], [-8, -5, -1], atol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("", 506), ("linear", 168), ("layers.3.*", 0), ("*layers.3.*", 6), ("embed, HEAD", 2), ("nothing", 0)],
)
def test_layers_are_found_by_parts_of_their_names_or_wildcards(pattern, count):
    assert len(rows.fits(TRANSFORMER, pattern)) == count


def test_maps_of_different_networks_keep_one_axis():
    a, b = made(VANISHING), made({"conv1_1": 1.0, "conv1_1b": 1.0, "conv1_2": 0.0, "fc2": 1.0})
    chosen = rows.choose([a, None, b], rows.View())
    assert chosen.layers == ["conv1_1", "conv1_1b", "conv1_2", "conv2_1", "conv2_2", "fc1", "fc2"]
    left, right, change = (rows.arranged(each, chosen) for each in (a, b, ratio.ratio_data(a, b)))
    assert left.layers == right.layers == change.layers == chosen.layers
    assert np.isnan(left.z[1]).all()
    assert right.zero[2].all()
    np.testing.assert_allclose(change.z[0], 8, atol=1e-6)
    assert np.isnan(change.z[1]).all()


def test_no_fitting_layer_is_no_map():
    assert rows.arranged(made(VANISHING), rows.choose([made(VANISHING)], rows.View("zzz"))) is None


# -- spikes


@pytest.mark.parametrize("spike", [1e3, 1e-6])
def test_one_spike_in_a_thousand_steps_is_seen_and_ordinary_noise_is_not(spike):
    values = 10 ** np.random.default_rng(0).normal(0, 0.3, (1, 3000)).astype(np.float32)
    quiet = heatmap.binned(values, np.ones(values.shape, bool), 1000, False)[0]
    assert np.abs(quiet).max() < 0.1
    values[0, 1500] = spike
    seen = heatmap.binned(values, np.ones(values.shape, bool), 1000, False)[0]
    assert seen[0].tolist() == pytest.approx([quiet[0, 0], math.log10(spike), quiet[0, 2]], rel=1e-5)


# -- read in pieces


def test_a_map_read_in_pieces_is_the_map_of_the_whole(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    values = 10 ** rng.normal(0, 1, (997, 12))
    values[rng.random(values.shape) < 0.02] = math.nan
    values[rng.random(values.shape) < 0.02] = 0
    values[:, 3] = -1  # never measured
    run = runs.create(RunConfig())
    monkeypatch.setattr(parts, "ROW_GROUP", 1000)  # a step goes on in the next row group
    write(run, values, [*VGG, "x.1", "x.2"], flush_every=50)
    whole = heatmap.heatmap_data(
        run.read("layers").to_pandas().assign(nonfinite=lambda f: (f["layer"] != VGG[3]).astype(int)),
        columns=100,
    )
    monkeypatch.setattr(grid, "PIECE_ROWS", 1)
    pieces = cells_of(run, columns=100)
    assert pieces.layers == whole.layers
    assert pieces.per == whole.per == 10
    for name in ("steps", "z", "zero", "bad"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name), name)
    assert not pieces.bad[3].any()
    assert [step for step, _ in pieces.moments] == [0, 498, 996]
    np.testing.assert_array_equal(
        pieces.moments[1][1], np.where(values[498] == -1, np.nan, values[498]).astype(np.float32)
    )


def test_layers_that_come_late_or_miss_steps_are_read_by_name(runs: Runs):
    run = runs.create(RunConfig())
    writer = RunWriter(run)
    for step, layers in enumerate((["a"], ["a", "b"], ["b"], ["a", "b", "c"])):
        names = pa.DictionaryArray.from_arrays(pa.array(range(len(layers)), pa.int32()), pa.array(layers))
        numbers = [[0 if metric == "nonfinite" else 10.0**step] * len(layers) for metric in LAYER_METRICS]
        writer.layers(
            step, names, names, pa.array(["abc".index(name) for name in layers], pa.int32()), numbers
        )
        writer.flush()
    found = cells_of(run)
    assert found.layers == ["a", "b", "c"]
    nan = math.nan
    # log10 of a float32 is exact to its last bit on one processor and not on another.
    np.testing.assert_allclose(found.z, [[0, 1, nan, 3], [nan, 1, 2, 3], [nan, nan, nan, 3]], rtol=1e-6)
    assert not found.bad.any()
    assert run.head("layers")["layer"].to_pylist() == ["a"]


def test_a_metric_that_is_taken_seldom_has_columns_only_where_it_was_taken(runs: Runs, monkeypatch):
    """One step in a hundred, read in pieces of which some hold none: no empty columns, true moments, and the
    headline, the curve and "worst" are of what was taken.
    """
    run = runs.create(RunConfig())
    values = np.full((950, 4), -1.0)
    taken = np.arange(0, 950, 100)
    values[taken] = np.array([40.0, -1, 8.0, 3.0])  # the second layer, a norm, has none
    values[taken, 0] = 40.0 * 0.8 ** np.arange(10)
    values[200, 3] = math.nan
    write(run, values, VGG[:4], flush_every=60)
    monkeypatch.setattr(grid, "PIECE_ROWS", 1)
    monkeypatch.setenv("INITSCOPE_RUNS", str(runs.root))
    cells = loaders.cells(run.id, "stable_rank")
    np.testing.assert_array_equal(cells.steps, taken)
    np.testing.assert_allclose(cells.z[0], np.log10(values[taken, 0]), rtol=1e-6)
    assert cells.per == 1 and np.isnan(cells.z[1]).all() and not cells.bad[1].any()
    assert list(np.flatnonzero(cells.bad[3])) == [2]
    assert [step for step, _ in cells.moments] == [0, 500, 900]
    assert headlines.first_step(cells) == (
        "At the first step the stable rank is smallest at conv2_2: 3; it falls most at conv1_1, from 40 to "
        "5.37 at step 900."
    )
    assert len(loaders.one_layer(run.id, "conv1_1", "stable_rank")) == 10
    worst = rows.choose([cells._replace(bad=np.zeros_like(cells.bad))], rows.View(order="worst")).layers
    assert worst[::-1][:2] == ["conv2_2", "conv2_1"] and worst[0] == "conv1_2", "what has none is no worst"
    drawn = heatmap.heatmap(cells)
    assert drawn.layout.xaxis.title.text == "step · one recorded step in a hundred"
    assert len(loaders.cells(run.id, "grad_norm").steps) > 100, "other metrics keep theirs"


def test_a_seldom_metric_that_was_never_taken_is_said_to_be_missing(runs: Runs, monkeypatch):
    run = runs.create(RunConfig())
    write(run, np.full((3, 4), -1.0), VGG[:4])
    monkeypatch.setenv("INITSCOPE_RUNS", str(runs.root))
    cells = loaders.cells(run.id, "stable_rank")
    assert headlines.first_step(cells) == "Stable rank was not measured in this run."


def test_a_run_without_rows_has_no_map_and_no_head(runs: Runs):
    run = runs.create(RunConfig())
    assert heatmap.reduced(run.grids("grad_norm"), "grad_norm", run.count("layers")) is None
    assert run.head("layers").num_rows == 0


# -- what is sent


def test_a_map_is_sent_small_and_true_to_three_digits():
    z = np.random.default_rng(2).normal(-4, 2, (500, 240)).astype(np.float32)
    z[10] = np.nan
    none = np.zeros(z.shape, bool)
    drawn = heatmap.heatmap(heatmap.Cells("grad_norm", FLAT, np.arange(240), z, none, none, 1, False))
    sent = plot.packed(drawn)["data"][0]["z"]
    assert len(sent["deflated"]) < 300_000  # noise: the worst case; 480,000 bytes as float32
    planes = np.frombuffer(zlib.decompress(base64.b64decode(sent["deflated"])), np.uint8).reshape(2, -1)
    numbers = (planes[1].astype(np.uint16) << 8 | planes[0]).view(np.int16).reshape(sent["shape"])
    back = np.where(numbers == -32768, np.nan, sent["offset"] + sent["scale"] * numbers)
    np.testing.assert_allclose(10**back, 10.0**z, rtol=1.2e-3)
