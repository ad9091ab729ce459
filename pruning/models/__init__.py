"""Weights, masks and products inside torch models, and their export."""
