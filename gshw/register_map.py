"""The registers of ``gshw_axi``, ``gshw_stream`` and ``gshw_uart``, declared once.

Offsets and fields are the same for every config and all three tops, of which ``gshw_uart`` lacks
some, so that one driver serves all; the config decides only the constants and how many address
bits are there.
"""

from dataclasses import replace

from gshw.config import Config, Gather, Routing
from gshw.program import MAGIC, VERSION
from gshw.registers import (
    INTERRUPTS,
    PROGRAM_COUNTERS,
    PROGRAM_ERRORS,
    REGISTER_BYTES,
    REGISTER_WIDTH,
    SINGLE_FIELD,
    WIDE_COUNTERS,
    Access,
    Register,
    RegisterField,
    RegisterMap,
)
from gshw.top import Top

ADDRESS_WIDTH = 12
"""Bits of a register's byte address: one 4 KiB page."""
MAP_VERSION = 1
"""Rises whenever a driver for the version before would go wrong."""

_ROUTINGS = tuple(enumerate(routing.value for routing in Routing))


def _field(
    name: str, bits: int | tuple[int, int], access: Access, text: str, **rest
) -> RegisterField:
    """A field at bit ``n`` or ``(high, low)``."""
    high, low = bits if isinstance(bits, tuple) else (bits, bits)
    return RegisterField(
        name=name, low_bit=low, width=high - low + 1, access=access, description=text, **rest
    )


def _single(
    name: str, offset: int, access: Access, text: str, width: int = REGISTER_WIDTH, reset: int = 0
) -> Register:
    """A register of one number."""
    bits = (width - 1, 0)
    field = _field(SINGLE_FIELD, bits, access, text, reset=reset)
    return Register(name=name, offset=offset, description=text, fields=(field,))


def _pair(
    name: str, offset: int, access: Access, text: str, width: int = 64, reset: int = 0
) -> tuple[Register, Register]:
    """A number of up to 64 bits in two registers, the lower half first.

    Where the width leaves nothing for the higher half it is a constant 0.
    """
    low_width = min(width, REGISTER_WIDTH)
    high_width = width - low_width
    low = _single(
        f"{name}_low",
        offset,
        access,
        f"{text} Bits 31:0.",
        low_width,
        reset & ((1 << low_width) - 1),
    )
    high = _single(
        f"{name}_high",
        offset + 4,
        access if high_width else Access.CONSTANT,
        f"{text} Bits 63:32.",
        high_width or REGISTER_WIDTH,
        reset >> REGISTER_WIDTH,
    )
    return low, high


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _flags(table: dict[str, str], access: Access) -> tuple[RegisterField, ...]:
    return tuple(
        _field(name, bit, access, _sentence(text)) for bit, (name, text) in enumerate(table.items())
    )


