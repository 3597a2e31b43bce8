"""Runs in an object store, where no rename is atomic: a scratch folder on this machine, and what goes up and comes down.

``Runs("s3://bucket/runs")`` is a folder of its own below ``INITSCOPE_SCRATCH``. Every reader and writer works in it as in any folder of
runs; this module fetches other machines' runs into it, and a process beside (``core.store.ship``) copies up what this machine makes.

    .runs/<id>~card     config.json and status.json of a run; a run is there if and only if its card is
    .runs/<id>~meta     its name, tags and notes, which anybody may change
    .claims/<id>        which machine works on the run; written on condition that nobody else does
    .stops/<id>         somebody asks the run to stop
    <id>/...            the files of the run, as on a disk

A reader that rename would protect from half a run is protected by order instead. An object is replaced as a whole, and what refers
to it is written after it: rows, then the card with the status that speaks of them; a merged or compacted file, and only then
the parts it replaces are deleted. A reader that sees both skips the parts, because the compacted file says how far it goes.
Going down nothing is deleted before something that covers it is there. So the list costs one request a thousand runs, at most
once in ``REFRESH_SECONDS``, an open run two more when its card has changed, and one for each file that has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.errors import RunFolderError, RunNotFound, RunStateError
from core.schema import CHECKPOINT, LIVE
from core.store.files import FOREIGN_HEARTBEAT_SECONDS, number, replacing, write_json
from core.store.parts import holds_through, parts
from core.store.remote import Remote, Taken

REFRESH_SECONDS = 1.0
OUTAGE_SECONDS = 45.0
"""So long a store that cannot be reached is not worth a word: what is here is shown, and no heartbeat is overdue yet."""
ATTEMPTS = 8
AGAIN_SECONDS = 0.1
"""Between two attempts, and so much longer before each further one."""
ADDRESS, OURS, FETCHED, SEEN, REFRESHED = ".address.json", ".ours", ".fetched", ".seen.json", ".refreshed"
FILES = re.compile(r"(?:config\.json|status\.json|log\.txt|checkpoint\.pt|(?:steps|epochs|layers)\.parquet|parts/(?:steps|epochs|layers)-\d{8}-\d{8}\.parquet)")
"""What is copied, up and down; anything else under a run's name is none of ours."""
_stores: dict[Path, Shared] = {}
_CARD = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,119})~(card|meta)")


