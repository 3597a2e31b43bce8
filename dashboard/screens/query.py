"""Query: one question over all runs, in SQL. Reading only; the same views and bounds as `python -m core query`."""

from __future__ import annotations

import streamlit as st

from core.errors import InitScopeError
from core.store.query import RECIPES, VIEWS
from dashboard import loaders, text


def page() -> None:
    above = st.container()
    with st.container(horizontal=True):
        for name, recipe in RECIPES.items():
            st.button(recipe.title, key=f"recipe_{name}", on_click=_ask, args=(recipe.sql,))
    sql = st.text_area("One SELECT", key="sql", bind="query-params", height=130, placeholder=RECIPES["rates"].sql)
    if not (sql or "").strip():
        above.title("What do all runs say?", anchor=False)
        above.markdown("Choose a question, or ask one of your own.")
    else:
        _answer(above, sql)
    with st.expander("What can be asked for"):
        for name, schema in VIEWS.items():
            st.markdown(f"**{name}**: " + ", ".join(f"`{column}`" for column in schema.names))


def _ask(sql: str) -> None:
    st.session_state["sql"] = sql


def _answer(above: st.delta_generator.DeltaGenerator, sql: str) -> None:
    """The rows, under a sentence that says how many they are; or the one line that says what was wrong."""
    try:
        answer = loaders.query(sql)
    except InitScopeError as error:
        above.title("No answer", anchor=False)
        st.error(text.markdown(str(error)), icon=":material/error:")
        return
    rows = answer.rows.num_rows
    above.title(f"{'More than ' if answer.cut else ''}{text.count(rows)} {'row' if rows == 1 else 'rows'}", anchor=False)
    if answer.cut:
        above.markdown("Only these are shown; ask for fewer, such as with LIMIT.")
    st.dataframe(answer.rows, hide_index=True, key="answer", alt="The answer's rows, as the question orders them")


page()
