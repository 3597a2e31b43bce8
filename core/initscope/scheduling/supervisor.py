"""The supervisor of a folder of runs: has an engine work its queue off, and writes down when a run's process died.

It holds the folder's lock, so there is one. Whoever comes after one that died adopts its runs. An engine that could take the
process along (a Ray cluster that loses its head) is served from a child, which is started anew as often as need be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from initscope.config import factory
from initscope.errors import EngineTrouble, InitScopeError, RunStateError
from initscope.resources import limits
from initscope.scheduling import engine as engines
from initscope.scheduling import queue
from initscope.scheduling.engine import Engine
from initscope.scheduling.engines import local
from initscope.schema import Status
from initscope.store import Run, RunInfo, Runs, claimed, own_process
from initscope.store.files import alive
from initscope.store.writer import set_status

IDLE_SECONDS = 300
"""An idle supervisor leaves after so long, unless somebody looks at a launch form; the next launch starts another."""
POLL_SECONDS = 0.1
IDLE_POLL_SECONDS = 0.05
"""With nothing to supervise on this machine a look at the queue is all there is to do, and somebody may be waiting for it."""
LOOKS = 3
TROUBLE_SECONDS = 2.0
"""Pause after the disk or the engine refused something."""
LEFT_SECONDS = 60
"""A run folder that is not complete after so long never will be."""


class End(IntEnum):
    """Why a supervisor has left off; the exit status of one that serves from a child."""

    IDLE = 0
    TROUBLE = 3
    ANOTHER_ENGINE = 4


class Supervisor:
    """Starts queued runs while the engine has room, and notices when a run's process died."""

    def __init__(self, runs: Runs, engine: Engine, process: Mapping[str, Any] | None = None):
        self.runs, self.engine = runs, engine
        self.process = dict(process or own_process())
        self.carried: dict[str, Mapping[str, Any]] = {}
        """Configs of the runs that the engine has, by id."""
        self.adopted: dict[str, Mapping[str, Any] | None] = {}
        """Configs of those that were running before; None for a loop of somebody's own, which takes nobody's place."""
        self.lost: dict[str, str] = {}
        """Runs whose process is over, and how; until what is to be written about it has been."""
        self._told: dict[str, Any] = {}
        self._obstacles: dict[str, str] = {}

    def serve(self) -> End:
        """Work until idle for ``IDLE_SECONDS``, or until somebody wants another engine and nothing trains here any more. Raises EngineTrouble."""
        self._take_over()
        self.engine.open()
        last_busy = time.monotonic()
        while True:
            self._look_after()
            changed = queue.chosen(self.runs) != (self.engine.name, self.engine.address)
            try:
                waiting = len(queue.queued(self.runs)) if changed else self._start_what_fits()
                self._tell()
            except EngineTrouble:
                raise
            except (OSError, InitScopeError) as error:  # a full or unreadable disk: it may come back
                complain(error)
                waiting = 0
                time.sleep(TROUBLE_SECONDS)
            if changed and waiting and not (self._busy() or self.lost):
                return End.ANOTHER_ENGINE
            busy = bool(self.carried or self.adopted or self.lost or waiting)
            if busy:
                last_busy = time.monotonic()
            elif not self.runs.root.exists() or (time.monotonic() - last_busy > IDLE_SECONDS and not queue.prepared(self.runs)):
                return End.IDLE
            self.engine.wait(POLL_SECONDS if busy or self.engine.name != "local" else IDLE_POLL_SECONDS)

    def _take_over(self) -> None:
        """After a supervisor that died: adopt its runs, and mark again what was queued."""
        _sweep_up(self.runs.root)
        marked = set(queue.queued(self.runs))
        for info in reversed(self.runs.own()):
            if info.status == Status.QUEUED and info.run not in marked:
                queue.enqueue(self.runs, [self.runs.get(info.run)])
            else:
                self._take_on(info)
        self._record_deaths()

    def _take_on(self, info: RunInfo) -> None:
        """Look after a run that somebody else has begun, as long as nobody has written its end."""
        if info.status in (Status.RUNNING, Status.STOPPING):
            own_loop = info.state.get("source") == "recorder"  # a notebook may stay open for days
            self.adopted[info.run] = None if own_loop else info.config
        elif info.status == Status.CRASHED and not info.state.get("ended"):
            self.lost[info.run] = "its process is gone"

    def _start_what_fits(self) -> int:
        """Start waiting runs in order while there is room; returns how many still wait."""
        for run_id in queue.queued(self.runs):
            run = Run(self.runs.root / run_id)
            info = run.info()
            if info.status != Status.QUEUED:
                queue.unmark(self.runs, run_id)  # deleted, stopped, or begun meanwhile: by hand, or by a task whose driver died before it had
                if run_id not in self.carried:
                    self._take_on(info)
                continue
            if run.stop_requested():
                with contextlib.suppress(InitScopeError, OSError), claimed(run):
                    queue.end_queued(self.runs, run)
                continue
            if obstacle := self.engine.unmet_requirement(info.config):
                self._note(run, obstacle)
                continue
            if not self._fits(info.config):
                break
            self.engine.start(run)
            self.carried[run_id] = info.config
            self._tell()  # before the mark goes: a run that neither waits nor is told of would be missed by nobody
            queue.unmark(self.runs, run_id)
        return len(queue.queued(self.runs))

    def _fits(self, config: Mapping[str, Any]) -> bool:
        busy = self._busy()
        most = limits.limits().max_runs
        return (most is None or len(busy) < most) and self.engine.fits(config, busy)

    def _busy(self) -> list[Mapping[str, Any]]:
        return [config for config in (*self.carried.values(), *self.adopted.values()) if config is not None]

    def _note(self, run: Run, obstacle: str) -> None:
        """Say on the run what it waits for; runs behind it go first."""
        if self._obstacles.get(run.id) != obstacle:
            with contextlib.suppress(InitScopeError, OSError), claimed(run):
                set_status(run, phase=f"waiting for {obstacle}")
                self._obstacles[run.id] = obstacle

    def _tell(self) -> None:
        """Leave word for ``launcher.state``."""
        slots = self.engine.slots()
        used = sum(map(self.engine.threads_of, self._busy()))
        words = {"engine": self.engine.name, "slots": slots, "free": max(0, slots - used), "running": len(self._busy()), "trouble": ""}
        if words != self._told:
            queue.write_state(self.runs, {**words, **self.process})
            self._told = words

    def tell_trouble(self, trouble: str) -> None:
        """Leave word that the engine cannot work, and why; in the log once, however often it is tried again."""
        if queue.read_state(self.runs).get("trouble") != trouble:
            complain(trouble)
        words = {"engine": self.engine.name, "slots": None, "free": None, "running": len(self._busy()), "trouble": trouble}
        with contextlib.suppress(OSError):
            queue.write_state(self.runs, {**words, **self.process})

    def _look_after(self) -> None:
        """Take note of runs whose process is over."""
        for run, how in self.engine.ended():
            self.carried.pop(run.id, None)
            self.lost[run.id] = how
        for run_id in list(self.adopted):
            info = Run(self.runs.root / run_id).info()
            # A process may outlive its run: Ray's workers take another one.
            if info.status not in (Status.RUNNING, Status.STOPPING) or not alive(info.state):
                del self.adopted[run_id]
                self.lost[run_id] = "its process is gone"
        self._record_deaths()

    def _record_deaths(self) -> None:
        for run_id, how in list(self.lost.items()):
            if self._record_death(Run(self.runs.root / run_id), how):
                del self.lost[run_id]

    def _record_death(self, run: Run, how: str) -> bool:
        """Write ``crashed`` for a run whose process ended without writing an end, or queue it again where the engine's runs go on
        elsewhere. False: somebody holds the run still, look again."""
        if not (run.path / "status.json").exists():
            return True  # deleted
        try:
            with claimed(run):
                state = run.json_file("status.json")
                status = state.get("status")
                if status == Status.RUNNING and alive(state):
                    return False  # of another machine, and not yet silent for long enough
                # Queued still: it died before its first word, unless somebody has queued it again since.
                if status == Status.RUNNING or (status == Status.QUEUED and run.id not in queue.queued(self.runs)):
                    self._end_or_restart(run, state, how)
        except RunStateError:  # claimed: a process that is about to end, or one that somebody has started meanwhile
            return self.engine.restarts == 0
        except (InitScopeError, OSError):
            return True
        return True

    def _end_or_restart(self, run: Run, state: Mapping[str, Any], how: str) -> None:
        restarts, lost_at, in_vain = state.get("restarts") or 0, state.get("lost_at"), state.get("in_vain") or 0
        step = state.get("step") or 0
        in_vain = in_vain + 1 if lost_at is not None and step <= lost_at else 0
        ours = state.get("engine") == self.engine.name or state["status"] == Status.QUEUED
        if not ours or in_vain >= self.engine.restarts:
            again = f", {in_vain + 1} times in a row without getting any further" if in_vain else ""
            set_status(run, status=str(Status.CRASHED), error=f"the training process was {how}{again}", ended=time.time())
            (run.path / "stop").unlink(missing_ok=True)
        elif run.stop_requested():
            queue.end_queued(self.runs, run)
        else:
            print(f"{run.id}: {how}; queued again", file=sys.stderr, flush=True)
            lost_at = max(step, lost_at or 0)
            set_status(run, status=str(Status.QUEUED), phase=None, restarts=restarts + 1, lost_at=lost_at, in_vain=in_vain)
            queue.enqueue(self.runs, [run], first=True)  # it had its turn


