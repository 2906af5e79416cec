"""From raw corpora to a clean corpus folder: filters, duplicates, contamination, on datatrove."""
