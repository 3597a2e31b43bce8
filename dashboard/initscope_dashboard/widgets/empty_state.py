"""What a page shows while there is nothing to show: what it will answer, and one button that begins."""

from __future__ import annotations

import streamlit as st

from initscope.config.run_config import quick
from initscope_dashboard.server import access
from initscope_dashboard.widgets import launch_form, sidebar


def nothing_yet(title: str, sentence: str) -> None:
    """The page's question, what is missing, and the story in one click."""
    st.title(title, anchor=False)
    st.markdown(sentence)
    story_button()


def story_button() -> None:
    """Launch the story: the same seed and the same order of data, with PyTorch's default weights and with
    Kaiming's.
    """
    if not access.may_change():
        return
    if st.button("Run the story", type="primary", icon=":material/play_arrow:", key="story"):
        sidebar.launch([quick().replace(init=init) for init in launch_form.STORY])
    st.caption("Two runs of about half a minute on two processor cores; no download.")
