"""The supervisor of a folder of runs: has an engine work its queue off, and writes down when a run's process
died.

It holds the folder's lock, so there is one. Whoever comes after one that died adopts its runs. An engine that
could take the process along (a Ray cluster that loses its head) is served from a child, which is started anew
as often as need be.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from initscope.config import factory
from initscope.config.pinning import check_unchanged
from initscope.errors import EngineTrouble, InitScopeError, RunFolderError, RunStateError
from initscope.resources import limits
from initscope.resources.memory import size
from initscope.scheduling import engine as engines
from initscope.scheduling import queue
from initscope.scheduling.engine import Engine
from initscope.scheduling.engines import local
from initscope.schema import Status
from initscope.store import Run, RunInfo, Runs, claimed, origin, own_process
from initscope.store.files import alive
from initscope.store.writer import set_status

IDLE_SECONDS = 300
"""An idle supervisor leaves after so long, unless somebody looks at a launch form; the next launch starts
another.
"""
POLL_SECONDS = 0.1
IDLE_POLL_SECONDS = 0.05
"""With nothing to supervise on this machine a look at the queue is all there is to do, and somebody may be
waiting for it.
"""
LOOKS = 3
TROUBLE_SECONDS = 2.0
"""Pause after the disk or the engine refused something."""
DISK_SECONDS = 10.0
TURN_SECONDS = 60.0
"""So long one user's runs are begun while another's wait."""
WAIT_SECONDS = 1.0
"""How often a supervisor looks whether another user's has left."""
NOT_OURS = (
    "the supervisor of whoever queued it; if the folder came from elsewhere there is none: stop the run and "
    "resume it"
)
LEFT_SECONDS = 60
"""A run folder that is not complete after so long never will be."""


class End(IntEnum):
    """Why a supervisor has left off; the exit status of one that serves from a child."""

    IDLE = 0
    TROUBLE = 3
    ANOTHER_ENGINE = 4
    TURN = 5
    """Another installation's runs wait."""


