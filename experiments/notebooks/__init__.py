"""Notebooks, and the command that runs them."""
