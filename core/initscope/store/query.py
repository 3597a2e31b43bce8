"""Questions over all runs in SQL: DuckDB reads the views ``runs``, ``steps``, ``epochs`` and ``layers``, and
can reach nothing else.

A process of its own answers each question (``initscope.store.query_process``) under limits of the operating
system, and is killed at its deadline: DuckDB's own bounds do not hold inside of one function call
(``lpad('a', 2000000000, 'b')`` took 4 GB and 114 s).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from initscope import errors
from initscope.config.run_config import OPTIONS
from initscope.errors import QueryError, RunFolderError, choose_from
from initscope.installation import module_command
from initscope.store.bucket.folder import look
from initscope.store.parts import SCHEMAS

if TYPE_CHECKING:
    from initscope.store import Runs

SECONDS = 60.0
MEMORY = "512MB"
ROWS = 10_000
"""More rows of an answer are cut off, and the answer says so."""
LONGEST = 20_000
"""Characters of a question."""
BYTES = 100_000_000
"""Of an answer."""
ATTEMPTS = 5
READY_SECONDS = 60.0
"""So long the process may take to begin: it loads DuckDB and reads the list of runs."""
GRACE_SECONDS = 1.0
"""Between DuckDB's own interruption, which says what happened, and the end by force."""
READY = b"ready\n"
"""What the process says when its time begins."""
MOVED = "moved"
"""What the process answers if a file went away between being listed and being read."""


@dataclass(frozen=True)
class Recipe:
    """A question that is asked often."""

    title: str
    sql: str


RECIPES = {
    "rates": Recipe(
        "Rate by initialization",
        """SELECT init, count(*) FILTER (outcome = 'converged') AS converged, count(*) AS of_runs, converged / of_runs AS rate
FROM runs WHERE outcome IN ('converged', 'not_converged', 'diverged')
GROUP BY init ORDER BY rate DESC, of_runs DESC, init""",  # noqa: E501
    ),
    "worst": Recipe(
        "Worst layer by run",
        """WITH final AS (SELECT run, max(step) AS step FROM layers GROUP BY run)
SELECT run, step, arg_min(layer, grad_rms) AS layer, min(grad_rms) AS grad_rms, arg_min(signal_std, grad_rms) AS signal_std
FROM layers JOIN final USING (run, step)
GROUP BY run, step ORDER BY grad_rms, run LIMIT 1000""",  # noqa: E501
    ),
    "slowest": Recipe(
        "Slowest runs",
        """SELECT run, name, model, seconds, 1000 * seconds / step AS ms_per_step
FROM runs WHERE seconds > 0 AND step > 0
ORDER BY seconds DESC LIMIT 20""",
    ),
}