class Supervisor:
    """Starts queued runs while the engine has room, and notices when a run's process died."""

    def __init__(self, runs: Runs, engine: Engine, process: Mapping[str, Any] | None = None):
        self.runs, self.engine = runs, engine
        self.process = dict(process or own_process())
        self.carried: dict[str, Mapping[str, Any]] = {}
        """Configs of the runs that the engine has, by id."""
        self.adopted: dict[str, Mapping[str, Any] | None] = {}
        """Configs of those that were running before; None for a loop of somebody's own, which takes nobody's
        place.
        """
        self.lost: dict[str, str] = {}
        """Runs whose process is over, and how; until what is to be written about it has been."""
        self._told: dict[str, Any] = {}
        self._obstacles: dict[str, str] = {}
        self._whose: dict[str, bool] = {}
        """By marker: whether this installation queued the run."""
        self._began = time.monotonic()
        self._measured, self._used = -math.inf, 0

    def serve(self) -> End:
        """Work until idle for ``IDLE_SECONDS``, or until somebody wants another engine and nothing trains
        here any more. Raises EngineTrouble.
        """
        self._take_over()
        self.engine.open()
        last_busy = time.monotonic()
        while True:
            self._look_after()
            changed = queue.chosen(self.runs) != (self.engine.name, self.engine.address)
            try:
                waiting = len(self._own_queue()) if changed else self._start_what_fits()
                self._tell()
            except EngineTrouble:
                raise
            except (OSError, InitScopeError) as error:  # a full or unreadable disk: it may come back
                complain(error)
                waiting = 0
                time.sleep(TROUBLE_SECONDS)
            if changed and waiting and not (self._busy() or self.lost):
                return End.ANOTHER_ENGINE
            if (
                not (self.carried or self.lost)
                and (not waiting or self._turn_is_over())
                and queue.others_ask(self.runs)
            ):
                return End.TURN
            busy = bool(self.carried or self.adopted or self.lost or waiting)
            if busy:
                last_busy = time.monotonic()
            elif not self.runs.root.exists() or (
                time.monotonic() - last_busy > IDLE_SECONDS and not queue.prepared(self.runs)
            ):
                return End.IDLE
            self.engine.wait(POLL_SECONDS if busy or self.engine.name != "local" else IDLE_POLL_SECONDS)

    def _take_over(self) -> None:
        """After a supervisor that died: adopt its runs, and mark again what was queued."""
        _sweep_up(self.runs.root)
        marked = set(queue.queued(self.runs))
        for info in reversed(self.runs.own()):
            if info.status == Status.QUEUED and info.run not in marked:
                if origin.made_here(info.run, info.config, info.state):
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
        """Start waiting runs of this installation in order while there is room; returns how many of them
        still wait.
        """
        for run_id in () if self._turn_is_over() else self._own_queue():
            run = Run(self.runs.root / run_id)
            info = run.info()
            if info.status != Status.QUEUED:
                queue.unmark(
                    self.runs,
                    run_id,
                    # deleted, stopped, or begun meanwhile: by hand, or by a task whose driver died before it
                    # had
                )
                if run_id not in self.carried:
                    self._take_on(info)
                continue
            if run.stop_requested():
                with contextlib.suppress(InitScopeError, OSError), claimed(run):
                    queue.end_queued(self.runs, run)
                continue
            if obstacle := self.engine.unmet_requirement(info.config) or self._disk_is_full():
                self._note(run, obstacle)
                continue
            if not self._fits(info.config):
                break
            if refusal := self._refusal(run):
                self._refuse(run, refusal)
                continue
            self.engine.start(run)
            self.carried[run_id] = info.config
            # before the mark goes: a run that neither waits nor is told of would be missed by nobody
            self._tell()
            queue.unmark(self.runs, run_id)
        return len(self._own_queue())

    def _turn_is_over(self) -> bool:
        """Whether another installation's supervisor asks for this folder, and ours has had it long enough."""
        return time.monotonic() - self._began > TURN_SECONDS and queue.others_ask(self.runs)

    def _own_queue(self) -> list[str]:
        """Ids of the runs that wait and that this installation queued. The others stay where they are: they
        are another user's, whose own supervisor starts them, or came in a folder from elsewhere.
        """
        marked = queue.marks(self.runs)
        self._whose = {name: ours for name, ours in self._whose.items() if name in marked}
        for name in marked:
            if name not in self._whose:
                run = Run(self.runs.root / name.partition("~")[2])
                self._whose[name] = self._is_ours(run)
                if not self._whose[name]:
                    self._note(run, NOT_OURS)
        return [name.partition("~")[2] for name in marked if self._whose[name]]

    def _is_ours(self, run: Run) -> bool:
        """Whether this installation queued the run. One that cannot be read, or has ended, is looked at as
        ours are.
        """
        try:
            state = run.json_file("status.json")
        except RunFolderError:
            return True
        return state.get("status") != Status.QUEUED or origin.named_here(state)

    def _refusal(self, run: Run) -> str:
        """Why a run may not begin: looked at in its folder now, for much may have changed there since it was
        queued. Empty if it may.
        """
        try:
            values = run.json_file("config.json").get("config")
            if not isinstance(values, Mapping) or not origin.made_here(
                run.id, values, run.json_file("status.json")
            ):
                return "config.json has changed since this run was queued; start a new run with it"
            config = run.config()
            check_unchanged(config)
            limits.check_one(config, limits.limits())
        except InitScopeError as error:
            return str(error)
        return ""

    def _refuse(self, run: Run, reason: str) -> None:
        """Write down that a run was not begun, and why."""
        with contextlib.suppress(InitScopeError, OSError), claimed(run):
            if run.state()["status"] == Status.QUEUED:
                set_status(
                    run,
                    status=str(Status.FAILED),
                    outcome="undecided",
                    phase=None,
                    error=reason,
                    ended=time.time(),
                )
                complain(f"{run.id} was not begun: {reason}")
                queue.unmark(self.runs, run.id)

    def _disk_is_full(self) -> str:
        """What runs wait for if they take all that they may; looked at seldom, for it is a walk through all
        folders.
        """
        quota = limits.limits().disk_quota
        if quota is not None and time.monotonic() - self._measured > DISK_SECONDS:
            self._measured, self._used = time.monotonic(), limits.usage(self.runs.root)
        return (
            f"space: runs take {size(self._used)} of the {size(quota)} that INITSCOPE_DISK_QUOTA allows"
            if quota is not None and self._used >= quota
            else ""
        )

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
        words = {
            "engine": self.engine.name,
            "slots": slots,
            "free": max(0, slots - used),
            "running": len(self._busy()),
            "trouble": "",
        }
        if words != self._told:
            queue.write_state(self.runs, {**words, **self.process})
            self._told = words

    def tell_trouble(self, trouble: str) -> None:
        """Leave word that the engine cannot work, and why; in the log once, however often it is tried
        again.
        """
        if queue.read_state(self.runs).get("trouble") != trouble:
            complain(trouble)
        words = {
            "engine": self.engine.name,
            "slots": None,
            "free": None,
            "running": len(self._busy()),
            "trouble": trouble,
        }
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
        """Write ``crashed`` for a run whose process ended without writing an end, or queue it again where the
        engine's runs go on elsewhere. False: somebody holds the run still, look again.
        """
        if not (run.path / "status.json").exists():
            return True  # deleted
        try:
            with claimed(run):
                state = run.json_file("status.json")
                status = state.get("status")
                if status == Status.RUNNING and alive(state):
                    return False  # of another machine, and not yet silent for long enough
                # Queued still: it died before its first word, unless somebody has queued it again since.
                if status == Status.RUNNING or (
                    status == Status.QUEUED and run.id not in queue.queued(self.runs)
                ):
                    self._end_or_restart(run, state, how)
        except (
            RunStateError
        ):  # claimed: a process that is about to end, or one that somebody has started meanwhile
            return self.engine.restarts == 0
        except (InitScopeError, OSError):
            return True
        return True

    def _end_or_restart(self, run: Run, state: Mapping[str, Any], how: str) -> None:
        restarts, lost_at, in_vain = (
            state.get("restarts") or 0,
            state.get("lost_at"),
            state.get("in_vain") or 0,
        )
        step = state.get("step") or 0
        in_vain = in_vain + 1 if lost_at is not None and step <= lost_at else 0
        ours = state.get("engine") == self.engine.name or state["status"] == Status.QUEUED
        if not ours or in_vain >= self.engine.restarts:
            again = f", {in_vain + 1} times in a row without getting any further" if in_vain else ""
            set_status(
                run,
                status=str(Status.CRASHED),
                error=f"the training process was {how}{again}",
                ended=time.time(),
            )
            (run.path / "stop").unlink(missing_ok=True)
        elif run.stop_requested():
            queue.end_queued(self.runs, run)
        else:
            print(f"{run.id}: {how}; queued again", file=sys.stderr, flush=True)
            lost_at = max(step, lost_at or 0)
            set_status(
                run,
                status=str(Status.QUEUED),
                phase=None,
                restarts=restarts + 1,
                lost_at=lost_at,
                in_vain=in_vain,
            )
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
    """Supervise ``root`` until idle. Returns at once if a supervisor of this installation is there; another's
    is waited for while runs of ours wait.
    """
    runs = Runs(root)
    while True:
        if not _supervise(runs):
            return 0
        # A run queued between the last look and the locks' release would wait for ever: look once more.
        if not runs.root.exists() or not queue.own_waiting(runs):
            return 0


