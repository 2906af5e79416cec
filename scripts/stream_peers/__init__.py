"""The streams that `bench_stream.py` compares: one adapter a peer, each in its own environment."""
