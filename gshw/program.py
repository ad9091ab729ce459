"""Programs of the core: instructions, their bits, the binary form.

``docs/program.md`` is the specification; a test holds its tables against :data:`FIELDS`. Every
instruction is 64 bytes, protected by its index in the program and a CRC-32.
"""

import enum
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gshw.config import EngineConfig
from gshw.errors import GshwError

INSTRUCTION_BYTES = 64
CRC_BYTES = 4
"""At the end of an instruction; the checksum covers what lies before."""
INDEX_LIMIT = 1 << 16
"""The instruction's index counts modulo this."""
MAX_TOKENS = 255
"""Tokens that may wait between two units in one direction."""
MAGIC = 0x57485347
VERSION = 1


class Unit(enum.Enum):
    """Who executes an instruction; tokens pass between neighbours in this order."""

    FETCH = "fetch"
    LOAD = "load"
    COMPUTE = "compute"
    STORE = "store"


class Opcode(enum.IntEnum):
    """Bits 7:0 of an instruction."""

    BEGIN = 0x01
    LOAD_ACTIVATIONS = 0x10
    LOAD_GROUPS = 0x11
    LOAD_RECORDS = 0x12
    FILL = 0x13
    RUN = 0x20
    SYNC = 0x21
    STORE = 0x30

    @property
    def unit(self) -> Unit:
        return (Unit.FETCH, Unit.LOAD, Unit.COMPUTE, Unit.STORE)[self >> 4]

    @property
    def text(self) -> str:
        """The name in the text form."""
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class InstructionField:
    """Some consecutive bits of an instruction.

    Parameters
    ----------
    name
        As in ``docs/program.md``.
    low_bit
        Within the 512 bits of an instruction, word 0 lowest.
    width
        Bits.
    signed
        Two's complement.
    minimum
        Smallest legal value of an unsigned field.
    default
        Value where the text form leaves it out; None where it must be given.
    """

    name: str
    low_bit: int
    width: int
    signed: bool = False
    minimum: int = 0
    default: int | None = 0

    @property
    def low(self) -> int:
        """Smallest legal value."""
        return -(1 << (self.width - 1)) if self.signed else self.minimum

    @property
    def high(self) -> int:
        """Largest legal value."""
        return (1 << (self.width - self.signed)) - 1

    @property
    def bits(self) -> int:
        """Ones where the field lies."""
        return ((1 << self.width) - 1) << self.low_bit

    def get(self, block: int) -> int:
        """The field's value in a 512-bit instruction."""
        value = block >> self.low_bit & ((1 << self.width) - 1)
        if self.signed and value > self.high:
            value -= 1 << self.width
        return value

    def put(self, value: int) -> int:
        """The instruction's bits for a legal value."""
        return (value & ((1 << self.width) - 1)) << self.low_bit


def _field(
    word: int,
    name: str,
    width: int = 32,
    low_bit: int = 0,
    *,
    signed: bool = False,
    minimum: int = 0,
    default: int | None = 0,
) -> InstructionField:
    return InstructionField(
        name=name,
        low_bit=32 * word + low_bit,
        width=width,
        signed=signed,
        minimum=minimum,
        default=default,
    )


COMMON_FIELDS = (
    _field(0, "opcode", 8),
    _field(0, "pop_previous", 1, 8),
    _field(0, "pop_next", 1, 9),
    _field(0, "push_previous", 1, 10),
    _field(0, "push_next", 1, 11),
    _field(0, "index", 16, 16),
)
"""Word 0 of every instruction."""

CRC_FIELD = _field(15, "crc")
"""CRC-32, as zlib's, of words 0 to 14."""

TOKENS = ("pop_previous", "pop_next", "push_previous", "push_next")

_COUNTS = (
    _field(4, "count_0", 16, minimum=1, default=1),
    _field(4, "count_1", 16, 16, minimum=1, default=1),
)
_RUNS = (
    _field(1, "address", 64, default=None),
    _field(3, "run_bytes", 24, minimum=1, default=None),
    *_COUNTS,
    _field(5, "memory_stride_0", signed=True),
    _field(6, "memory_stride_1", signed=True),
)
_TARGETS = (
    _field(7, "target", 16),
    _field(7, "columns", 16, 16),
    _field(8, "target_stride_0", 16),
    _field(8, "target_stride_1", 16, 16),
)

