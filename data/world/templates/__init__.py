"""Sentences of the embedded corpus, one file a group of languages."""
