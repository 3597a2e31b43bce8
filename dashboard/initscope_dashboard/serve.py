"""The entry of an installed dashboard, which ``initscope ui`` gives to ``streamlit run``."""

import streamlit as st

from initscope_dashboard.server import app as server

app = st.App(server.MAIN, **server.around_the_pages())
