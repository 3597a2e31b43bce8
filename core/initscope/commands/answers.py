"""``diagnose``, ``compare`` and ``report``: what became of runs, and why."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from initscope.commands.given import runs_of
from initscope.errors import ConfigError
from initscope.installation import module_command


def diagnose_command(given: argparse.Namespace) -> dict[str, Any]:
    from initscope.diagnosis.diagnose import diagnose

    found = diagnose(runs_of(given).get(given.run))
    if not given.json:
        print(
            f"{found.run}: {found.outcome.replace('_', ' ')}, {found.cause} (confidence "
            f"{100 * found.confidence:.0f} %)"
        )
        for finding in found.findings:
            print(f"  {finding.id}: {finding.text}")
        print(f"remedy: {found.remedy.text}")
    return found.to_dict()


def compare_command(given: argparse.Namespace) -> dict[str, Any]:
    from initscope.comparison import survival
    from initscope.comparison.compare import compare

    runs = runs_of(given)
    result = compare(runs.select(given.a), runs.select(given.b))
    if not given.json:
        print(result.headline)
        if result.warning:
            print(result.warning)
        left = {
            label: found
            for label, side in zip(result.labels, "ab", strict=True)
            if (found := survival.of_runs(runs, result.runs[side])) is not None
        }
        if left:
            print(survival.sentence(left))
        for row in result.layers:
            ratio = row["log10_grad_ratio"]
            print(
                f"  {row['called']:12} first-step gradient B/A: "
                f"{'undefined' if ratio is None else f'10^{ratio:+.1f}'}"
            )
    return result.to_dict()


def report_command(given: argparse.Namespace) -> dict[str, Any]:
    runs = runs_of(given)
    sides = [side for side in (given.a, given.b) if side]
    for side in sides:
        runs.select(side)  # a wrong name is reported here, before another process begins
    # Figures live in the dashboard, and core knows no screen: a process of its own draws them.
    output, folder = Path(given.output).resolve(), runs.root.resolve()
    command = module_command("initscope_dashboard.report", *sides, "--output", output, "--runs", folder)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"no report was written: {last.removeprefix('error: ')}")
    print(f"wrote {given.output}", file=sys.stderr)
    return {"output": given.output, "runs": sides}
