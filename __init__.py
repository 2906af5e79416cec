"""Xylem: pretraining for language models that keep language and knowledge apart.

The rooms are `data` (text to batches), `model` (the decoder and its export) and `train` (runs);
`data` and `model` import nothing of ours, `train` imports both. docs/TOUR.md walks through them.
"""

__version__ = "0.1.0"
