"""One rank of a run in one process of its own: what ``initscope.training.torchrun`` starts, and what ends
with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from torch.distributed.elastic.multiprocessing.errors import record

from initscope.config import factory
from initscope.errors import InitScopeError, TrainingFailed
from initscope.store import Run, RunWriter
from initscope.training import ranks
from initscope.training.devices import pick_device
from initscope.training.failure import reason
from initscope.training.run_log import log, logging_to, output_to

POLL_SECONDS = 0.1


@record
def main(path: str, parent: str, meeting: str) -> None:
    """The life of one rank; what it raises reaches the parent through a file that ``record`` writes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent too, whose stop request all ranks follow together
    threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    from initscope.training.trainer import (
        Training,
    )  # takes longest, and by now the parent's end is this one's too

    run = Run(path)
    output_to(run)
    with logging_to(run), factory.trusted():
        try:
            rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            together = ranks.join(rank, count, meeting, pick_device(run.config().device))
            Training(run, RunWriter(run) if together.first else None, ranks=together).go()
            ranks.leave()
        except InitScopeError as error:
            log.error("%s", error, exc_info=error.__cause__)
            raise
        except Exception as error:
            log.exception("failed")
            raise TrainingFailed(reason(error)) from error


def _follow(parent: int) -> None:
    """End with the parent: without it nobody holds the run's claim."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
