"""Runs the bench of reports: ``python -m tests.reports [--only NAME ...] [--seeds 3] [--jobs 2]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.reports.runner import load, print_table, rows, run_all


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reports",
        description="Diagnose re-created public reports and score the answers.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="reports whose name contains one of these")
    parser.add_argument("--kind", help="reports of one file, such as loss for cases_loss.py")
    parser.add_argument(
        "--part",
        choices=["all", "open", "held-out"],
        default="all",
        help="the part to look at while mending, or the part to judge by",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one row a run")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the runs")
    parser.add_argument(
        "--findings", action="store_true", help="print the findings of every run that was not answered right"
    )
    given = parser.parse_args()
    chosen = [
        name
        for name, case in load().items()
        if (given.only is None or any(word in name for word in given.only))
        and given.kind in (None, case.kind)
        and (given.part == "all" or case.held_out == (given.part == "held-out"))
    ]
    if not chosen:
        parser.error(f"no report fits; there are {', '.join(load())}")
    answers = []
    try:
        for one in run_all(chosen, given.seeds, given.jobs, given.runs):
            answers.append(one)
            form = "fixed" if one.fixed else "as is"
            print(
                f"{one.report} {form} seed {one.seed}: {one.cause} {one.confidence:.2f}, {one.verdict}",
                file=sys.stderr,
            )
    finally:  # what there is, if somebody stops the bench
        print_table(answers)
    if given.findings:
        for one in answers:
            if one.verdict != "right":
                print(
                    f"\n{one.report} {'fixed' if one.fixed else 'as is'} seed {one.seed}: {one.cause}",
                    *one.findings,
                    sep="\n  ",
                )
    if given.json:
        given.json.write_text(json.dumps(rows(answers), indent=1))


if __name__ == "__main__":
    main()
