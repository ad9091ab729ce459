"""Whole networks in the engine's integers: graph, golden executor, programs."""
