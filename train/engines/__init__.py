"""Engines: what runs a training step over many processes."""
