"""Faults in the middle of random programs on the compiled ``gshw_axi``.

Whatever goes wrong, and whenever: the core stops with an error or is stopped by a reset, memory
outside the regions that the program stores is untouched, and the next program runs as if nothing
had been.
"""

import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gshw.config import Config
from gshw.drivers.accelerator import ProgramError
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.program import (
    COMMON_FIELDS,
    CRC_BYTES,
    FIELDS,
    INSTRUCTION_BYTES,
    Instruction,
    Opcode,
)
from gshw.program_model import walk_runs
from sim_tests.program_core import ProgramCore, random_memory_model
from sim_tests.programs import RandomProgram, random_program

_LOADS = (Opcode.LOAD_ACTIVATIONS, Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS)


@pytest.fixture(scope="module")
def cores():
    """Opened once per config, by name."""
    opened: dict[str, ProgramCore] = {}
    yield opened
    for core in opened.values():
        core.close()


@pytest.fixture
def core(fault_config, cores) -> ProgramCore:
    if fault_config.name not in cores:
        cores[fault_config.name] = ProgramCore(fault_config)
    cores[fault_config.name].hard_reset()
    return cores[fault_config.name]


@cache
def _made(config: Config, seed: int) -> RandomProgram:
    return random_program(np.random.default_rng(seed), config, n_steps=6, window_words=6)


def program_of(core: ProgramCore, seed: int) -> RandomProgram:
    """A small one, always the same."""
    return _made(core.config, seed)


def next_program(core: ProgramCore, what: str) -> None:
    """The core must be as new."""
    while core.control.read("status", "resetting"):
        pass
    assert core.control.read("control", "ready") and not core.control.read("error"), what
    core.run_well(program_of(core, 99), what=f"after {what}")


