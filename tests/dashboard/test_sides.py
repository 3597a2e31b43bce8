"""What Compare offers: titles that name one thing each and stay the same while runs go on."""

from pathlib import Path

from core.config import quick
from core.schema import Outcome, Status
from core.store import Runs
from core.sweep import plan
from dashboard import sides


def test_titles_are_unique_and_do_not_change_when_a_run_ends(tmp_path: Path) -> None:
    """Runs of a sweep begin in the same second with the same initialization and seed; the browser sends their titles back."""
    runs = Runs(tmp_path)
    base = quick()
    axis_values = [base.replace(learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2)]
    for sweep in ("a" * 60 + "1", "a" * 60 + "2"):
        made = [runs.create(config) for one in axis_values for config in plan(one, ["default", "kaiming_normal"], 2, sweep)]
    before = sides.choices(runs.list())
    assert len(set(before.values())) == len(before) == 24 + 4
    runs.create(made[0].config().replace(init_seed=9), Status.FINISHED, outcome=str(Outcome.CONVERGED))
    after = sides.choices(runs.list())
    assert {key: after[key] for key in before} == before