def _control_registers(address_width: int) -> tuple[Register, ...]:
    rw, ro, w1c, pulse = (
        Access.READ_WRITE,
        Access.READ_ONLY,
        Access.WRITE_1_CLEARS,
        Access.PULSE,
    )
    return (
        Register(
            name="control",
            offset=0x000,
            description="Starts the core and tells how far it is.",
            fields=(
                _field("start", 0, pulse, "Starts the program; ignored unless ready is 1."),
                _field(
                    "done",
                    1,
                    w1c,
                    "The program has ended without an error. Cleared by writing 1, by the next "
                    "start and by a soft reset, never by reading. A program that starts in the "
                    "cycle of an end, as auto_restart lets it, leaves it 0.",
                    hardware_clears=True,
                ),
                _field("idle", 2, ro, "No program runs, and no bus transfer is outstanding."),
                _field("ready", 3, ro, "A start would be taken: idle, and not halted."),
                _field(
                    "auto_restart",
                    7,
                    rw,
                    "When a program ends without an error it starts again.",
                ),
                _field(
                    "soft_reset",
                    8,
                    pulse,
                    "Stops the core, drops what it holds, and clears done and every error. "
                    "Transfers on the bus are completed first. What software wrote is kept.",
                ),
                _field("interrupt", 9, ro, "State of the interrupt output."),
            ),
        ),
        Register(
            name="interrupt_global",
            offset=0x004,
            description="Gate of the interrupt output.",
            fields=(_field("enable", 0, rw, "The interrupt output may be 1."),),
        ),
        Register(
            name="interrupt_enable",
            offset=0x008,
            description="Which interrupts reach the output.",
            fields=tuple(
                _field(name, bit, rw, f"Enable when {text}.")
                for bit, (name, text) in enumerate(INTERRUPTS.items())
            ),
        ),
        Register(
            name="interrupt_status",
            offset=0x00C,
            description="Interrupts that have happened, enabled or not. The output is 1 while an "
            "enabled one is set. Cleared by writing 1; one that happens in the cycle of the write "
            "stays set.",
            fields=_flags(INTERRUPTS, w1c),
        ),
        *_pair("program_address", 0x010, rw, "Address of the program's header.", address_width),
        *_pair(
            "window_first",
            0x018,
            rw,
            "First byte of memory that the core may touch. Reads are of whole beats: of the beat "
            "that holds this byte those before it may be read, too, and are dropped. Writes touch "
            "no byte outside.",
            address_width,
        ),
        *_pair(
            "window_last",
            0x020,
            rw,
            "Last byte of memory that the core may touch; of its beat, as of the first one, the "
            "other bytes may be read and dropped.",
            address_width,
            (1 << address_width) - 1,
        ),
        _single(
            "watchdog_cycles",
            0x028,
            rw,
            "Cycles without any movement after which a program is stopped; 0: never.",
        ),
        Register(
            name="status",
            offset=0x02C,
            description="What the core is doing.",
            fields=(
                _field("busy", 0, ro, "A program runs."),
                _field("fetch_busy", 1, ro, "Instructions are being fetched."),
                _field("load_busy", 2, ro, "Load works on an instruction."),
                _field("compute_busy", 3, ro, "Compute works on an instruction."),
                _field("store_busy", 4, ro, "Store works on an instruction."),
                _field("halted", 5, ro, "Stopped by an error; a soft reset ends it."),
                _field("resetting", 6, ro, "A soft reset waits for transfers on the bus."),
            ),
        ),
        Register(
            name="error",
            offset=0x030,
            description="What went wrong. Any flag stops the program; a soft reset clears them.",
            fields=_flags(PROGRAM_ERRORS, ro),
        ),
        Register(
            name="first_error",
            offset=0x034,
            description="The first error since the last soft reset.",
            fields=(
                _field(
                    "index",
                    (15, 0),
                    ro,
                    "Index of its instruction, modulo 65536; 0 is the header. Of a read of "
                    "instructions: what fetch has in hand, up to 7 before the one that was read. "
                    "Of tokens: what the unit that gave them has in hand, or had last. Of a "
                    "deadlock: what waits. Of the watchdog: what a unit works on, else what fetch "
                    "has in hand. Of several units the first of load, compute, store.",
                ),
                _field(
                    "code",
                    (20, 16),
                    ro,
                    "Its bit number in error plus 1.",
                    values=((0, "none"), *enumerate(PROGRAM_ERRORS, start=1)),
                ),
            ),
        ),
        *_pair(
            "first_error_address",
            0x038,
            ro,
            "Start of the burst of the first error if it was one of bus or range, else 0.",
            address_width,
        ),
    )