def touched_beats(program: RandomProgram, opcodes: tuple[Opcode, ...], n_beat: int) -> list[int]:
    """Addresses of the beats that hold the runs of these instructions."""
    beats: set[int] = set()
    for instruction in program.instructions:
        if instruction.opcode in opcodes:
            for distance in walk_runs(instruction, "memory_stride"):
                first = instruction["address"] + int(distance)
                last = first + instruction["run_bytes"] - 1
                beats |= set(range(first // n_beat, last // n_beat + 1))
    return [n_beat * beat for beat in sorted(beats)]


# --- bus errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [5, 6, 7])
@pytest.mark.parametrize("way", ["instructions", "loads", "stores"])
def test_an_error_on_any_beat(core, way, seed):
    """Each beat of a small program in turn answers with an error, on reads and on writes."""
    program = program_of(core, seed)
    n_beat = core.config.bus.data_bytes
    match way:
        case "instructions":
            place = program.program_bytes
            first, last = program.base + place.start, program.base + place.stop - 1
            beats = list(range(first // n_beat * n_beat, last + 1, n_beat))
        case "loads":
            beats = touched_beats(program, _LOADS, n_beat)
        case "stores":
            beats = touched_beats(program, (Opcode.STORE,), n_beat)
    # What is stored may be loaded, or the other way round.
    wanted = {"read_bus"} if way == "instructions" else {"read_bus", "write_bus"}
    longest = core.config.bus.max_burst * n_beat
    for number, beat in enumerate(beats):
        what = f"{way}: error at {beat:#x}"
        pause = (0, 90)[number % 2]
        model = MemoryModel(read_latency=12, pause=pause, fault_low=beat, fault_high=beat)
        core.prepare(program, model, seed=number)
        error = core.run_badly(program)
        assert set(error.flags) & wanted and set(error.flags) <= {"read_bus", "write_bus"}, what
        assert error.address // n_beat * n_beat <= beat < error.address + longest, what
        program.check_broken_off(core.memory.data, what)
        next_program(core, what)
    assert beats


def test_memory_that_is_not_there(core):
    """The window lets it through, the bus answers with a decode error."""
    program = program_of(core, 6)
    base, n_bytes = program.base, program.before.size
    wide = (0, (1 << core.config.bus.address_width) - 1)
    for opcode, address, flag in (
        (Opcode.LOAD_ACTIVATIONS, base + n_bytes - 3, "read_bus"),
        (Opcode.LOAD_ACTIVATIONS, base - 2, "read_bus"),
        (Opcode.STORE, base + n_bytes - 2, "write_bus"),
        (Opcode.STORE, base - 5, "write_bus"),
    ):
        buffer = "source" if opcode is Opcode.STORE else "target"
        values = {"address": address, "run_bytes": 8, buffer: 0}
        if opcode is not Opcode.STORE:
            values["columns"] = 1
        forged = forge(program, [encoded(Instruction(opcode, values), 1)])
        core.prepare(forged, window=wide)
        error = core.run_badly(forged)
        assert error.flags == (flag,) and error.index == 1
        inside = np.zeros(n_bytes, dtype=np.bool_)
        inside[max(0, address - base) : max(0, address + 8 - base)] = opcode is Opcode.STORE
        assert not ((core.memory.data != forged.before) & ~inside).any()
        next_program(core, f"{opcode.text} at {address:#x}")


@pytest.mark.parametrize("seed", range(12))
def test_outside_the_window_nothing_changes(core, seed):
    """The window ends within what the program touches: a range error, or it was never reached."""
    rng = np.random.default_rng(seed)
    program = program_of(core, 20 + seed)
    used = np.flatnonzero(program.written)
    cut = int(rng.choice(used))
    first, last = program.base, program.base + program.before.size - 1
    cut += first
    window = (first, cut - 1) if seed % 2 else (cut + 1, last)
    core.prepare(program, random_memory_model(rng), window=window)
    error = core.run_badly(program)
    assert set(error.flags) <= {"read_range", "write_range"}
    outside = np.ones(program.before.size, dtype=np.bool_)
    outside[window[0] - first : window[1] - first + 1] = False
    assert not ((core.memory.data != program.before) & outside).any()
    program.check_broken_off(core.memory.data)
    next_program(core, f"window {window[0]:#x}..{window[1]:#x}")


# --- resets --------------------------------------------------------------------------------------


def broken_off(core: ProgramCore, program: RandomProgram, n_cycles: int, hard: bool) -> None:
    """Reset after so many cycles; what was stored until then may be there."""
    core.start(program.address)
    core.step(n_cycles)
    if hard:
        core.hard_reset()
    else:
        core.control.reset()
        assert not core.control.read("control", "done")
        assert not core.control.read("status")
    program.check_broken_off(core.memory.data, f"reset after {n_cycles} cycles")


@pytest.mark.parametrize("pause", [0, 100])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_reset_in_any_cycle(core, hard, pause):
    """Soft and without pauses: every single one. The others a few cycles apart."""
    program = program_of(core, 8)
    model = MemoryModel(read_latency=9, write_latency=9, pause=pause)
    length = core.run_well(program, model, seed=1).counters["cycles"]
    step = 1 if not hard and not pause else 7
    for n_cycles in range(pause % 7, length + 20, step):
        core.prepare(program, model, seed=1)
        broken_off(core, program, n_cycles, hard)
        next_program(core, f"a reset after {n_cycles} cycles")


def test_a_reset_again_and_again(core):
    """Resets while the core is still resetting, and programs cut off after a few beats."""
    rng = np.random.default_rng(1)
    for seed in range(8):
        program = program_of(core, 40 + seed)
        core.prepare(program, random_memory_model(rng), seed=seed)
        for _ in range(6):
            core.start(program.address)
            core.step(int(rng.integers(0, 300)))
            core.control.write("control", soft_reset=1)
            core.step(int(rng.integers(0, 40)))
            core.control.write("control", soft_reset=1, start=1)
            core.control.reset()
        program.check_broken_off(core.memory.data)
        next_program(core, "many resets")


# --- bad programs --------------------------------------------------------------------------------


def encoded(instruction: Instruction, index: int) -> int:
    """The 512 bits of an instruction, checksum not yet right."""
    values = {"opcode": int(instruction.opcode), "index": index}
    block = sum(field.put(values.get(field.name, 0)) for field in COMMON_FIELDS)
    return block + sum(f.put(instruction[f.name]) for f in FIELDS[instruction.opcode])


def sealed(block: int) -> bytes:
    """With the right checksum, whatever the contents."""
    body = block.to_bytes(INSTRUCTION_BYTES, "little")[:-CRC_BYTES]
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def with_bytes(program: RandomProgram, place: int, data: bytes) -> RandomProgram:
    """The program with other bytes, ``place`` bytes behind its beginning."""
    before = program.before.copy()
    start = program.program_bytes.start + place
    before[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return replace(program, before=before)


def forge(program: RandomProgram, blocks: list[int]) -> RandomProgram:
    """The program with other instructions from the first on."""
    return with_bytes(program, INSTRUCTION_BYTES, b"".join(map(sealed, blocks)))


def test_flipped_bits_are_always_found(core):
    """Any bits anywhere in header and instructions."""
    rng = np.random.default_rng(2)
    for number in range(120):
        program = program_of(core, 60 + number % 5)
        n_bytes = program.program_bytes.stop - program.program_bytes.start
        damaged = program
        for _ in range(int(rng.choice([1, 1, 2, 5]))):
            bit = int(rng.integers(0, 8 * n_bytes))
            byte = damaged.before[program.program_bytes.start + bit // 8] ^ (1 << bit % 8)
            damaged = with_bytes(damaged, bit // 8, bytes([byte]))
        core.prepare(damaged, random_memory_model(rng), seed=number)
        error = core.run_badly(damaged)
        assert set(error.flags) <= {"header", "instruction", "config_hash"}, number
        damaged.check_broken_off(core.memory.data, f"flip {number}")
        next_program(core, f"flip {number}")


def test_a_program_cut_short_or_overwritten(core):
    """Instructions replaced by noise, by zeros, or by those of their neighbours."""
    rng = np.random.default_rng(3)
    program = program_of(core, 70)
    n_instructions = len(program.instructions)
    raw = program.before[program.program_bytes].tobytes()
    for number in range(40):
        place = INSTRUCTION_BYTES * int(rng.integers(0, n_instructions + 1))
        other = INSTRUCTION_BYTES * int(rng.integers(0, n_instructions + 1))
        noise = rng.integers(0, 256, INSTRUCTION_BYTES).astype(np.uint8).tobytes()
        data = (noise, bytes(INSTRUCTION_BYTES), raw[other : other + INSTRUCTION_BYTES])[number % 3]
        if data == raw[place : place + INSTRUCTION_BYTES]:
            continue
        damaged = with_bytes(program, place, data)
        core.prepare(damaged, random_memory_model(rng), seed=number)
        error = core.run_badly(damaged)
        assert set(error.flags) <= {"header", "instruction"}, number
        damaged.check_broken_off(core.memory.data)
        next_program(core, f"overwritten instruction {place // INSTRUCTION_BYTES}")


def random_field_values(rng: np.random.Generator, block: int, opcode: Opcode) -> int:
    """Other values in some fields: the smallest, the largest, one off, any."""
    fields = COMMON_FIELDS[1:-1] + FIELDS[opcode]
    for _ in range(int(rng.integers(1, 4))):
        field = fields[rng.integers(len(fields))]
        value = field.get(block)
        choices = (0, -1, value + 1, value - 1, value ^ (1 << int(rng.integers(field.width))))
        block = (block & ~field.bits) | field.put(int(choices[rng.integers(len(choices))]))
    return block


def test_sealed_nonsense_never_hangs(core, n_programs):
    """Wrong fields under a right checksum: an end, an error, or long work; never a standstill."""
    rng = np.random.default_rng(4)
    guard = 2048
    some = program_of(core, 80)
    window = (some.base + guard, some.base + some.before.size - 1 - guard)
    outcomes: dict[str, int] = {}
    for number in range(5 * n_programs):
        program = program_of(core, 80 + number % 7)
        index = int(rng.integers(1, len(program.instructions) + 1))
        start = program.program_bytes.start + index * INSTRUCTION_BYTES
        block = int.from_bytes(
            program.before[start : start + INSTRUCTION_BYTES].tobytes(), "little"
        )
        block = random_field_values(rng, block, program.instructions[index - 1].opcode)
        forged = with_bytes(program, index * INSTRUCTION_BYTES, sealed(block))
        core.prepare(forged, MemoryModel(read_latency=5, write_latency=5), window=window)
        core.start(forged.address)
        core.step(20_000)
        outcome = "long"
        if core.interrupted:
            try:
                core.control.result()
                outcome = "done"
            except ProgramError as error:
                outcome = error.flags[0]
                assert "watchdog" not in error.flags, f"{number}: {error}\n{program.text}"
        # An error has been reset already, and after a good end nothing is to clear.
        if outcome == "long":
            core.control.reset()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        changed = core.memory.data != forged.before
        assert not changed[:guard].any() and not changed[-guard:].any(), number
        next_program(core, f"forgery {number}")
    assert len(outcomes) > 5, outcomes


def test_a_hang_is_told_from_long_work(core):
    """What the tests above rely on: a bus that does not answer trips the watchdog."""
    program = program_of(core, 8)
    core.prepare(program, MemoryModel(read_latency=5000))
    with pytest.raises(GshwError, match="nothing moved"):
        core.run(program.address)
    next_program(core, "a bus that did not answer for long")
