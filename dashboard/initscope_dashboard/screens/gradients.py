"""Gradients: one run's layers over time as a map, and the layer you click as a curve."""

from __future__ import annotations

import streamlit as st

from initscope.errors import RunFolderError
from initscope.schema import COLUMN
from initscope.store.layer_names import layer_names
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.figures import base, heatmap, layer_curve, rows
from initscope_dashboard.server import access, refresh_rate
from initscope_dashboard.widgets import empty_state, layer_view, selection, tab
from initscope_dashboard.widgets.plot import plot

infos = loaders.listing()
if not infos:
    empty_state.nothing_yet(
        "Where does the gradient die?", "No run yet. This page shows every layer's gradient at every step."
    )
    st.stop()

head = st.empty()
info = selection.run(infos, selection.newest_or_live(infos)[0], key="gradients-run", width=360)
tab.title("Gradients", info.name)
metric = st.pills(
    "What",
    heatmap.METRICS,
    default="grad_norm",
    required=True,
    key="gradients-metric",
    bind="query-params",
    format_func=lambda name: COLUMN[name].title,
    label_visibility="collapsed",
)
st.caption(f"{COLUMN[metric].help}.")


def choose(point: dict, chosen: rows.Rows) -> None:
    """A click in the map chooses its layer; on a block's row it opens the block too."""
    st.session_state["gradients-layer"] = point["y"]
    layer_view.clicked(point, chosen, "gradients")


def _named(cells: heatmap.Cells | None, called: dict[str, str]) -> heatmap.Cells | None:
    return None if cells is None else rows.named(cells, called)


def _sentence(cells: heatmap.Cells) -> str:
    """What ended the run comes first, wherever one looks."""
    ended = (
        f"It {info.status}: {(info.error or 'nothing says why').rstrip('.')}. "
        if info.status in ("failed", "crashed")
        else ""
    )
    return ended + headlines.first_step(cells)


@st.fragment(run_every=refresh_rate.every(3) if info.live else None)
def picture() -> None:
    """The map and the curve; a live run is read again every three seconds."""
    access.gate()  # between two looks the session may have ended
    try:
        cells = loaders.cells(info.run, metric)
    except RunFolderError as error:
        st.error(formatting.markdown(str(error)), icon=":material/error:")
        head.title("This run cannot be read.")
        return
    called = layer_names(cells.layers if cells else (), info.state)
    head.title(
        formatting.markdown(_sentence(cells._replace(layers=[called[name] for name in cells.layers])))
        if cells
        else "No layer rows yet: they come with the first recorded step."
    )
    chosen = layer_view.layer_view([cells], "gradients")
    place = st.container()
    if cells is None or chosen.layers:
        with place:
            plot(
                heatmap.heatmap(
                    _named(rows.arranged(cells, chosen), called),
                    title=f"{COLUMN[metric].title} · {info.name}",
                ),
                key="gradients-map",
                on_click=lambda point: choose(point, chosen),
                alt=f"{COLUMN[metric].title} of every layer of {info.name} over the steps; input at the "
                "bottom, output at the top.",
            )
    if cells is None:
        return
    if st.session_state.get("gradients-layer") not in cells.layers:
        st.session_state["gradients-layer"] = cells.layers[0]
    layer = st.selectbox(
        "Layer (or click the map)",
        cells.layers,
        key="gradients-layer",
        width=360,
        format_func=called.get,
        bind="query-params",
    )
    curve = loaders.one_layer(info.run, layer, metric)
    plot(
        layer_curve.layer_curve([base.subject(info)], {info.run: curve}, layer, metric, called=called[layer]),
        key="gradients-curve",
        alt=f"{COLUMN[metric].title} of {called[layer]} over the steps.",
    )
    with st.expander("Numbers"):
        table = heatmap.layer_table(cells)
        form = (
            "percent"
            if metric in formatting.LINEAR_METRICS
            else "%.3g"
            if metric == "stable_rank"
            else "%.2e"
        )
        st.dataframe(
            table,
            hide_index=True,
            width="stretch",
            height="content" if len(table) <= layer_view.MANY else 600,
            column_config={
                name: st.column_config.NumberColumn(name, format=form) for name in table.columns[1:]
            },
        )
    if info.live and not loaders.info(info.run).live:
        st.rerun()


picture()
