"""Calibration moments, and least squares that make up for pruned weights."""
