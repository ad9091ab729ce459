"""The cycle law of programs: by hand, against walks, its bounds. The RTL holds it in sim_tests."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from gshw.config import BusConfig, Config, Gather, load_config
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.lower import lower_layer
from gshw.pipeline import FETCH_LATENCY, Pipeline
from gshw.program import Opcode, Unit, assemble, disassemble
from gshw.program_cycles import (
    Bound,
    ProgramCycles,
    layer_cycles,
    program_cycles,
    run_cycles,
)
from gshw.program_report import bounds, program_json, program_table
from gshw.program_text import parse_text
from gshw.registers import PROGRAM_COUNTERS, WIDE_COUNTERS
from tests.strategies import ENGINES, Geometry, conv, random_layer

TINY = load_config("tiny")


def law(text: str, *, config: Config = TINY, **model) -> ProgramCycles:
    """Cycles of a program's text at a memory whose groups end no bundle."""
    _, instructions = parse_text(text)
    program = assemble(config.engine.hash32, instructions)
    return program_cycles(config, program, lambda _, n: bytes(n), MemoryModel(**model))


# --- by hand ---------------------------------------------------------------------------------


def offers(latency: int, units: list[Unit]) -> list[int]:
    """When each of up to four instructions, ready at once, is offered to its idle unit.

    The start is cycle 0; the request for the header is valid in cycle 1; a read takes 1 + 4 cycles
    to the bus, the latency, and 2; words are there 4 cycles after their beat, decoded in 2 more,
    16 long, committed after 2: 23 cycles from beat to commit; a header 3 more to the next request.
    Instructions follow each other in 19 cycles.
    """
    read = 1 + 4 + latency + 2
    words = {Unit.LOAD: 10, Unit.COMPUTE: 13, Unit.STORE: 9}
    first = 1 + read + 23 + 3 + read + 23
    return [first + 19 * n + words[unit] + 4 for n, unit in enumerate(units)]


@pytest.mark.parametrize("latency", [1, 30, 1000])
def test_syncs_and_fills(latency):
    """A sync is done two cycles after its offer, a fill four cycles and one per word after it."""
    cycles = law("sync\nfill n_words=9 count_0=3\nsync", read_latency=latency)
    sync, fill, last = offers(latency, [Unit.COMPUTE, Unit.LOAD, Unit.COMPUTE])
    assert cycles.times.tolist() == [
        [sync + 1, sync + 2],
        [fill, fill + 4 + 27],
        [last + 1, last + 2],
    ]
    assert cycles.cycles == max(last + 2, fill + 31) + 4
    assert cycles.counters["load_busy"] == 31
    assert cycles.counters["compute_busy"] == 2
    assert cycles.counters["bytes_read"] == 4 * 64


@pytest.mark.parametrize("latency", [1, 30, 200])
@pytest.mark.parametrize("interval", [1, 4])
def test_a_load(latency, interval):
    """30 beats: request two cycles after it was taken; done two after the last beat."""
    cycles = law(
        "load_groups address=0x1000 run_bytes=240",
        read_latency=latency,
        interval=interval,
    )
    # A slow memory has the instruction's own beats to deliver between commit and commit.
    delay = int(cycles.times[0, 0]) - offers(latency, [Unit.LOAD])[0]
    assert (delay == 0) == (interval == 1)
    first_beat = cycles.times[0, 0] + 2 + 1 + 4 + latency + 2
    assert cycles.times[0, 1] == first_beat + 29 * interval + 2
    waits = first_beat - (cycles.times[0, 0] + 3) + 29 * (interval - 1)
    assert cycles.counters["load_waits_memory"] == waits


@pytest.mark.parametrize("latency", [1, 30, 200])
def test_a_store(latency):
    """Four rows of four bytes: a beat needs two; done when its acknowledgement has come."""
    cycles = law("store address=0x1000 run_bytes=16\n", write_latency=latency)
    taken = cycles.times[0, 0]
    assert taken == offers(30, [Unit.STORE])[0]
    # Buffer 2; beats to the writer, its input, the bus; the burst is there before.
    first_beat = taken + 5 + 2 + 1
    assert cycles.times[0, 1] == first_beat + 2 + 2 + latency + 2
    assert cycles.counters["bytes_written"] == 16


