"""Thin command-line tools around the rooms."""
