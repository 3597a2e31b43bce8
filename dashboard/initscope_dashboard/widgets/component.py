"""A component of the page that is drawn by one function of a script in ``browser/``."""

from __future__ import annotations

from typing import Any

import streamlit as st

_LOADER = """
export default async function (component) {
  const { FUNCTION } = await import(new URL(component.data.assets + "/SCRIPT", location.origin))
  return FUNCTION(component)
}
"""


def component(name: str, script: str, function: str) -> Any:
    """Mount it with ``data["assets"]`` from ``assets_path()``: a rerun sends the data and nothing else."""
    js = _LOADER.replace("FUNCTION", function).replace("SCRIPT", script)
    return st.components.v2.component(name, js=js, isolate_styles=False)
