"""Guide: the pages of ``guide/``, in English and Chinese, with a search; nothing is fetched from anywhere."""

from __future__ import annotations

import streamlit as st

from initscope_dashboard.content import formatting, guide
from initscope_dashboard.widgets import tab

MOST_FOUND = 12


def page() -> None:
    above = st.container()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        language = st.segmented_control(
            "Language",
            list(guide.LANGUAGES),
            default="zh" if str(st.context.locale or "").lower().startswith("zh") else "en",
            required=True,
            key="lang",
            bind="query-params",
            format_func=guide.LANGUAGES.get,
        )
        words = st.text_input(
            "Search the guide", key="guide_search", placeholder="epsilon, seeds, Ray", width=320
        )
    pages = guide.pages(language)
    if (words or "").strip():
        _found(above, words.strip(), language)
        return
    contents, text = st.columns([1, 4], gap="medium")
    with contents:
        _linked(pages)
        name = st.radio(
            "Pages",
            list(pages),
            key="guide_page",
            format_func=lambda one: pages[one].title,
            label_visibility="collapsed",
        )
    st.query_params["page"] = st.session_state["guide_linked"] = name
    shown = pages[name]
    tab.title("Guide", shown.title)
    above.title(formatting.markdown(shown.title), anchor=False)
    with text:
        st.markdown(shown.text)
        with st.container(horizontal=True):
            for other in guide.links(shown):
                _link(pages[other])


def _linked(pages: dict[str, guide.Page]) -> None:
    """The address wins when it changes (a link, the back button), the list of pages when a person uses it."""
    asked = st.query_params.get("page")
    if asked in pages and asked != st.session_state.get("guide_linked"):
        st.session_state["guide_page"] = asked
    if st.session_state.get("guide_page") not in pages:
        st.session_state["guide_page"] = asked if asked in pages else next(iter(pages))


def _link(one: guide.Page, label: str = "", key: str = "") -> None:
    """A button that turns to a page: it ends a search, too."""
    st.button(
        formatting.markdown(label or one.title),
        key=f"guide_to_{one.name}{key}",
        icon=":material/menu_book:",
        on_click=_turn_to,
        args=(one.name,),
    )


def _turn_to(name: str) -> None:
    st.session_state["guide_page"] = name
    st.session_state["guide_search"] = ""


def _found(above: st.delta_generator.DeltaGenerator, words: str, language: str) -> None:
    found = guide.search(words, language)
    tab.title("Guide", words)
    where = f"“{formatting.markdown(words)}”"
    above.title(
        f"{len(found)} section{'' if len(found) == 1 else 's'} say something about {where}"
        if found
        else f"The guide says nothing about {where}",
        anchor=False,
    )
    for number, (one, section) in enumerate(found[:MOST_FOUND]):
        with st.container(border=True):
            label = one.title if section.title == one.title else f"{one.title}: {section.title}"
            _link(one, label, f"_{number}")
            st.caption(formatting.markdown(guide.excerpt(section, words)))
    if len(found) > MOST_FOUND:
        st.caption(f"{len(found) - MOST_FOUND} more; add a word.")


page()
