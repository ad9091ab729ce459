"""Names, widths and meanings of the core's ports and status values: one source for all readers."""

COUNTER_WIDTH = 32

COUNTERS = {
    "cycles": "cycles from the acceptance of the last command to its last write",
    "groups": "groups issued",
    "stalls": "cycles in which a finished bundle waited for the drain of the one before",
    "drains": "cycles in which rows were being drained",
    "conflicts": "arbitrated gather: groups in which two lanes wanted one bank",
    "replays": "arbitrated gather: extra issue cycles because of conflicts",
}
"""Status counters, cleared when a command starts. Each is 32 bits and wraps."""

ERRORS = {
    "config_hash": "a command for another engine was refused",
    "command": "a command with an empty loop or a range outside a buffer was refused, "
    "or a bundle drained in a command without records",
    "address": "base plus offset, or base plus result word, went beyond the bank depth",
}
"""Sticky error flags, cleared by ``clear_errors`` or reset."""
