"""The frame around every page: title, navigation, launcher. ``Home.py`` serves it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from initscope.errors import RunFolderError
from initscope_dashboard import loaders
from initscope_dashboard.browser.assets import ICON
from initscope_dashboard.content import formatting
from initscope_dashboard.server import access
from initscope_dashboard.widgets import sidebar, tab

SCREENS = Path(__file__).parent / "screens"

st.set_page_config(page_title=tab.PRODUCT, page_icon=str(ICON), layout="wide")

NEWCOMER, BEFORE, ACROSS = "", "Before training", "Across runs"
"""Sections of the navigation: pages of the first stand in the bar, the others open below their title. All in
a row, the last two of thirteen were behind "2 more" on a screen 1280 pixels wide.
"""


def _page(title: str, help: str) -> st.Page:
    name = title.lower()
    return st.Page(SCREENS / f"{name}.py", title=title, url_path=name, help=help)


PAGES = {
    NEWCOMER: [
        st.Page(
            SCREENS / "home.py",
            title="Home",
            default=True,
            help="Is it the weight initialization, and did changing it fix it? All runs and the answer so "
            "far.",
        ),
        _page(
            "Story", "Why a deep network that begins with small weights learns nothing: measured, and to try."
        ),
        _page("Live", "Loss, accuracy and every layer's gradient while runs train. Stop a run here."),
        _page("Compare", "Two runs side by side: did the initialization fix it?"),
        _page("Diagnosis", "Why did this run not train, and what would help?"),
        _page("Gradients", "One run's layers over time as a map: where the gradient dies."),
        _page("Sweep", "Initializations over seeds: was it luck?"),
        _page("Guide", "How to record your own loop, what the words mean, every initialization and command."),
    ],
    BEFORE: [
        _page("Probe", "One batch, no training: will this initialization train?"),
        _page("Check", "Is anything wrong before it is trained? A copy learns one batch, in seconds."),
        _page("Model", "The network layer by layer: shapes, parameters, and why three by three."),
    ],
    ACROSS: [
        _page("Depth", "From LeNet-5 to ResNet-34: which networks need initialization?"),
        _page(
            "Query",
            "One question over all runs, in SQL: rate by initialization, worst layer by run, slowest runs.",
        ),
    ],
}

page = st.navigation(PAGES, position="top")
if page.title != "Home":
    tab.title(page.title)
access.gate()
try:
    infos = loaders.everything()
except RunFolderError as error:
    st.error(formatting.markdown(str(error)), icon=":material/error:")
    st.stop()
sidebar.launcher(infos)
page.run()
