# amaranth: UnusedElaboratable=no
"""Whole programs on gshw_axi and gshw_stream: results, faults, and the program after a fault."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from gshw.config import load_config
from gshw.cycles import plan_cycles
from gshw.golden import run_layer as golden_layer
from gshw.image import LayerImage
from gshw.plan import Plan
from gshw.program import INSTRUCTION_BYTES, Instruction, Opcode, Unit, assemble
from gshw.registers import PROGRAM_COUNTERS, WIDE_COUNTERS
from gshw.top import Top
from rtl_gen.emit import cached_top_verilog
from rtl_gen.queue import UnitQueue
from tests.core_harness import BASE, LIMIT, AxiHarness, StreamHarness
from tests.strategies import conv, random_activations, random_layer

CONFIG = load_config("tiny")
ENGINE = CONFIG.engine
PROGRAM, INPUT, GROUPS, RECORDS, OUTPUT = (
    BASE + offset for offset in (0x18140, 0x2001, 0x8004, 0x10000, 0x20003)
)
HEIGHT, WIDTH = 5, 6


@dataclass
class Job:
    """A convolution as a program: what it reads, and what it must write."""

    instructions: list[Instruction]
    inputs: dict[int, bytes]
    output: NDArray[np.uint8]
    cycles: object

    @property
    def program(self) -> bytes:
        return assemble(ENGINE.hash32, self.instructions)

    def stream(self) -> bytes:
        """Header and instructions, each followed by its data, every run padded to beats."""
        program, n_beat = self.program, CONFIG.bus.data_bytes
        parts = [program[:INSTRUCTION_BYTES]]
        for number, instruction in enumerate(self.instructions, 1):
            parts.append(program[number * INSTRUCTION_BYTES :][:INSTRUCTION_BYTES])
            if instruction.opcode in (Opcode.FILL, Opcode.RUN, Opcode.SYNC, Opcode.STORE):
                continue
            start, data = next(
                (start, data)
                for start, data in self.inputs.items()
                if start <= instruction["address"] < start + len(data)
            )
            for outer in range(instruction["count_1"]):
                for inner in range(instruction["count_0"]):
                    place = instruction["address"] - start
                    place += inner * instruction["memory_stride_0"]
                    place += outer * instruction["memory_stride_1"]
                    run = data[place : place + instruction["run_bytes"]]
                    parts.append(run + bytes(-len(run) % n_beat))
        return b"".join(parts)


@pytest.fixture(scope="module")
def job() -> Job:
    """A 3x3 convolution with padding, of two words per pixel, in one tile."""
    channels, n_rows = 2 * ENGINE.channels_per_row, ENGINE.channels_per_row
    layer = random_layer(7, ENGINE, n_rows, conv(channels, (3, 3), padding=(1, 1)))
    x = random_activations(8, ENGINE, (1, HEIGHT, WIDTH, channels))
    image = LayerImage(ENGINE, layer)
    plan = Plan(ENGINE, image, 1, HEIGHT, WIDTH)
    ((tile,),) = plan.tile_runs
    ((_, command),) = plan.commands([tile])
    assert plan.item_shape == (HEIGHT, WIDTH) and plan.n_stream_tiles == 1
    groups, records = image.pack_groups(plan.pitch), image.pack_records()
    pitch = WIDTH + 2
    requantisation = layer.requantisation
    read_step = command.steps(command.read_strides, ENGINE.bank_depth)
    write_step = command.steps(command.write_strides, ENGINE.output_depth)
    run = {
        "n_groups": command.n_groups,
        "n_records": command.n_records,
        "signed_input": int(requantisation.signed_input),
        "low": requantisation.low,
        "high": requantisation.high,
    }
    for i in range(3):
        run |= {
            f"count_less_1_{i}": command.counts[i] - 1,
            f"read_step_{i}": read_step[i],
            f"write_step_{i}": write_step[i],
        }
    line = WIDTH * channels
    instructions = [
        Instruction(
            Opcode.FILL,
            {"n_words": (HEIGHT + 2) * pitch, "count_0": 2, "columns": 1}
            | {"target_stride_0": (HEIGHT + 2) * pitch},
        ),
        Instruction(
            Opcode.LOAD_ACTIVATIONS,
            {
                "address": INPUT,
                "run_bytes": line,
                "count_0": HEIGHT,
                "memory_stride_0": line,
                "target": 2 * (pitch + 1),
                "target_stride_0": 2 * pitch,
                "columns": 1,
            },
        ),
        Instruction(Opcode.LOAD_GROUPS, {"address": GROUPS, "run_bytes": groups.nbytes}),
        Instruction(
            Opcode.LOAD_RECORDS, {"address": RECORDS, "run_bytes": records.nbytes}, push_next=True
        ),
        Instruction(Opcode.RUN, run, pop_previous=True, push_next=True),
        Instruction(
            Opcode.STORE,
            {
                "address": OUTPUT,
                "run_bytes": WIDTH * n_rows,
                "count_0": HEIGHT,
                "memory_stride_0": WIDTH * n_rows,
                "source_stride_0": WIDTH,
            },
            pop_previous=True,
        ),
    ]
    inputs = {
        INPUT: x.astype(np.uint8).tobytes(),
        GROUPS: groups.tobytes(),
        RECORDS: records.tobytes(),
    }
    output = golden_layer(ENGINE, layer, x).astype(np.uint8)
    return Job(instructions, inputs, output, plan_cycles(plan))


@pytest.fixture(scope="module")
def compiled_axi():
    core = AxiHarness(CONFIG)
    yield core
    core.close()


@pytest.fixture(scope="module")
def compiled_stream():
    core = StreamHarness(CONFIG)
    yield core
    core.close()


@pytest.fixture
def axi_core(compiled_axi):
    compiled_axi.reset()
    return compiled_axi


@pytest.fixture
def stream_core(compiled_stream):
    compiled_stream.reset()
    return compiled_stream


def prepare(core: AxiHarness, job: Job, program: bytes | None = None) -> None:
    """Memory, registers and a quiet bus, as software would set them up."""
    core.memory[:] = 0xA5
    core.put(PROGRAM, job.program if program is None else program)
    for address, data in job.inputs.items():
        core.put(address, data)
    core.write_wide("program_address", PROGRAM)
    core.write_wide("window_first", BASE)
    core.write_wide("window_last", BASE + len(core.memory) - 1)
    core.write("watchdog_cycles", value=0)
    core.write("control", auto_restart=0)
    core.settings()


def check_output(core: AxiHarness, job: Job) -> None:
    """The output is right, and nothing else was written."""
    expected = np.full_like(core.memory, 0xA5)
    parts = {**job.inputs, PROGRAM: job.program, OUTPUT: job.output.tobytes()}
    for address, data in parts.items():
        expected[address - BASE :][: len(data)] = np.frombuffer(data, dtype=np.uint8)
    assert not np.flatnonzero(core.memory != expected).size


def run_well(core: AxiHarness, job: Job) -> None:
    prepare(core, job)
    core.start()
    core.run()
    assert core.acknowledge() == (True, False), core.first_error
    assert not core.interrupted() and not core.errors
    check_output(core, job)


@pytest.mark.parametrize(
    "settings",
    [{"latency": 1, "write_latency": 1}, {"latency": 60}, {"interval": 3}, {"pause": 110}],
    ids=str,
)
def test_a_layer_runs_from_memory_to_memory(axi_core, job, settings):
    prepare(axi_core, job)
    axi_core.settings(**settings)
    assert axi_core.read("control", "ready") and axi_core.read("control", "idle")
    axi_core.start()
    n_cycles = axi_core.run()
    assert axi_core.acknowledge() == (True, False), axi_core.first_error
    assert axi_core.read("control", "done")
    check_output(axi_core, job)
    # The engine's share of the time is the cycle law's, whatever memory does.
    law = job.cycles
    for name in ("groups", "stalls", "drains", "conflicts", "replays"):
        assert axi_core.counter(name) == getattr(law, name)
    assert law.total < axi_core.counter("compute_busy") <= law.total + 3
    # The interrupt comes a little after the last counted cycle, and the start a little before.
    assert n_cycles - 6 <= axi_core.counter("cycles") <= n_cycles
    n_read = sum(map(len, job.inputs.values())) + len(job.program)
    assert n_read <= axi_core.counter("bytes_read") <= n_read + 8 * 2 * (HEIGHT + 3)
    assert job.output.size <= axi_core.counter("bytes_written") <= job.output.size + 8 * 2 * HEIGHT
    busy = sum(axi_core.counter(f"{unit}_busy") for unit in ("load", "compute", "store"))
    assert busy < axi_core.counter("cycles")


def test_time_does_not_depend_on_what_ran_before(axi_core, job):
    cycles = []
    for _ in range(3):
        run_well(axi_core, job)
        cycles.append(axi_core.counter("cycles"))
    assert len(set(cycles)) == 1


def test_a_start_while_running_is_ignored(axi_core, job):
    run_well(axi_core, job)
    alone = axi_core.counter("cycles")
    prepare(axi_core, job)
    axi_core.start()
    axi_core.run(100)
    assert axi_core.read("status", "busy") and not axi_core.read("control", "ready")
    axi_core.start()
    axi_core.run()
    assert axi_core.acknowledge() == (True, False)
    axi_core.run(1000)
    assert not axi_core.interrupted() and not axi_core.read("status", "busy")
    assert axi_core.counter("cycles") == alone
    check_output(axi_core, job)


def test_auto_restart_runs_until_it_is_switched_off(axi_core, job):
    prepare(axi_core, job)
    axi_core.write("control", start=1, auto_restart=1)
    for _ in range(3):
        axi_core.run()
        axi_core.memory[OUTPUT - BASE :] = 0xA5
        assert axi_core.acknowledge() == (True, False)
        assert axi_core.read("status", "busy")
        assert not axi_core.read("control", "done"), "the next one runs already"
    axi_core.write("control", auto_restart=0)
    axi_core.run()
    axi_core.acknowledge()
    assert not axi_core.read("status", "busy") and axi_core.read("control", "done")
    check_output(axi_core, job)
    # Nothing of a program is counted to the one after it.
    again = all_counters(axi_core)
    run_well(axi_core, job)
    assert all_counters(axi_core) == again


# --- faults --------------------------------------------------------------------------------------


def changed(job: Job, number: int, *, tokens: dict | None = None, **values) -> bytes:
    """The program with other values in one instruction."""
    instructions = list(job.instructions)
    old = instructions[number]
    kept = {
        name: getattr(old, name)
        for name in ("pop_previous", "pop_next", "push_previous", "push_next")
    }
    instructions[number] = Instruction(
        old.opcode, {**old.values, **values}, **{**kept, **(tokens or {})}
    )
    return assemble(ENGINE.hash32, instructions)


def flipped(job: Job, byte: int) -> bytes:
    program = bytearray(job.program)
    program[byte] ^= 4
    return bytes(program)


def foreign(job: Job) -> bytes:
    return assemble(ENGINE.hash32 ^ 1, job.instructions)


def many_tokens(job: Job) -> bytes:
    pushes = [Instruction(Opcode.SYNC, {}, push_previous=True)] * 256
    return assemble(ENGINE.hash32, pushes)


def endless_loop_of_nothing(job: Job) -> bytes:
    return assemble(ENGINE.hash32, [Instruction(Opcode.SYNC, {}, pop_previous=True)] * 20)


def with_token(number: int, name: str):
    """The program in which an instruction gives a token to nobody, or waits for one of nobody."""
    return lambda job: changed(job, number, tokens={name: True})


def wide_run_behind_another(job: Job) -> bytes:
    """It is refused while the one before it runs."""
    first, store = job.instructions[4:]
    wide = Instruction(Opcode.RUN, {**first.values, "group_base": ENGINE.group_buffer_depth})
    return assemble(ENGINE.hash32, [*job.instructions[:4], first, wide, store])


FAULTS = {
    "header": ("header", lambda job: flipped(job, 20), 0),
    "config_hash": ("config_hash", foreign, 0),
    "instruction": ("instruction", lambda job: flipped(job, 3 * INSTRUCTION_BYTES + 30), 3),
    "tokens lost": ("tokens", many_tokens, 256),
    "token left by load": ("tokens", with_token(2, "push_next"), 4),
    "token left by compute": ("tokens", with_token(4, "push_previous"), 5),
    "token left by store": ("tokens", with_token(5, "push_previous"), 6),
    "load": ("load", lambda job: changed(job, 1, target=ENGINE.bank_depth - 3), 2),
    "store": ("store", lambda job: changed(job, 5, column=1), 6),
    "command": (
        "command",
        lambda job: changed(job, 4, n_groups=ENGINE.group_buffer_depth + 1),
        5,
    ),
    "too wide": ("command", lambda job: changed(job, 4, group_base=ENGINE.group_buffer_depth), 5),
    "too wide behind another": ("command", wide_run_behind_another, 6),
    "address": ("address", lambda job: changed(job, 4, read_base=ENGINE.bank_depth - 1), 5),
    "compute waits": ("deadlock", lambda job: changed(job, 3, tokens={"push_next": False}), 5),
    "load waits": ("deadlock", with_token(2, "pop_next"), 3),
    "store waits": ("deadlock", lambda job: changed(job, 4, tokens={"push_next": False}), 6),
    "all wait": ("deadlock", endless_loop_of_nothing, 1),
}
"""Program -> error, how it is made, index of the instruction that is named."""


def all_counters(core: AxiHarness) -> list[int]:
    return [core.counter(name) for name in (*WIDE_COUNTERS, *PROGRAM_COUNTERS)]


@pytest.mark.parametrize("what", FAULTS)
def test_a_bad_program_is_stopped_and_the_next_one_runs(axi_core, job, what):
    name, make, index = FAULTS[what]
    prepare(axi_core, job, make(job))
    axi_core.start()
    axi_core.run()
    assert axi_core.acknowledge() == (False, True)
    assert axi_core.errors == [name]
    assert axi_core.first_error == (name, index)
    axi_core.run(300)
    assert axi_core.read("status", "halted") and not axi_core.read("status", "busy")
    for unit in ("fetch", "load", "compute", "store"):
        assert not axi_core.read("status", f"{unit}_busy")
    counters = all_counters(axi_core)
    axi_core.run(500)
    assert all_counters(axi_core) == counters
    assert axi_core.read("control", "idle") and not axi_core.read("control", "ready")
    axi_core.start()
    axi_core.run(300)
    assert not axi_core.read("status", "busy"), "only a soft reset leads out"
    axi_core.soft_reset()
    assert not axi_core.errors and axi_core.read("control", "ready")
    run_well(axi_core, job)


def test_a_token_that_was_left_does_not_reach_the_next_program(axi_core, job):
    """Without the reset nothing starts; after it, who waits for the token waits for ever."""
    give = [Instruction(Opcode.SYNC, {}, push_next=True)]
    prepare(axi_core, job, assemble(ENGINE.hash32, give))
    axi_core.start()
    axi_core.run()
    assert axi_core.acknowledge() == (False, True) and axi_core.first_error == ("tokens", 1)
    assert not axi_core.read("control", "done") and not axi_core.read("control", "ready")
    axi_core.soft_reset()
    wait = [Instruction(Opcode.STORE, {"address": OUTPUT, "run_bytes": 1}, pop_previous=True)]
    prepare(axi_core, job, assemble(ENGINE.hash32, wait))
    axi_core.start()
    axi_core.run()
    assert axi_core.first_error == ("deadlock", 1)
    axi_core.soft_reset()
    run_well(axi_core, job)


def first_address(core: AxiHarness) -> int:
    low, high = (core.read(f"first_error_address_{half}") for half in ("low", "high"))
    return low | high << 32


@pytest.mark.parametrize(
    ("where", "name", "index"),
    [
        # Fetch waits for the first instruction, so that is what it has in hand.
        (PROGRAM + 64, "read_bus", 1),
        (INPUT + 50, "read_bus", 2),
        (OUTPUT + 30, "write_bus", 6),
    ],
)
@pytest.mark.parametrize("pause", [0, 100])
def test_a_bus_error_is_reported_with_its_burst(axi_core, job, where, name, index, pause):
    prepare(axi_core, job)
    axi_core.settings(fault=(where, where), pause=pause)
    axi_core.start()
    axi_core.run()
    assert axi_core.acknowledge() == (False, True)
    assert name in axi_core.errors and axi_core.first_error == (name, index)
    assert 0 <= where - first_address(axi_core) < 16 * CONFIG.bus.data_bytes
    axi_core.soft_reset()
    run_well(axi_core, job)


@pytest.mark.parametrize(
    ("first", "last", "name", "where", "index"),
    [
        (GROUPS, BASE + 0xFFFFF, "read_range", INPUT, 2),
        (BASE, PROGRAM + 63, "read_range", PROGRAM + 64, 1),
        (BASE, OUTPUT, "write_range", OUTPUT, 6),
    ],
)
def test_outside_the_window_nothing_is_touched(axi_core, job, first, last, name, where, index):
    prepare(axi_core, job)
    axi_core.write_wide("window_first", first)
    axi_core.write_wide("window_last", last)
    axi_core.start()
    axi_core.run()
    assert axi_core.first_error == (name, index)
    beat = CONFIG.bus.data_bytes
    assert first_address(axi_core) // beat == where // beat
    axi_core.run(300)
    assert (axi_core.memory[OUTPUT - BASE :] == 0xA5).all()
    axi_core.soft_reset()
    run_well(axi_core, job)


def test_a_failed_read_of_instructions_is_not_blamed_on_a_load(axi_core, job):
    """Fetch reads the rest of the program while the load, slow and early, is in flight."""
    slow, rest = job.instructions[1], [Instruction(Opcode.SYNC, {})] * 12
    slow = Instruction(slow.opcode, {**slow.values, "count_1": 400})
    last = PROGRAM + (1 + len(rest)) * INSTRUCTION_BYTES
    prepare(axi_core, job, assemble(ENGINE.hash32, [slow, *rest]))
    axi_core.settings(fault=(last, last))
    axi_core.start()
    assert axi_core.run() < 3000, "the load is at work for much longer"
    name, index = axi_core.first_error
    assert name == "read_bus" and 0 <= last - first_address(axi_core) < 4 * INSTRUCTION_BYTES
    assert len(rest) + 1 - 7 <= index <= len(rest) + 1
    axi_core.soft_reset()
    run_well(axi_core, job)


def test_the_watchdog_names_who_works(axi_core, job):
    """The load's data do not come."""
    prepare(axi_core, job)
    axi_core.write("watchdog_cycles", value=400)
    axi_core.start()
    # The header's read is answered, then everything is late.
    while axi_core.counter("load_busy") < 60:
        axi_core.run(20)
    axi_core.settings(latency=5000)
    axi_core.run()
    assert axi_core.first_error[0] == "watchdog"
    assert axi_core.first_error[1] in (2, 3, 4), "a load"
    axi_core.soft_reset(limit=20000)
    run_well(axi_core, job)


