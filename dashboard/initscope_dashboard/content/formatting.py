"""Numbers, times and names as a person reads them: at most three significant digits, with units."""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

LINEAR_METRICS = frozenset({"dead_fraction"})
"""Shares from 0 to 1; all other metrics of layers are magnitudes on a logarithmic scale."""


def power(exponent: int) -> str:
    """``power(-8)`` is '10⁻⁸'; 0 is '1'."""
    return "1" if exponent == 0 else "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits: '2.3', '0.0432', '134,000,000'; powers of ten outside 0.001 to a billion; '–'
    for None.
    """
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    sign = "−" if value < 0 else ""
    rounded = float(f"{abs(value):.{digits - 1}e}")
    exponent = math.floor(math.log10(rounded) + 1e-12)
    if -3 <= exponent < 9:
        text = f"{Decimal(repr(rounded)):,.{max(0, digits - 1 - exponent)}f}"
        return sign + (text.rstrip("0").rstrip(".") if "." in text else text)
    mantissa = (
        f"{rounded / 10**exponent:.{digits - 1}f}"
        if exponent > -300
        else f"{rounded:.{digits - 1}e}".split("e")[0]
    )
    mantissa = mantissa.rstrip("0").rstrip(".")
    return sign + (power(exponent) if mantissa == "1" else f"{mantissa} × {power(exponent)}")


def fixed(value: float | None, digits: int = 3) -> str:
    """Like ``number`` with trailing zeros kept ('2.30'): for columns of numbers and changing displays."""
    if value is None or not math.isfinite(value) or value == 0 or not 1e-3 <= abs(value) < 10**digits:
        return number(value, digits)
    rounded = float(f"{abs(value):.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(rounded) + 1e-12))
    return ("−" if value < 0 else "") + f"{rounded:.{places}f}"


def percent(share: float | None) -> str:
    """'97.2 %', '10 %' (the space does not break), '–' for None."""
    if share is None:
        return "–"
    if not math.isfinite(share):
        return number(share)
    return number(100 * share) + "\u00a0%"


def change(share: float) -> str:
    """'+21 %': a difference of two shares, in whole percents."""
    return f"{100 * share:+.0f} %"


def interval(low: float, high: float) -> str:
    """'43 to 100 %': bounds of a share, in whole percents."""
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def count(value: int) -> str:
    """A whole number in full: '134,300,362'."""
    return f"{value:,}"


def times(ratio: float) -> str:
    """'2,100,000 times': two significant digits, for a ratio of at least 1; '∞ times' when divided by an
    exact zero.
    """
    return f"{number(ratio, 2)} times"


def decades(log10_ratio: float) -> str:
    """A log10 ratio in words: '1,000 times larger', '20 times smaller', 'equal'."""
    if math.isnan(log10_ratio):
        return "no number"
    if math.isinf(log10_ratio):
        return "larger than an exact zero" if log10_ratio > 0 else "an exact zero"
    if abs(log10_ratio) < 0.02:
        return "equal"
    return f"{number(10 ** abs(log10_ratio), 2)} times {'larger' if log10_ratio > 0 else 'smaller'}"


def duration(seconds: float | None) -> str:
    """'8 s', '2 min 5 s', '5 h 32 min', '–' for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if 0 < seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 48 * 3600:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")
    return f"{whole // 86400} days"


def ago(timestamp: float, now: float) -> str:
    """'just now', '5 min ago', '3 h ago', else the date."""
    seconds = now - timestamp
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return dt.datetime.fromtimestamp(timestamp).strftime("%-d %b %Y")


def shorten(name: str, limit: int = 30) -> str:
    """At most ``limit`` characters, the middle left out: ends tell names apart."""
    if len(name) <= limit:
        return name
    keep = limit - 1
    return name[: keep - keep // 3] + "…" + name[len(name) - keep // 3 :]


def escape(name: str) -> str:
    """A person's text for a Plotly label, which reads a little HTML and ``%{...}``: shown as typed, never
    interpreted.
    """
    safe = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("%{", "%\u200b{").replace("\n", " ")


def markdown(name: str) -> str:
    """A person's text for Streamlit markdown: every character that could mean something is escaped, and no
    address becomes a link, which the renderer looks for after escapes are gone.
    """
    name = re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=\S)(?=@)", "\u2060", name)
    return "".join("\\" + char if char in r"\`*_{}[]()<>#+-.!|~$:&" else char for char in name)


def typeset(sentence: str) -> str:
    """A sentence of the command line as a page prints it: '6e-07' becomes '6 × 10⁻⁷', '1e-8' '10⁻⁸'."""

    def printed(found: re.Match[str]) -> str:
        mantissa, exponent = found[1], power(int(found[2]))
        return exponent if mantissa == "1" else f"{mantissa}\u00a0×\u00a0{exponent}"

    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?\d+)\b", printed, sentence)


def heading(sentence: str) -> str:
    """A sentence as a page's title: markdown-safe, and "p = 0.008" never broken over two lines."""
    return markdown(sentence).replace("p = ", "p\u00a0=\u00a0")
