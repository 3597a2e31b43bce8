"""Model: the network layer by layer, and why its kernels are three by three."""

from __future__ import annotations

import streamlit as st

from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope_dashboard import loaders
from initscope_dashboard.content import headlines
from initscope_dashboard.figures import architecture, kernels
from initscope_dashboard.widgets import launch_form
from initscope_dashboard.widgets.plot import plot

head = st.container()
with st.container(horizontal=True, vertical_alignment="bottom"):
    name = st.selectbox(
        "Model",
        list(catalog.MODELS),
        index=list(catalog.MODELS).index("vgg16"),
        key="model",
        bind="query-params",
        format_func=lambda key: catalog.MODELS[key].title,
        width=160,
    )
    image_size = st.selectbox(
        "Image size, pixels",
        [32, 64, 96, 128, 160, 192, 224],
        index=6,
        key="image_size",
        bind="query-params",
        width=160,
    )
    width = st.select_slider(
        "Width",
        [0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0],
        value=1.0,
        key="width",
        bind="query-params",
        width=220,
        help="Multiplies every channel and hidden-unit count",
    )
    batch_norm = st.selectbox(
        "Batch norm",
        list(launch_form.SWITCH),
        key="batch_norm",
        bind="query-params",
        format_func=launch_form.SWITCH.get,
        width=160,
    )

config = RunConfig(model=name, image_size=image_size, width=width, batch_norm=batch_norm or None)
network = architecture.layers(config)
title = catalog.MODELS[name].title

if network:
    head.title(headlines.model(title, {layer.name: layer.parameters for layer in network}))
    plot(
        architecture.architecture(network, title=f"{title}, from image to answer", image_size=image_size),
        key="model-architecture",
        min_width=760,
        alt=f"{title}: five blocks of convolutions whose maps halve from {image_size} pixels, then three "
        "linear layers; bars show each layer's parameters.",
    )
    with st.expander("Layers in numbers", expanded=False):
        st.dataframe(
            architecture.table(network),
            hide_index=True,
            width="stretch",
            height="content",
            column_config={
                "kernel": st.column_config.TextColumn("kernel"),
                "parameters": st.column_config.NumberColumn("parameters", format="localized"),
                "share": st.column_config.ProgressColumn("share", format="percent", min_value=0, max_value=1),
                "multiply-adds": st.column_config.NumberColumn(
                    "multiply-adds", format="localized", help="For one image"
                ),
            },
        )
else:
    head.title(f"{title}: {catalog.MODELS[name].help}.")

measured = st.expander(
    "What torchinfo measures", expanded=not network, on_change="rerun", key="model-torchinfo"
)
if measured.open:
    with measured:
        worked, table = loaders.torchinfo(config)
        if worked:
            st.code(table, language=None)
        else:
            st.error(table, icon=":material/error:")

st.header("Two small kernels see as far as one large one, with fewer weights and one more ReLU between them.")
left, right = st.columns(2)
with left:
    plot(
        kernels.receptive_field(),
        key="model-field",
        still=True,
        alt="Nested squares: one 3 by 3 layer sees 3 by 3 pixels, two see 5 by 5, three see 7 by 7.",
    )
with right:
    plot(
        kernels.parameters(512),
        key="model-kernels",
        still=True,
        alt="Bars: two 3 by 3 layers hold 18 C squared weights against 25 for one 5 by 5; three hold 27 "
        "against 49 for one 7 by 7.",
    )
