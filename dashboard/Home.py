"""The entry: ``streamlit run dashboard/Home.py``. The screen itself is ``main.py``; this adds routes and headers around it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts only this file's folder there
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from core.errors import ConfigError  # noqa: E402
from dashboard import server  # noqa: E402

try:
    app = st.App(ROOT / "dashboard" / "main.py", routes=server.routes(), middleware=server.middleware(), lifespan=server.lifespan)
except ConfigError as error:
    sys.exit(f"error: {error}")
