"""Sizes that decide when a program does what: one source for the RTL and the cycle law."""

from gshw.config import BusConfig
from gshw.program import FIELDS, Opcode, Unit

CHUNK_INSTRUCTIONS = 4
"""Instructions of one read of fetch; as many again wait in its buffer meanwhile."""
QUEUE_SLOTS = 4
"""Instructions in the queue of a unit."""
MAX_IN_FLIGHT = 4
"""Instructions that a unit may have accepted and not finished."""
MAX_BURST_BYTES = 4096
"""No burst crosses a multiple of it (AXI4, IHI 0022, A3.4.1)."""


def burst_beats(bus: BusConfig) -> int:
    """Beats of the blocks of memory that bursts stay in; both limits are powers of two."""
    return min(bus.max_burst, MAX_BURST_BYTES // bus.data_bytes)


def queue_words(unit: Unit) -> int:
    """Words of an instruction that the unit sees: its queue unloads one per cycle."""
    fields = [field for opcode in Opcode if opcode.unit is unit for field in FIELDS[opcode]]
    return 1 + max((field.low_bit + field.width - 1) // 32 for field in fields)
