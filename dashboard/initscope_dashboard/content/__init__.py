"""What is said: titles, headlines, numbers as text. No Streamlit."""