def test_the_watchdog_ends_a_wait_for_memory(axi_core, job):
    prepare(axi_core, job)
    axi_core.settings(latency=5000)
    axi_core.write("watchdog_cycles", value=400)
    axi_core.start()
    waited = axi_core.run()
    # Fetch waits for the header, and no unit has anything to do.
    assert axi_core.first_error == ("watchdog", 0) and 400 < waited < 450
    # The bus is not quiet yet, and a reset waits for it.
    assert not axi_core.read("control", "idle")
    axi_core.soft_reset(limit=20000)
    run_well(axi_core, job)
    axi_core.write("watchdog_cycles", value=400)
    axi_core.start()
    axi_core.run()
    assert axi_core.acknowledge() == (True, False), "a program that moves is left alone"


def test_a_soft_reset_at_any_time_leaves_a_working_core(axi_core, job):
    rng = np.random.default_rng(3)
    run_well(axi_core, job)
    length = axi_core.counter("cycles")
    for _ in range(25):
        prepare(axi_core, job)
        axi_core.settings(pause=int(rng.integers(0, 120)), seed=int(rng.integers(1 << 30)))
        axi_core.start()
        axi_core.run(int(rng.integers(0, length)))
        axi_core.soft_reset()
        assert not axi_core.errors and axi_core.read("control", "ready")
        assert not axi_core.read("control", "done")
        run_well(axi_core, job)


