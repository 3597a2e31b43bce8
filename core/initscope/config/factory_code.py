"""Loading a file of somebody's own and calling a factory in it: what goes wrong there is told with its own
message and line.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from initscope.config.factory import Factory, parse, read
from initscope.errors import ConfigError, FactoryFailed


def load(spec: str, sha256: str = "") -> tuple[Factory, Callable[..., Any]]:
    """Run the file that ``spec`` names and return its factory. With ``sha256`` only these bytes are run.

    The file's folder joins ``sys.path``, so that it may import what lies beside it, as when it is run as a
    script. Raises ConfigError if there is no such callable, FactoryFailed if the file itself fails.
    """
    factory = parse(spec)
    if factory is None:
        raise ConfigError(f"{spec} does not name a factory as FILE.py:NAME")
    source = read(factory, sha256)
    module = types.ModuleType(f"initscope_{factory.path.stem}_{hashlib.sha256(source).hexdigest()[:8]}")
    module.__file__ = str(factory.path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up there
    folder = str(factory.path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with blamed(factory):
        exec(compile(source, str(factory.path), "exec", dont_inherit=True), module.__dict__)
    found = getattr(module, factory.name, None)
    if not callable(found):
        raise ConfigError(
            f"{factory.title} is {'missing' if found is None else type(found).__name__}, not a function or "
            "class"
        )
    return factory, found


def arguments(factory: Factory, made: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``offered`` that the callable ``made`` asks for by name. Raises ConfigError if it needs
    others.
    """
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return {}
    asked = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)]
    unknown = [
        p.name
        for p in asked
        if p.default is p.empty and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)
    ]
    if unknown:
        raise ConfigError(
            f"{factory.title} needs {', '.join(unknown)}; it may ask by name for {', '.join(offered)}, "
            "other arguments need a default"
        )
    return {p.name: offered[p.name] for p in asked if p.name in offered}


@contextlib.contextmanager
def blamed(factory: Factory) -> Iterator[None]:
    """Turn what is raised in somebody's own code into FactoryFailed: ``nets.py:12: ValueError: …``, with the
    cause kept for the log.
    """
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise FactoryFailed(f"{_place(factory, error)}: {_said(error)}") from error


def _place(factory: Factory, error: BaseException) -> str:
    """``file.py:12``: the deepest line of the file on the way to ``error``; without a line if it was not on
    the way.
    """
    if isinstance(error, SyntaxError) and error.filename == str(factory.path):
        return f"{factory.path.name}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(factory.path)
    ]
    return f"{factory.path.name}:{lines[-1]}" if lines else factory.title


def _said(error: BaseException) -> str:
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
