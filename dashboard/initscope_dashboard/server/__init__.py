"""The ASGI app around the pages: routes, sign-in, and what keeps strangers out."""
