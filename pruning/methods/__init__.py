"""How a mask is reached in the course of a training."""
