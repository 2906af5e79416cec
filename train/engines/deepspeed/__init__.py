"""ZeRO by DeepSpeed: what it is told, what it keeps where, and the engine around it."""
