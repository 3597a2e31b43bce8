"""10,000 run folders damaged at random: does every reader say what is wrong with that run, and does the list stand?

    python -m tests.benchmarks.fuzz [--count 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.safety.damage import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told, wrong = fuzz(Path(folder), given.count, given.seed)
    print(dict(told))
    print(f"{len(wrong)} of {given.count} met an error that is not ours")
    print("\n".join(wrong[:40]))


if __name__ == "__main__":
    main()
