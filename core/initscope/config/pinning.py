"""Pinning a configuration to the files of its factories: absolute paths, and each file's SHA-256, so that
another process finds the same code later. Told from the files' text alone; not a line of them is run, and
importing this costs no torch.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from typing import Any

from initscope.config.factory import ARCHITECTURE, ROLES, Factory, parse, read
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, choose_from


def pin(config: RunConfig, stated: Collection[str] = ()) -> RunConfig:
    """``config`` with absolute paths and the files' SHA-256, so that another process finds the same code
    later.

    Of ``ARCHITECTURE``, what a model's factory does not take goes back to its default, for a preset's width
    says nothing about a network of one's own; what the person ``stated`` is refused instead. Raises
    ConfigError naming file and line if a file is missing, is no Python, lacks the factory, or is not the one
    that was pinned before.
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
    return (
        config.replace(**changes)
        if any(getattr(config, key) != value for key, value in changes.items())
        else config
    )


def check_unchanged(config: RunConfig) -> None:
    """Raises ConfigError if a file that ``config`` is pinned to has changed or is gone, or if it names one
    that it is not pinned to.
    """
    for role in ROLES:
        factory = parse(getattr(config, role))
        if factory and not (digest := getattr(config, f"{role}_sha256")):
            raise ConfigError(
                f"{role} names {factory} without the SHA-256 of the file ({role}_sha256), so whatever is in "
                "it would be run; start a new run with it"
            )
        if factory:
            read(factory, digest)


def _defaults(
    config: RunConfig, factory: Factory, takes: frozenset[str] | None, stated: Collection[str]
) -> dict[str, Any]:
    """Defaults for the fields of ``ARCHITECTURE`` that do not reach ``factory``. Raises ConfigError for one
    that was stated.
    """
    fresh = RunConfig()
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
    return (
        f"{name} {value} cannot reach {factory.title}: it takes {', '.join(takes) or 'no argument'}; give "
        f"it an argument named {name}"
    )


def _taken(source: bytes, factory: Factory) -> frozenset[str] | None:
    """Names of the arguments of ``factory``, from the text of its file; None if the text does not tell (an
    import, an assignment).
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(
            f"{factory.path.name}:{error.lineno or 1}: {type(error).__name__}: {error.msg}"
        ) from None
    except ValueError as error:  # null bytes
        raise ConfigError(f"{factory.path.name} is not Python: {error}") from None
    names = dict(_bound(tree.body))
    if factory.name not in names and "*" not in names:
        here = [
            name
            for name, node in names.items()
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not name.startswith("_")
        ]
        raise ConfigError(choose_from(f"factory in {factory.path.name}", factory.name, here))
    node = names.get(factory.name)
    if isinstance(node, ast.ClassDef):
        node = dict(_bound(node.body)).get("__init__")
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    return frozenset(
        argument.arg for argument in [*arguments.args, *arguments.kwonlyargs] if argument.arg != "self"
    )


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of everything that these statements may bind, inside top-level if, try and with
    too.
    """
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.split(".")[0], node) for alias in node.names)
        else:
            stored = (
                part
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
            yield from ((part.id, node) for part in stored)
            for field in ("body", "orelse", "finalbody"):
                yield from _bound([part for part in getattr(node, field, []) if isinstance(part, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                yield from _bound(handler.body)
