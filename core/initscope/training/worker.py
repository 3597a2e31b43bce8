"""One training run in one process: locks, signals and log around ``trainer.train``."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from initscope.errors import InitScopeError, RunStateError
from initscope.schema import Outcome, Status
from initscope.store import Run, claimed
from initscope.store.files import remove_temporaries, touch
from initscope.store.writer import refuse_links
from initscope.training.run_log import log, logging_to


def work(
    run: Run,
    progress: Callable[[Any, int], None] = lambda position, total: None,
    engine: str | None = None,
    graceful: bool = True,
) -> Outcome:
    """Train ``run`` here and now. SIGTERM and the first Ctrl-C stop it gracefully, unless ``graceful`` is
    false; its story goes to ``log.txt``.

    ``engine`` is the one that took the run from the queue; None: somebody at a terminal. Raises RunStateError
    if another process works on it or, from the queue, if it waits no longer.
    """
    refuse_links(run)
    with claimed(run), logging_to(run), graceful_signals(run) if graceful else contextlib.nullcontext():
        if engine and (status := run.state()["status"]) != Status.QUEUED:
            raise RunStateError(f"run {run.id} is {status}, not queued; somebody else has begun or ended it")
        remove_temporaries(run.path, run.path / "parts")  # of a worker that was killed
        from initscope.training import trainer  # torch: only where training happens

        try:
            outcome = trainer.train(run, _EpochTeller(run, progress), engine)
        except InitScopeError as error:
            log.error("%s", error, exc_info=error.__cause__)  # the traceback of somebody's own code
            raise
        except Exception:
            log.exception("failed")
            raise
        log.info("end: %s, %s", run.state()["status"], outcome)
        return outcome


class _EpochTeller:
    """Passes progress on, and writes a log line when an epoch has passed."""

    def __init__(self, run: Run, progress: Callable[[Any, int], None]):
        self.run, self.progress, self.epoch = run, progress, -1

    def __call__(self, position: Any, total: int) -> None:
        if position.epoch != self.epoch:
            self.epoch = position.epoch
            mean = position.loss_sum / max(1, position.samples)
            log.info("epoch %d, step %d of %d, loss %.4f", position.epoch, position.step, total, mean)
        self.progress(position, total)


@contextlib.contextmanager
def graceful_signals(run: Run) -> Iterator[None]:
    """Turn SIGTERM and the first SIGINT into a stop request; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return

    def ask(number: int, frame: object) -> None:
        log.info("signal %s: stopping after this step", signal.Signals(number).name)
        touch(run.path / "stop")
        signal.signal(number, before[number])

    before: dict[int, Any] = {
        number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main_in_child(run: Run, engine: str = "local", graceful: bool = True) -> int:
    """Exit status of a detached worker: 0 trained (whatever came out), 1 failed."""
    try:
        work(run, engine=engine, graceful=graceful)
    except RunStateError as error:
        print(error, file=sys.stderr)  # somebody else works on it, or has ended it: not this run's failure
        return 0
    except Exception:  # already in log.txt and status.json
        return 1
    return 0
