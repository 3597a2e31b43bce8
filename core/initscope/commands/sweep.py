"""``sweep``: initializations over seeds, watched until the last run has ended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from initscope.commands.given import config_from, runs_of
from initscope.comparison import survival, sweep
from initscope.config.pinning import pin
from initscope.config.run_config import RunConfig
from initscope.errors import TrainingFailed
from initscope.scheduling import launcher
from initscope.schema import Status
from initscope.store import RunInfo, Runs
from initscope.theory import trainability


def sweep_command(given: argparse.Namespace) -> dict[str, Any]:
    inits = [name.strip() for name in given.inits.split(",") if name.strip()]
    base, axes = _base_and_axes(given)
    name = base.sweep or sweep.name_of(base, networks=bool(given.models), axes=axes)
    configs = sweep.plan(base, inits, given.seeds, name, axes, slots=launcher.slots())
    runs = runs_of(given)
    launched = launcher.submit_missing(runs, configs, given.engine, given.first)
    print(f"sweep {name}: {len(configs)} runs, {len(configs) - len(launched)} there already", file=sys.stderr)
    wanted = sweep.covering(configs, runs)
    try:
        _watch(runs, wanted)
    except KeyboardInterrupt:
        print(
            "the sweep goes on in the background; repeat the command to watch it again, or stop its runs "
            f"({name})",
            file=sys.stderr,
        )
        raise
    infos = [runs.get(run_id).info() for run_id in wanted]
    _tell_failures(infos)
    by = ("init", *[axis.field for axis in axes])
    rows = sweep.table(infos, by)
    left = survival.curves(runs, infos, by)
    for row in rows:
        if (curve := left.get(tuple(row[field] for field in by))) is not None:
            row |= {"left_chance": curve.left, "watched": curve.runs, "half_left_by": curve.half}
    if not given.json:
        _print_rows(rows, by, left)
        if len(axes) == 2:
            print("\n".join(trainability.sentences(base, rows, inits, axes)))
    return {"sweep": name, "rows": rows}


def _base_and_axes(given: argparse.Namespace) -> tuple[RunConfig, list[sweep.Axis]]:
    """What all runs of the sweep share, and the fields that vary beside initialization and seed. Raises
    ConfigError.
    """
    axes = [sweep.parse_axis(text) for text in given.vary]
    base = config_from(given)
    for axis in axes:  # every value of an axis must be able to reach a factory of one's own
        for value in axis.values:
            pin(base.replace(**{axis.field: value}), (axis.field,))
    if given.field_stop_when_certain is None:
        base = base.replace(stop_when_certain=True)
    if given.models:
        axes.insert(0, sweep.models_axis(given.models))
        if given.field_batch_norm is not None:  # for every network, whatever its paper has
            axes.append(sweep.Axis("batch_norm", (base.batch_norm,)))
    return base, axes


def _watch(runs: Runs, wanted: Sequence[str]) -> None:
    """A progress bar until all of these runs have ended; the queue is kept going meanwhile."""
    form = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
    # smoothing=0: the time left from the mean speed since the start; ``initial`` is what was there before.
    with tqdm(
        total=1.0,
        bar_format=form,
        smoothing=0,
        miniters=0,
        dynamic_ncols=True,
        file=sys.stderr,
        mininterval=0.3,
    ) as bar:
        trouble = ""
        for ended, share in sweep.watch(runs, wanted):
            bar.set_description_str(f"{ended} of {len(wanted)} runs", refresh=False)
            if bar.n == 0:
                bar.initial = share
            bar.update(share - bar.n)
            launcher.ensure_served(runs)
            if trouble != (trouble := launcher.state(runs).trouble) and trouble:
                bar.write(f"{trouble}; what is queued waits", file=sys.stderr)


def _tell_failures(infos: Sequence[RunInfo]) -> None:
    """Runs that failed leave the rest of the table as it is. Raises TrainingFailed if all of them did."""
    failed = [info for info in infos if info.status in (Status.FAILED, Status.CRASHED)]
    if failed:
        told = f"{len(failed)} of {len(infos)} runs failed; {failed[0].run}: {failed[0].error}"
        if len(failed) == len(infos):
            raise TrainingFailed(told)
        print(told, file=sys.stderr)


def _print_rows(
    rows: Sequence[dict[str, Any]], by: Sequence[str], left: Mapping[tuple, survival.Survival]
) -> None:
    for row in rows:
        cell = "  ".join(f"{field} {row[field]}" for field in by)
        silent = f"; {row['undecided']} undecided" if row["undecided"] else ""
        curve = left.get(tuple(row[field] for field in by))
        soon = f"; {survival.phrase(curve)}" if curve is not None else ""
        print(
            f"{cell}: {row['converged']} of {row['runs']} converged (95 % interval {100 * row['low']:.0f} "
            f"to {100 * row['high']:.0f} %{silent}){soon}"
        )
