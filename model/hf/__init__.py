"""Hugging Face export: a family as a dense Qwen3 folder, and the gate that proves it equal."""
