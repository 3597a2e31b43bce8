"""Measures a network that somebody else trains, and writes what it saw as a run."""
