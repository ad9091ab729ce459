"""``gshw compare``: tasks, contestants, sweep, tables and plots."""
