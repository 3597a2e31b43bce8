"""``initscope``: runs one command, prints its JSON, and says in one line what went wrong."""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from initscope.commands.parser import build_parser
from initscope.config import factory
from initscope.errors import InitScopeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        given = build_parser().parse_args(arguments)
        with factory.trusted():
            result = pkgutil.resolve_name(given.command)(given)
        if given.json:
            print(json.dumps(finite(result)))
        sys.stdout.flush()
        return 0
    except InitScopeError as error:
        _complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _complain(error)
        return 1


LONGEST = 1_000
"""Characters of a complaint: what somebody typed may be longer than anybody reads."""


def _complain(error: Exception) -> None:
    """One line on standard error, its middle left out if it is too long."""
    told = " ".join(str(error).split())
    half = LONGEST // 2
    print("error:", told if len(told) <= LONGEST else f"{told[:half]} … {told[-half:]}", file=sys.stderr)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def run() -> int:
    """The console script: ``main`` with streams that a name which the terminal cannot show does not break."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return main()


if __name__ == "__main__":
    sys.exit(run())
