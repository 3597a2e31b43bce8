"""Networks and data sets of one's own: ``path/to/file.py:factory``, named, checked and pinned without running a line of them.

The command line takes a file from anywhere: who can type a command can run Python anyway. A visitor of the dashboard must not run
code by sending a path, so every configuration made in its process is refused unless the file lies directly in the one folder
that the operator names in ``INITSCOPE_FACTORIES``. ``pin`` makes paths absolute and notes each file's SHA-256; what is loaded
later (``factories.code``) must be the same bytes. Importing this costs no torch.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError, choose_from, one_line

if TYPE_CHECKING:
    from core.config import RunConfig

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


# ---------------------------------------------------------------- who may name which file


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """In this block files from anywhere are taken: for the command line and for the workers that train saved runs."""
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
        return f"a file of your own is taken on the command line only; the dashboard offers those of a folder named in {FOLDER}"
    try:
        inside = factory.path.is_absolute() and factory.path.resolve().parent == folder
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte
        inside = False
    return None if inside else f"{one_line(value)} is not a file of the folder in {FOLDER}; choose one that is offered"


def offered_folder() -> Path | None:
    """The folder that the operator names, without links on its way; None if none is named."""
    named = os.environ.get(FOLDER, "").strip()
    return Path(named).expanduser().resolve() if named else None


def offered(role: str) -> list[str]:
    """What the dashboard offers for ``role`` ("model" or "data"): public functions and classes of the folder's files.

    Told from the text alone: a class is a model if a base's name ends in "Module", a function by what its return
    annotation names ("Module", or "Dataset" or "tuple"); one without annotation is offered for both.
    """
    folder = offered_folder()
    found = []
    for path in sorted(folder.glob("*.py")) if folder and folder.is_dir() else ():
        if path.name.startswith(("_", ".")) or refusal(f"{path}:x"):
            continue
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # half-written: offered when it can be read again
            tree = ast.parse(path.read_bytes())
            found += [f"{path}:{node.name}" for node in tree.body if _fits(node, role)]
    return found


def _fits(node: ast.stmt, role: str) -> bool:
    if isinstance(node, ast.ClassDef):
        return role == "model" and not node.name.startswith("_") and any(ast.unparse(base).endswith("Module") for base in node.bases)
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    if node.returns is None:
        return True
    words = ast.unparse(node.returns).lower()
    return "module" in words if role == "model" else "dataset" in words or "tuple" in words


# ---------------------------------------------------------------- pinning a configuration to files


def pin(config: RunConfig, stated: Collection[str] = ()) -> RunConfig:
    """``config`` with absolute paths and the files' SHA-256, so that another process finds the same code later.

    Of ``ARCHITECTURE``, what a model's factory does not take goes back to its default, for a preset's width says nothing about a
    network of one's own; what the person ``stated`` is refused instead. Raises ConfigError naming file and line if a file
    is missing, is no Python, lacks the factory, or is not the one that was pinned before.
    """
    changes: dict[str, Any] = {}
    for role in ROLES:
        factory, digest = parse(getattr(config, role)), f"{role}_sha256"
        if factory is None:
            changes[digest] = ""
            continue
        factory = Factory(factory.path.expanduser().resolve(), factory.name)
        source = read(factory, getattr(config, digest))
        takes = _taken(source, factory)
        changes |= {role: str(factory), digest: hashlib.sha256(source).hexdigest()}
        if role == "model":
            changes |= _defaults(config, factory, takes, stated)
    return config.replace(**changes) if any(getattr(config, key) != value for key, value in changes.items()) else config


def read(factory: Factory, sha256: str = "") -> bytes:
    """The file's bytes. Raises ConfigError if it cannot be read or, with ``sha256``, if it is not that file."""
    try:
        source = factory.path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {factory.path}: {error.strerror or error}; check the path and who may read it") from None
    found = hashlib.sha256(source).hexdigest()
    if sha256 and found != sha256:
        raise ConfigError(
            f"{factory.path} has changed since this run was made (SHA-256 {sha256[:12]}… then, {found[:12]}… now); restore it, or start a new run"
        )
    return source


def check_unchanged(config: RunConfig) -> None:
    """Raises ConfigError if a file that ``config`` is pinned to has changed or is gone."""
    for role in ROLES:
        factory = parse(getattr(config, role))
        if factory:
            read(factory, getattr(config, f"{role}_sha256"))


def _defaults(config: RunConfig, factory: Factory, takes: frozenset[str] | None, stated: Collection[str]) -> dict[str, Any]:
    """Defaults for the fields of ``ARCHITECTURE`` that do not reach ``factory``. Raises ConfigError for one that was stated."""
    fresh = type(config)()
    changes = {}
    for name in ARCHITECTURE:
        value, usual = getattr(config, name), getattr(fresh, name)
        if value == usual or (takes is not None and name in takes):
            continue
        if name not in stated:
            changes[name] = usual
        elif takes is not None:
            raise ConfigError(not_taken(factory, name, value, takes), name)
    return changes


def not_taken(factory: Factory, name: str, value: object, takes: Collection[str]) -> str:
    """The message for a config field that a factory does not ask for."""
    return f"{name} {value} cannot reach {factory.title}: it takes {', '.join(takes) or 'no argument'}; give it an argument named {name}"


def _taken(source: bytes, factory: Factory) -> frozenset[str] | None:
    """Names of the arguments of ``factory``, from the text of its file; None if the text does not tell (an import, an assignment)."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"{factory.path.name}:{error.lineno or 1}: {type(error).__name__}: {error.msg}") from None
    except ValueError as error:  # null bytes
        raise ConfigError(f"{factory.path.name} is not Python: {error}") from None
    names = dict(_bound(tree.body))
    if factory.name not in names and "*" not in names:
        here = [name for name, node in names.items() if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not name.startswith("_")]
        raise ConfigError(choose_from(f"factory in {factory.path.name}", factory.name, here))
    node = names.get(factory.name)
    if isinstance(node, ast.ClassDef):
        node = dict(_bound(node.body)).get("__init__")
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    return frozenset(argument.arg for argument in [*arguments.args, *arguments.kwonlyargs] if argument.arg != "self")


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of everything that these statements may bind, inside top-level if, try and with too."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.split(".")[0], node) for alias in node.names)
        else:
            stored = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
            yield from ((part.id, node) for part in stored)
            for field in ("body", "orelse", "finalbody"):
                yield from _bound([part for part in getattr(node, field, []) if isinstance(part, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                yield from _bound(handler.body)
