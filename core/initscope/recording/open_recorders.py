"""The Recorders of this process that are recording, for what ends them from outside of their block.

A forked child must not write into its parent's runs; a notebook's cell that runs again leaves the Recorder of
its earlier execution behind; and the process may end first. Nothing here keeps a Recorder alive: one that
nobody holds any more ends its run by itself.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from initscope.recording.recorder import Recorder

_open: weakref.WeakSet[Recorder] = weakref.WeakSet()


@dataclass(frozen=True)
class Cell:
    """Which notebook cell something happened in (its id, or its code's file), and in which of the session's
    executions.
    """

    cell: str
    execution: int


def opened(recorder: Recorder) -> None:
    """Note that ``recorder`` has begun; end those that an earlier execution of its notebook left open, of the
    same model or cell.
    """
    here = recorder.cell
    for other in list(_open):
        earlier = here is not None and other.cell is not None and other.cell.execution != here.execution
        if earlier and (other.model is recorder.model or _same_cell(other.cell, here)):
            other.leave("the notebook's cell was run again")
    _open.add(recorder)


def _same_cell(one: Cell | None, other: Cell | None) -> bool:
    return one is not None and other is not None and one.cell == other.cell


def closed(recorder: Recorder) -> None:
    """Note that ``recorder`` has ended."""
    _open.discard(recorder)


def current_cell() -> Cell | None:
    """The notebook cell that is being executed; None outside of IPython."""
    shell = _shell()
    if shell is None:
        return None
    parent: Any = getattr(shell, "get_parent", dict)()
    name = (parent.get("metadata") or {}).get("cellId") or _code_file(sys._getframe(1))
    return Cell(str(name or f"execution {shell.execution_count}"), int(shell.execution_count))


def _shell() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def _code_file(frame: FrameType | None) -> str:
    """The name that IPython gives to the code of a cell: the outermost of such frames."""
    found = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if "ipykernel_" in name or name.startswith("<ipython-input"):
            found = name
        frame = frame.f_back
    return found


def _in_child() -> None:
    for recorder in list(_open):
        recorder.forsake()
    _open.clear()


def _at_exit() -> None:
    """End the runs whose block was never left, by the exception that ended the program if one did."""
    error = getattr(sys, "last_value", None) if _shell() is None and not hasattr(sys, "ps1") else None
    for recorder in list(_open):
        recorder.leave("the process ended", error)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
