"""What registers are made of, and the names of the engine's own status values.

The registers of a top are declared once, in :mod:`gshw.register_map`, from these classes. The RTL
(:mod:`rtl_gen.register_file`), the documents (:mod:`gshw.register_docs`) and SystemRDL
(:mod:`gshw.register_rdl`) are made from that declaration.
"""

import enum
import re
from dataclasses import dataclass
from functools import cached_property

from gshw.errors import GshwError

REGISTER_WIDTH = 32
REGISTER_BYTES = REGISTER_WIDTH // 8

COUNTER_WIDTH = 32

COUNTERS = {
    "cycles": "cycles from the acceptance of the last command to its last write",
    "groups": "groups issued",
    "stalls": "cycles in which a finished bundle waited for the drain of the one before",
    "drains": "cycles in which rows were being drained",
    "conflicts": "arbitrated gather: groups in which two lanes wanted one bank",
    "replays": "arbitrated gather: extra issue cycles because of conflicts",
}
"""Status counters of the engine, cleared when a command starts. Each is 32 bits and wraps."""

ERRORS = {
    "config_hash": "a command for another engine was refused",
    "command": "a command without groups or with a range outside a buffer was refused, "
    "or a bundle drained in a command without records",
    "address": "base plus offset went beyond the scratchpad, or base plus result word beyond the "
    "output buffer",
}
"""Sticky error flags of the engine, cleared by ``clear_errors`` or reset."""

PROGRAM_COUNTERS = {
    "groups": "groups that the engine issued",
    "stalls": "cycles in which a finished bundle waited for the drain of the one before",
    "drains": "cycles in which rows were being drained",
    "conflicts": "arbitrated gather: groups in which two lanes wanted one bank",
    "replays": "arbitrated gather: extra issue cycles because of conflicts",
    "load_busy": "cycles in which load worked on an instruction",
    "compute_busy": "cycles in which compute worked on an instruction",
    "store_busy": "cycles in which store worked on an instruction",
    "compute_waits_load": "cycles in which compute, idle, waited for a token from load",
    "compute_waits_store": "cycles in which compute, idle, waited for a token from store",
    "load_waits_compute": "cycles in which load, idle, waited for a token from compute",
    "store_waits_compute": "cycles in which store, idle, waited for a token from compute",
    "load_waits_memory": "cycles in which load could take a beat and none was there",
    "store_waits_memory": "cycles in which store offered a beat that was not taken",
}
"""Counters of a program, cleared by its start. Each is 32 bits and wraps."""

WIDE_COUNTERS = {
    "cycles": "cycles from the start to the end of the program",
    "bytes_read": "bytes received on the bus, instructions included, in whole beats",
    "bytes_written": "bytes sent on the bus, in whole beats",
}
"""Counters of a program of 64 bits, in two registers each."""

PROGRAM_ERRORS = {
    "header": "the program does not begin with a good header",
    "config_hash": "the header is for another engine",
    "instruction": "an instruction has a wrong index, checksum or opcode",
    "tokens": "a unit gave more tokens than its neighbour can hold, or a token was left at the end",
    "load": "load had a target beyond a buffer, or an incomplete word",
    "store": "store had a source beyond the output buffer, or a column that does not exist",
    "command": "the engine refused a run: empty, out of range, or without the records it needs",
    "address": "the engine made an address beyond a bank",
    "read_bus": "a read of memory was answered with an error",
    "write_bus": "a write to memory was answered with an error",
    "read_range": "a read outside the window was refused",
    "write_range": "a write outside the window was refused",
    "stream": "gshw_stream: the input stream ended before the program did",
    "deadlock": "every unit waits for a token that cannot come",
    "watchdog": "nothing moved for watchdog_cycles cycles",
}
"""Sticky error flags of a program, from bit 0; the first one is kept as its bit number plus 1."""

INTERRUPTS = {
    "done": "a program has ended without an error",
    "error": "the first error flag has been set",
}
"""Interrupt sources, from bit 0."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
SINGLE_FIELD = "value"
"""Name of the field of a register that has only one: it is called as its register then."""


class Access(enum.Enum):
    """What software and hardware may do with a field."""

    READ_WRITE = "rw"
    """Software reads and writes it, hardware reads it."""
    READ_ONLY = "ro"
    """Hardware drives it; writes are ignored."""
    CONSTANT = "constant"
    """Reads as its reset value for ever; writes are ignored."""
    WRITE_1_CLEARS = "w1c"
    """Hardware sets bits, software clears those to which it writes 1. Setting wins."""
    PULSE = "pulse"
    """Writing 1 gives hardware one cycle of 1; reads as 0."""


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise GshwError(f"a {kind}'s name must be lower-case words joined by _, not {name!r}")


@dataclass(frozen=True, kw_only=True)
class RegisterField:
    """Some consecutive bits of a register.

    Parameters
    ----------
    name
        Lower-case words; ``value`` where it is the register's only field.
    low_bit, width
        Place in the 32 bits.
    access
        See :class:`Access`.
    description
        One sentence.
    reset
        Value after reset. Of a read-only field hardware decides: 0 here.
    hardware_clears
        Hardware, too, can clear the field (write-1-to-clear fields only).
    values
        Meaning of each value, where they are names rather than a number.

    Raises
    ------
    GshwError
        Naming the rule that is broken.
    """

    name: str
    low_bit: int
    width: int
    access: Access
    description: str
    reset: int = 0
    hardware_clears: bool = False
    values: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        _check_name("field", self.name)
        if self.low_bit < 0 or self.width < 1 or self.high_bit >= REGISTER_WIDTH:
            raise GshwError(
                f"{self.name} must lie in bits 31:0, not {self.high_bit}:{self.low_bit}"
            )
        if not 0 <= self.reset < 1 << self.width:
            raise GshwError(
                f"{self.name}: reset must fit in {self.width} bits, not {self.reset:#x}"
            )
        if self.reset and self.access not in (Access.READ_WRITE, Access.CONSTANT):
            raise GshwError(f"{self.name}: reset must be 0 for {self.access.value}")
        if self.hardware_clears and self.access is not Access.WRITE_1_CLEARS:
            raise GshwError(
                f"{self.name}: only w1c fields are cleared by hardware, not {self.access.value}"
            )
        if self.access is Access.PULSE and self.width != 1:
            raise GshwError(f"{self.name}: a pulse must have one bit, not {self.width}")

    @property
    def high_bit(self) -> int:
        return self.low_bit + self.width - 1

    @property
    def mask(self) -> int:
        """Ones at the field's bits of the register."""
        return ((1 << self.width) - 1) << self.low_bit

    @property
    def volatile(self) -> bool:
        """Whether two reads may differ without a write between them."""
        return self.access in (Access.READ_ONLY, Access.WRITE_1_CLEARS)

    @property
    def writable(self) -> bool:
        return self.access in (Access.READ_WRITE, Access.WRITE_1_CLEARS, Access.PULSE)

    def get(self, word: int) -> int:
        """The field's value in a register's value."""
        return (word & self.mask) >> self.low_bit

    def put(self, value: int) -> int:
        """A register's value in which this field is ``value`` and everything else 0.

        Raises
        ------
        GshwError
            For a value that does not fit.
        """
        if not 0 <= value < 1 << self.width:
            raise GshwError(f"{self.name} must be from 0 to {(1 << self.width) - 1}, not {value}")
        return value << self.low_bit


