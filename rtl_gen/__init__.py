"""RTL generator (Amaranth) of the gather/scatter engine."""