# --- streams -------------------------------------------------------------------------------------


def packet_bytes(job: Job) -> bytes:
    """What a store sends: each line padded to beats."""
    lines = job.output.reshape(HEIGHT, -1)
    n_beat = CONFIG.bus.data_bytes
    return b"".join(line.tobytes() + bytes(-line.size % n_beat) for line in lines)


def stream_well(core: StreamHarness, job: Job, pause: int = 0) -> None:
    core.pause(pause)
    core.receive()
    core.send(job.stream())
    core.start()
    core.run()
    assert core.acknowledge() == (True, False), core.first_error
    assert not core.unsent()
    packets = core.receive()
    assert len(packets) == 1
    got = np.frombuffer(packets[0], dtype=np.uint8).reshape(HEIGHT, -1)
    want = np.frombuffer(packet_bytes(job), dtype=np.uint8).reshape(HEIGHT, -1)
    assert got.shape == want.shape
    n_line = WIDTH * ENGINE.channels_per_row
    assert (got[:, :n_line] == want[:, :n_line]).all()


@pytest.mark.parametrize("pause", [0, 30, 180])
def test_a_layer_runs_on_streams(stream_core, job, pause):
    for _ in range(2):
        stream_well(stream_core, job, pause)
        assert stream_core.counter("groups") == job.cycles.groups
        assert stream_core.counter("bytes_read") == len(job.stream())
        assert stream_core.counter("bytes_written") == len(packet_bytes(job))


