"""Runs while they train: the event stream and what it sends."""
