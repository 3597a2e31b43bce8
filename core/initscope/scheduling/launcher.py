"""Queue, stop, and say how things stand: the three verbs by which everybody else has runs trained.

A queued run has a marker in ``runs/.queue/``. One supervisor a folder (it holds a lock) has the queue worked
off by an engine, this machine's processes or a Ray cluster; nobody who uses this module needs to know which.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from initscope.comparison.sweep import missing
from initscope.config import factory
from initscope.config.pinning import check_unchanged, pin
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, InitScopeError, RunFolderError, RunNotFound, RunStateError, one_line
from initscope.installation import module_command
from initscope.permission import require
from initscope.resources import limits
from initscope.resources.slots import slots, threads_of
from initscope.scheduling import engine as engines
from initscope.scheduling import queue
from initscope.scheduling.queue import LOCK, QUEUE, queued
from initscope.schema import CHECKPOINT, LIVE, Status
from initscope.store import Run, Runs, claimed, origin, process_alive
from initscope.store.files import number
from initscope.store.run import CLAIM_SECONDS
from initscope.store.writer import set_status

__all__ = [
    "QUEUE",
    "check_resumable",
    "ensure_served",
    "ensure_supervisor",
    "goes_on",
    "prepare",
    "queued",
    "resume",
    "slots",
    "state",
    "stop",
    "submit",
    "threads_of",
    "wait_until_stopped",
]

STARTING_SECONDS = 30
"""A supervisor that was started less long ago has its lock or will have it: nobody starts another beside
it.
"""
LOG_BYTES = 1_000_000
"""The supervisor's log begins anew, the old one kept, when it is longer than this."""
LOG = ".supervisor.log"
READS_CHECKPOINTS = (2, 10)
"""The first PyTorch whose ``torch.load(weights_only=True)`` runs no code that a file brings."""
UNHEARD_STEPS = 100
"""A loop that has taken so many steps more after it was asked to stop does not listen."""


def submit(runs: Runs, configs: Sequence[RunConfig], engine: str = "", first: bool = False) -> list[Run]:
    """Queue one run a config, in order, and make sure that somebody starts them; ``first``: before those that
    wait already.

    ``engine`` (``engines.choose`` says what by default) is the folder's from now on. Raises ConfigError,
    NotAllowed or LimitExceeded before any run is made.
    """
    require("launch a run")
    engine, address = engines.choose(engine, queue.chosen(runs))
    if runs.shared and not engines.here(address):
        raise ConfigError(
            "runs in an object store are trained on the machine that launches them, not on the Ray cluster "
            f"at {one_line(address)}, whose nodes "
            "do not see its scratch folder; use --engine local, engine ray without RAY_ADDRESS, or a folder "
            "that all nodes see"
        )
    pinned = [pin(config) for config in configs]
    _refuse_links(runs)
    limits.check(pinned, len(queued(runs)), runs.root)
    origin.name()  # a run without the mark of this installation would never begin
    queue.check_writable(runs)
    made: list[Run] = []
    try:
        for config in pinned:
            made.append(runs.create(config))
        queue.choose(runs, engine, address)
        queue.enqueue(runs, made, first)
    except BaseException as error:
        for run in made:  # all or none: half a sweep in the list would wait for ever
            queue.unmark(runs, run.id)
            with contextlib.suppress(InitScopeError, OSError):
                run.discard()
        if isinstance(error, OSError):
            raise queue.cannot_queue(runs, error) from None
        raise
    ensure_supervisor(runs)
    return made


def submit_missing(
    runs: Runs, configs: Sequence[RunConfig], engine: str = "", first: bool = False
) -> list[Run]:
    """Queue the cells of a sweep that no run covers yet, as ``submit`` does; those that are there are not run
    again.
    """
    wanted = missing(configs, runs.list())
    return submit(runs, wanted, engine, first) if wanted else []


