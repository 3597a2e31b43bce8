"""Code to copy: what the remedy says, or what made the difference, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from initscope.comparison.compare import Comparison
from initscope.comparison.differences import RECORDED
from initscope.diagnosis.diagnose import Diagnosis
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import snippets


def of_remedy(info: RunInfo, found: Diagnosis) -> None:
    """The remedy for one's own loop; nothing where no few lines would do it."""
    facts = info.state.get("facts")
    optimizer = str(facts.get("optimizer") or "") if isinstance(facts, Mapping) else ""
    _show(snippets.remedy(found.cause, found.remedy.advised, loaders.kinds(info.run), optimizer))


def of_change(result: Comparison) -> None:
    """The initialization of side B, where that is what differs."""
    changed, run = result.changed_fields, result.runs["b"][0]
    size = changed.get(RECORDED + "weights")
    if size is not None and isinstance(size[1], float):
        _show(snippets.of_size(size[1], loaders.kinds(run)))
    elif isinstance(init := changed.get("init", [None, None])[1], str):
        gain = loaders.info(run).config.get("gain", 1.0)
        _show(
            snippets.initialization(
                init, loaders.kinds(run), gain=gain if isinstance(gain, (int, float)) else 1.0
            )
        )


def _show(code: str) -> None:
    if code:
        with st.expander("The same in plain PyTorch, to copy", icon=":material/content_copy:"):
            st.code(code, language="python")
