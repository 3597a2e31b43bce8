"""Sweeps as plans and tables: which runs there should be, which of them are there already, and what their
outcomes say.
"""

import time
from pathlib import Path

import pytest

from initscope.comparison import sweep
from initscope.config.run_config import quick
from initscope.errors import ConfigError
from initscope.schema import Outcome, Status
from initscope.store import Runs, own_process
from initscope.store.writer import set_status

BASE = quick().replace(width=0.125, threads=0)


def planned(seeds=2, axes=(), slots=1, name="s"):
    return sweep.plan(BASE, ["default", "kaiming_normal"], seeds, name, axes, slots)


def ended(runs: Runs, configs, outcome=Outcome.CONVERGED, status=Status.FINISHED):
    return [runs.create(config, status, outcome=str(outcome)) for config in configs]


def test_plan_has_every_cell_once_and_seeds_outermost():
    configs = planned(3, [sweep.parse_axis("gain=0.5,1"), sweep.parse_axis("depth=11,16,11")])
    cells = [(c.init_seed, c.gain, c.model, c.init) for c in configs]
    assert len(set(cells)) == len(cells) == 3 * 2 * 2 * 2
    assert [c.init_seed for c in configs] == sorted(c.init_seed for c in configs)
    assert {c.data_seed for c in configs} == {BASE.data_seed}, "the order of the data stays"


def test_many_runs_side_by_side_get_one_thread_each():
    assert {c.threads for c in planned(slots=2)} == {1}
    assert {c.threads for c in planned(1, slots=8)} == {0}


@pytest.mark.parametrize("text", ["gian=1", "gain", "gain=", "gain=x", "init_seed=1,2"])
def test_bad_axes_are_refused(text):
    with pytest.raises(ConfigError):
        sweep.parse_axis(text)


def test_what_is_there_is_not_run_again(tmp_path: Path):
    runs = Runs(tmp_path)
    first = planned(2, slots=1)
    ended(runs, first[:2])
    assert sweep.missing(first, runs.list()) == first[2:]
    # More seeds, and on a machine where each run gets a thread of its own: the same runs still count.
    more = planned(3, slots=4)
    assert [c.init_seed for c in sweep.missing(more, runs.list())] == [1, 1, 2, 2]
    assert len(sweep.covering(more, runs)) == 2


def test_runs_that_say_nothing_are_run_again(tmp_path: Path):
    runs, configs = Runs(tmp_path), planned(1)
    ended(runs, configs[:1], status=Status.STOPPED)
    ended(runs, [configs[1].replace(learning_rate=0.5)])
    assert sweep.missing(configs, runs.list()) == configs


def test_more_seeds_of_the_same_command_are_the_same_sweep():
    assert sweep.name_of(BASE) == sweep.name_of(BASE.replace(init="zeros", init_seed=7, name="x"))
    assert sweep.name_of(BASE) != sweep.name_of(BASE.replace(gain=2.0))


def test_time_left_is_told_by_the_runs_of_this_launch(tmp_path: Path):
    """An old sweep that was extended: what ended a day ago does not count. Two runs at once, one of them half
    way after 30 s.
    """
    runs, configs = Runs(tmp_path), planned(3)
    day = {"created": time.time() - 86_400, "seconds": 1.0}
    infos = [
        runs.create(config, Status.FINISHED, outcome="converged", **day).info() for config in configs[:2]
    ]
    for config, step, seconds in ((configs[2], 50, 30.0), (configs[3], 0, None)):
        infos.append(
            runs.create(
                config, Status.RUNNING, step=step, total_steps=100, seconds=seconds, **own_process()
            ).info()
        )
    infos += [runs.create(config, Status.QUEUED).info() for config in configs[4:]]
    share, left = sweep.underway(infos)
    assert share == pytest.approx(2.5 / 6) and left == pytest.approx(60 * 3.5 / 2)
    assert sweep.underway(infos[:2]) == (1.0, None)
    assert next(sweep.watch(runs, [info.run for info in infos])) == (2, pytest.approx((2 + 0.5) / 6))


def test_progress_never_goes_back(tmp_path: Path):
    """Six runs, two at a time; whichever ends first, the share grows with every step."""
    runs, configs = Runs(tmp_path), planned(3)
    made = [runs.create(config) for config in configs]
    shares = []
    for number, run in enumerate(made):
        for step in (25, 75, 100):
            status = Status.FINISHED if step == 100 else Status.RUNNING
            set_status(
                run,
                status=str(status),
                step=step,
                total_steps=100,
                seconds=0.3 * step,
                outcome="converged" if step == 100 else None,
                **own_process(),
            )
            shares.append(sweep.underway([each.info() for each in made])[0])
        assert shares[-1] == pytest.approx((number + 1) / len(made))
    assert shares == sorted(shares)


def test_another_design_is_another_sweep():
    """Two seeds with gain=0.9 are no more seeds of the sweep that was there; more seeds or values of one
    design are.
    """
    base = quick()
    plain, gain = sweep.name_of(base), sweep.name_of(base, axes=[sweep.parse_axis("gain=0.9")])
    assert plain != gain == sweep.name_of(base.replace(gain=0.5), axes=[sweep.parse_axis("gain=1,2")])
    assert gain != sweep.name_of(base, axes=[sweep.parse_axis("learning_rate=0.1")])


def test_a_seed_counts_once_in_a_table(tmp_path: Path):
    runs, configs = Runs(tmp_path), planned(2, name="t")
    for config in (*configs, *configs):
        ended(runs, [config], Outcome.CONVERGED)
    assert [row["runs"] for row in sweep.table(sweep.members(runs.list(), "t"))] == [2, 2]


def test_table_counts_decided_runs_and_the_others_beside_them(tmp_path: Path):
    runs, configs = Runs(tmp_path), planned(4, name="t")
    outcomes = [
        Outcome.NOT_CONVERGED,
        Outcome.CONVERGED,
        Outcome.DIVERGED,
        Outcome.CONVERGED,
        Outcome.UNDECIDED,
        Outcome.CONVERGED,
    ]
    for config, outcome in zip(configs, outcomes, strict=False):
        ended(runs, [config], outcome)
    runs.create(configs[6])
    rows = {row["init"]: row for row in sweep.table(sweep.members(runs.list(), "t"))}
    worse, better = rows["default"], rows["kaiming_normal"]
    assert (worse["converged"], worse["runs"], worse["undecided"], worse["live"]) == (0, 2, 1, 1)
    assert (better["converged"], better["runs"]) == (3, 3)
    # Wilson's interval for 3 of 3, by its formula: n / (n + z^2) to 1.
    assert better["low"] == pytest.approx(3 / (3 + 1.959964**2), rel=1e-4) and better[
        "high"
    ] == pytest.approx(1)
    assert (
        sweep.best_against_rest(list(rows.values()))
        == "Converged so far: 3 of 3 with kaiming_normal, 0 of 2 with default."
    )
