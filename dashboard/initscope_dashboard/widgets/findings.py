"""A finding as every page shows it: what, against which threshold and whose, where; and code to copy."""

from __future__ import annotations

import streamlit as st

from initscope.diagnosis.finding import Finding
from initscope_dashboard.content import formatting

BLOCK_LIMIT = 6
"""Layers named one by one in a finding; more are counted."""


def finding(found: Finding, code: str = "") -> None:
    """Title, evidence, threshold and its source; ``code``: plain PyTorch that mends it."""
    with st.container(border=True):
        st.markdown(
            f"**{found.id.replace('_', ' ')}** · {formatting.markdown(formatting.typeset(found.text))}"
        )
        parts = []
        if found.value is not None and found.threshold is not None:
            parts.append(
                f"{formatting.number(found.value)} against a threshold of "
                f"{formatting.number(found.threshold)} ({found.source})"
            )
        elif found.source:
            parts.append(found.source)
        if found.layers:
            few = ", ".join(found.layers[:BLOCK_LIMIT])
            parts.append(
                few
                + (f" and {len(found.layers) - BLOCK_LIMIT} more" if len(found.layers) > BLOCK_LIMIT else "")
            )
        if found.step is not None:
            parts.append(f"step {found.step}")
        st.caption(formatting.markdown(" · ".join(parts)))
        if code:
            with st.expander("In plain PyTorch, to copy", icon=":material/content_copy:"):
                st.code(code, language="python")