def test_nothing_is_taken_before_the_start(stream_core, job):
    stream_core.pause(0)
    stream_core.send(job.stream())
    stream_core.run(200)
    assert stream_core.unsent() == len(job.stream())
    stream_well(stream_core, job)


@pytest.mark.parametrize("n_bytes", [64, 640, -64, -8])
def test_a_stream_that_ends_early_is_an_error(stream_core, job, n_bytes):
    stream_core.receive()
    stream_core.pause(0)
    stream_core.send(job.stream()[:n_bytes])
    stream_core.start()
    stream_core.run()
    assert stream_core.first_error[0] == "stream"
    stream_core.soft_reset()
    stream_well(stream_core, job)


def test_after_an_error_the_rest_of_the_program_is_dropped(stream_core, job):
    damaged = bytearray(job.stream())
    damaged[2 * INSTRUCTION_BYTES - 1] ^= 1
    stream_core.pause(40)
    stream_core.send(bytes(damaged))
    stream_core.start()
    stream_core.run()
    assert stream_core.first_error == ("instruction", 1)
    stream_core.acknowledge()
    stream_core.run(LIMIT // 20)
    assert not stream_core.unsent()
    stream_core.soft_reset()
    stream_well(stream_core, job)


def test_a_load_whose_token_is_behind_its_data_is_a_deadlock(stream_core, job):
    load = job.instructions[1]
    stuck = Instruction(load.opcode, load.values, pop_next=True)
    give = Instruction(Opcode.SYNC, {}, push_previous=True)
    wrong = Job([stuck, give], job.inputs, job.output, job.cycles)
    stream_core.pause(0)
    stream_core.send(wrong.stream())
    stream_core.start()
    stream_core.run()
    assert stream_core.first_error[0] == "deadlock"
    stream_core.acknowledge()
    stream_core.run(2000)
    assert not stream_core.unsent()
    stream_core.soft_reset()
    stream_well(stream_core, job)


def test_a_packet_that_was_begun_is_closed(stream_core, job):
    """A reset in the middle of a store: the receiver gets a whole packet, and a right one next."""
    for cut in range(20, 60, 7):
        stream_core.pause(200)
        stream_core.receive()
        stream_core.send(job.stream())
        stream_core.start()
        for _ in range(LIMIT):
            stream_core.run(1)
            if stream_core.library.gshw_n_received(stream_core.handle) >= cut:
                break
        stream_core.soft_reset()
        (packet,) = stream_core.receive()
        assert len(packet) < len(packet_bytes(job))
        assert packet[-CONFIG.bus.data_bytes :] == bytes(CONFIG.bus.data_bytes)
        stream_well(stream_core, job)


# --- time and form -------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [1, 30, 77])
def test_a_program_of_one_sync_takes_the_time_of_the_docstrings(axi_core, job, latency):
    """Start, header, one instruction, end: each part as its component says it."""
    prepare(axi_core, job, assemble(ENGINE.hash32, [Instruction(Opcode.SYNC, {})]))
    axi_core.settings(latency=latency)
    axi_core.start()
    axi_core.run()
    # Request to arbiter, reader, bus, beat.
    read = 1 + 4 + latency + 2
    header_beat = 1 + read
    instruction_beat = header_beat + 26 + read
    commit = instruction_beat + 23
    offer = commit + UnitQueue(Unit.COMPUTE).offer_latency
    done = offer + 2
    assert axi_core.counter("cycles") == done + 4


@pytest.mark.parametrize("top", [Top.AXI, Top.STREAM])
def test_ports_have_the_names_that_tools_recognise(top):
    text = cached_top_verilog(CONFIG, top)
    header = re.search(rf"^module {top.module_name} \((.*?)\);", text, re.M | re.S)
    assert header is not None
    ports = set(re.findall(r"\w+", header[1]))
    lite = {"awaddr", "awprot", "awvalid", "awready", "wdata", "wstrb", "wvalid", "wready"}
    lite |= {"bresp", "bvalid", "bready", "araddr", "arprot", "arvalid", "arready"}
    lite |= {"rdata", "rresp", "rvalid", "rready"}
    wanted = {"aclk", "aresetn", "interrupt"} | {f"s_axi_{name}" for name in lite}
    if top is Top.AXI:
        bursts = {f"{way}{name}" for way in ("ar", "aw") for name in ("len", "size", "burst")}
        bursts |= {"arcache", "awcache", "rlast", "wlast"}
        wanted |= {f"m_axi_{name}" for name in lite | bursts}
    else:
        stream = ("tdata", "tkeep", "tlast", "tvalid", "tready")
        wanted |= {f"{port}_{name}" for port in ("s_axis", "m_axis") for name in stream}
    assert ports == wanted
    names = set(re.findall(r"^ *(?:wire|reg|input|output)\b[^;=]*?(\w+) *[;=]", text, re.M))
    assert not names & {"begin", "final", "packed", "priority", "unique", "local", "do"}
