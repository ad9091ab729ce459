"""The cycle law of programs: exactly what the core's counters show after a program.

The core's control is stepped, register by register, at a memory of fixed latency and bandwidth
(:mod:`gshw.program_kernel`); how long a command of the engine takes is the closed form of
:mod:`gshw.cycles`. A real bus is never better than a memory of its least latency and highest
bandwidth: there the result is the lower bound.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config, EngineConfig, Gather
from gshw.cycles import Cycles, command_cycles
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.image import unpack_words
from gshw.layout import Field, group_fields, record_fields, word_width
from gshw.lower import LayerProgram
from gshw.program import INSTRUCTION_BYTES, Instruction, Opcode, Unit, disassemble
from gshw.program_kernel import DEADLOCK, FINISHED, simulate
from gshw.program_state import (
    ACTIVATIONS,
    COMPUTE,
    COUNTERS,
    FILL,
    GROUPS,
    INSTRUCTION,
    LOAD,
    PARAMETERS,
    RECORDS,
    RUN,
    STORE,
    SYNC,
)
from gshw.program_timing import (
    CHUNK_INSTRUCTIONS,
    MAX_IN_FLIGHT,
    QUEUE_SLOTS,
    burst_beats,
    queue_words,
)

ReadMemory = Callable[[int, int], bytes]
"""Bytes of the memory before the program: (address, count)."""
CYCLE_LIMIT = 1 << 40
_DEFAULT_MODEL = MemoryModel()
_LIMB_WIDTH = 32
_UNITS = {Unit.LOAD: LOAD, Unit.COMPUTE: COMPUTE, Unit.STORE: STORE}
_KINDS = {
    Opcode.LOAD_ACTIVATIONS: ACTIVATIONS,
    Opcode.LOAD_GROUPS: GROUPS,
    Opcode.LOAD_RECORDS: RECORDS,
    Opcode.FILL: FILL,
    Opcode.RUN: RUN,
    Opcode.SYNC: SYNC,
    Opcode.STORE: 0,
}


class Bound(enum.Enum):
    """What a tile keeps busy for longest."""

    ISSUE = "compute"
    DRAIN = "drain"
    READ = "memory read"
    WRITE = "memory write"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One command, with the loads and stores that stand before it in the program.

    Parameters
    ----------
    first, last
        Numbers of its instructions; 1 follows the header.
    start, end
        Cycles in which the first of them was taken by its unit, and the last to end was done.
    issue, drain, read, write
        Cycles for which it needs each resource: groups issued, records drained, beats on either
        channel of the bus. Its instructions' own beats are among the reads.
    """

    first: int
    last: int
    start: int
    end: int
    issue: int
    drain: int
    read: int
    write: int

    @property
    def needs(self) -> dict[Bound, int]:
        values = (self.issue, self.drain, self.read, self.write)
        return dict(zip(Bound, values, strict=True))

    @property
    def bound(self) -> Bound:
        """The roofline: no tile is shorter than its longest need."""
        needs = self.needs
        return max(needs, key=lambda kind: needs[kind])


@dataclass(frozen=True, kw_only=True)
class ProgramCycles:
    """What the core counts in a program.

    Parameters
    ----------
    counters
        Every counter, by the names of :data:`gshw.registers.WIDE_COUNTERS` and
        ``PROGRAM_COUNTERS``.
    read_cycles, write_cycles
        Cycles for which the bus is busy in each direction.
    times
        Shape (n_instructions, 2), int64: the cycles in which each instruction was taken by its
        unit and was done. The start is cycle 0, the last one is ``cycles``.
    tiles
        In the program's order.
    """

    counters: dict[str, int]
    read_cycles: int
    write_cycles: int
    times: NDArray[np.int64]
    tiles: tuple[Tile, ...]

    @property
    def cycles(self) -> int:
        """From the start to the end of the program."""
        return self.counters["cycles"]

    @property
    def compute_share(self) -> float:
        """Part of the cycles in which the compute unit works."""
        return self.counters["compute_busy"] / self.cycles

    @property
    def read_share(self) -> float:
        """Part of the cycles in which the bus brings data."""
        return self.read_cycles / self.cycles

    @property
    def write_share(self) -> float:
        """Part of the cycles in which the bus takes data."""
        return self.write_cycles / self.cycles

    @property
    def bound(self) -> Bound:
        """The bound of the tiles that take most cycles."""
        cost = {kind: sum(t.needs[kind] for t in self.tiles if t.bound is kind) for kind in Bound}
        return max(cost, key=lambda kind: cost[kind])


