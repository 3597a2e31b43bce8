"""Copies what this machine's runs write into their object store: ``python -m initscope.store.bucket.upload
FOLDER``, one process a folder.

A process of its own, so that copying takes nothing from training, and goes on when a trainer is killed. It
leaves when every run's last word is in the store. Linux and macOS only: it asks by ``flock``'s shared lock,
which a reader may take, whether a run is worked on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from initscope.errors import InitScopeError
from initscope.schema import CHECKPOINT, LIVE, Status
from initscope.store.bucket.download import FILES, OURS
from initscope.store.bucket.folder import Shared, store_of
from initscope.store.files import alive, touch
from initscope.store.locks import claimed
from initscope.store.run import Run
from initscope.store.writer import set_status

SHIP_SECONDS = 0.7
IDLE_SECONDS = 5.0
LEASE_SECONDS = 20.0
"""A run's card is written anew at least this often; a machine that slept longer first asks whether the run is
still its own.
"""
CHECKPOINT_SECONDS = 30.0
"""A live run's checkpoint, which may be large, is copied at most this often."""
GONE_SECONDS = 5.0
"""A trainer that is gone for so long, and whose end nobody has written down, has crashed."""
UNMADE_SECONDS = 60.0

Stamp = tuple[int, int, int]


class Shipper:
    """All runs that are this machine's."""

    def __init__(self, store: Shared):
        self.store = store
        self.uploads: dict[str, RunUpload] = {}

    def serve(self) -> None:
        """Copy until nothing has been ours for ``IDLE_SECONDS``."""
        busy = time.monotonic()
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="ship") as pool:
            while time.monotonic() - busy < IDLE_SECONDS and self.store.root.exists():
                began = time.monotonic()
                ours = self.store.ours()
                self.uploads = {
                    run_id: self.uploads.get(run_id) or RunUpload(self.store, run_id) for run_id in ours
                }
                if ours:
                    busy = began
                    self._pass_on_stops()
                list(pool.map(_quietly, [cargo.ship for cargo in self.uploads.values()]))
                time.sleep(max(0.05, SHIP_SECONDS - (time.monotonic() - began)))

    def _pass_on_stops(self) -> None:
        def look() -> None:
            for run_id in self.store.remote.listed(".stops"):
                if run_id in self.uploads and self.uploads[run_id].status in LIVE:
                    with contextlib.suppress(OSError):
                        touch(self.store.root / run_id / "stop")

        if any(cargo.status in LIVE for cargo in self.uploads.values()):
            _quietly(look)


def _quietly(action: Any) -> None:
    try:
        action()
    except (
        InitScopeError,
        OSError,
    ) as error:  # a store or a disk that is away comes back: tried again in the next round
        print(
            f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ERROR {error}", file=sys.stderr, flush=True
        )
        time.sleep(1)