def test_a_run_waits_for_its_token():
    """Token out one cycle after done, offered two later, taken in the next; the engine's law."""
    cycles = law("load_groups address=0x1000 run_bytes=36 push_next\nrun n_groups=3 pop_previous")
    load, run = cycles.times
    assert run[0] == load[1] + 4
    total = FETCH_LATENCY + 3 + Pipeline(TINY.engine).accumulate
    assert run[1] == run[0] + total + 2
    without_token = offers(30, [Unit.LOAD, Unit.COMPUTE])[1]
    assert cycles.counters["compute_waits_load"] == run[0] - 1 - without_token
    assert cycles.counters["compute_busy"] == total + 2


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hybrid4", "arbitrated4", "vertical8"])
def test_runs_equal_a_walk_of_their_groups(name):
    """Any drains, also none, bundles cut at the end, several walks."""
    config = ENGINES[name]
    pipeline = Pipeline(config)
    rng = np.random.default_rng(3)
    n_open = n_stalled = 0
    for _ in range(300):
        n_groups, n_positions = int(rng.integers(1, 9)), int(rng.integers(1, 4))
        cycles = rng.integers(1, 4 if config.gather is Gather.ARBITRATED else 2, n_groups)
        drain = rng.integers(1, 8, n_groups) * (rng.random(n_groups) < 0.5)
        now, free, last_drain, stalls = FETCH_LATENCY, 0, 0, 0
        for length, records in list(zip(cycles.tolist(), drain.tolist())) * n_positions:
            now += length
            if records:
                stalls += max(0, free - now)
                now = max(now, free)
                free = now + records
                last_drain = free + pipeline.drain
        law = run_cycles(config, cycles, drain, n_positions)
        assert law.total == max(now, last_drain) + pipeline.accumulate
        assert law.stalls == stalls
        assert law.issued == cycles.sum() * n_positions
        assert law.drains == drain.sum() * n_positions
        assert law.groups == n_groups * n_positions
        assert law.conflicts == np.count_nonzero(cycles > 1) * n_positions
        n_open += not drain[-1] and n_positions > 1
        n_stalled += stalls > 0
    assert n_open > 50 and n_stalled > 50


# --- layers ----------------------------------------------------------------------------------


def layer_programs() -> list:
    """Lowered layers of several engines on several buses."""
    programs = []
    buses = (
        BusConfig(),
        BusConfig(data_width=32, max_burst=1, outstanding=1),
        BusConfig(data_width=128, max_burst=256, outstanding=4),
    )
    for number, (name, engine) in enumerate(ENGINES.items()):
        config = Config(name=name, engine=engine, bus=buses[number % 3])
        n_channels = engine.channels_per_row + 1
        layer = random_layer(number, engine, 2 * engine.rows + 3, conv(n_channels, (2, 2)), 0.3)
        programs.append(pytest.param(lower_layer(config, layer, 2, 4, 5), id=name))
    return programs


