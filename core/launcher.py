"""Queue, start, supervise, stop: training runs as processes of their own.

A queued run has a marker in ``runs/.queue/``. One supervisor a folder (it holds a lock) loads torch once, forks a worker
for each run as cores come free, and writes down when one died. Workers are sessions of their own: they outlive the
supervisor, the dashboard and the terminal. A supervisor that comes later adopts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from core import factories, limits
from core.config import RunConfig
from core.errors import InitScopeError, RunFolderError, RunNotFound, RunStateError
from core.permission import require
from core.schema import LIVE, Status
from core.store import RUN_ID, Run, Runs, claimed
from core.store.files import alive
from core.store.run import CLAIM_SECONDS
from core.store.writer import set_status

IDLE_SECONDS = 120
"""An idle supervisor leaves after so long; the next launch starts another."""
POLL_SECONDS = 0.1
NICENESS = 10
"""Training yields to whoever looks at it: on two cores two runs would leave none to the browser and the dashboard."""
TROUBLE_SECONDS = 2.0
"""Pause after the disk refused something."""
LEFT_SECONDS = 60
"""A run folder that is not complete after so long never will be."""
LOG_BYTES = 1_000_000
"""The supervisor's log begins anew, the old one kept, when it is longer than this."""
LOCK = ".supervisor.lock"
LOG = ".supervisor.log"
QUEUE = ".queue"
_MARK = re.compile(r"(\d{20})~" + RUN_ID.pattern)


# ---------------------------------------------------------------- what others call


def submit(runs: Runs, configs: Sequence[RunConfig]) -> list[Run]:
    """Queue one run a config, in order, and make sure that somebody starts them.

    Raises ConfigError, NotAllowed or LimitExceeded before any is made.
    """
    require("launch a run")
    pinned = [factories.pin(config) for config in configs]
    limits.check(pinned, len(_marks(runs)), runs.root)
    made = [runs.create(config) for config in pinned]
    for run in made:
        _mark(runs, run)
    ensure_supervisor(runs)
    return made


def resume(runs: Runs, run: Run) -> None:
    """Queue an ended run again; it goes on from its checkpoint. Raises RunStateError if it has finished or is live."""
    check_resumable(run)
    with factories.trusted():
        limits.check([run.config()], len(_marks(runs)), runs.root)
    with claimed(run, wait=CLAIM_SECONDS):
        check_resumable(run)  # somebody else may have resumed it meanwhile
        (run.path / "stop").unlink(missing_ok=True)
        set_status(run, status=str(Status.QUEUED), outcome=None, error=None, ended=None)
        _mark(runs, run)
    ensure_supervisor(runs)


def check_resumable(run: Run) -> None:
    """Raises RunStateError, saying why, if ``run`` cannot be resumed; NotAllowed for whoever only looks."""
    require("resume a run")
    state = run.state()
    status = state["status"]
    if state.get("source") == "recorder":
        raise RunStateError(f"run {run.id} was recorded from a loop of your own; only that program can go on with it")
    if status == Status.FINISHED:
        raise RunStateError(f"run {run.id} has finished; there is nothing to resume. Launch a new run with more epochs")
    if status in LIVE:
        raise RunStateError(f"run {run.id} is {status} already; there is nothing to resume")
    with factories.trusted():  # a saved run's files were taken when it was made
        factories.check_unchanged(run.config())


def stop(runs: Runs, run: Run) -> None:
    """Ask a run to stop: a running one after its current step, a queued one at once. Raises RunStateError if it has ended."""
    run.request_stop()
    if run.state()["status"] == Status.QUEUED:
        with contextlib.suppress(RunStateError, RunNotFound), claimed(run):  # a worker that got it first will see the request
            if run.state()["status"] == Status.QUEUED:
                _end_queued(runs, run)


def keep_going(runs: Runs) -> None:
    """Start a supervisor if runs wait and none is there: it was killed, or the machine has been started anew."""
    if _marks(runs):
        ensure_supervisor(runs)


