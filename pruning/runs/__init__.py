"""What ``gshw prune`` runs: loading, training on one or several machines, report."""
