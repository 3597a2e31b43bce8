"""From nothing to a verdict: default against kaiming_normal, five seeds each, quick preset. Prints wall
seconds.

python -m tests.benchmarks.verdict
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time


def command(*arguments: str, runs: str) -> dict:
    """One command of the project, and the JSON it ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "initscope", *arguments, "--runs", runs, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as runs:
        began = time.monotonic()
        command("sweep", "--inits", "default,kaiming_normal", "--seeds", "5", runs=runs)
        result = command("compare", "init=default", "init=kaiming_normal", runs=runs)
        seconds = time.monotonic() - began
    print(f"| {os.cpu_count()} cores | {seconds:.1f} s | {result['headline']} |")


if __name__ == "__main__":
    main()
