"""Networks and data sets of one's own: ``path/to/file.py:factory``, named and checked without running a line
of them.

The command line takes a file from anywhere: who can type a command can run Python anyway. A visitor of the
dashboard must not run code by sending a path, so every configuration made in its process is refused unless
the file lies directly in the one folder that the operator names in ``INITSCOPE_FACTORIES``.
``factories.pinning`` makes paths absolute and notes each file's SHA-256; what is loaded later
(``factories.code``) must be the same bytes. Importing this costs no torch.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from initscope.errors import ConfigError, one_line

FOLDER = "INITSCOPE_FACTORIES"
"""The environment variable that names the folder whose files the dashboard offers."""
FORM = "FILE.py:FACTORY"
ROLES = ("model", "data")
"""Config fields that may name a factory; each has its ``…_sha256`` beside it."""
ARCHITECTURE = ("width", "batch_norm", "dropout")
"""Config fields that shape the registered networks, and reach a factory only if it asks for them by name."""
_SPEC = re.compile(r"(?!image_folder:)(?P<file>.*\.py):(?P<name>[^\W\d]\w*)", re.DOTALL)
_trusted: ContextVar[bool] = ContextVar("own factories from anywhere", default=False)


@dataclass(frozen=True)
class Factory:
    """A file and the name of a callable in it."""

    path: Path
    name: str

    @property
    def title(self) -> str:
        """Without the folder: ``nets.py:deep``."""
        return f"{self.path.name}:{self.name}"

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


def parse(value: object) -> Factory | None:
    """The factory that ``value`` names, or None if it is no ``FILE.py:FACTORY``."""
    match = _SPEC.fullmatch(value) if isinstance(value, str) else None
    return Factory(Path(match["file"]), match["name"]) if match else None


def title(value: str) -> str:
    """How a model or data set is shown: a factory without its folder, any other name as it is."""
    factory = parse(value)
    return factory.title if factory else value


def read(factory: Factory, sha256: str = "") -> bytes:
    """The file's bytes. Raises ConfigError if it cannot be read or, with ``sha256``, if it is not that
    file.
    """
    try:
        source = factory.path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {factory.path}: {error.strerror or error}; check the path and who may read it"
        ) from None
    found = hashlib.sha256(source).hexdigest()
    if sha256 and found != sha256:
        raise ConfigError(
            f"{factory.path} has changed since this run was made (SHA-256 {sha256[:12]}… then, "
            f"{found[:12]}… now); restore it, or start a new run"
        )
    return source


# ---------------------------------------------------------------- who may name which file


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """In this block files from anywhere are taken: for the command line and for the workers that train saved
    runs.
    """
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def refusal(value: str) -> str | None:
    """Why this process does not take the factory ``value`` names; None if it does, or if it is no factory."""
    factory = parse(value)
    if factory is None or _trusted.get():
        return None
    folder = offered_folder()
    if folder is None:
        return (
            "a file of your own is taken on the command line only; the dashboard offers those of a folder "
            f"named in {FOLDER}"
        )
    try:
        inside = factory.path.is_absolute() and factory.path.resolve().parent == folder
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte
        inside = False
    return (
        None
        if inside
        else f"{one_line(value)} is not a file of the folder in {FOLDER}; choose one that is offered"
    )


def offered_folder() -> Path | None:
    """The folder that the operator names, without links on its way; None if none is named."""
    named = os.environ.get(FOLDER, "").strip()
    return Path(named).expanduser().resolve() if named else None


def offered(role: str) -> list[str]:
    """What the dashboard offers for ``role`` ("model" or "data"): public functions and classes of the
    folder's files.

    Told from the text alone: a class is a model if a base's name ends in "Module", a function by what its
    return annotation names ("Module", or "Dataset" or "tuple"); one without annotation is offered for both.
    """
    found = []
    for path in _files():
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # ``not_offered`` says so
            tree = ast.parse(path.read_bytes())
            found += [f"{path}:{getattr(node, 'name', '')}" for node in tree.body if _fits(node, role)]
    return found


def not_offered() -> dict[str, str]:
    """{file name: why} for the folder's files that cannot be read as Python: "line 3: invalid syntax"."""
    found = {}
    for path in _files():
        try:
            ast.parse(path.read_bytes())
        except SyntaxError as error:
            found[path.name] = f"line {error.lineno}: {error.msg}"
        except (OSError, ValueError) as error:
            found[path.name] = str(error)
    return found


def _files() -> list[Path]:
    folder = offered_folder()
    return [
        path
        for path in (sorted(folder.glob("*.py")) if folder and folder.is_dir() else ())
        if not path.name.startswith(("_", ".")) and not refusal(f"{path}:x")
    ]


def _fits(node: ast.stmt, role: str) -> bool:
    if isinstance(node, ast.ClassDef):
        return (
            role == "model"
            and not node.name.startswith("_")
            and any(ast.unparse(base).endswith("Module") for base in node.bases)
        )
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    if node.returns is None:
        return True
    words = ast.unparse(node.returns).lower()
    return "module" in words if role == "model" else "dataset" in words or "tuple" in words
