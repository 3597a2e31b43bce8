"""``runs``, ``archive``, ``restore``, ``delete`` and ``export``: the runs that are there."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from initscope.commands.given import runs_of
from initscope.store import RunInfo


def runs_command(given: argparse.Namespace) -> dict[str, Any]:
    found = runs_of(given).list()
    infos = [info for info in found if info.hidden == given.archived]
    if not given.json:
        if not infos and given.archived:
            print("no run is archived; hide one: initscope archive RUN", file=sys.stderr)
        elif not infos and found:
            print("all runs are archived; list them: initscope runs --archived", file=sys.stderr)
        elif not infos:
            print("no runs yet; start one: initscope train --preset quick --init default", file=sys.stderr)
        for info in infos:
            loss, accuracy = info.scores
            told = (
                f"{'' if loss is None else f'{loss:.3f}':>8} "
                f"{'' if accuracy is None else f'{100 * accuracy:.1f} %':>8}"
            )
            print(f"{info.run:45} {info.status:10} {info.outcome or '':14} {told}  {info.name}")
    return {"runs": [run_row(info) for info in infos]}


def run_row(info: RunInfo) -> dict[str, Any]:
    """One row of the JSON of ``runs``."""
    return {
        "run": info.run,
        "name": info.name,
        "status": info.status,
        "outcome": info.outcome,
        "init": info.init,
        "loss": info.loss,
        "accuracy": info.accuracy,
        **({"error": info.error} if info.error else {}),
    }


def archive_command(given: argparse.Namespace) -> dict[str, Any]:
    return _archived(given, True)


def restore_command(given: argparse.Namespace) -> dict[str, Any]:
    return _archived(given, False)


def _archived(given: argparse.Namespace, archived: bool) -> dict[str, Any]:
    run = runs_of(given).get(given.run)
    run.archive(archived)
    print(f"{'archived' if archived else 'restored'} {run.id}", file=sys.stderr)
    return {"run": run.id, "archived": archived}


def delete_command(given: argparse.Namespace) -> dict[str, Any]:
    run = runs_of(given).get(given.run)
    run.delete()
    print(f"deleted {run.id}", file=sys.stderr)
    return {"run": run.id, "deleted": True}


def export_command(given: argparse.Namespace) -> dict[str, Any]:
    from initscope.store.export import export

    run = runs_of(given).get(given.run)
    output = export(run, given.format, given.output)
    print(f"wrote {output}", file=sys.stderr)
    return {"run": run.id, "format": given.format, "output": str(output)}
