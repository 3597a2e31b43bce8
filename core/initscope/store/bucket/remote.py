"""An object store as runs use it: list, get, put, delete, through fsspec. No run is understood here.

Credentials are the environment's (or the machine's own), never in an address; no message repeats what a
server or its library said, because that may quote them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from initscope.errors import ConfigError, RunFolderError, one_line

_URL = re.compile(r"([a-z][a-z0-9+]*)://(.+)")
_S3 = {
    "max_concurrency": 1,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}},
}
"""No question about an object's size before each reading; a store that does not answer is told of, not waited
for: whoever looks or copies asks again soon.
"""
AGAIN_SECONDS = 1.0
"""Where a store has no conditional writing, a claim is written, and read again so much later."""

Result = TypeVar("Result")


class Conflict(Exception):
    """The object is there already, or is not what it was: somebody else was faster."""


def remote_url(text: str) -> str | None:
    """The address of a folder in an object store, without its last "/"; None for a path on this machine.
    Raises ConfigError.
    """
    match = _URL.fullmatch(text)
    if match is None or match[1] == "file":
        return None
    if "@" in match[2] or "?" in match[2]:  # not repeated: it is a secret
        raise ConfigError(
            "the address of the runs must not hold credentials or options; give them in the environment, as "
            "usual for its store"
        )
    return text.rstrip("/")


class Remote:
    """The objects under one address. Names are relative to it. Every method raises RunFolderError if the
    store cannot be reached.
    """

    def __init__(self, url: str):
        self.url = url
        self._opened: tuple[int, Any] | None = None

    @property
    def _s3(self) -> bool:
        return self.url.startswith(("s3://", "s3a://"))

    @property
    def _fs(self) -> Any:
        if (
            self._opened is None or self._opened[0] != os.getpid()
        ):  # a forked worker needs connections of its own
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> Any:
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            return fsspec.url_to_fs(
                self.url, skip_instance_cache=True, use_listings_cache=False, **(_S3 if self._s3 else {})
            )
        except ImportError:
            package = {
                "s3": "s3fs",
                "s3a": "s3fs",
                "gs": "gcsfs",
                "gcs": "gcsfs",
                "az": "adlfs",
                "abfs": "adlfs",
            }.get(protocol)
            raise ConfigError(
                f"{protocol}:// needs a package that is not installed: pip install "
                f"{package or 'what fsspec names for it'}"
            ) from None
        except ValueError:
            raise ConfigError(
                f"{one_line(self.url)} is not an address that fsspec knows; expected one such as "
                "s3://bucket/runs, gs://bucket/runs or file:///path"
            ) from None

    def _path(self, name: str) -> str:
        return f"{self._fs[1].rstrip('/')}/{name}"

    def _asked(self, what: str, action: Callable[[Any], Result]) -> Result:
        """``action`` on the file system, its errors as one of ours. FileNotFoundError and Conflict are
        answers and pass.
        """
        fs = self._fs[0]
        try:
            return action(fs)
        except (FileNotFoundError, Conflict):
            raise
        except Exception as error:  # what lies under fsspec has errors of its own in every store
            kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
            if isinstance(error, PermissionError) or "Credential" in kinds:
                why = "access is refused; check the credentials in the environment and what they allow"
            else:
                why = (
                    f"it cannot be reached ({type(error).__name__}); check the address, the network and the "
                    "endpoint"
                )
            raise RunFolderError(f"cannot {what} {one_line(self.url)}: {why}") from None

    def listed(self, folder: str) -> dict[str, str]:
        """{name below ``folder``: a token that changes with its content}, of all objects there. One request a
        thousand objects.
        """

        def look(fs: Any) -> dict[str, str]:
            start = self._path(folder).rstrip("/") + "/"
            # s3fs asks twice more about a folder in which there is nothing, but not about a prefix.
            found = (
                fs.find(self._fs[1], prefix=f"{folder}/", detail=True)
                if self._s3
                else fs.find(start, detail=True)
            )
            return {
                name.partition(start)[2] or name.rpartition("/")[2]: _token(info)
                for name, info in found.items()
            }

        try:
            return self._asked("list", look)
        except FileNotFoundError:
            raise RunFolderError(
                f"cannot list {one_line(self.url)}: there is no such bucket; make it, or correct the address"
            ) from None

    def get(self, name: str) -> bytes:
        """An object's bytes. Raises FileNotFoundError."""
        return self._asked("read from", lambda fs: fs.cat_file(self._path(name)))

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those objects that are there, fetched side by side."""
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}

        def fetch(fs: Any) -> dict[str, bytes]:
            found = fs.cat(list(paths), on_error="return") if len(paths) > 1 else {}
            if len(paths) == 1:
                [path] = paths
                try:
                    found = {path: fs.cat_file(path)}
                except FileNotFoundError:
                    return {}
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            return {
                paths[fs._strip_protocol(path)]: value
                for path, value in found.items()
                if isinstance(value, bytes)
            }

        return self._asked("read from", fetch)

    def download(self, name: str, target: Path) -> None:
        """An object into a file, however large. Raises FileNotFoundError."""
        self._asked("read from", lambda fs: fs.get_file(self._path(name), str(target)))

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole, over what was there."""
        self._asked("write to", lambda fs: fs.pipe_file(self._path(name), data))

    def upload(self, source: Path, name: str) -> None:
        """A file as an object, however large."""
        self._asked("write to", lambda fs: fs.put_file(str(source), self._path(name)))

    def delete(self, *names: str) -> None:
        """Remove objects; those that are not there are no error."""

        def remove(fs: Any) -> None:
            for name in names:
                try:
                    fs.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

        self._asked("delete from", remove)

    # -- one writer of several

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """An object's bytes and the token they had or were given since; (b"", None) if there is none."""
        try:
            token = self._asked("read from", lambda fs: _token(fs.info(self._path(name))))
            return self.get(name), token
        except FileNotFoundError:
            return b"", None

    def replace(self, name: str, data: bytes, token: str | None) -> None:
        """Write an object if it is still as ``seen`` (None: not there). Raises Conflict if it is not.

        S3 decides that itself (If-None-Match, If-Match). Elsewhere it is written and read again a moment
        later: of several writers the last one's stays, and the others see that it is not theirs.
        """
        path = self._path(name)

        def conditionally(fs: Any) -> None:
            try:
                fs.pipe_file(path, data, **({"IfNoneMatch": "*"} if token is None else {"IfMatch": token}))
            except FileNotFoundError:
                raise Conflict from None
            except OSError as error:
                if _refused(error):
                    raise Conflict from None
                raise

        def and_look_again(fs: Any) -> None:
            before = self.get_with_etag(name)[1]
            if before != token:
                raise Conflict
            fs.pipe_file(path, data)
            time.sleep(AGAIN_SECONDS)
            if self.get(name) != data:
                raise Conflict

        self._asked("write to", conditionally if self._s3 else and_look_again)


def _token(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "generation", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key])
    changed = (
        info.get("mtime") or info.get("created") or info.get("LastModified") or info.get("last_modified")
    )
    return f"{changed}:{info.get('size')}"


def _refused(error: BaseException | None) -> bool:
    """Whether a server said that the condition of a write does not hold."""
    while error is not None:
        code = str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
        if isinstance(error, FileExistsError) or code in (
            "PreconditionFailed",
            "ConditionalRequestConflict",
            "412",
            "409",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
