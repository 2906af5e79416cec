"""Data: languages, sources, tokenizer, shards, mixture ledger, order, packing, stream."""