FIELDS: dict[Opcode, tuple[InstructionField, ...]] = {
    Opcode.BEGIN: (
        _field(1, "magic"),
        _field(2, "version"),
        _field(3, "config_hash"),
        _field(4, "n_instructions", minimum=1, default=None),
    ),
    Opcode.LOAD_ACTIVATIONS: _RUNS + _TARGETS,
    Opcode.LOAD_GROUPS: _RUNS + _TARGETS,
    Opcode.LOAD_RECORDS: _RUNS + _TARGETS,
    Opcode.FILL: (
        _field(3, "n_words", 16, minimum=1, default=None),
        *_COUNTS,
        *_TARGETS,
        _field(9, "value", 16),
    ),
    Opcode.RUN: (
        _field(1, "group_base", 16),
        _field(2, "n_groups", 17, minimum=1, default=None),
        _field(3, "record_base", 16),
        _field(4, "n_records", 17),
        _field(5, "read_base", 16),
        _field(5, "write_base", 16, 16),
        _field(6, "count_less_1_0", 16),
        _field(6, "count_less_1_1", 16, 16),
        _field(7, "count_less_1_2", 16),
        _field(7, "signed_input", 1, 16),
        _field(7, "continues", 1, 17),
        _field(7, "maximum", 1, 18),
        _field(7, "table", 4, 19),
        _field(8, "read_step_0", 16),
        _field(8, "read_step_1", 16, 16),
        _field(9, "read_step_2", 16),
        _field(9, "write_step_0", 16, 16),
        _field(10, "write_step_1", 16),
        _field(10, "write_step_2", 16, 16),
        _field(11, "low", signed=True),
        _field(12, "high", signed=True),
    ),
    Opcode.SYNC: (),
    Opcode.STORE: (
        *_RUNS,
        _field(7, "source", 16),
        _field(7, "column", 4, 16),
        _field(8, "source_stride_0", 16),
        _field(8, "source_stride_1", 16, 16),
    ),
}
"""Fields of each instruction beyond :data:`COMMON_FIELDS`."""

OPTIONAL_FIELDS = ("maximum", "table")
"""Fields of a run that only some engines have."""


def optional_fields(config: EngineConfig) -> tuple[str, ...]:
    """Those of :data:`OPTIONAL_FIELDS` that an engine has."""
    has = {"maximum": config.max_pooling, "table": config.activation_tables > 0}
    return tuple(name for name in OPTIONAL_FIELDS if has[name])