def scratch() -> Path:
    """``INITSCOPE_SCRATCH``, else ``~/.cache/initscope/shared``: where runs of object stores are on this machine."""
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
    """The store behind a folder of runs; None for a plain one. A folder from elsewhere sends us nowhere: only those in ``scratch`` count."""
    found = _stores.get(root)
    if found is None and os.path.dirname(os.path.realpath(root)) == os.path.realpath(scratch()) and (root / ADDRESS).is_file():
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
    """While a run is worked on, it is this machine's, here and in the store; with ``files``, so are all its files.

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


class Shared:
    """One scratch folder and the store behind it."""

    def __init__(self, root: Path, remote: Remote):
        self.root, self.remote = root, remote
        # As claims name this machine; a scratch folder belongs to one alone.
        self._name = {"host": socket.gethostname(), "scratch": str(root.absolute().parent)}
        self._refreshing = threading.Lock()
        self._away = (0.0, "")
        """Until when a store that did not answer is left alone (monotonic seconds), and what it said."""

    # -- whose a run is

    def owns(self, run_id: str) -> bool:
        """Whether this machine works on the run, or has to say its last word on it."""
        return (self.root / OURS / run_id).exists()

    def ours(self) -> list[str]:
        return sorted(os.listdir(self.root / OURS))

    def claim(self, run_id: str) -> None:
        """Make a new run this machine's before anything of it is seen. Raises RunStateError if the id is taken."""
        try:
            self.remote.replace(f".claims/{run_id}", self._signed(), None)
        except Taken:
            raise RunStateError(f"there is a run {run_id} already in {self.remote.url}; choose another id") from None
        (self.root / OURS / run_id).touch()

    def take(self, run_id: str, files: bool) -> None:
        """Make a run that has ended, or whose machine is gone, this machine's. Raises RunStateError if another works on it."""
        if self.owns(run_id):
            return
        self.refresh(now=True)
        if not (self.root / run_id).is_dir():
            raise RunNotFound(f"run {run_id} is gone: somebody has deleted it; choose another one")
        claim, token = self.remote.seen(f".claims/{run_id}")
        state = _object((self.root / run_id / "status.json").read_bytes())
        beats = [_object(claim).get("since"), state.get("heartbeat") if state.get("status") in LIVE else 0]
        try:
            if token is not None and time.time() - max(number(beat) or 0 for beat in beats) < FOREIGN_HEARTBEAT_SECONDS:
                raise Taken  # its machine lives, or has just begun
            self.remote.replace(f".claims/{run_id}", self._signed(), token)
        except Taken:
            raise RunStateError(f"another machine is working on run {run_id}; wait for it, or stop the run") from None
        if files:
            self.fetch(run_id, everything=True)
        (self.root / OURS / run_id).touch()

    def still_ours(self, run_id: str) -> bool:
        """Whether nobody has taken the run while this machine slept."""
        claim = _object(self.remote.seen(f".claims/{run_id}")[0])
        return {key: claim.get(key) for key in self._name} == self._name

    def _signed(self) -> bytes:
        return json.dumps({**self._name, "since": time.time()}).encode()

    def let_go(self, run_id: str) -> None:
        """The run's last word is in the store: others may resume or delete it."""
        with self.locked(".mirror.lock"):  # no card that was read before may be taken for newer than what is here
            self._note_fetched(run_id, self.remote.listed(run_id), self.remote.listed(".runs").get(f"{run_id}~card", ""))
            self.remote.delete(f".stops/{run_id}", f".claims/{run_id}")
            (self.root / OURS / run_id).unlink(missing_ok=True)

    def ensure_shipper(self) -> None:
        """Start the process that copies this machine's runs up, unless one is there or there is nothing to copy."""
        if not self.ours():
            return
        with self.locked(".shipper.lock", wait=False) as free:
            if not free:
                return
        with open(self.root / ".shipper.log", "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "core.store.ship", str(self.root)],
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, "INITSCOPE_SCRATCH": str(self.root.absolute().parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        threading.Thread(target=process.wait, name="shipper's end", daemon=True).start()  # or it stays as a zombie of ours

    def wait_until_shipped(self, run_id: str, seconds: float = 300.0) -> None:
        """Wait until the store has all of a run. Raises RunFolderError after ``seconds``; the copying goes on."""
        deadline = time.monotonic() + seconds
        while self.owns(run_id):
            self.ensure_shipper()
            if time.monotonic() > deadline:
                raise RunFolderError(f"run {run_id} is not all in {self.remote.url} after {seconds:g} s; it is whole in {self.root / run_id}, and copied on")
            time.sleep(0.05)

    # -- what a person does to a run that may be another machine's

    def stop(self, run_id: str) -> None:
        if not self.owns(run_id):
            self.remote.put(f".stops/{run_id}", b"stop")

    def edit(self, run_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``changes`` into name, tags and notes in the store; two at once are both kept. Returns all of them."""
        for _ in range(ATTEMPTS):
            data, token = self.remote.seen(f".runs/{run_id}~meta")
            merged = {**_object(data), **changes}
            with contextlib.suppress(Taken):
                self.remote.replace(f".runs/{run_id}~meta", json.dumps(merged).encode(), token)
                return merged
        raise RunStateError(f"run {run_id} is being changed by others; try again")

    def forget(self, run_id: str) -> None:
        """Take a run out of every list."""
        self.remote.delete(f".runs/{run_id}~card", f".runs/{run_id}~meta")

    def remove(self, run_id: str) -> None:
        """Delete what is left of a run that is in no list."""
        self.remote.delete(*(f"{run_id}/{name}" for name in self.remote.listed(run_id)), f".stops/{run_id}", f".claims/{run_id}")
        for folder in (OURS, FETCHED):
            (self.root / folder / run_id).unlink(missing_ok=True)

    # -- down: the list

    def refresh(self, now: bool = False) -> None:
        """Cards that have changed since the last look, if that was ``REFRESH_SECONDS`` ago. Raises RunFolderError."""
        stamp = self.root / REFRESHED
        if not now and 0 <= _age(stamp) < REFRESH_SECONDS:
            return
        with self._refreshing, self.locked(".mirror.lock"):
            if not now and 0 <= _age(stamp) < REFRESH_SECONDS:
                return  # another thread or process has just looked
            until, told = self._away
            if not now and time.monotonic() < until:
                if self._away_too_long():
                    raise RunFolderError(told)
                return
            began = time.monotonic()
            try:
                self._refresh()
            except RunFolderError as error:
                # Asking in vain may never take more than a quarter of the time of whoever looks.
                self._away = time.monotonic() + 3 * (time.monotonic() - began), str(error)
                if now or self._away_too_long():
                    raise
                os.utime(stamp)  # not again at once
                return
            stamp.write_text(str(time.time()))

    def _refresh(self) -> None:
        listed = {name: token for name, token in self.remote.listed(".runs").items() if _CARD.fullmatch(name)}
        seen = self._seen()
        changed = [name for name, token in listed.items() if seen.get(name) != token]
        found = self.remote.get_many(f".runs/{name}" for name in changed)
        for name in sorted(changed):  # a run's card comes before its meta
            data = found.get(f".runs/{name}")
            if data is None:
                listed.pop(name)  # deleted between the two
            elif name.endswith("~card"):
                self._take_card(name.removesuffix("~card"), data)
            elif (self.root / name.removesuffix("~meta")).is_dir():
                _put(self.root / name.removesuffix("~meta") / "meta.json", data)
        # A listing may lag behind: what it no longer has is gone only if asking for it says so too.
        gone = seen.keys() - listed.keys()
        there = self.remote.get_many(f".runs/{name}" for name in gone)
        listed |= {name: seen[name] for name in gone if f".runs/{name}" in there}
        for name in seen.keys() - listed.keys():
            run_id, _, kind = name.partition("~")
            if kind == "card" and not self.owns(run_id):
                self._drop(run_id)
            elif kind == "meta":
                (self.root / run_id / "meta.json").unlink(missing_ok=True)
        if changed or seen.keys() != listed.keys():
            write_json(self.root / SEEN, listed)

    def _away_too_long(self) -> bool:
        """Whether the store has not answered for so long that it is worth a word."""
        return _age(self.root / REFRESHED, by_content=True) > OUTAGE_SECONDS

    def _seen(self) -> dict[str, str]:
        try:
            return _object((self.root / SEEN).read_bytes())
        except FileNotFoundError:
            return {}

    def _take_card(self, run_id: str, data: bytes) -> None:
        if self.owns(run_id):
            return
        card = _object(data)
        files = {name: json.dumps(card.get(key)).encode() for key, name in (("config", "config.json"), ("status", "status.json"))}
        folder = self.root / run_id
        if folder.is_dir():
            for name, text in files.items():
                _put(folder / name, text)
            return
        temporary = self.root / f".new-{secrets.token_hex(6)}"
        (temporary / "parts").mkdir(parents=True)
        for name, text in files.items():
            (temporary / name).write_bytes(text)
        os.rename(temporary, folder)  # here it is atomic: a reader sees the run whole or not at all

    def _drop(self, run_id: str) -> None:
        grave = self.root / f".deleted-{run_id}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.root / run_id, grave)
            shutil.rmtree(grave)
        (self.root / FETCHED / run_id).unlink(missing_ok=True)

    # -- down: one run's files

    def fetch(self, run_id: str, everything: bool = False) -> None:
        """Those files of a run that have changed, if its card has since the last time; ``everything``: its checkpoint too. Raises RunFolderError."""
        if self.owns(run_id) or not (self.root / run_id).is_dir():
            return
        card = self._seen().get(f"{run_id}~card", "")
        if not everything and self._fetched(run_id).get("card") == card:
            return
        with self.locked(".fetch.lock"):
            here = not everything and bool(self._fetched(run_id))
            for attempt in range(ATTEMPTS):
                try:
                    if self._fetch(run_id, card, everything):
                        return
                except RunFolderError:
                    if here and not self._away_too_long():
                        return
                    raise
                if attempt and here:
                    return  # whole, if not the latest: shown until a listing has caught up
                time.sleep(AGAIN_SECONDS * attempt)
                card = self._seen().get(f"{run_id}~card", "")
        raise RunFolderError(f"run {run_id}: its files keep moving in {self.remote.url}; try again")

    def _fetch(self, run_id: str, card: str, everything: bool) -> bool:
        """Whether what is here now is all of what the store has."""
        folder, have = self.root / run_id, self._fetched(run_id).get("files", {})
        listed = {name: token for name, token in self.remote.listed(run_id).items() if FILES.fullmatch(name) and not name.endswith(".json")}
        wanted = [name for name, token in listed.items() if have.get(name) != token and (everything or name != CHECKPOINT)]
        small = self.remote.get_many(f"{run_id}/{name}" for name in wanted if name != CHECKPOINT)
        for name in sorted(wanted, key=lambda name: name.startswith("parts/")):
            if name == CHECKPOINT:
                with replacing(folder / name) as temporary:
                    self.remote.download(f"{run_id}/{name}", temporary)
            elif (data := small.get(f"{run_id}/{name}")) is not None:
                _put(folder / name, data)
            else:
                return False  # merged or compacted since it was listed
        for table in ("steps", "epochs", "layers"):
            for path in (folder / "parts").glob(f"{table}-*.parquet"):  # those too that a merged part hides
                if FILES.fullmatch(f"parts/{path.name}") and f"parts/{path.name}" not in listed:
                    last = int(path.stem.rpartition("-")[2])
                    merged = any(end >= last for _, end, other in parts(folder / "parts", table) if f"parts/{other.name}" in listed)
                    if not merged and _through(folder / f"{table}.parquet") < last:
                        return False  # nothing covers its rows yet: the list was made between two moments
                    path.unlink(missing_ok=True)
        got = {name: token for name, token in listed.items() if name in wanted or name in have}
        self._note_fetched(run_id, got, card)
        return True

    def _fetched(self, run_id: str) -> dict[str, Any]:
        try:
            return _object((self.root / FETCHED / run_id).read_bytes())
        except FileNotFoundError:
            return {}

    def _note_fetched(self, run_id: str, files: Mapping[str, str], card: str) -> None:
        write_json(self.root / FETCHED / run_id, {"card": card, "files": dict(files)})

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Between processes of this machine; whether the lock could be had."""
        with open(self.root / name, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``; an empty one for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _put(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _through(final: Path) -> int:
    try:
        return holds_through(final)
    except (RunFolderError, pa.ArrowException):
        return -1


def _age(stamp: Path, by_content: bool = False) -> float:
    """Seconds since the file was touched, or since the moment that is written in it."""
    try:
        return time.time() - (float(stamp.read_text() or 0) if by_content else stamp.stat().st_mtime)
    except (OSError, ValueError):
        return float("inf")