STATE = {
    "step": pa.int64(),
    "total_steps": pa.int64(),
    "epoch": pa.int64(),
    "seconds": pa.float64(),
    "images_per_second": pa.float64(),
    "train_loss": pa.float64(),
    "train_accuracy": pa.float64(),
    "val_loss": pa.float64(),
    "val_accuracy": pa.float64(),
    "chance": pa.float64(),
    "parameters": pa.int64(),
    "host": pa.string(),
    "created": pa.timestamp("us"),
    "started": pa.timestamp("us"),
    "ended": pa.timestamp("us"),
}
_KIND = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    tuple: pa.list_(pa.string()),
}
RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("name", pa.string()),
        ("status", pa.string()),
        ("outcome", pa.string()),
        ("loss", pa.float64()),
        ("accuracy", pa.float64()),
        *STATE.items(),
        ("error", pa.string()),
        ("tags", pa.list_(pa.string())),
        *((key, _KIND[option.kind]) for key, option in OPTIONS.items() if key not in ("name", "tags")),
    ]
)
"""``runs``: what the list shows, what ``status.json`` says, and every field of the configuration. Times are
UTC.
"""
VIEWS: dict[str, pa.Schema] = {"runs": RUNS} | {
    name: pa.schema(
        [
            ("run", pa.string()),
            *((f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema),
        ]
    )
    for name, schema in SCHEMAS.items()
}


@dataclass(frozen=True)
class Answer:
    """What a question gave. ``cut``: there are more rows than ``rows`` has."""

    rows: pa.Table
    cut: bool


def described() -> str:
    """The views with their columns, on one line."""
    return "; ".join(f"{name}({', '.join(schema.names)})" for name, schema in VIEWS.items())


def query(
    runs: Runs, sql: str, seconds: float = SECONDS, most: int = ROWS, most_bytes: int = BYTES
) -> Answer:
    """The answer to one SELECT over all runs, or to the recipe of that name; its first ``most`` rows, of at
    most ``most_bytes``.

    Raises QueryError for SQL that is wrong, more than one SELECT, or beyond the bounds; RunFolderError for a
    damaged file.
    """
    text = sql.strip()
    if len(text) > LONGEST:
        raise QueryError(
            f"a question may have {LONGEST:,} characters, not {len(text):,}; ask for less at once"
        )
    if text in RECIPES:
        text = RECIPES[text].sql
    elif text.isidentifier():
        raise QueryError(f"{choose_from('recipe', text, RECIPES)}; or a SELECT over {described()}")
    if runs.shared:
        _bring_here(runs, text)
    asked = {
        "root": str(runs.root.absolute()),
        "sql": text,
        "seconds": seconds,
        "most": most,
        "most_bytes": most_bytes,
    }
    deadline = time.monotonic() + ATTEMPTS * seconds
    for _ in range(ATTEMPTS):
        head, rows = _answered(asked)
        if "error" in head:
            kind = getattr(errors, str(head["error"]), QueryError)
            raise kind(head["message"])
        if not head.get(MOVED):  # a live run's parts became one, or a run was deleted: look again
            return Answer(pa.ipc.open_stream(rows).read_all(), bool(head["cut"]))
        if time.monotonic() > deadline:
            break
    raise RunFolderError("the runs keep changing while they are read; ask again")


def _bring_here(runs: Runs, text: str) -> None:
    """What an object store has of other machines' runs; the process that answers talks to no network."""
    for info in runs.list():
        if any(name in text.lower() for name in SCHEMAS):
            look(runs.root / info.run)


def _answered(asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """(first line, the rest) of what the process says. Raises QueryError if it does not answer in time."""
    seconds = asked["seconds"]
    with contextlib.closing(_service.open()) as line:
        line.sendall(json.dumps(asked).encode())
        line.shutdown(socket.SHUT_WR)
        told = _read(line, time.monotonic() + READY_SECONDS, until=READY)
        if told == READY:
            told = _read(line, time.monotonic() + seconds + GRACE_SECONDS)
            if told is None:
                raise too_slow(seconds)
        elif told is None:
            raise QueryError(
                f"the list of runs was not read within {READY_SECONDS:g} seconds; ask again when this "
                "machine is less busy"
            )
    head, _, rows = told.partition(b"\n")
    if not head:  # the limits of the operating system have ended it
        raise too_large()
    return json.loads(head), rows


def too_large() -> QueryError:
    return QueryError(f"the answer needs more than {MEMORY} of memory; ask for fewer runs or columns")


def too_slow(seconds: float) -> QueryError:
    return QueryError(
        f"no answer within {seconds:g} seconds; ask for fewer runs or columns, such as WHERE run = '...'"
    )


class _Service:
    """The process that has DuckDB loaded and forks one for each question; started with the first, and ends
    with this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None

    def open(self) -> socket.socket:
        """A line to a new process of its own, which is killed when the line is closed."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                socket.send_fds(self._running(), [b"?"], [theirs.fileno()])
            except OSError:  # it has been killed
                self._channel = None
                socket.send_fds(self._running(), [b"?"], [theirs.fileno()])
        return ours

    def _running(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair()
            # No secret of ours goes along, and no address: it reads a folder, whatever that folder is a copy
            # of.
            environment = {
                name: os.environ[name]
                for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ")
                if name in os.environ
            }
            environment |= {
                "INITSCOPE_READ_ONLY": "1",
                "INITSCOPE_SCRATCH": os.devnull,
                "OMP_NUM_THREADS": "1",
            }
            with theirs:
                process = subprocess.Popen(
                    module_command("initscope.store.query_process", theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            threading.Thread(
                target=process.wait, name="end of queries", daemon=True
            ).start()  # or it stays as a zombie of ours
        return self._channel


_service = _Service()


def _read(line: socket.socket, deadline: float, until: bytes = b"") -> bytes | None:
    """Bytes up to the end, or up to and with ``until``; None if the deadline comes first."""
    pieces = bytearray()
    while not until or not pieces.endswith(until):
        line.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            found = line.recv(len(until) - len(pieces) if until.startswith(pieces) and until else 1_000_000)
        except TimeoutError:
            return None
        except ConnectionError:
            break
        if not found:
            break
        pieces += found
    return bytes(pieces)
