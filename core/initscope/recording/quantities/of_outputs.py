"""The base of what is measured of a layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from initscope.recording.calls import LayerCall
from initscope.recording.reductions import Number


class OutputQuantity:
    """Makes columns of the ``calls`` of one layer in one step, of which there is at least one."""

    def at_the_end(self, calls: Sequence[LayerCall]) -> dict[Any, Number]:
        """Raw numbers, scalars of a device too, of what is too large to be kept until they arrive."""
        return {}

    def columns(self, calls: Sequence[LayerCall], values: dict[Any, float]) -> dict[str, float]:
        """The cells of a row, from the calls and from what ``at_the_end`` of all quantities gave, all plain
        numbers by now.
        """
        raise NotImplementedError
