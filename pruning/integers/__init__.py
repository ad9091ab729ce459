"""Ranges, training with rounding, and evaluation in the engine's integers."""
