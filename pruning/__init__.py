"""Pruning (torch) onto the pattern that an engine's config dictates."""
