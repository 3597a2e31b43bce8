"""Runs in an object store, where no rename is atomic: a scratch folder on this machine, and what goes up and
comes down.

``Runs("s3://bucket/runs")`` is a folder of its own below ``INITSCOPE_SCRATCH``. Every reader and writer works
in it as in any folder of runs; ``initscope.store.bucket.download`` fetches other machines' runs into it, and
a process beside (``initscope.store.bucket.upload``) copies up what this machine makes.

    .runs/<id>~card     config.json and status.json of a run; a run is there if and only if its card is
    .runs/<id>~meta     its name, tags and notes, which anybody may change
    .claims/<id>        which machine works on the run; written on condition that nobody else does
    .stops/<id>         somebody asks the run to stop
    <id>/...            the files of the run, as on a disk

A reader that rename would protect from half a run is protected by order instead. An object is replaced as a
whole, and what refers to it is written after it: rows, then the card with the status that speaks of them; a
merged or compacted file, and only then the parts it replaces are deleted. A reader that sees both skips the
parts, because the compacted file says how far it goes. Going down nothing is deleted before something that
covers it is there. So the list costs one request a thousand runs, at most once in ``REFRESH_SECONDS``, an
open run two more when its card has changed, and one for each file that has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from initscope.errors import RunFolderError, RunNotFound, RunStateError
from initscope.installation import module_command
from initscope.schema import LIVE
from initscope.store.bucket.download import ATTEMPTS, FETCHED, OURS, Mirror, json_object
from initscope.store.bucket.remote import Conflict, Remote
from initscope.store.files import FOREIGN_HEARTBEAT_SECONDS, number, write_json

ADDRESS = ".address.json"
_stores: dict[Path, Shared] = {}


def scratch() -> Path:
    """``INITSCOPE_SCRATCH``, else ``~/.cache/initscope/shared``: where runs of object stores are on this
    machine.
    """
    return Path(os.environ.get("INITSCOPE_SCRATCH") or Path.home() / ".cache" / "initscope" / "shared")


def folder_of(url: str) -> Path:
    """The scratch folder of an address, made if it is not there."""
    root = scratch().absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]
    for name in (OURS, FETCHED):
        (root / name).mkdir(parents=True, exist_ok=True)
    if not (root / ADDRESS).exists():
        write_json(root / ADDRESS, {"url": url})
    return root


def store_of(root: Path) -> Shared | None:
    """The store behind a folder of runs; None for a plain one. A folder from elsewhere sends us nowhere: only
    those in ``scratch`` count.
    """
    found = _stores.get(root)
    if (
        found is None
        and os.path.dirname(os.path.realpath(root)) == os.path.realpath(scratch())
        and (root / ADDRESS).is_file()
    ):
        found = _stores[root] = Shared(root, Remote(json.loads((root / ADDRESS).read_bytes())["url"]))
    return found


def refresh(root: Path) -> None:
    """Bring the list up to date where ``root`` stands for an object store. Raises RunFolderError."""
    if (store := store_of(root)) is not None:
        store.refresh()


def look(path: Path) -> None:
    """The same for the folder that the run ``path`` lies in, and the run's rows."""
    if (store := store_of(path.parent)) is not None:
        store.refresh()
        store.fetch(path.name)


@contextlib.contextmanager
def held(path: Path, files: bool) -> Iterator[None]:
    """While a run is worked on, it is this machine's, here and in the store; with ``files``, so are all its
    files.

    Raises RunStateError if it is another's.
    """
    store = store_of(path.parent)
    if store is None:
        yield
        return
    store.take(path.name, files)
    try:
        yield
    finally:
        if path.is_dir():
            store.ensure_shipper()


