"""Runs in an object store: what is copied up, what is fetched, and who owns which run."""