@pytest.mark.parametrize("program", layer_programs())
def test_counts_that_do_not_depend_on_time(program):
    """Every counter is there; beats and work are those of the instructions."""
    cycles = layer_cycles(program)
    assert cycles.counters.keys() == {*WIDE_COUNTERS, *PROGRAM_COUNTERS}
    n_bytes = program.config.bus.data_bytes
    header = max(1, 64 // n_bytes)
    assert cycles.read_cycles == header + sum(tile.read for tile in cycles.tiles)
    assert cycles.write_cycles == sum(tile.write for tile in cycles.tiles) > 0
    assert cycles.counters["bytes_read"] == cycles.read_cycles * n_bytes
    assert cycles.counters["drains"] == sum(tile.drain for tile in cycles.tiles)
    issued = cycles.counters["groups"] + cycles.counters["replays"]
    assert issued == sum(tile.issue for tile in cycles.tiles)
    instructions = disassemble(program.program)
    assert [tile.first for tile in cycles.tiles] == [1] + [t.last + 1 for t in cycles.tiles[:-1]]
    assert cycles.tiles[-1].last == len(instructions)
    for tile in cycles.tiles:
        inside = instructions[tile.first - 1 : tile.last]
        assert sum(i.opcode is Opcode.RUN for i in inside) == 1


@pytest.mark.parametrize("program", layer_programs())
def test_times_are_in_order(program):
    """Within each unit; every instruction takes time; all end before the program does."""
    cycles = layer_cycles(program)
    units = [i.unit for i in disassemble(program.program)]
    assert (cycles.times[:, 1] > cycles.times[:, 0]).all()
    assert cycles.times.max() + 4 == cycles.cycles
    for unit in set(units):
        own = cycles.times[[n for n, other in enumerate(units) if other is unit]]
        assert (own[1:, 0] >= own[:-1, 1]).all()
        assert (own[:, 1] - own[:, 0]).sum() == cycles.counters[f"{unit.value}_busy"]


@pytest.mark.parametrize("program", layer_programs())
def test_a_slower_memory_never_helps(program):
    """And nothing is shorter than what any resource needs."""
    before = 0
    for latency, interval in ((1, 1), (2, 1), (30, 1), (200, 1), (200, 2), (200, 50)):
        model = MemoryModel(read_latency=latency, write_latency=latency, interval=interval)
        cycles = layer_cycles(program, model)
        assert cycles.cycles >= before
        before = cycles.cycles
        for kind in Bound:
            assert before > sum(tile.needs[kind] for tile in cycles.tiles)
        assert 0 < cycles.compute_share < 1
        assert 0 < cycles.read_share < 1 and 0 < cycles.write_share < 1


def bound_of(config: Config, layer, size: tuple[int, int, int], interval: int = 1) -> Bound:
    return layer_cycles(lower_layer(config, layer, *size), MemoryModel(interval=interval)).bound


def test_rooflines():
    """Reuse: compute. One position: reading. Many rows of few weights: drain; then writing."""
    config = load_config("v16x4")
    wide = random_layer(1, config.engine, 64, Geometry.linear(512), 0.3)
    assert bound_of(config, wide, (400, 1, 1)) is Bound.ISSUE
    assert bound_of(config, wide, (1, 1, 1)) is Bound.READ
    thin = random_layer(2, config.engine, 256, Geometry.linear(4), 0.3)
    vertical = Config(
        name="vertical8", engine=dataclasses.replace(ENGINES["vertical8"], drain_rows=1)
    )
    rows = random_layer(3, vertical.engine, 16, Geometry.linear(8), 0.2)
    assert bound_of(vertical, rows, (64, 1, 1)) is Bound.DRAIN
    assert bound_of(config, thin, (400, 1, 1), 3) is Bound.WRITE


# --- errors and reports ------------------------------------------------------------------------


def test_what_is_refused():
    """Memories that the law does not know, and programs that do not end."""
    for model, message in (
        ({"pause": 1}, "the cycle law needs a memory without random pauses and faults"),
        ({"fault_low": 4, "fault_high": 4}, "the cycle law needs a memory without random pauses"),
        ({"read_latency": 0}, "read_latency must be at least 1, not 0"),
        ({"write_latency": -1}, "write_latency must be at least 1, not -1"),
        ({"interval": 0}, "interval must be at least 1, not 0"),
    ):
        with pytest.raises(GshwError, match=message):
            law("sync", **model)
    with pytest.raises(
        GshwError, match=r"the program waits for a token that cannot come after \d+"
    ):
        law("run n_groups=1 pop_previous")
    program = assemble(TINY.engine.hash32, parse_text("sync")[1])
    with pytest.raises(GshwError, match="the program has not ended after 101 cycles"):
        program_cycles(TINY, program, lambda _, n: bytes(n), cycle_limit=100)
    foreign = load_config("h16")
    with pytest.raises(GshwError, match="program was made for the engine"):
        program_cycles(foreign, program, lambda _, n: bytes(n))
    with pytest.raises(GshwError, match="CRC-32 must be"):
        program_cycles(TINY, program[:-1] + b"\0", lambda _, n: bytes(n))


def test_reports():
    """The table has a row per layer; the JSON form every tile."""
    layer = random_layer(4, TINY.engine, 9, Geometry.linear(30), 0.3)
    cycles = layer_cycles(lower_layer(TINY, layer, 3, 1, 1))
    console = Console(width=150)
    with console.capture() as capture:
        console.print(program_table({"fc": cycles, "again": cycles}, "title"))
    lines = [line for line in capture.get().splitlines() if "fc" in line]
    assert len(lines) == 1 and f"{cycles.cycles:,}" in lines[0]
    assert f"{100 * cycles.read_share:.1f} %" in lines[0]
    assert "memory read" in lines[0]
    data = json.loads(json.dumps(program_json(cycles)))
    assert data["counters"] == cycles.counters
    assert [tile["bound"] for tile in data["tiles"]] == [t.bound.value for t in cycles.tiles]
    assert sum(bounds(cycles).values()) == len(data["tiles"])