_MISSING_NEIGHBOUR = {
    Unit.FETCH: {name: "begin takes no tokens" for name in TOKENS},
    Unit.LOAD: dict.fromkeys(("pop_previous", "push_previous"), "load has no unit before it"),
    Unit.COMPUTE: {},
    Unit.STORE: dict.fromkeys(("pop_next", "push_next"), "store has no unit after it"),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction, legal by itself.

    Parameters
    ----------
    opcode
        What to do.
    values
        Every field of the opcode by name.
    pop_previous, pop_next, push_previous, push_next
        Tokens from and to the units before and after.

    Raises
    ------
    GshwError
        For an unknown or missing field, one out of range, or a token of a unit that is not there.
    """

    opcode: Opcode
    values: Mapping[str, int]
    pop_previous: bool = False
    pop_next: bool = False
    push_previous: bool = False
    push_next: bool = False

    def __post_init__(self) -> None:
        names = [field.name for field in FIELDS[self.opcode]]
        for name in self.values:
            if name not in names:
                known = f"its fields are {', '.join(names)}" if names else "it has none"
                raise GshwError(f"{self.opcode.text} has no field {name!r}; {known}")
        complete = {}
        for field in FIELDS[self.opcode]:
            value = self.values.get(field.name, field.default)
            if value is None:
                raise GshwError(f"{self.opcode.text} needs the field {field.name}")
            if not field.low <= value <= field.high:
                raise GshwError(
                    f"{self.opcode.text}: {field.name} must be from {field.low} to {field.high}, "
                    f"not {value}"
                )
            complete[field.name] = int(value)
        object.__setattr__(self, "values", complete)
        for name, reason in _MISSING_NEIGHBOUR[self.opcode.unit].items():
            if getattr(self, name):
                raise GshwError(f"{self.opcode.text}: {name} must not be set: {reason}")

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    @property
    def unit(self) -> Unit:
        return self.opcode.unit

    def loop(self, name: str) -> tuple[int, int]:
        """The pair of an inner and an outer value, as ``count`` or ``memory_stride``."""
        return self.values[f"{name}_0"], self.values[f"{name}_1"]


def encode(instruction: Instruction, index: int) -> bytes:
    """The 64 bytes of an instruction at this place of the program (the header is 0)."""
    common = {name: int(getattr(instruction, name)) for name in TOKENS}
    common |= {"opcode": int(instruction.opcode), "index": index % INDEX_LIMIT}
    block = 0
    for field in COMMON_FIELDS:
        block |= field.put(common[field.name])
    for field in FIELDS[instruction.opcode]:
        block |= field.put(instruction[field.name])
    body = block.to_bytes(INSTRUCTION_BYTES, "little")[:-CRC_BYTES]
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def decode(raw: bytes, index: int) -> Instruction:
    """The instruction of 64 bytes at this place of the program.

    Raises
    ------
    GshwError
        For a wrong checksum, index or opcode, a field out of range, or bits that must be 0.
    """
    where = f"instruction {index}"
    crc = int.from_bytes(raw[-CRC_BYTES:], "little")
    expected = zlib.crc32(raw[:-CRC_BYTES])
    if crc != expected:
        raise GshwError(f"{where}: CRC-32 must be {expected:#010x}, not {crc:#010x}")
    block = int.from_bytes(raw, "little")
    common = {field.name: field.get(block) for field in COMMON_FIELDS}
    if common["index"] != index % INDEX_LIMIT:
        raise GshwError(f"{where}: index must be {index % INDEX_LIMIT}, not {common['index']}")
    try:
        opcode = Opcode(common["opcode"])
    except ValueError:
        raise GshwError(f"{where}: unknown opcode {common['opcode']:#04x}") from None
    unnamed = block & ~CRC_FIELD.bits
    for field in COMMON_FIELDS + FIELDS[opcode]:
        unnamed &= ~field.bits
    if unnamed:
        word, bit = divmod((unnamed & -unnamed).bit_length() - 1, 32)
        raise GshwError(f"{where}: {opcode.text}: bit {bit} of word {word} must be 0")
    try:
        return Instruction(
            opcode,
            {field.name: field.get(block) for field in FIELDS[opcode]},
            **{name: bool(common[name]) for name in TOKENS},
        )
    except GshwError as error:
        raise GshwError(f"{where}: {error}") from None


def begin(config_hash32: int, n_instructions: int) -> Instruction:
    """The header of a program."""
    return Instruction(
        Opcode.BEGIN,
        {
            "magic": MAGIC,
            "version": VERSION,
            "config_hash": config_hash32,
            "n_instructions": n_instructions,
        },
    )


def assemble(config_hash32: int, instructions: Sequence[Instruction]) -> bytes:
    """A whole program: header and instructions.

    Parameters
    ----------
    config_hash32
        ``EngineConfig.hash32`` of the engine that shall run it.
    instructions
        At least one, without the header.
    """
    if not instructions:
        raise GshwError("a program must have at least one instruction, not 0")
    for index, instruction in enumerate(instructions, 1):
        if instruction.opcode is Opcode.BEGIN:
            raise GshwError(f"instruction {index}: begin must be the first instruction only")
    program = [begin(config_hash32, len(instructions)), *instructions]
    return b"".join(encode(instruction, index) for index, instruction in enumerate(program))


def read_header(data: bytes) -> Instruction:
    """The header of a binary program.

    Raises
    ------
    GshwError
        When it is truncated, not a program, of another version, or damaged.
    """
    if len(data) < INSTRUCTION_BYTES:
        raise GshwError(
            f"truncated program: the header must have {INSTRUCTION_BYTES} bytes, not {len(data)}"
        )
    block = int.from_bytes(data[:INSTRUCTION_BYTES], "little")
    fields = {field.name: field for field in FIELDS[Opcode.BEGIN]}
    for name, expected in (("magic", MAGIC), ("version", VERSION)):
        found = fields[name].get(block)
        if found != expected:
            raise GshwError(f"not a program: {name} must be {expected:#x}, not {found:#x}")
    opcode = COMMON_FIELDS[0].get(block)
    if opcode != Opcode.BEGIN:
        raise GshwError(f"not a program: opcode must be {Opcode.BEGIN:#04x}, not {opcode:#04x}")
    return decode(data[:INSTRUCTION_BYTES], 0)


def first_program(data: bytes) -> bytes:
    """The program at the beginning of the data, as far as it is there."""
    return data[: (read_header(data)["n_instructions"] + 1) * INSTRUCTION_BYTES]


def disassemble(data: bytes, config: EngineConfig | None = None) -> list[Instruction]:
    """The instructions of a binary program, without the header.

    Parameters
    ----------
    config
        The engine that shall run it; without it the hash is not checked.

    Raises
    ------
    GshwError
        With one line, for a program that the core would refuse too, and for bytes too many.
    """
    header = read_header(data)
    if config is not None and header["config_hash"] != config.hash32:
        raise GshwError(
            f"program was made for the engine {header['config_hash']:08x}, "
            f"not for {config.hash32:08x}"
        )
    n_bytes = (header["n_instructions"] + 1) * INSTRUCTION_BYTES
    if len(data) != n_bytes:
        what = "truncated program" if len(data) < n_bytes else "bytes behind the program"
        raise GshwError(
            f"{what}: {header['n_instructions']} instructions and the header must have "
            f"{n_bytes} bytes, not {len(data)}"
        )
    instructions = []
    for index in range(1, header["n_instructions"] + 1):
        start = index * INSTRUCTION_BYTES
        instruction = decode(data[start : start + INSTRUCTION_BYTES], index)
        if instruction.opcode is Opcode.BEGIN:
            raise GshwError(f"instruction {index}: begin must be the first instruction only")
        instructions.append(instruction)
    return instructions
