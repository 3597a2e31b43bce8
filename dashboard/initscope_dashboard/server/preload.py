"""What pages import, loaded while nobody waits for it."""

from __future__ import annotations

import gc
import importlib
import pkgutil
from pathlib import Path

SCRIPTS = ("initscope_dashboard.serve", "initscope_dashboard.main", "initscope_dashboard.screens")
"""Run by Streamlit, for a visitor; importing one would draw."""


def load() -> None:
    """Import every room of the dashboard, and take what is there then out of the garbage collector's sight: a
    look through all of it takes 0.2 s of the first page that is opened.
    """
    for module in pkgutil.walk_packages([str(Path(__file__).parents[1])], "initscope_dashboard."):
        if not module.name.startswith(SCRIPTS):
            importlib.import_module(module.name)
    import plotly.graph_objects as go

    go.Figure(
        [go.Scatter(), go.Heatmap(), go.Bar()], go.Layout(xaxis={}, yaxis={})
    )  # each loads what describes it when it is first made
    gc.collect()
    gc.freeze()
