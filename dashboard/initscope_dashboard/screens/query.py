"""Query: one question over all runs, in SQL. Reading only; the same views and bounds as `initscope query`."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from initscope.errors import InitScopeError
from initscope.store.query import RECIPES, VIEWS, Answer
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting


def page() -> None:
    above = st.container()
    with st.container(horizontal=True):
        for name, recipe in RECIPES.items():
            st.button(recipe.title, key=f"recipe_{name}", on_click=_ask, args=(recipe.sql,))
    sql = st.text_area(
        "One SELECT", key="sql", bind="query-params", height=130, placeholder=RECIPES["rates"].sql
    )
    if (sql or "").strip():
        _answer(above, sql, _counted)
    else:
        _answer(above, RECIPES["rates"].sql, _rates)
    with st.expander("What can be asked for"):
        for name, schema in VIEWS.items():
            st.markdown(f"**{name}**: " + ", ".join(f"`{column}`" for column in schema.names))


def _ask(sql: str) -> None:
    st.session_state["sql"] = sql


def _answer(above: st.delta_generator.DeltaGenerator, sql: str, sentence: Callable[[Answer], str]) -> None:
    """The rows, under a sentence about them; or the one line that says what was wrong."""
    try:
        answer = loaders.query(sql)
    except InitScopeError as error:
        above.title("No answer", anchor=False)
        st.error(formatting.markdown(str(error)), icon=":material/error:")
        return
    above.title(sentence(answer), anchor=False)
    if sentence is _rates and not answer.rows.num_rows:
        above.markdown("No run has ended with an answer yet. Launch one, or ask about those that train.")
    if answer.cut:
        above.markdown("Only these are shown; ask for fewer, such as with LIMIT.")
    st.dataframe(
        answer.rows, hide_index=True, key="answer", alt="The answer's rows, as the question orders them"
    )


def _counted(answer: Answer) -> str:
    """How many rows there are."""
    rows = answer.rows.num_rows
    return f"{'More than ' if answer.cut else ''}{formatting.count(rows)} {'row' if rows == 1 else 'rows'}"


def _rates(answer: Answer) -> str:
    """What the first recipe says: the initialization that converged most often, and the one that did
    least.
    """
    rows = answer.rows.to_pylist()
    told = (
        [
            f"{row['init']} converged in {row['converged']} of {row['of_runs']} runs"
            for row in (rows[0], rows[-1])[: len(rows)]
        ]
        if rows
        else []
    )
    return formatting.heading("; ".join(told)) or "What do all runs say?"


page()