def _supervise(runs: Runs) -> bool:
    """Serve the folder until idle; whether there was nobody else of this installation to do so."""
    for _ in range(LOOKS):  # whoever only looks whether somebody is there holds the lock for a moment
        with origin.only_one(runs.root) as mine:
            if mine is not None:
                while runs.root.exists():
                    if (handle := _locked(runs.root)) is not None:
                        try:
                            local.inherited[:] = [mine, handle]
                            with factory.trusted():  # each run's files are looked at before it begins
                                while (end := _serve(runs)) not in (End.IDLE, End.TURN):
                                    time.sleep(TROUBLE_SECONDS if end is End.TROUBLE else 0)
                        finally:
                            os.close(handle)
                        if end is not End.TURN:
                            return True
                        time.sleep(queue.ASKED_SECONDS)  # let go of, so that whoever asked can take it
                        continue
                    if not queue.own_waiting(runs):
                        return True
                    queue.ask_for_a_turn(runs)
                    time.sleep(WAIT_SECONDS)
                return True
        time.sleep(IDLE_POLL_SECONDS)
    return False


def _locked(root: Path) -> int | None:
    """A handle of the folder's lock, held; None if somebody else holds it."""
    handle = queue.open_lock(root)
    if lock_descriptor(handle, blocking=False):
        return handle
    os.close(handle)
    return None


def _serve(runs: Runs) -> End:
    """Serve the folder with the engine that is wanted, from a child if that is an engine which may take it
    along.
    """
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
    if code in tuple(End):
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
