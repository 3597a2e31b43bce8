"""Numbers in sentences, as every part of the library writes them."""

from __future__ import annotations


def sig3(value: float) -> str:
    """A number: at most three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share: whole percents, or the bare number where they would say nothing."""
    if share in (0, 1) or 0.01 <= share <= 0.99:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if share > 0.99 else sig3(share)


def percent3(share: float) -> str:
    """A share that was counted, such as an accuracy: three significant digits, in percent."""
    return f"{100 * share:.3g} %"
