"""What theory says of a plane of two settings, and the sentence on a map: cells, boundary, score, words."""

import pytest

from initscope.config.run_config import quick
from initscope.schema import Outcome
from initscope.theory import forecast
from initscope.theory.trainability import Edge, Score, TheoryMap, score, sentence, span, theory_map

BASE = quick().replace(init="kaiming_normal", width=0.125)


def row(x, y, converged, runs=2, init="kaiming_normal"):
    return {"init": init, "gain": x, "model": y, "converged": converged, "runs": runs}


def test_theory_map_is_the_forecast_of_every_cell_and_the_boundary_lies_where_it_changes():
    found = theory_map(BASE, "gain", [0.1, 0.5, 2.0], "model", ["vgg19", "vgg11"])
    for (gain, model), trains in found.trains.items():
        assert trains == (
            forecast.expect(BASE.replace(gain=gain, model=model))["outcome"] == Outcome.CONVERGED
        )
    [edge] = found.edges
    assert edge.begins
    at = {model: gain for gain, model in edge.points}
    assert list(at) == ["vgg11", "vgg19"] and at["vgg11"] < at["vgg19"], (
        "a deeper network wants larger weights"
    )
    for model, gain in at.items():
        outcomes = [
            forecast.expect(BASE.replace(gain=gain * factor, model=model))["outcome"]
            for factor in (0.94, 1.06)
        ]
        assert outcomes == [Outcome.NOT_CONVERGED, Outcome.CONVERGED]


def test_edges_that_begin_and_end_training_are_kept_apart():
    """At gain 1 a rate can be too low and too high; at gain 0.01 none helps."""
    found = theory_map(BASE, "learning_rate", [1e-9, 1e-3, 0.1], "gain", [0.01, 1.0])
    assert [edge.begins for edge in sorted(found.edges, key=lambda edge: not edge.begins)] == [True, False]
    assert [gain for edge in found.edges for _, gain in edge.points] == [1.0, 1.0]


def test_theory_leaves_out_what_it_does_not_cover():
    assert theory_map(BASE.replace(init="lsuv"), "gain", [0.5, 1.0], "model", ["vgg11"]) is None
    partly = theory_map(BASE, "gain", [0.1, 1.0], "init", ["lsuv", "kaiming_normal"])
    assert {init for _, init in partly.trains} == {"kaiming_normal"}


def test_score_counts_runs_and_names_cells_that_most_runs_contradict():
    theory = TheoryMap({(0.1, "vgg11"): False, (1.0, "vgg11"): True, (1.0, "vgg19"): True}, ())
    rows = [
        row(0.1, "vgg11", 1),
        row(1.0, "vgg11", 2),
        row(1.0, "vgg19", 0, 3),
        row(2.0, "vgg19", 2),
        row(0.1, "vgg11", 0, 0),
    ]
    assert score(rows, "gain", "model", theory) == Score(right=3, runs=7, wrong=((1.0, "vgg19"),))


@pytest.mark.parametrize(
    ("converged", "words"),
    [
        ([0, 0, 2, 2], "from gain 0.5"),
        ([2, 2, 0, 0], "up to gain 0.2"),
        ([0, 2, 2, 0], "from gain 0.2 to 0.5"),
        ([0, 2, 0, 0], "at gain 0.2"),
        ([2, 0, 0, 2], "at gain 0.1 and 1"),
        ([0, 1, 0, 0], "at no gain tried"),
        ([2, 2, 2, 2], "at every gain tried"),
    ],
)
def test_span_in_words(converged, words):
    rows = [row(gain, "vgg11", k) for gain, k in zip((0.1, 0.2, 0.5, 1.0), converged, strict=True)]
    assert span(rows[::-1], "gain") == words


def test_sentence_says_what_the_map_shows_and_how_well_theory_foresaw_it():
    theory = TheoryMap(
        {(gain, model): gain > 0.3 for gain in (0.2, 1.0) for model in ("vgg11", "vgg19")},
        (Edge(True, ((0.3, "vgg11"),)),),
    )
    rows = [row(0.2, "vgg11", 2), row(1.0, "vgg11", 2), row(0.2, "vgg19", 0), row(1.0, "vgg19", 2)]
    told = sentence(rows, "gain", "model", theory, "Kaiming normal")
    assert (
        told
        == "Kaiming normal trains at every gain tried in VGG11, from gain 1 in VGG19; theory foresaw 6 of "
        "8 outcomes."
    )
    assert sentence(rows[2:], "gain", "model") == "Trains from gain 1 in VGG19."
    same = [row(gain, model, 2 * (gain > 0.5)) for gain in (0.2, 1.0) for model in ("vgg11", "vgg19")]
    assert sentence(same, "gain", "model") == "Trains from gain 1, whatever the network."
    assert sentence([row(1.0, "vgg11", 0, 0)], "gain", "model") == "No run of this map has ended yet."
