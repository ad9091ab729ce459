"""Which channel lies in which bank, and folding that order through a network."""
