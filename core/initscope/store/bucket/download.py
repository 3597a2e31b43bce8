"""What other machines' runs in an object store look like, copied into a scratch folder here: the list, and
one run's files at a time.

Nothing is deleted here before something that covers it is there, and nothing of a run that is this machine's
own is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import lock_descriptor

from initscope.errors import RunFolderError
from initscope.schema import CHECKPOINT, TABLES
from initscope.store.bucket.remote import Remote
from initscope.store.files import replacing, write_json
from initscope.store.parts import holds_through, parts

REFRESH_SECONDS = 1.0
OUTAGE_SECONDS = 45.0
"""So long a store that cannot be reached is not worth a word: what is here is shown, and no heartbeat is
overdue yet.
"""
ATTEMPTS = 8
POLL_SECONDS = 0.01
AGAIN_SECONDS = 0.1
"""Between two attempts, and so much longer before each further one."""
OURS, FETCHED, SEEN, REFRESHED = ".ours", ".fetched", ".seen.json", ".refreshed"
_TABLE = f"(?:{'|'.join(TABLES)})"
FILES = re.compile(
    rf"(?:config\.json|status\.json|log\.txt|checkpoint\.pt|{_TABLE}\.parquet|parts/{_TABLE}-\d{{8}}-\d{{8}}\.parquet)"
)
"""What is copied, up and down; anything else under a run's name is none of ours."""
_CARD = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,119})~(card|meta)")


class Mirror:
    """One scratch folder as readers see it, kept like the store behind it."""

    def __init__(self, root: Path, remote: Remote):
        self.root, self.remote = root, remote
        self._refreshing = threading.Lock()
        self._away = (0.0, "")
        """Until when a store that did not answer is left alone (monotonic seconds), and what it said."""

    def owns(self, run_id: str) -> bool:
        """Whether this machine works on the run, or has to say its last word on it."""
        return (self.root / OURS / run_id).exists()

    # -- the list

    def refresh(self, now: bool = False) -> None:
        """Cards that have changed since the last look, if that was ``REFRESH_SECONDS`` ago. Raises
        RunFolderError.
        """
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
            return json_object((self.root / SEEN).read_bytes())
        except FileNotFoundError:
            return {}

    def _take_card(self, run_id: str, data: bytes) -> None:
        if self.owns(run_id):
            return
        card = json_object(data)
        files = {
            name: json.dumps(card.get(key)).encode()
            for key, name in (("config", "config.json"), ("status", "status.json"))
        }
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

    # -- one run's files

    def fetch(self, run_id: str, everything: bool = False) -> None:
        """Those files of a run that have changed, if its card has since the last time; ``everything``: its
        checkpoint too. Raises RunFolderError.
        """
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
        listed = {
            name: token
            for name, token in self.remote.listed(run_id).items()
            if FILES.fullmatch(name) and not name.endswith(".json")
        }
        wanted = [
            name
            for name, token in listed.items()
            if have.get(name) != token and (everything or name != CHECKPOINT)
        ]
        small = self.remote.get_many(f"{run_id}/{name}" for name in wanted if name != CHECKPOINT)
        for name in sorted(wanted, key=lambda name: name.startswith("parts/")):
            if name == CHECKPOINT:
                with replacing(folder / name) as temporary:
                    self.remote.download(f"{run_id}/{name}", temporary)
            elif (data := small.get(f"{run_id}/{name}")) is not None:
                _put(folder / name, data)
            else:
                return False  # merged or compacted since it was listed
        for table in TABLES:
            for path in (folder / "parts").glob(f"{table}-*.parquet"):  # those too that a merged part hides
                if FILES.fullmatch(f"parts/{path.name}") and f"parts/{path.name}" not in listed:
                    last = int(path.stem.rpartition("-")[2])
                    merged = any(
                        end >= last
                        for _, end, other in parts(folder / "parts", table)
                        if f"parts/{other.name}" in listed
                    )
                    if not merged and _through(folder / f"{table}.parquet") < last:
                        return False  # nothing covers its rows yet: the list was made between two moments
                    path.unlink(missing_ok=True)
        got = {name: token for name, token in listed.items() if name in wanted or name in have}
        self.note_fetched(run_id, got, card)
        return True

    def _fetched(self, run_id: str) -> dict[str, Any]:
        try:
            return json_object((self.root / FETCHED / run_id).read_bytes())
        except FileNotFoundError:
            return {}

    def note_fetched(self, run_id: str, files: Mapping[str, str], card: str) -> None:
        """What is here of a run: its card and its files, by the tokens that they had in the store."""
        write_json(self.root / FETCHED / run_id, {"card": card, "files": dict(files)})

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Between processes of this machine; whether the lock could be had."""
        with open(self.root / name, "a") as file:
            yield lock_descriptor(file.fileno(), blocking=wait, poll_interval=POLL_SECONDS)


def json_object(data: bytes) -> dict[str, Any]:
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