# --- commands --------------------------------------------------------------------------------


def run_cycles(
    config: EngineConfig, cycles: NDArray[np.int64], drain: NDArray[np.int64], n_positions: int
) -> Cycles:
    """Cycles of a ``run`` instruction.

    Parameters
    ----------
    cycles, drain
        Shape (n_groups,): issue cycles of each group, and its drain count.
    n_positions
        How often the groups are walked.
    """
    n_groups, n_conflicts = cycles.size, int(np.count_nonzero(cycles > 1))
    ends = np.flatnonzero(drain)
    inside = not ends.size or int(ends[-1]) != cycles.size - 1
    lengths = np.add.reduceat(cycles, np.concatenate([[0], ends + 1])[: ends.size + inside])
    records = np.concatenate([drain[ends], [0] * inside])
    if inside and n_positions > 1:
        # What is open at the end of a walk goes on in the next one.
        walk = np.concatenate([lengths[-1:] + lengths[0], lengths[1:-1]])
        if ends.size:
            parts = [lengths[:-1], np.tile(walk, n_positions - 1), lengths[-1:]]
            lengths = np.concatenate(parts)
        else:
            lengths = lengths * n_positions
        records = np.concatenate([np.tile(records[:-1], n_positions), [0]])
        n_groups, n_conflicts = n_groups * n_positions, n_conflicts * n_positions
        n_positions = 1
    return command_cycles(config, lengths, records, n_groups, n_positions, inside, n_conflicts)


