"""Live: what the chosen runs are doing now. Curves, cards and dots grow by the event stream; nothing here
polls.
"""

from __future__ import annotations

import streamlit as st

from initscope_dashboard import loaders
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.figures import base, curves, layer_bar
from initscope_dashboard.server import access
from initscope_dashboard.widgets import empty_state, run_actions, selection, tab
from initscope_dashboard.widgets.cards import cards, headline
from initscope_dashboard.widgets.plot import plot

infos = loaders.listing()
if not infos:
    empty_state.nothing_yet("Is it learning, now?", "No run yet. One that you launch appears here at once.")
    st.stop()

head = st.container()
chosen = selection.runs(infos, selection.newest_or_live(infos), key="live-runs")
ids = [info.run for info in chosen]
live = [info.run for info in chosen if info.live]
damaged = loaders.damage(chosen)
progress = {info.run: loaders.progress(info) for info in chosen}
tab.title("Live", ", ".join(info.name for info in chosen))
with head:
    headline(chosen, progress, key="live-headline")
if chosen:
    cards(chosen, progress, key="live-cards")

# Both are there even when empty: what follows keeps its place, so charts keep their zoom when a run ends.
buttons, troubles = st.container(horizontal=True), st.container()
for info in chosen:
    if info.live and info.status != "stopping" and access.may_change():
        name = formatting.markdown(formatting.shorten(info.name))
        buttons.button(
            f"Stop {name}",
            key=f"stop-{info.run}",
            icon=":material/stop_circle:",
            on_click=run_actions.stop,
            args=(info.run,),
        )
    if info.run in damaged:
        troubles.error(formatting.markdown(damaged[info.run]), icon=":material/error:")
    if info.status in ("crashed", "failed"):
        troubles.error(
            f"**{formatting.markdown(info.name)} {info.status}.** {formatting.markdown(info.error or '')}",
            icon=":material/error:",
        )
        if log := loaders.log_tail(info.run):
            troubles.code(log, language=None, wrap_lines=True)

with troubles:
    run_actions.offer_digits(chosen)

subjects = [base.subject(info) for info in chosen]
steps, epochs = loaders.frames(ids, "steps"), loaders.frames(ids, "epochs")
classes = headlines.common_classes(chosen)
guess = (
    {"loss": f"; a guess is ln {classes}", "accuracy": f"; a guess is 1/{classes}"}
    if classes
    else {"loss": "", "accuracy": ""}
)

logarithmic = st.toggle("Logarithmic loss", key="live-log", bind="query-params")
left, right = st.columns(2)
with left:
    plot(
        curves.curves(subjects, steps, epochs, "loss", classes=classes, log=logarithmic),
        key="live-loss",
        stream=live,
        alt=f"Training loss over steps of {len(chosen)} runs with validation loss as markers{guess['loss']}.",
    )
with right:
    plot(
        curves.curves(subjects, steps, epochs, "accuracy", classes=classes),
        key="live-accuracy",
        stream=live,
        alt=f"Training accuracy over steps of {len(chosen)} runs with validation accuracy as "
        f"markers{guess['accuracy']}.",
    )

plot(
    layer_bar.layer_bar(subjects, loaders.last_layers(ids)),
    key="live-layers",
    stream=live,
    alt="The newest gradient norm of every layer on a logarithmic axis, input at the bottom.",
)
