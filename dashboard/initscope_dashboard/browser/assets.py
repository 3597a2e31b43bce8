"""Our scripts and style sheet, and where this version of them is served."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import plotly
import streamlit as st

from initscope_dashboard.browser import theme

HERE = Path(__file__).parent
ICON = HERE / "icon.png"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
SCRIPTS = {
    "plot.js": "text/javascript",
    "live.js": "text/javascript",
    "theme.js": "text/javascript",
    "cards.js": "text/javascript",
    "plot.css": "text/css",
}


@cache
def own_scripts() -> dict[str, bytes]:
    """Our scripts and style sheet by name, and the settings that Python knows."""
    settings = {"TOKENS": theme.tokens(), "PLOTLY_URL": f"../plotly-{plotly.__version__}/plotly.min.js"}
    lines = [f"export const {name} = {json.dumps(value)}" for name, value in settings.items()]
    return {name: (HERE / name).read_bytes() for name in SCRIPTS} | {"settings.js": "\n".join(lines).encode()}


@cache
def assets_path() -> str:
    """Where this version of our scripts is served; changes with their content, so browsers may keep them for
    ever.
    """
    digest = hashlib.sha256(b"\0".join(own_scripts().values())).hexdigest()[:12]
    prefix = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return (f"/{prefix}" if prefix else "") + f"/assets/{digest}"