class RunUpload:
    """One run: what of it is in the store already."""

    def __init__(self, store: Shared, run_id: str):
        self.store, self.run = store, Run(store.root / run_id)
        self.status = str(Status.QUEUED)
        self._there: dict[str, Stamp | None] | None = None
        self._texts: dict[str, bytes] = {}
        self._card: tuple[bytes, float] = (b"", -LEASE_SECONDS)
        self._sure = -LEASE_SECONDS
        self._checkpoint = -CHECKPOINT_SECONDS
        self._missed: float | None = None

    def ship(self) -> None:
        """Copy what has changed, rows first; let the run go once its end is in the store."""
        if not self.run.path.is_dir():
            self._unmade()
            return
        now = time.monotonic()
        if now - self._sure > LEASE_SECONDS and not self.store.still_ours(self.run.id):
            touch(self.run.path / "stop")
            (self.store.root / OURS / self.run.id).unlink(missing_ok=True)
            return
        self._sure = now
        idle = self._idle()  # all of these before the rows: what they say is true of the rows that follow
        texts = {name: (self.run.path / name).read_bytes() for name in ("config.json", "status.json")}
        state = json.loads(texts["status.json"])
        self.status = state["status"]
        lost = self.status == Status.RUNNING and idle and not alive(state)
        if (
            lost and state.get("engine") != "ray"
        ):  # a run that a cluster has lost goes on: the next supervisor says how
            self._crashed(now)
            return
        if not self._rows(ended=self.status not in LIVE):
            return  # a part was merged away while it was copied: the next round has what it became
        for name, text in texts.items():
            if self._texts.get(name) != text:
                self.store.remote.put(f"{self.run.id}/{name}", text)
                self._texts[name] = text
        if self.status in LIVE and not lost and (idle or alive(state)):
            state["heartbeat"] = time.time()
        self._write_card({"config": json.loads(texts["config.json"]), "status": state}, texts, now)
        if self.status not in LIVE and idle:
            self.store.let_go(self.run.id)

    def _rows(self, ended: bool) -> bool:
        """Copy rows, log and checkpoint, then delete what they replaced. Whether all of it is there."""
        folder = self.run.path
        here = {name: stamp for name, stamp in _files(folder) if not name.endswith(".json")}
        if self._there is None:
            self._there = dict.fromkeys(self.store.remote.listed(self.run.id))
        whole = True
        for name, stamp in here.items():
            if self._there.get(name) == stamp or (name == CHECKPOINT and not self._checkpoint_due(ended)):
                continue
            try:
                self.store.remote.upload(folder / name, f"{self.run.id}/{name}")
                self._there[name] = stamp
            except FileNotFoundError:
                whole = False
        if whole and (
            gone := [name for name in self._there if name not in here and not name.endswith(".json")]
        ):
            self.store.remote.delete(*(f"{self.run.id}/{name}" for name in gone))
            for name in gone:
                del self._there[name]
        return whole

    def _checkpoint_due(self, ended: bool) -> bool:
        now = time.monotonic()
        if not ended and now - self._checkpoint < CHECKPOINT_SECONDS:
            return False
        self._checkpoint = now
        return True

    def _write_card(self, card: dict[str, Any], texts: dict[str, bytes], now: float) -> None:
        content = texts["config.json"] + texts["status.json"]
        if content != self._card[0] or (self.status in LIVE and now - self._card[1] > LEASE_SECONDS / 2):
            self.store.remote.put(f".runs/{self.run.id}~card", json.dumps(card).encode())
            self._card = content, now

    def _idle(self) -> bool:
        """Whether no process holds the run's lock."""
        try:
            with open(self.run.path / "worker.lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False

    def _crashed(self, now: float) -> None:
        """Write down the end of a trainer that no supervisor looked after."""
        self._missed = self._missed or now
        if now - self._missed > GONE_SECONDS:
            with claimed(self.run):
                set_status(
                    self.run,
                    status=str(Status.CRASHED),
                    error="the training process was killed, or its machine was",
                    ended=time.time(),
                )
            self._missed = None

    def _unmade(self) -> None:
        """A mark without a folder: the run is about to be made, or its maker was killed."""
        mark = self.store.root / OURS / self.run.id
        if time.time() - mark.stat().st_mtime > UNMADE_SECONDS:
            self.store.remote.delete(f".claims/{self.run.id}")
            mark.unlink()


def _files(folder: Path) -> Iterator[tuple[str, Stamp]]:
    """What there is to copy. The parts are listed first: what replaced a part that is not among them is there
    by then.
    """
    names = [f"parts/{name}" for name in sorted(os.listdir(folder / "parts"))] + sorted(os.listdir(folder))
    for name in names:
        if FILES.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(folder / name, follow_symlinks=False)
                yield name, (found.st_mtime_ns, found.st_size, found.st_ino)


def main(root: str) -> int:
    """Copy what is ours below ``root`` until nothing is; returns at once if another process does."""
    store = store_of(Path(root))
    if store is None:
        print(f"error: {root} is no folder of an object store's runs", file=sys.stderr)
        return 2
    while True:
        with store.locked(".shipper.lock", wait=False) as free:
            if not free:
                return 0
            Shipper(store).serve()
        if not store.ours():  # nothing came between the last look and the lock's release
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
