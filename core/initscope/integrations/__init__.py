"""Callbacks for the loops that people already have. Each file imports its framework, and nothing else imports
the file.
"""
