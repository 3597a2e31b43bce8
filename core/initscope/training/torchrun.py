"""Starts the ranks of one run with torchrun's process launcher, and says why one of them died.

The process that starts them holds the run's claim and trains nothing: when a rank dies it ends the others and
writes the reason, and when it dies itself they follow. Ranks meet through a file, so no port is opened beyond
loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from initscope import errors
from initscope.errors import InitScopeError, TrainingFailed
from initscope.installation import module_command
from initscope.schema import Outcome
from initscope.store import Run
from initscope.store.files import number
from initscope.training.checkpoint import Position

POLL_SECONDS = 0.1


def train(run: Run, progress: Callable[[Position, int], None]) -> Outcome:
    """Train ``run`` with ``config.processes`` ranks and wait for them.

    Raises what the first of them to fail has raised, if that is one of ours, and TrainingFailed for any other
    end.
    """
    count = run.config().processes
    with tempfile.TemporaryDirectory(prefix="initscope-ranks-") as folder:
        python, *arguments = module_command(
            "initscope.training.rank_worker", run.path.resolve(), os.getpid(), os.path.join(folder, "meeting")
        )
        with _own_signals():
            ranks = start_processes(
                name="rank",
                entrypoint=python,
                args=dict.fromkeys(range(count), tuple(arguments)),
                envs={rank: {"RANK": str(rank), "WORLD_SIZE": str(count)} for rank in range(count)},
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
        try:
            while (result := ranks.wait(POLL_SECONDS, POLL_SECONDS)) is None:
                _pass_on(run, progress)
        finally:
            ranks.close(signal.SIGKILL)
        if result.is_failed():
            raise what_happened(result.failures, count)
    return Outcome(run.json_file("status.json")["outcome"])


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep torch from taking the signals over, and from reporting on standard error what is reported here."""
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(run: Run, progress: Callable[[Position, int], None]) -> None:
    """Tell the parent's listener how far the first rank has come, by what it has written."""
    state = run.json_file("status.json")
    if total := state.get("total_steps"):
        progress(
            Position(
                step=state["step"],
                epoch=state.get("epoch") or 0,
                loss_sum=number(state.get("loss")) or 0.0,
                samples=1,
            ),
            total,
        )


def what_happened(failures: Mapping[int, ProcessFailure], count: int) -> InitScopeError:
    """The error behind the ends of the ranks. One death is followed by others: the ranks that are left lose
    their connection, or are ended by us.
    """
    killed = [
        rank
        for rank, failure in failures.items()
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
    ]
    told = sorted(
        (rank for rank, failure in failures.items() if os.path.isfile(failure.error_file)),
        key=lambda rank: os.stat(failures[rank].error_file).st_mtime_ns,
    )
    if told and not killed:
        told_by: Any = failures[told[0]].message  # the error file's JSON, whatever torch's annotation says
        kind, _, text = told_by["message"].partition(": ")
        return getattr(errors, kind, TrainingFailed)(text)
    rank = [*killed, *failures][0]
    code = failures[rank].exitcode
    how = (
        f"was killed by signal {-code} ({signal.Signals(-code).name})"
        if code < 0
        else f"exited with status {code} without a word"
    )
    return TrainingFailed(
        f"rank {rank} of {count} {how}; the others were ended, and resuming goes on from the checkpoint"
    )