class _Commands:
    """The group buffer as the issue stage sees it, in the program's order."""

    def __init__(self, config: EngineConfig, read_memory: ReadMemory) -> None:
        self.config = config
        self._read = read_memory
        self._cycles = np.ones(config.group_buffer_depth, dtype=np.int64)
        self._drain = np.zeros(config.group_buffer_depth, dtype=np.int64)
        self._known: dict[tuple[bytes, bytes, int], Cycles] = {}

    def load(self, instruction: Instruction) -> None:
        """Execute a ``load_groups``."""
        word_bytes = _word_bytes(group_fields(self.config))
        n_words = instruction["run_bytes"] // word_bytes
        for outer in range(instruction["count_1"]):
            for inner in range(instruction["count_0"]):
                place = [
                    instruction[base]
                    + inner * instruction[f"{stride}_0"]
                    + outer * instruction[f"{stride}_1"]
                    for base, stride in (("address", "memory_stride"), ("target", "target_stride"))
                ]
                raw = self._read(place[0], n_words * word_bytes)
                words = np.frombuffer(raw, "<u4").reshape(n_words, -1)
                entries = slice(place[1], place[1] + n_words)
                self._drain[entries] = self._field(words, "drain")[:, 0]
                if self.config.gather is Gather.ARBITRATED:
                    self._cycles[entries] = self._replays(words)

    def _field(self, words: NDArray[np.uint32], name: str) -> NDArray[np.int64]:
        field = next(field for field in group_fields(self.config) if field.name == name)
        first, stop = field.start // _LIMB_WIDTH, -(-field.stop // _LIMB_WIDTH)
        moved = dataclasses.replace(field, start=field.start - first * _LIMB_WIDTH)
        return unpack_words((moved,), words[:, first:stop])[name]

    def _replays(self, words: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Issue cycles: the lanes that want the most wanted bank."""
        bank, active = self._field(words, "bank"), self._field(words, "active")
        wanted = (bank[:, :, None] == np.arange(self.config.lanes)) & (active[:, :, None] != 0)
        return np.maximum(wanted.sum(axis=1).max(axis=1), 1)

    def run(self, instruction: Instruction) -> Cycles:
        """Cycles of a ``run``."""
        start = instruction["group_base"]
        groups = slice(start, start + instruction["n_groups"])
        cycles, drain = self._cycles[groups], self._drain[groups]
        n_positions = 1
        for loop in range(3):
            n_positions *= instruction[f"count_less_1_{loop}"] + 1
        key = cycles.tobytes(), drain.tobytes(), n_positions
        if key not in self._known:
            self._known[key] = run_cycles(self.config, cycles, drain, n_positions)
        return self._known[key]


def _word_bytes(fields: tuple[Field, ...]) -> int:
    return -(-word_width(fields) // _LIMB_WIDTH) * (_LIMB_WIDTH // 8)


# --- the whole program -----------------------------------------------------------------------


def _parameters(config: Config, model: MemoryModel, cycle_limit: int) -> NDArray:
    engine, bus = config.engine, config.bus
    beat_channels = bus.data_width // engine.activation_width
    row_width = engine.channels_per_row * engine.activation_width
    beat_limbs = bus.data_width // _LIMB_WIDTH
    parts = [max(1, beat_channels // engine.channels_per_row)]
    for fields in (group_fields(engine), record_fields(engine)):
        n_limbs = _word_bytes(fields) * 8 // _LIMB_WIDTH
        parts.append(max(1, beat_limbs >> (n_limbs.bit_length() - 1)))
    values = {
        "log2_bytes": bus.data_bytes.bit_length() - 1,
        "block_beats": burst_beats(bus),
        "outstanding": bus.outstanding,
        "read_latency": model.read_latency,
        "write_latency": model.write_latency,
        "interval": model.interval,
        "words_per_beat": beat_limbs,
        "chunk": CHUNK_INSTRUCTIONS,
        "n_slots": QUEUE_SLOTS,
        "max_in_flight": MAX_IN_FLIGHT,
        "load_words": queue_words(Unit.LOAD),
        "compute_words": queue_words(Unit.COMPUTE),
        "store_words": queue_words(Unit.STORE),
        "parts_0": parts[ACTIVATIONS],
        "parts_1": parts[GROUPS],
        "parts_2": parts[RECORDS],
        "units_per_row": max(1, row_width // bus.data_width),
        "units_per_beat": max(1, bus.data_width // row_width),
        "cycle_limit": cycle_limit,
    }
    parameters = np.zeros(1, dtype=PARAMETERS)
    for name, value in values.items():
        parameters[name] = value
    return parameters


def _table(config: Config, instructions: Sequence[Instruction], lengths: Sequence[int]) -> NDArray:
    row_bytes = config.engine.channels_per_row * config.engine.activation_width // 8
    unit_bytes = min(row_bytes, config.bus.data_bytes)
    table = np.zeros(len(instructions), dtype=INSTRUCTION)
    for row, instruction, length in zip(table, instructions, lengths, strict=True):
        row["unit"], row["kind"] = _UNITS[instruction.unit], _KINDS[instruction.opcode]
        for name in ("pop_previous", "pop_next", "push_previous", "push_next"):
            row[name] = getattr(instruction, name)
        for name in ("address", "run_bytes", "count_0", "count_1", "n_words"):
            row[name] = instruction.values.get(name, 0)
        for loop in range(2):
            row[f"stride_{loop}"] = instruction.values.get(f"memory_stride_{loop}", 0)
        row["n_cycles"] = length
        row["n_rows"] = -(-int(row["run_bytes"]) // row_bytes)
        row["n_units"] = -(-int(row["run_bytes"]) // unit_bytes)
    return table


def beats(config: Config, instruction: Instruction) -> int:
    """Beats of a load or store on the bus."""
    n_bytes = config.bus.data_bytes
    lanes, times = np.array([instruction["address"] % n_bytes]), np.array([1])
    for loop in range(2):
        count, stride = instruction[f"count_{loop}"], instruction[f"memory_stride_{loop}"]
        steps, repeats = np.unique(np.arange(count) * stride % n_bytes, return_counts=True)
        lanes = ((lanes[:, None] + steps) % n_bytes).reshape(-1)
        times = (times[:, None] * repeats).reshape(-1)
    return int((((lanes + instruction["run_bytes"] - 1) // n_bytes + 1) * times).sum())


def _tiles(
    config: Config,
    instructions: Sequence[Instruction],
    commands: Sequence[Cycles],
    times: NDArray[np.int64],
    interval: int,
) -> tuple[Tile, ...]:
    own_beats = max(1, INSTRUCTION_BYTES // config.bus.data_bytes)
    runs = [n for n, i in enumerate(instructions) if i.opcode is Opcode.RUN]
    ends = [*runs[:-1], len(instructions) - 1]
    tiles, first = [], 0
    for last in ends:
        found = {Unit.LOAD: own_beats * (last + 1 - first), Unit.STORE: 0}
        for instruction in instructions[first : last + 1]:
            if "memory_stride_0" in instruction.values:
                found[instruction.unit] += beats(config, instruction)
        here = slice(first, last + 1)
        tiles.append(
            Tile(
                first=first + 1,
                last=last + 1,
                start=int(times[here, 0].min()),
                end=int(times[here, 1].max()),
                issue=sum(command.issued for command in commands[here]),
                drain=sum(command.drains for command in commands[here]),
                read=found[Unit.LOAD] * interval,
                write=found[Unit.STORE] * interval,
            )
        )
        first = last + 1
    return tuple(tiles)


def program_cycles(
    config: Config,
    program: bytes,
    read_memory: ReadMemory,
    model: MemoryModel = _DEFAULT_MODEL,
    *,
    program_address: int = 0,
    cycle_limit: int = CYCLE_LIMIT,
) -> ProgramCycles:
    """Cycles of a program, exactly as the core counts them at this memory.

    Parameters
    ----------
    program
        One that :class:`gshw.program_model.ProgramModel` accepts.
    read_memory
        Called for the group words that the program loads. Groups that were in the buffer before
        the program are taken for such that end no bundle.
    model
        Of which only latencies and interval may differ from the defaults.
    cycle_limit
        Cycles after which to give up.

    Raises
    ------
    GshwError
        For a damaged program, a deadlock, a program longer than the limit, and a memory that
        pauses at random, answers with errors or takes no time.
    """
    if model.pause or model.fault_low <= model.fault_high:
        raise GshwError("the cycle law needs a memory without random pauses and faults")
    for name in ("read_latency", "write_latency", "interval"):
        if getattr(model, name) < 1:
            raise GshwError(f"{name} must be at least 1, not {getattr(model, name)}")
    instructions = disassemble(program, config.engine)
    engine = _Commands(config.engine, read_memory)
    commands = []
    for instruction in instructions:
        commands.append(Cycles())
        if instruction.opcode is Opcode.LOAD_GROUPS:
            engine.load(instruction)
        elif instruction.opcode is Opcode.RUN:
            commands[-1] = engine.run(instruction)
    table = _table(config, instructions, [command.total for command in commands])
    counted = np.zeros(1, dtype=COUNTERS)
    parameters = _parameters(config, model, cycle_limit)
    status, cycles, times = simulate(program_address, parameters, table, counted)
    if status != FINISHED:
        what = "waits for a token that cannot come" if status == DEADLOCK else "has not ended"
        raise GshwError(f"the program {what} after {cycles} cycles")
    total = sum(commands, Cycles())
    counts = {name: int(counted[name][0]) for name in COUNTERS.names or ()}
    read_beats, write_beats = counts.pop("read_beats"), counts.pop("write_beats")
    counters = {
        "cycles": cycles,
        "bytes_read": read_beats * config.bus.data_bytes,
        "bytes_written": write_beats * config.bus.data_bytes,
        **{name: getattr(total, name) for name in ("groups", "stalls", "drains", "conflicts")},
        "replays": total.replays,
        **counts,
    }
    return ProgramCycles(
        counters=counters,
        read_cycles=read_beats * model.interval,
        write_cycles=write_beats * model.interval,
        times=times,
        tiles=_tiles(config, instructions, commands, times, model.interval),
    )


def layer_cycles(program: LayerProgram, model: MemoryModel = _DEFAULT_MODEL) -> ProgramCycles:
    """Cycles of a lowered layer; see :func:`program_cycles`."""
    image, base = program.image, program.base_address
    return program_cycles(
        program.config,
        program.program,
        lambda address, n_bytes: image[address - base : address - base + n_bytes],
        model,
        program_address=program.program_address,
    )
