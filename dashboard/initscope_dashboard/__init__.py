"""The screen of InitScope: Streamlit pages over what ``core`` wrote into ``runs/``."""
