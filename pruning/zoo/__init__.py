"""Networks to measure with, whose weights have the names of public checkpoints."""
