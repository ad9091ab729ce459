"""Whole designs for boards: pins, clock, and a core."""