def ensure_supervisor(runs: Runs) -> None:
    """Start a supervisor for this folder unless one is there."""
    with _lock(runs.root) as ours:
        if not ours:
            return
    root = runs.root.resolve()
    with contextlib.suppress(OSError):
        if os.path.getsize(root / LOG) > LOG_BYTES:
            os.replace(root / LOG, root / f"{LOG}.1")
    with open(root / LOG, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.launcher", str(root)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    # Somebody must take note of its end, or it stays in the process table as a zombie of ours.
    threading.Thread(target=process.wait, name="supervisor's end", daemon=True).start()


def slots() -> int:
    """How many processor threads may train at once: ``INITSCOPE_SLOTS``, else the cores this process may use."""
    wanted = os.environ.get("INITSCOPE_SLOTS", "")
    return max(1, int(wanted)) if wanted.isdecimal() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def queued(runs: Runs) -> list[str]:
    """Ids of the runs that wait, first come first."""
    return [name.partition("~")[2] for name in _marks(runs)]


# ---------------------------------------------------------------- the queue on disk


def _marks(runs: Runs) -> list[str]:
    """Names of the queue's markers in order: a time in nanoseconds, "~", the run's id. Anything else is not ours."""
    try:
        return sorted(name for name in os.listdir(runs.root / QUEUE) if _MARK.fullmatch(name))
    except OSError:
        return []


def _mark(runs: Runs, run: Run) -> None:
    folder = runs.root / QUEUE
    folder.mkdir(exist_ok=True)
    # Behind the last one, even if the clock has been set back since.
    last = max((int(name.split("~")[0]) for name in os.listdir(folder) if _MARK.fullmatch(name)), default=0)
    (folder / f"{max(time.time_ns(), last + 1):020d}~{run.id}").touch()


def _unmark(runs: Runs, run_id: str) -> None:
    for name in _marks(runs):
        if name.partition("~")[2] == run_id:
            (runs.root / QUEUE / name).unlink(missing_ok=True)


def _end_queued(runs: Runs, run: Run) -> None:
    (run.path / "stop").unlink(missing_ok=True)
    set_status(run, status=str(Status.STOPPED), outcome="undecided", ended=time.time())
    _unmark(runs, run.id)


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[bool]:
    """Whether the supervisor's lock could be taken; held until the block ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / LOCK, "a")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RunFolderError(f"cannot write into the folder of runs: {error.strerror or error}; free space, or check who may write there") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


# ---------------------------------------------------------------- the supervisor


class Supervisor:
    """Starts queued runs while threads are free, and notices when a worker died."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self.children: dict[int, Run] = {}
        self.adopted: dict[str, Run] = {}

    def serve(self) -> None:
        """Work until idle for ``IDLE_SECONDS``."""
        self._take_over()
        last_busy = time.monotonic()
        while True:
            self._reap()
            try:
                waiting = self._start_what_fits()
            except (OSError, InitScopeError) as error:  # a full or unreadable disk: it may come back
                print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ERROR {error}", file=sys.stderr, flush=True)
                waiting = 0
                time.sleep(TROUBLE_SECONDS)
            if self.children or self.adopted or waiting:
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > IDLE_SECONDS or not self.runs.root.exists():
                return
            time.sleep(POLL_SECONDS)

    def _take_over(self) -> None:
        """After a supervisor that died: adopt its workers, and mark again what was queued."""
        _sweep_up(self.runs.root)
        marked = set(queued(self.runs))
        for info in reversed(self.runs.own()):
            if info.status == Status.QUEUED and info.run not in marked:
                _mark(self.runs, self.runs.get(info.run))
            elif info.status in (Status.RUNNING, Status.STOPPING):
                self.adopted[info.run] = self.runs.get(info.run)
            elif info.status == Status.CRASHED:
                self._record_death(self.runs.get(info.run), "its process is gone")

    def _start_what_fits(self) -> int:
        """Start waiting runs in order while their threads fit; returns how many still wait."""
        waiting = queued(self.runs)
        for run_id in waiting:
            run = Run(self.runs.root / run_id)
            state = run.info()
            if state.status != Status.QUEUED:
                _unmark(self.runs, run_id)  # deleted, stopped, or started by hand meanwhile
                continue
            if run.stop_requested():
                with contextlib.suppress(InitScopeError, OSError), claimed(run):
                    _end_queued(self.runs, run)
                continue
            if not self._fits(threads_of(state.config)):
                break
            self._start(run)
            _unmark(self.runs, run_id)
        return len(queued(self.runs))

    def _fits(self, threads: int) -> bool:
        infos = [run.info() for run in [*self.children.values(), *self.adopted.values()]]
        busy = [
            threads_of(info.config) for info in infos if info.state.get("source") != "recorder"
        ]  # a notebook may stay open for days
        most = limits.limits().max_runs
        return (most is None or len(busy) < most) and (not busy or sum(busy) + threads <= slots())

    def _start(self, run: Run) -> None:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self.children[pid] = run
            return
        status = 1
        try:
            os.setsid()
            os.nice(NICENESS)
            _drop_inherited_lock()
            log = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            from core.worker import main_in_child

            status = main_in_child(run)
        except BaseException:
            traceback.print_exc()  # into the run's log, or the supervisor's if there is none
            raise
        finally:
            os._exit(status)  # the parent's cleanup is not the child's

    def _reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            run = self.children.pop(pid, None)
            if run is not None and os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                self._record_death(run, f"killed by signal {number} ({signal.Signals(number).name})")
            elif run is not None:
                self._record_death(run, f"exited with status {os.waitstatus_to_exitcode(status)} without a word")
        for run_id, run in list(self.adopted.items()):
            state = run.info().state
            if not alive(state):
                del self.adopted[run_id]
                self._record_death(run, "its process is gone")

    def _record_death(self, run: Run, how: str) -> None:
        """Write ``crashed`` for a run whose process ended without writing an end."""
        if not (run.path / "status.json").exists():
            return  # deleted
        with contextlib.suppress(InitScopeError, OSError), claimed(run):
            state = run.json_file("status.json")
            died = state.get("status") == Status.RUNNING and not alive(state)
            # Queued still: it died before its first word, unless somebody has queued it again since.
            if died or (state.get("status") == Status.QUEUED and run.id not in queued(self.runs)):
                set_status(run, status=str(Status.CRASHED), error=f"the training process was {how}", ended=time.time())
                (run.path / "stop").unlink(missing_ok=True)


def _sweep_up(root: Path) -> None:
    """Remove what a launch or a deletion left when its process was killed in the middle."""
    for name in os.listdir(root):
        begun, deleted = name.startswith(".new-"), name.startswith(".deleted-")
        with contextlib.suppress(OSError):
            if deleted or (begun and time.time() - (root / name).lstat().st_mtime > LEFT_SECONDS):
                shutil.rmtree(root / name, ignore_errors=True)


def threads_of(config: object) -> int:
    """Threads that a run with this config (a mapping) takes from the machine."""
    wanted = config.get("threads") if isinstance(config, dict) else 0
    return min(wanted, slots()) if isinstance(wanted, int) and wanted > 0 else slots()


def _load_for_workers() -> None:
    """Load once what a forked worker would wait for: torch, and what its first optimizer (torch._dynamo) and pyarrow's
    first array (pandas) load behind their backs, 1.3 and 0.7 s."""
    import pandas  # noqa: F401
    import torch._dynamo  # noqa: F401

    import core.trainer  # noqa: F401


_inherited: list[int] = []


def _drop_inherited_lock() -> None:
    """A forked worker must not keep the supervisor's lock alive."""
    for number in _inherited:
        os.close(number)


def main(root: str) -> int:
    """Supervise ``root`` until idle; returns at once if another supervisor is there."""
    runs = Runs(root)
    while True:
        with open(runs.root / LOCK, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            _inherited[:] = [file.fileno()]
            _load_for_workers()  # with the lock held, so that nobody else loads it all in vain
            with factories.trusted():  # whoever made the runs has answered for their files
                Supervisor(runs).serve()
        # A run queued between the last look and the lock's release would wait for ever: look once more.
        if not runs.root.exists() or not queued(runs):
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