def resume(runs: Runs, run: Run) -> None:
    """Queue an ended run again; it goes on from its checkpoint. Raises RunStateError if it has finished or is
    live.
    """
    check_resumable(run)
    _refuse_links(runs)
    with factory.trusted():  # ``check_resumable`` has asked where its files may be
        limits.check([run.config()], len(queued(runs)), runs.root)
    queue.check_writable(runs)
    with claimed(run, wait=CLAIM_SECONDS):
        check_resumable(run)  # somebody else may have resumed it meanwhile
        (run.path / "stop").unlink(missing_ok=True)
        before = run.json_file("status.json")
        ours = {origin.MARK: origin.mark(run.id, run.json_file("config.json")["config"])}
        set_status(
            run,
            status=str(Status.QUEUED),
            outcome=None,
            phase=None,
            error=None,
            ended=None,
            lost_at=None,
            in_vain=0,
            **ours,
        )
        try:
            queue.enqueue(runs, [run])
        except OSError as error:
            set_status(run, **before)
            raise queue.cannot_queue(runs, error) from None
    ensure_supervisor(runs)


def check_resumable(run: Run) -> None:
    """Raises RunStateError, saying why, if ``run`` cannot be resumed; NotAllowed for whoever only looks."""
    require("resume a run")
    state = run.state()
    status = state["status"]
    if state.get("source") == "recorder":
        raise RunStateError(
            f"run {run.id} was recorded from a loop of your own; only that program can go on with it"
        )
    if status == Status.FINISHED:
        raise RunStateError(
            f"run {run.id} has finished; there is nothing to resume. Launch a new run with more epochs"
        )
    if status in LIVE:
        raise RunStateError(f"run {run.id} is {status} already; there is nothing to resume")
    check_own_code(run)
    check_checkpoint(run)


def check_checkpoint(run: Run) -> None:
    """Raises RunStateError if a checkpoint comes from elsewhere and this PyTorch is not safe to read it:
    ``weights_only`` alone did not keep code out (CVE-2026-24747).
    """
    version = importlib.metadata.version("torch")
    if (
        (run.path / CHECKPOINT).exists()
        and tuple(map(int, re.findall(r"\d+", version)[:2])) < READS_CHECKPOINTS
        and not _made_here(run)
    ):
        raise RunStateError(
            f"run {run.id} was not made by this installation, and a checkpoint can make PyTorch {version} "
            f"run code; upgrade torch, or delete its {CHECKPOINT} to train from the first step"
        )


def check_own_code(run: Run) -> None:
    """Raises ConfigError if the run names code of somebody's own that is not to be run here: without a digest
    or changed since, or named by a folder that this installation did not make and that nobody has vouched
    for.
    """
    with factory.trusted():  # whose files they may be is asked below
        config = run.config()
        check_unchanged(config)
    named = [value for role in factory.ROLES if factory.parse(value := getattr(config, role))]
    if not named or _made_here(run):
        return
    offered = factory.offered_folder()
    for value in named:
        there = factory.parse(value)
        if there is None or offered is None or there.path.resolve().parent != offered:
            raise ConfigError(
                f"run {run.id} was not made by this installation, and it names code to be run: "
                f"{one_line(value)}. Read that file; if you trust it, "
                f"start a new run: initscope train --config {one_line(str(run.path / 'config.json'))}"
            )


def _made_here(run: Run) -> bool:
    return origin.made_here(run.id, run.json_file("config.json")["config"], run.json_file("status.json"))


def stop(runs: Runs, run: Run) -> None:
    """Ask a run to stop: a running one after its current step, a queued one at once. Raises RunStateError if
    it has ended.
    """
    _refuse_links(runs)
    run.request_stop()
    if run.state()["status"] == Status.QUEUED:
        with (
            contextlib.suppress(RunStateError, RunNotFound),
            claimed(run),
        ):  # a worker that got it first will see the request
            if run.state()["status"] == Status.QUEUED:
                queue.end_queued(runs, run)


def wait_until_stopped(run: Run, seconds: float) -> bool:
    """After ``stop``: wait until the run has ended, at most ``seconds``. False, at once, for a loop of
    somebody's own that goes on all the same: it says so itself (fact ``stop_ignored``), or has taken
    ``UNHEARD_STEPS`` more steps.
    """
    deadline, first = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        state = run.state()
        if state["status"] not in LIVE:
            return True
        if state.get("source") == "recorder":
            facts = state.get("facts")
            step = int(number(state.get("step")) or 0)
            first = step if first is None else first
            if step - first > UNHEARD_STEPS or (isinstance(facts, Mapping) and facts.get("stop_ignored")):
                return False
        time.sleep(0.1)
    return run.state()["status"] not in LIVE


