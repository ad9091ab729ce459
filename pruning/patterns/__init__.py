"""What may survive: GS(B, k) exactly, every neighbour's pattern, and independent checkers."""
