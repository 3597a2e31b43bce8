"""``query``: a question in SQL over all runs, and its answer as a table."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from initscope.commands.given import runs_of
from initscope.errors import QueryError
from initscope.store.query import query


def query_command(given: argparse.Namespace) -> dict[str, Any]:
    try:
        given.sql.encode()
    except UnicodeEncodeError:  # bytes of another encoding, as a shell passes them on
        raise QueryError("a question must be text in UTF-8; type it anew") from None
    answer = query(runs_of(given), given.sql)
    columns = answer.rows.column_names
    rows = [{key: _plain(value) for key, value in row.items()} for row in answer.rows.to_pylist()]
    if not given.json:
        cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if answer.cut:
        print(
            f"only the first {len(rows):,} rows are shown; ask for fewer, such as with LIMIT", file=sys.stderr
        )
    return {"columns": columns, "rows": rows, "cut": answer.cut}


def _plain(value: Any) -> Any:
    """A value of SQL's as JSON has it: times and what else it lacks as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _cell(value: Any) -> str:
    """A value as one line that moves no cursor: control characters are escaped."""
    if value is None or isinstance(value, float):
        return "" if value is None else f"{value:.4g}"
    line = " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
