"""Kernels for CUDA, written in Triton; imported only where they are used."""
