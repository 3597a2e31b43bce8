"""Diagnosis: why did this run not train? One cause, the evidence for it, and the remedy in one click."""

from __future__ import annotations

import math

import streamlit as st

from initscope.comparison.compare import SAME_RUN
from initscope.config.catalog import init_title
from initscope.config.run_config import OPTIONS, changed_fields
from initscope.diagnosis.diagnose import Diagnosis
from initscope.diagnosis.thresholds import LIMITS, PRESETS, Limit, Thresholds
from initscope.errors import InitScopeError
from initscope.scheduling import launcher as processes
from initscope.schema import Cause, Outcome
from initscope.store import RunInfo
from initscope.store.files import number
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.server import access
from initscope_dashboard.widgets import empty_state, findings, run_actions, selection, snippet, tab


def page() -> None:
    infos = [info for info in loaders.listing() if info.status != "unreadable"]
    if not infos:
        empty_state.nothing_yet("Why did it not train?", "There is no run to diagnose yet.")
        return
    above = st.container()
    info = selection.run(infos, _suspect(infos), key="diagnosis-run")
    tab.title("Diagnosis", info.name)
    body = st.container()
    thresholds = _replay()
    try:
        found = loaders.diagnosis(info.run, thresholds)
    except InitScopeError as error:
        above.error(formatting.markdown(str(error)))
        return
    with above:
        _answer(info, found)
    with body:
        _remedy(info, found, infos)
        _findings(found)


def _suspect(infos: list[RunInfo]) -> str:
    """The newest run that did not train, else the newest."""
    return next(
        (info.run for info in infos if info.outcome in (Outcome.NOT_CONVERGED, Outcome.DIVERGED)),
        infos[0].run,
    )


def _answer(info: RunInfo, found: Diagnosis) -> None:
    broken = loaders.first_break(info)
    steps = int(number(info.state.get("step")) or 0)
    st.title(
        formatting.markdown(
            formatting.typeset(headlines.cause(found, info.status, info.error, broken, steps))
        ),
        anchor=False,
    )
    if more := headlines.beside(found, info.status, broken):
        st.markdown(formatting.markdown(more))
    mark = theme.outcome_mark(str(found.outcome))
    by = f" by {info.state['outcome_by']}" if info.state.get("outcome_by") else ""
    because = f": {info.state['outcome_because']}" if info.state.get("outcome_because") else ""
    whose = (
        ""
        if found.thresholds == Thresholds().title
        else f" · thresholds: {formatting.markdown(found.thresholds)}"
    )
    st.caption(
        f"{formatting.markdown(info.name)} · {mark.text}{formatting.markdown(by + because)} · "
        f"`{found.cause}` with {formatting.percent(found.confidence)} of its expected evidence"
        f"{' · still running' if info.live else ''}{whose}"
    )


def _remedy(info: RunInfo, found: Diagnosis, infos: list[RunInfo]) -> None:
    """What to do, and a button that does it: the same run, same seeds, same order of data, with the
    remedy.
    """
    if found.cause is Cause.HEALTHY and info.status not in ("failed", "crashed"):
        return
    with st.container(border=True):
        st.markdown(
            "**What would help.** "
            f"{formatting.markdown(formatting.typeset(headlines.advice(found, info.status)))}"
        )
        snippet.of_remedy(info, found)
        run_actions.offer_digits([info])
        if not found.remedy.changes or not access.may_change():
            return
        if (twin := _already_run(info, found, infos)) is not None:
            st.markdown(
                f"Already done: {formatting.markdown(theme.outcome_mark(twin.outcome, twin.status).text)}."
            )
            st.page_link(
                "screens/compare.py",
                label="See the comparison",
                icon=":material/compare:",
                query_params={"a": info.run, "b": twin.run},
            )
            return
        changes = ", ".join(
            f"{OPTIONS[key].title.lower()} {_value(key, value)}"
            for key, value in found.remedy.changes.items()
        )
        if st.button(
            f"Launch the same run with {formatting.markdown(changes)}",
            type="primary",
            icon=":material/healing:",
            key="remedy",
        ):
            _launch(info, found)


def _already_run(info: RunInfo, found: Diagnosis, infos: list[RunInfo]) -> RunInfo | None:
    """The newest run that is this one with the remedy, whatever its name; None if nobody has launched it."""
    wanted = {**info.config, **found.remedy.changes}
    ended_well = (one for one in infos if one.live or one.status == "finished")
    return next(
        (
            one
            for one in ended_well
            if one.run != info.run and not changed_fields(wanted, one.config, SAME_RUN)
        ),
        None,
    )


def _launch(info: RunInfo, found: Diagnosis) -> None:
    runs = loaders.runs()
    try:
        config = runs.get(info.run).config().replace(**found.remedy.changes, name="", sweep="")
        [made] = processes.submit(runs, [config])
    except InitScopeError as error:
        st.error(formatting.markdown(str(error)))
        return
    st.switch_page("screens/compare.py", query_params={"a": info.run, "b": made.id})


def _value(key: str, value: object) -> str:
    return (
        init_title(str(value))
        if key == "init"
        else formatting.number(value)
        if isinstance(value, float)
        else str(value)
    )


def _findings(found: Diagnosis) -> None:
    shown, title = (
        (found.findings, "What was found")
        if found.findings
        else (found.set_aside, "Noticed, and no reason to worry")
    )
    if not shown:
        st.markdown("Nothing was found that lies outside the usual.")
        return
    st.header(title, anchor=False)
    for found_one in shown:
        findings.finding(found_one)


def _replay() -> Thresholds:
    """Thresholds to diagnose with: another tool's, or moved by hand. Defaults are marked on each slider."""
    with st.expander("Move the thresholds", icon=":material/tune:"):
        name = st.segmented_control(
            "Whose thresholds",
            list(PRESETS),
            default=next(iter(PRESETS)),
            key="diagnosis_preset",
            required=True,
        )
        base = PRESETS[name]
        # The browser keeps a slider's position as long as it keeps its key: another tool's sliders and
        # put-back ones need another.
        key = f"limit_{name}_{st.session_state.get('diagnosis_resets', 0)}"
        moved = {}
        columns = st.columns(2)
        for i, limit in enumerate(
            limit for limit in LIMITS.values() if getattr(base, limit.name) is not None
        ):
            usual = getattr(base, limit.name)
            with columns[i % 2]:
                value = _slider(limit, usual, f"{key}_{limit.name}")
            if not math.isclose(value, usual, rel_tol=1e-6):
                moved[limit.name] = value
        st.button("Back to the defaults", on_click=_put_back, disabled=not moved, key="diagnosis_reset")
    return base.replace(**moved) if moved else base


def _slider(limit: Limit, usual: float, key: str) -> float:
    """One threshold; magnitudes move by powers of ten."""
    label = f"{limit.title} (default {formatting.number(usual)})"
    help_text = f"{limit.help}. Source of the default: {limit.source}."
    if not limit.log:
        return st.slider(
            label, float(limit.low), float(max(limit.high, usual)), float(usual), key=key, help=help_text
        )
    low, high = math.log10(limit.low), math.log10(max(limit.high, usual))
    exponent = st.slider(
        label, low, high, math.log10(usual), step=0.1, format="10^%.1f", key=key, help=help_text
    )
    return usual if abs(exponent - math.log10(usual)) < 0.05 else 10**exponent


def _put_back() -> None:
    st.session_state["diagnosis_resets"] = st.session_state.get("diagnosis_resets", 0) + 1


page()
