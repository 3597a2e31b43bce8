"""Words can be read: at least 4.5 to 1 on page, panel and sidebar, in the light and the dark theme."""

from __future__ import annotations

import re
import tomllib

import pytest

from initscope_dashboard.browser import theme
from tests.conftest import ROOT

CONFIG = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["theme"]
CSS = (ROOT / "dashboard/initscope_dashboard/browser/plot.css").read_text(encoding="utf-8")
READABLE = 4.5
WORDS = ("textColor", "linkColor", "codeTextColor")


def luminance(color: str) -> float:
    """Relative luminance of '#RRGGBB' (WCAG 2.2)."""
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_contrast_is_wcags():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21) and contrast("#777777", "#FFFFFF") < READABLE


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_colour_of_words_can_be_read_on_every_ground(mode):
    colors = CONFIG[mode]
    grounds = {
        colors["backgroundColor"],
        colors["secondaryBackgroundColor"],
        colors["sidebar"]["backgroundColor"],
    }
    words = {name: value for name, value in colors.items() if name in WORDS or name.endswith("TextColor")}
    assert len(words) == 10
    pale = {
        (name, ground): round(contrast(value, ground), 2)
        for name, value in words.items()
        for ground in grounds
        if contrast(value, ground) < READABLE
    }
    assert not pale
    assert contrast("#FFFFFF", colors["primaryColor"]) >= READABLE, "white on a button"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_words_in_charts_can_be_read(mode):
    tokens = theme.tokens()[mode]
    for word in ("ink", "muted", "nonfinite"):
        for ground in ("paper", "panel"):
            assert contrast(tokens[word], tokens[ground]) >= READABLE, word


def test_the_style_sheet_repeats_the_themes_colours():
    """Streamlit tells its colours to components only; captions and chosen words are outside of them."""
    found = dict(re.findall(r"--(caption|chosen): light-dark\((#\w+, #\w+)\)", CSS))
    assert found == {
        name: ", ".join(CONFIG[mode][color] for mode in ("light", "dark"))
        for name, color in (("caption", "grayTextColor"), ("chosen", "linkColor"))
    }
