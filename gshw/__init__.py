"""Gather/scatter engines for sparse neural networks: config, encoding, golden model, simulation."""

__version__ = "0.1.0"
