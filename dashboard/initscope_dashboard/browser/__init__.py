"""Scripts, style sheet and colours of the browser, and the one place that finds them."""
