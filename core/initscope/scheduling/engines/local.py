"""Runs as processes of this machine: torch is loaded once, and a worker is forked for each run as cores come
free.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from initscope.resources.slots import slots, threads_of
from initscope.store import Run
from initscope.training.loading import load_training

NICENESS = 10
"""Training yields to whoever looks at it: on two cores two runs would leave none to the browser and the
dashboard.
"""


class Local:
    """Forks a worker for each run. Workers are sessions of their own: they outlive whoever forked them."""

    name = "local"
    address = ""
    restarts = 0

    def __init__(self) -> None:
        self.children: dict[int, Run] = {}

    def open(self) -> None:
        load_training()
        gc.freeze()  # workers need not look through any of it, and go on sharing its pages

    def close(self) -> None:
        pass  # workers go on by themselves

    def slots(self) -> int:
        return slots()

    def threads_of(self, config: Mapping[str, Any]) -> int:
        return threads_of(config)

    def unmet_requirement(self, config: Mapping[str, Any]) -> str:
        return ""

    def fits(self, config: Mapping[str, Any], busy: Sequence[Mapping[str, Any]]) -> bool:
        return not busy or sum(map(threads_of, busy)) + threads_of(config) <= slots()

    def start(self, run: Run) -> None:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self.children[pid] = run
            return
        status = 1
        try:
            os.setsid()
            give_way()
            drop_inherited()
            from initscope.training.run_log import output_to
            from initscope.training.worker import main_in_child

            output_to(run)
            status = main_in_child(run, self.name)
        except BaseException:
            traceback.print_exc()  # into the run's log, or the supervisor's if there is none
            raise
        finally:
            os._exit(status)  # the parent's cleanup is not the child's

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def ended(self) -> Iterator[tuple[Run, str]]:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            run = self.children.pop(pid, None)
            if run is not None and os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                yield run, f"killed by signal {number} ({signal.Signals(number).name})"
            elif run is not None:
                yield run, f"exited with status {os.waitstatus_to_exitcode(status)} without a word"


def give_way() -> None:
    """Let whoever looks at a page go first. Where Linux shares the processors among sessions
    (``sched_autogroup_enabled``), a process's own niceness counts within its session alone: the session's
    counts, too.
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # such groups are Linux's, and can be off
        Path("/proc/self/autogroup").write_text(str(NICENESS))


inherited: list[int] = []
"""Files that a forked worker must not keep open: the supervisor's lock."""


def drop_inherited() -> None:
    for number in inherited:
        os.close(number)
