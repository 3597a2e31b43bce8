"""The entry: ``streamlit run dashboard/Home.py``. The screen itself is ``initscope_dashboard/main.py``."""

import streamlit as st

from initscope_dashboard.server import app as server

app = st.App(server.MAIN, **server.around_the_pages())