def _sweep_up(root: Path) -> None:
    """Remove what a launch or a deletion left when its process was killed in the middle."""
    for name in os.listdir(root):
        begun, deleted = name.startswith(".new-"), name.startswith(".deleted-")
        with contextlib.suppress(OSError):
            if deleted or (begun and time.time() - (root / name).lstat().st_mtime > LEFT_SECONDS):
                shutil.rmtree(root / name, ignore_errors=True)


def complain(error: BaseException | str) -> None:
    """One line in the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ERROR {error}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the process


def main(root: str) -> int:
    """Supervise ``root`` until idle; returns at once if another supervisor is there."""
    runs = Runs(root)
    while True:
        with open(runs.root / queue.LOCK, "a") as file:
            if not _locked(file):
                return 0
            local.inherited[:] = [file.fileno()]
            with factory.trusted():  # whoever made the runs has answered for their files
                while (end := _serve(runs)) is not End.IDLE:
                    time.sleep(TROUBLE_SECONDS if end is End.TROUBLE else 0)
        # A run queued between the last look and the lock's release would wait for ever: look once more.
        if not runs.root.exists() or not queue.queued(runs):
            return 0


def _locked(file: IO[str]) -> bool:
    """Whether the folder is ours to supervise. Whoever only looks whether somebody does holds the lock for a moment: that is waited for."""
    for _ in range(LOOKS):
        if lock_descriptor(file.fileno(), blocking=False):
            return True
        time.sleep(IDLE_POLL_SECONDS)
    return False


def _serve(runs: Runs) -> End:
    """Serve the folder with the engine that is wanted, from a child if that is an engine which may take it along."""
    name, address = queue.chosen(runs)
    if name == "local":
        return Supervisor(runs, engines.engine(name)).serve()
    process = own_process()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _serve_and_exit(Supervisor(runs, engines.engine(name, address), process))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (End.IDLE, End.TROUBLE, End.ANOTHER_ENGINE):
        return End(code) if code != End.TROUBLE or runs.root.exists() else End.IDLE
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
    complain(f"engine {name} ended with {how}; starting it again")
    return End.TROUBLE


def _serve_and_exit(supervisor: Supervisor) -> None:
    """The child's whole life."""
    status: int = End.TROUBLE
    try:
        status = supervisor.serve()
        supervisor.engine.close()
    except EngineTrouble as error:
        supervisor.tell_trouble(str(error))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
