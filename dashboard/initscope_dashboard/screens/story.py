"""Story: why a deep network that begins with small weights learns nothing, in a minute, with numbers that
were measured and two runs of one's own.
"""

from __future__ import annotations

import streamlit as st

from initscope.comparison.compare import SAME_RUN
from initscope.config.run_config import changed_fields, quick
from initscope.schema import COLUMN
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting, story
from initscope_dashboard.figures import story as figures
from initscope_dashboard.widgets import empty_state, launch_form
from initscope_dashboard.widgets.plot import plot

DEPTHS = {"vgg11": "11 layers", "vgg13": "13 layers", "vgg16": "16 layers", "vgg19": "19 layers"}
SHOWN = ("default", "tutorial", "xavier_normal", "kaiming_normal")


def page() -> None:
    st.title(formatting.heading(story.sentence()), anchor=False)
    plot(
        figures.left_chance(story.cells()),
        key="story_measured",
        alt="Steps until a training leaves chance, a mark a training: with PyTorch's default weights "
        "late or not at "
        "all, with the others early.",
    )
    st.caption(story.CONDITION)
    _see_it()
    _journey()
    _why()
    _sometimes()


def _see_it() -> None:
    """The two runs: launched here, watched while they train, compared once they have ended."""
    st.header("See it yourself", anchor=False)
    st.markdown(
        "The same network on handwritten digits that come with the program, in the same order, with the "
        "same seed: "
        "once with PyTorch's default weights, once with Kaiming's. Only the initial weights differ."
    )
    pair = [_newest(init, loaders.listing()) for init in launch_form.STORY]
    if None in pair:
        empty_state.story_button()
        return
    a, b = (info for info in pair if info is not None)
    with st.container(horizontal=True):
        st.page_link(
            "screens/compare.py",
            label="Compare your two runs",
            icon=":material/compare:",
            query_params={"a": a.run, "b": b.run},
        )
        st.page_link(
            "screens/live.py",
            label="Their curves",
            icon=":material/show_chart:",
            query_params={"run": a.run},
        )
        st.page_link(
            "screens/diagnosis.py",
            label="Why the first did not train",
            icon=":material/stethoscope:",
            query_params={"run": a.run},
        )


def _newest(init: str, infos: list[RunInfo]) -> RunInfo | None:
    """The newest story run with these weights that trains or has ended well."""
    wanted = quick().replace(init=init).to_dict()
    return next(
        (
            info
            for info in infos
            if (info.live or info.status == "finished") and not changed_fields(wanted, info.config, SAME_RUN)
        ),
        None,
    )


def _journey() -> None:
    """Theory's signal and error signal for the network that is chosen."""
    st.header("A signal on its way through the layers", anchor=False)
    with st.container(horizontal=True):
        model = st.select_slider(
            "Depth",
            list(DEPTHS),
            value="vgg16",
            key="story_depth",
            bind="query-params",
            format_func=DEPTHS.get,
            width=260,
        )
        gain = st.slider(
            "Gain: every initial weight times",
            0.5,
            2.0,
            1.0,
            0.1,
            key="story_gain",
            bind="query-params",
            width=260,
        )
    rows = {init: loaders.theory_rows(quick().replace(model=model, gain=gain, init=init)) for init in SHOWN}
    for column, metric in zip(st.columns(2), figures.ARROWS, strict=True):
        with column:
            plot(
                figures.journey(rows, metric),
                key=f"story_{metric}",
                alt=f"{COLUMN[metric].title} of every layer for four initializations, by theory",
            )
            st.caption(f"{COLUMN[metric].help}.")
    first, last = (rows["default"][at]["signal_std"] for at in (0, -1))
    st.markdown(
        f"With PyTorch's default weights the signal goes from {formatting.number(first)} to "
        f"{formatting.number(last)} on its way to the output; with Kaiming's it ends at "
        f"{formatting.number(rows['kaiming_normal'][-1]['signal_std'])}. By mean-field theory, from the "
        "weights' "
        "variances alone; the Probe page puts a measurement beside it."
    )
    st.page_link("screens/probe.py", label="Measure it on one batch", icon=":material/labs:")


def _why() -> None:
    st.header("Why a factor for each layer, and why 2 / fan_in", anchor=False)
    st.markdown(
        "A unit adds up `fan_in` inputs, each times a weight of mean 0. So a layer multiplies the "
        "variance of its input "
        "by `fan_in` × the weights' variance, and ReLU passes half of it on.\n\n"
        "- **PyTorch's default** draws from U(±1/√fan_in), a variance of 1 / (3 · fan_in): each layer "
        "multiplies by "
        f"1/6. After sixteen layers the signal is {formatting.number(story.shrinks_by(16))} of what it "
        "was. The biases "
        "keep their size, so what is left is the same for every image.\n"
        "- **Kaiming** draws with the variance 2 / fan_in: fan_in · 2 / fan_in · ½ = 1. Each layer keeps "
        "it.\n\n"
        "The error goes the same way back through the same weights, so it dies as the signal does. A "
        "gradient below "
        "Adam's epsilon (10⁻⁸) hardly moves a weight."
    )
    st.page_link(
        "screens/guide.py",
        label="Every initialization with its formula",
        icon=":material/menu_book:",
        query_params={"page": "initializations"},
    )


def _sometimes() -> None:
    st.header("Why it trains sometimes", anchor=False)
    st.markdown(
        "One seed is an anecdote. The marks at the top lie apart for one initialization and one rate: a "
        "seed decides "
        "when an unlucky network leaves chance, and whether. Rate and initialization decide together: at "
        "full width and "
        "a rate of 10⁻³ Kaiming's weights stayed at 10 % in one of two seeds; at 10⁻⁴ every "
        "initialization that was "
        "tried trained, PyTorch's own too."
    )
    with st.container(horizontal=True):
        st.page_link("screens/sweep.py", label="Was it luck? Several seeds", icon=":material/casino:")
        st.page_link("screens/depth.py", label="Which networks need it?", icon=":material/stacks:")


page()
