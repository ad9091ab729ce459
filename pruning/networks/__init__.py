"""Trained torch networks as networks of the engine's integers."""