def _identity_registers(config: Config, top: Top) -> tuple[Register, ...]:
    engine, bus = config.engine, config.bus

    def constants(name: str, offset: int, text: str, *fields: tuple) -> Register:
        made = []
        low = 0
        for field_name, width, value, meaning, *values in fields:
            made.append(
                _field(
                    field_name,
                    (low + width - 1, low),
                    Access.CONSTANT,
                    meaning,
                    reset=value,
                    values=values[0] if values else (),
                )
            )
            low += width
        return Register(name=name, offset=offset, description=text, fields=tuple(made))

    def constant(name: str, offset: int, value: int, text: str) -> Register:
        return _single(name, offset, Access.CONSTANT, text, reset=value)

    return (
        constant("magic", 0x040, MAGIC, 'Reads as "GSHW", the lowest byte first.'),
        constants(
            "version",
            0x044,
            "What a driver must know.",
            ("registers", 8, MAP_VERSION, "Version of this register map."),
            ("program", 8, VERSION, "Version of the program format."),
        ),
        constant("config_hash", 0x048, engine.hash32, "First 32 bits of the config's SHA-256."),
        constants(
            "features",
            0x04C,
            "Which parts the core has.",
            ("stream", 1, int(top is not Top.AXI), "0: gshw_axi; 1: programs come as streams."),
            (
                "arbitrated",
                1,
                int(engine.gather is Gather.ARBITRATED),
                "1: bank conflicts are resolved at run time.",
            ),
            ("routing", 2, list(Routing).index(engine.routing), "Routing network.", _ROUTINGS),
        ),
        constants(
            "geometry",
            0x050,
            "Shape of the engine.",
            ("lanes", 8, engine.lanes, "Lanes and banks: B."),
            ("rows", 8, engine.rows, "Output rows of a group: R."),
            ("block", 8, engine.block, "Channels of a bank word: C."),
            ("columns", 8, engine.columns, "Activation streams: V."),
        ),
        constants(
            "widths",
            0x054,
            "Bits of the numbers, and rows drained per cycle.",
            ("activation", 8, engine.activation_width, "Bits of an activation."),
            ("weight", 8, engine.weight_width, "Bits of a weight."),
            ("accumulator", 8, engine.accumulator_width, "Bits of an accumulator."),
            ("drain_rows", 8, engine.drain_rows, "Rows drained per cycle: D."),
        ),
        constant("bank_depth", 0x058, engine.bank_depth, "Words of a scratchpad bank."),
        constant("output_depth", 0x05C, engine.output_depth, "Words of an output buffer bank."),
        constant("group_buffer_depth", 0x060, engine.group_buffer_depth, "Groups on chip."),
        constant("row_buffer_depth", 0x064, engine.row_buffer_depth, "Row records on chip."),
        constants(
            "bus_widths",
            0x068,
            "Widths of the memory bus or of the streams.",
            ("data", 16, bus.data_width, "Bits of a beat."),
            ("address", 16, bus.address_width, "Bits of a byte address."),
        ),
        constants(
            "bus_bursts",
            0x06C,
            "Bursts on the memory bus.",
            ("max_burst", 16, bus.max_burst, "Beats of the longest burst."),
            ("outstanding", 16, bus.outstanding, "Bursts in flight: reads, and as many writes."),
        ),
    )


def _counter_registers() -> tuple[Register, ...]:
    registers: list[Register] = []
    offset = 0x080
    for name, text in WIDE_COUNTERS.items():
        registers += _pair(f"counter_{name}", offset, Access.READ_ONLY, _sentence(text))
        offset += 2 * REGISTER_BYTES
    for name, text in PROGRAM_COUNTERS.items():
        registers.append(_single(f"counter_{name}", offset, Access.READ_ONLY, _sentence(text)))
        offset += REGISTER_BYTES
    return tuple(replace(register, in_memory=True) for register in registers)


_OF_MEMORY = ("program_address_", "window_", "first_error_address_", "watchdog_cycles")
"""What ``gshw_uart`` lacks: it has no memory, and its host has time-outs of its own."""
UART_COUNTERS = ("cycles",)
"""The counters of ``gshw_uart``, which is to fit the smallest devices."""


def _is_of_uart(register: Register) -> bool:
    counters = tuple(f"counter_{name}" for name in UART_COUNTERS)
    if register.in_memory:
        return register.name.startswith(counters)
    return not register.name.startswith(_OF_MEMORY)


def register_map(config: Config, top: Top) -> RegisterMap:
    """The registers of ``gshw_axi``, ``gshw_stream`` or ``gshw_uart`` for one config."""
    registers = (
        *_control_registers(config.bus.address_width),
        *_identity_registers(config, top),
        *_counter_registers(),
    )
    if top is Top.UART:
        registers = tuple(filter(_is_of_uart, registers))
    return RegisterMap(
        name=top.module_name,
        description="Control, status, identity and counters of a gather/scatter engine.",
        address_width=ADDRESS_WIDTH,
        registers=registers,
    )
