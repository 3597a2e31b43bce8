"""What the browser's tab says: which page of which product, and about which runs."""

from __future__ import annotations

import streamlit as st

from initscope_dashboard.content import formatting

PRODUCT = "InitScope"
LONGEST = 60
"""Characters of what a page is about; tabs and lists of bookmarks show fewer."""


def title(page: str, about: str = "") -> None:
    """ "Compare: A against B · InitScope": so that tabs, bookmarks and the history tell pages apart."""
    what = f"{page}: {formatting.shorten(about, LONGEST)}" if about else page
    st.set_page_config(page_title=f"{what} · {PRODUCT}")