@dataclass(frozen=True, kw_only=True)
class Register:
    """32 bits at a byte address.

    Parameters
    ----------
    name
        Lower-case words.
    offset
        Byte address, a multiple of 4.
    description
        One or more sentences.
    fields
        Lowest bit first, no two on the same bit. Bits between them read as 0.
    in_memory
        Hardware keeps it in a memory and gives it when asked. One read-only field of 32 bits.
    """

    name: str
    offset: int
    description: str
    fields: tuple[RegisterField, ...]
    in_memory: bool = False

    def __post_init__(self) -> None:
        _check_name("register", self.name)
        if self.offset < 0 or self.offset % REGISTER_BYTES:
            raise GshwError(f"{self.name}: offset must be a multiple of 4, not {self.offset}")
        if not self.fields:
            raise GshwError(f"{self.name} must have at least one field")
        whole = self.fields[0].access is Access.READ_ONLY and self.fields[0].width == REGISTER_WIDTH
        if self.in_memory and not whole:
            raise GshwError(f"{self.name}: a register in memory must be one read-only field")
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise GshwError(f"{self.name}: fields must have different names, not two {name!r}")
        if SINGLE_FIELD in names and len(names) > 1:
            raise GshwError(
                f"{self.name}: a field may be called 'value' only if it is the only one"
            )
        for low, high in zip(self.fields, self.fields[1:]):
            if high.low_bit <= low.high_bit:
                raise GshwError(
                    f"{self.name}: fields must be in order and not overlap, "
                    f"not {low.name} at {low.high_bit}:{low.low_bit} "
                    f"before {high.name} at {high.high_bit}:{high.low_bit}"
                )

    @property
    def reset(self) -> int:
        """The register's value after reset, as far as hardware does not decide it."""
        return sum(field.put(field.reset) for field in self.fields)

    def field(self, name: str) -> RegisterField:
        """The field of this name; KeyError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    def member(self, field: RegisterField) -> str:
        """What the field is called outside its register: ``register_field``."""
        return self.name if field.name == SINGLE_FIELD else f"{self.name}_{field.name}"


@dataclass(frozen=True, kw_only=True)
class RegisterMap:
    """All registers of a top, by rising offset.

    Parameters
    ----------
    name
        Of the block, for example the top's Verilog module.
    description
        One or more sentences.
    address_width
        Bits of a byte address; what no register covers answers with an error.
    registers
        No two at one offset or with one name.
    """

    name: str
    description: str
    address_width: int
    registers: tuple[Register, ...]

    def __post_init__(self) -> None:
        _check_name("register map", self.name)
        for register in self.registers:
            if register.offset >> self.address_width:
                raise GshwError(
                    f"{register.name}: offset must be below {1 << self.address_width:#x}, "
                    f"not {register.offset:#x}"
                )
        for low, high in zip(self.registers, self.registers[1:]):
            if high.offset <= low.offset:
                raise GshwError(
                    f"registers must be in order and not overlap, not {low.name} at "
                    f"{low.offset:#x} before {high.name} at {high.offset:#x}"
                )
        kept = [register.offset for register in self.in_memory]
        if kept and kept[-1] - kept[0] != (len(kept) - 1) * REGISTER_BYTES:
            raise GshwError("registers in memory must follow each other without gaps")
        members = [r.member(f) for r in self.registers for f in r.fields]
        members += [r.name for r in self.registers if r.fields[0].name != SINGLE_FIELD]
        for member in members:
            if members.count(member) > 1:
                raise GshwError(f"registers and fields must have different names, not {member!r}")

    @property
    def in_memory(self) -> tuple[Register, ...]:
        """The registers that hardware keeps in a memory."""
        return tuple(register for register in self.registers if register.in_memory)

    @cached_property
    def _by_name(self) -> dict[str, Register]:
        return {register.name: register for register in self.registers}

    def __getitem__(self, name: str) -> Register:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name
