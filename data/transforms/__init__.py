"""Source transforms: new training sources made from documents of the corpus. Read `derive.py`."""
