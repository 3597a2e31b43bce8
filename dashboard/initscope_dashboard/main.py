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

PAGES = {
    NEWCOMER: [
        st.Page(
            SCREENS / "home.py",
            title="Home",
            default=True,
            help="Is it the weight initialization, and did changing it fix it? All runs and the answer so "
            "far.",
        ),
        st.Page(
            SCREENS / "story.py",
            title="Story",
            url_path="story",
            help="Why a deep network that begins with small weights learns nothing: measured, and to try.",
        ),
        st.Page(
            SCREENS / "live.py",
            title="Live",
            url_path="live",
            help="Loss, accuracy and every layer's gradient while runs train. Stop a run here.",
        ),
        st.Page(
            SCREENS / "compare.py",
            title="Compare",
            url_path="compare",
            help="Two runs side by side: did the initialization fix it?",
        ),
        st.Page(
            SCREENS / "diagnosis.py",
            title="Diagnosis",
            url_path="diagnosis",
            help="Why did this run not train, and what would help?",
        ),
        st.Page(
            SCREENS / "gradients.py",
            title="Gradients",
            url_path="gradients",
            help="One run's layers over time as a map: where the gradient dies.",
        ),
        st.Page(
            SCREENS / "sweep.py",
            title="Sweep",
            url_path="sweep",
            help="Initializations over seeds: was it luck?",
        ),
        st.Page(
            SCREENS / "guide.py",
            title="Guide",
            url_path="guide",
            help="How to record your own loop, what the words mean, every initialization and command.",
        ),
    ],
    BEFORE: [
        st.Page(
            SCREENS / "probe.py",
            title="Probe",
            url_path="probe",
            help="One batch, no training: will this initialization train?",
        ),
        st.Page(
            SCREENS / "check.py",
            title="Check",
            url_path="check",
            help="Is anything wrong before it is trained? A copy learns one batch, in seconds.",
        ),
        st.Page(
            SCREENS / "model.py",
            title="Model",
            url_path="model",
            help="The network layer by layer: shapes, parameters, and why three by three.",
        ),
    ],
    ACROSS: [
        st.Page(
            SCREENS / "depth.py",
            title="Depth",
            url_path="depth",
            help="From LeNet-5 to ResNet-34: which networks need initialization?",
        ),
        st.Page(
            SCREENS / "query.py",
            title="Query",
            url_path="query",
            help="One question over all runs, in SQL: rate by initialization, worst layer by run, slowest "
            "runs.",
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
