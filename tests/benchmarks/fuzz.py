"""10,000 run folders damaged at random: does every reader say what is wrong with that run, and does the list
stand?

    python -m tests.benchmarks.fuzz [--count 10000] [--pages 300] [--seed 0]

The last ``--pages`` of them are looked at on the pages of a dashboard too, over Streamlit's own protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from initscope.store import Runs
from tests.browser.conftest import Server
from tests.safety.damage import fuzz, mutate, template
from tests.safety.visitors import Visitor

TOGETHER = 12
"""Damaged runs in the folder at once: what the Live page shows of them."""


async def look(server: Server, count: int, seed: int) -> list[str]:
    """What went wrong on Home, Live, Gradients, Compare, Diagnosis, Sweep and Depth."""
    runs, chance, wrong = Runs(server.runs), random.Random(seed), []
    good = template(runs)
    for _ in range(0, count, TOGETHER):
        made, done = [], {}
        while len(made) < TOGETHER:
            run = template(runs, live=chance.random() < 0.5, sweep="a sweep")
            done[run.id] = mutate(run.path, chance)
            made += [run.id] if run.id in runs.ids() else []
        async with Visitor(server.port) as visitor:
            for page, query in [
                ("", {}),
                ("live", {"run": made}),
                ("sweep", {"sweep": "a sweep"}),
                ("depth", {"sweep": "a sweep"}),
            ] + [
                (page, {"run": run, "a": run, "b": good.id})
                for run in made
                for page in ("gradients", "compare", "diagnosis")
            ]:
                await visitor.open(page, **query)
                if visitor.failures:
                    told = done[query["run"]] if isinstance(query.get("run"), str) else list(done.values())
                    wrong.append(f"{page}: {told}: {visitor.failures}")
                    visitor.failures.clear()
        for run in made:
            runs.get(run).delete() if runs.info(run).status == "unreadable" or not runs.info(
                run
            ).live else None
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told, wrong = fuzz(Path(folder), given.count, given.seed)
        print(dict(told))
        print(f"{len(wrong)} of {given.count} met an error that is not ours")
        print("\n".join(wrong[:40]))
        server = Server(Path(folder) / "pages")
        try:
            wrong = asyncio.run(look(server, given.pages, given.seed))
        finally:
            server.close()
        print(f"{given.pages} more on the pages: {len(wrong)} pages with an error")
        print("\n".join(wrong[:40]))


if __name__ == "__main__":
    main()