class Shared(Mirror):
    """One scratch folder and the store behind it: the mirror that readers look at, and what this machine's
    runs say to the others.
    """

    def __init__(self, root: Path, remote: Remote):
        super().__init__(root, remote)
        # As claims name this machine; a scratch folder belongs to one alone.
        self._name = {"host": socket.gethostname(), "scratch": str(root.absolute().parent)}

    # -- whose a run is

    def ours(self) -> list[str]:
        return sorted(os.listdir(self.root / OURS))

    def claim(self, run_id: str) -> None:
        """Make a new run this machine's before anything of it is seen. Raises RunStateError if the id is
        taken, RunFolderError on Windows.
        """
        if os.name == "nt":
            raise RunFolderError(
                f"runs go into {self.remote.url} from Linux and macOS only; record into a folder of this "
                "machine, and copy it"
            )
        try:
            self.remote.replace(f".claims/{run_id}", self._signed(), None)
        except Conflict:
            raise RunStateError(
                f"there is a run {run_id} already in {self.remote.url}; choose another id"
            ) from None
        (self.root / OURS / run_id).touch()

    def take(self, run_id: str, files: bool) -> None:
        """Make a run that has ended, or whose machine is gone, this machine's. Raises RunStateError if
        another works on it.
        """
        if self.owns(run_id):
            return
        self.refresh(now=True)
        if not (self.root / run_id).is_dir():
            raise RunNotFound(f"run {run_id} is gone: somebody has deleted it; choose another one")
        claim, token = self.remote.get_with_etag(f".claims/{run_id}")
        state = json_object((self.root / run_id / "status.json").read_bytes())
        beats = [
            json_object(claim).get("since"),
            state.get("heartbeat") if state.get("status") in LIVE else 0,
        ]
        try:
            if (
                token is not None
                and time.time() - max(number(beat) or 0 for beat in beats) < FOREIGN_HEARTBEAT_SECONDS
            ):
                raise Conflict  # its machine lives, or has just begun
            self.remote.replace(f".claims/{run_id}", self._signed(), token)
        except Conflict:
            raise RunStateError(
                f"another machine is working on run {run_id}; wait for it, or stop the run"
            ) from None
        if files:
            self.fetch(run_id, everything=True)
        (self.root / OURS / run_id).touch()

    def still_ours(self, run_id: str) -> bool:
        """Whether nobody has taken the run while this machine slept."""
        claim = json_object(self.remote.get_with_etag(f".claims/{run_id}")[0])
        return {key: claim.get(key) for key in self._name} == self._name

    def _signed(self) -> bytes:
        return json.dumps({**self._name, "since": time.time()}).encode()

    def let_go(self, run_id: str) -> None:
        """The run's last word is in the store: others may resume or delete it."""
        with self.locked(
            ".mirror.lock"
        ):  # no card that was read before may be taken for newer than what is here
            self.note_fetched(
                run_id, self.remote.listed(run_id), self.remote.listed(".runs").get(f"{run_id}~card", "")
            )
            self.remote.delete(f".stops/{run_id}", f".claims/{run_id}")
            (self.root / OURS / run_id).unlink(missing_ok=True)

    def ensure_shipper(self) -> None:
        """Start the process that copies this machine's runs up, unless one is there or there is nothing to
        copy.
        """
        if not self.ours():
            return
        with self.locked(".shipper.lock", wait=False) as free:
            if not free:
                return
        with open(self.root / ".shipper.log", "ab") as output:
            process = subprocess.Popen(
                module_command("initscope.store.bucket.upload", self.root),
                env={**os.environ, "INITSCOPE_SCRATCH": str(self.root.absolute().parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        threading.Thread(
            target=process.wait, name="shipper's end", daemon=True
        ).start()  # or it stays as a zombie of ours

    def wait_until_shipped(self, run_id: str, seconds: float = 300.0) -> None:
        """Wait until the store has all of a run. Raises RunFolderError after ``seconds``; the copying goes
        on.
        """
        deadline = time.monotonic() + seconds
        while self.owns(run_id):
            self.ensure_shipper()
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"run {run_id} is not all in {self.remote.url} after {seconds:g} s; it is whole in "
                    f"{self.root / run_id}, and copied on"
                )
            time.sleep(0.05)

    # -- what a person does to a run that may be another machine's

    def stop(self, run_id: str) -> None:
        if not self.owns(run_id):
            self.remote.put(f".stops/{run_id}", b"stop")

    def edit(self, run_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``changes`` into name, tags and notes in the store; two at once are both kept. Returns all of
        them.
        """
        for _ in range(ATTEMPTS):
            data, token = self.remote.get_with_etag(f".runs/{run_id}~meta")
            merged = {**json_object(data), **changes}
            with contextlib.suppress(Conflict):
                self.remote.replace(f".runs/{run_id}~meta", json.dumps(merged).encode(), token)
                return merged
        raise RunStateError(f"run {run_id} is being changed by others; try again")

    def forget(self, run_id: str) -> None:
        """Take a run out of every list."""
        self.remote.delete(f".runs/{run_id}~card", f".runs/{run_id}~meta")

    def remove(self, run_id: str) -> None:
        """Delete what is left of a run that is in no list."""
        self.remote.delete(
            *(f"{run_id}/{name}" for name in self.remote.listed(run_id)),
            f".stops/{run_id}",
            f".claims/{run_id}",
        )
        for folder in (OURS, FETCHED):
            (self.root / folder / run_id).unlink(missing_ok=True)
