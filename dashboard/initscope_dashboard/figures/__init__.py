"""One chart a file: a pure ``..._data`` part where something is computed, and a part that draws. No Streamlit
here.

Every figure is drawn by ``initscope_dashboard.widgets.plot.plot``. What they share with it:

- colours are tokens of ``initscope_dashboard.browser.theme``, filled in for the light or dark theme in the
  browser;
- ``trace.meta`` may hold ``{"run", "table", "y"}`` (a curve that live rows extend), ``{"run", "layers",
  "symbol"}`` (one value a layer, replaced by live rows), ``{"text": "log10" | "log10ratio" | "share"}``
  (hover text made from z in the browser, which spares the wire a second matrix) and ``{"narrow": {...}}``
  (changes of the trace on a narrow screen);
- ``layout.meta["narrow"]`` holds changes for screens under 560 pixels, as ``{"xaxis.tickangle": 90}``;
  ``layout.meta["blank"]`` is the hint of a figure without data.
"""