def goes_on(run: Run) -> str:
    """What is said of a run that was asked to stop and did not."""
    if run.state().get("source") != "recorder":
        return f"run {run.id} was asked to stop and has not yet: it ends after its current step"
    return (
        f"run {run.id} goes on: its loop does not look at what recorder.step() returns. End its program, "
        "and write `if not recorder.step(loss): break` to have it listen"
    )


def state(runs: Runs) -> engines.State:
    """How the folder's queue stands; with nothing in it, what the next launch will find. Between supervisors
    it is this machine's slots that are free, a cluster's are not known.
    """
    waiting, told = len(queued(runs)), queue.read_state(runs)
    engine, _ = queue.chosen(runs)
    with contextlib.suppress(ConfigError):  # said when something is launched
        engine, _ = engines.choose("", queue.chosen(runs))
    if told and (waiting or told.get("running") or told["engine"] == engine):
        return engines.State(
            told["engine"],
            told.get("slots"),
            told.get("free"),
            waiting,
            told.get("running") or 0,
            told.get("trouble") or "",
        )
    free = slots() if engine == "local" else None
    return engines.State(engine, free, free, waiting, 0)


def ensure_served(runs: Runs) -> None:
    """Start a supervisor if runs wait, or were lost with one, and none is there: it was killed, or the
    machine has been started anew.
    """
    if queue.own_waiting(runs) or queue.abandoned(runs):
        ensure_supervisor(runs)


def prepare(runs: Runs) -> None:
    """Somebody may launch soon: for ``PREPARED_SECONDS`` from now there is a supervisor that has torch loaded
    and forks at once.

    For every look at a launch form: with a supervisor there it costs an attempt at its lock. Raises
    RunFolderError.
    """
    ensure_supervisor(runs)
    with contextlib.suppress(OSError):  # who may not touch it does not own the supervisor either
        os.utime(runs.root / LOCK)


_begun: dict[Path, tuple[int, float]] = {}
"""By folder: the last supervisor that this process started, and when (monotonic seconds)."""


def ensure_supervisor(runs: Runs) -> None:
    """Start a supervisor for this folder unless one is there, or on its way to the lock."""
    _refuse_links(runs)
    pid, when = _begun.get(runs.root, (None, 0.0))
    if time.monotonic() - when < STARTING_SECONDS and process_alive(pid, None):
        return
    with _lock(runs.root) as ours:
        if not ours:
            return
    root = runs.root.resolve()
    with _log(root) as output:
        process = subprocess.Popen(
            module_command("initscope.scheduling.launcher", root),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _begun[runs.root] = process.pid, time.monotonic()
    # Somebody must take note of its end, or it stays in the process table as a zombie of ours.
    threading.Thread(target=process.wait, name="supervisor's end", daemon=True).start()


def _log(root: Path) -> IO[bytes]:
    """The supervisor's log; another user's may be closed to us, then it is one of our own."""
    log = root / LOG
    with contextlib.suppress(OSError):
        if os.path.getsize(log) > LOG_BYTES:
            os.replace(log, root / f"{LOG}.1")
    try:
        return open(log, "ab")
    except PermissionError:
        return open(origin.state_folder() / "supervisors" / f"{origin.place(root)}.log", "ab")


def _refuse_links(runs: Runs) -> None:
    """A link in place of the queue, its lock or its log would have us write, or delete markers, somewhere
    else; a pipe would have us wait for ever. Raises RunFolderError.
    """
    for name in (QUEUE, LOCK, LOG):
        path = runs.root / name
        if path.is_symlink() or path.is_fifo():
            raise RunFolderError(
                f"{name} in {runs.shown} is a {'link' if path.is_symlink() else 'pipe'}; nothing is written "
                "through it. Remove it"
            )


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[bool]:
    """Whether no supervisor of this installation is there, serving or waiting for another's to leave; held
    until the block ends.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        os.close(queue.open_lock(root))
    except OSError as error:
        raise RunFolderError(
            f"cannot write into the folder of runs: {error.strerror or error}; free space, or check who may "
            "write there"
        ) from None
    with origin.only_one(root) as handle:
        yield handle is not None


if __name__ == "__main__":
    from initscope.scheduling.supervisor import main

    sys.exit(main(sys.argv[1]))
