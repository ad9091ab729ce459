"""Load unit against naive loops over the instruction's description."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from amaranth.hdl import Cat

from gshw.config import Config
from gshw.program import Instruction, Opcode
from rtl_gen.load import LoadUnit
from tests.rtl.bench import hold_watcher
from tests.rtl.movers import (
    CONFIGS,
    LOADS,
    Bench,
    check_verilog,
    config,
    memory_bytes,
    naive_load,
    payload,
    random_instruction,
    runs,
    word_bytes,
    word_of,
)
from tests.strategies import ENGINES


class LoadBench(Bench):
    """A load unit, a memory behind it, and what it wrote."""

    def __init__(self, cfg: Config, seed: int | None = None) -> None:
        super().__init__(cfg, LoadUnit(cfg), seed)
        self.buffers: dict = {}
        self.beats: list[tuple[int, int]] = []

    async def clock(self, ctx):
        """Record what happens in every cycle."""
        dut = self.dut
        ports = {
            "scratchpad": dut.load_scratchpad,
            "group": dut.load_group,
            "record": dut.load_record,
        }
        any_valid = Cat(port.valid for port in ports.values())
        while True:
            written = {}
            if ctx.get(any_valid):
                written = {name: ctx.get(port.valid) for name, port in ports.items()}
                for name, port in ports.items():
                    if written[name]:
                        self._write(name, ctx.get(port.payload))
            _, _, *happened = await ctx.tick().sample(*self.common_events())
            if self.note(happened, **written)["beat"]:
                self.beats.pop(0)
            if self.halted:
                self.beats = []

    def _write(self, name: str, written) -> None:
        if name != "scratchpad":
            self.buffers[name, written.address] = written.data
            return
        engine = self.cfg.engine
        width = engine.activation_width
        for index in range(engine.lanes * engine.block * engine.columns):
            place, column = divmod(index, engine.columns)
            bank, channel = divmod(place, engine.block)
            if written.channel_enable >> place & 1 and written.column_enable >> column & 1:
                code = written.data >> (index * width) & ((1 << width) - 1)
                self.buffers["scratchpad", written.address, bank, channel, column] = code

    def requested(self, address: int, n_bytes: int) -> None:
        """The memory has the beats ready in the next cycle."""
        super().requested(address, n_bytes)
        raw = memory_bytes(address, n_bytes, self.cfg.bus.address_width)
        n_beat_bytes = self.cfg.bus.data_bytes
        for low in range(0, n_bytes, n_beat_bytes):
            piece = raw[low : low + n_beat_bytes]
            piece += b"\xa5" * (n_beat_bytes - len(piece))
            self.beats.append((int.from_bytes(piece, "little"), low + n_beat_bytes >= n_bytes))

    async def give_beats(self, ctx):
        """Offer the next beat, at times after a pause; a valid beat stays until taken."""
        data, held = self.dut.data, False
        while True:
            offer = bool(self.beats) and (held or not self.stall[1](self.cycle))
            ctx.set(data.valid, offer)
            if offer:
                ctx.set(data.payload.data, self.beats[0][0])
                ctx.set(data.payload.last, self.beats[0][1])
            *_, ready = await ctx.tick().sample(data.ready)
            held = offer and not ready and bool(self.beats)

    def run(self, bench: Callable) -> None:
        request = hold_watcher(self.dut.request, unless=self.dut.halt)
        self.simulate(self.dut, bench, self.give_beats, request)


@pytest.mark.parametrize(("engine", "data_width"), CONFIGS)
def test_loads_and_fills(engine, data_width):
    """Every buffer holds what the naive loops say, and nothing else was written."""
    cfg = config(engine, data_width)
    rng = np.random.default_rng(data_width)
    instructions = [random_instruction(rng, opcode, cfg) for opcode in (*LOADS, Opcode.FILL)]
    bench = LoadBench(cfg, seed=7)
    expected: dict = {}
    requests = []

    async def drive(ctx):
        for n_before, instruction in enumerate(instructions):
            await bench.issue(ctx, payload(instruction))
            await bench.wait_for(ctx, "done", n_before + 1)
            naive_load(cfg, instruction.opcode, instruction.values, expected)
            assert bench.buffers == expected, instruction
            if instruction.opcode is not Opcode.FILL:
                found = runs(instruction.values, cfg, "target")
                requests.extend((address, instruction["run_bytes"]) for address, _ in found)
        await ctx.tick().repeat(8)

    bench.run(drive)
    assert bench.requests == requests
    assert bench.count("done") == len(instructions)
    assert not bench.count("error")


def load(opcode: Opcode, **values) -> Instruction:
    """A load instruction with all columns, from an odd address."""
    start = {} if opcode is Opcode.FILL else {"address": 0x1003}
    return Instruction(opcode, start | {"columns": 0xFFFF} | values)


def cycles_per_beat(cfg: Config, opcode: Opcode) -> int:
    """As the unit's contract says."""
    engine, bus = cfg.engine, cfg.bus
    if opcode is Opcode.LOAD_ACTIVATIONS:
        row_width = engine.lanes * engine.block * engine.activation_width
        return max(1, bus.data_width // row_width)
    limbs = word_bytes(cfg, opcode) // 4
    return max(1, bus.data_width // 32 >> limbs.bit_length() - 1)


@pytest.mark.parametrize("opcode", LOADS)
@pytest.mark.parametrize(
    ("engine", "data_width"), [("v16x4", 64), ("vertical8", 64), ("direct4", 128)]
)
def test_timing_of_loads(engine, data_width, opcode):
    """Requests, beats, writes and done in exactly the promised cycles, one run after the other."""
    cfg = config(engine, data_width)
    run_bytes = 24 if opcode is Opcode.LOAD_ACTIVATIONS else 3 * word_bytes(cfg, opcode)
    strides = {"memory_stride_0": 64, "target_stride_0": 1, "target_stride_1": 4}
    loops = {"count_0": 4, "count_1": 3}
    instruction = load(opcode, run_bytes=run_bytes, **loops, **strides)
    bench = LoadBench(cfg)
    expected: dict = {}
    naive_load(cfg, opcode, instruction.values, expected)

    async def drive(ctx):
        for _ in range(2):
            await bench.issue(ctx, payload(instruction))
        await bench.wait_for(ctx, "done", 2)

    bench.run(drive)
    assert bench.buffers == expected
    for n_before in range(2):
        start, done = bench.cycles("accept")[n_before], bench.cycles("done")[n_before]
        during = [(name, cycle) for name, cycle in bench.events if start <= cycle <= done]
        cycles = {name: [c for n, c in during if n == name] for name, _ in during}
        assert cycles["request"] == list(range(start + 2, start + 2 + 12))
        beats, pace = cycles["beat"], cycles_per_beat(cfg, opcode)
        n_beats = 12 * -(-run_bytes // cfg.bus.data_bytes)
        assert len(beats) == n_beats
        # The memory of this bench answers in the cycle after a request.
        assert beats == [start + 2 + pace * (i + 1) for i in range(n_beats)]
        name = "scratchpad" if opcode is Opcode.LOAD_ACTIVATIONS else word_of(cfg, opcode)[0]
        assert cycles[name][-1] == beats[-1] + 1 or pace > 1
        assert done == beats[-1] + 2
        if opcode is Opcode.LOAD_ACTIVATIONS and pace == 1:
            assert cycles[name] == [cycle + 1 for cycle in beats]
    assert bench.cycles("accept")[1] == bench.cycles("done")[0]


def test_timing_of_a_fill():
    """One word of all banks per cycle, across runs; accepted again in the cycle of done."""
    cfg = config("hybrid4")
    loops = {"count_0": 2, "count_1": 3, "target_stride_0": 8, "target_stride_1": 20}
    instruction = load(Opcode.FILL, n_words=5, value=0x1FF, **loops)
    bench = LoadBench(cfg)

    async def drive(ctx):
        await bench.issue(ctx, payload(instruction))
        await bench.issue(ctx, payload(load(Opcode.FILL, n_words=1)))
        await bench.wait_for(ctx, "done", 2)

    bench.run(drive)
    (start, again), (done, _) = bench.cycles("accept"), bench.cycles("done")
    expected = [start + 4 + i for i in range(30)]
    assert bench.cycles("scratchpad") == [*expected, again + 4]
    assert (done, again) == (start + 4 + 30, done)
    assert not bench.count("request")


ERROR_CONFIG = config("vertical8")
"""Rows of two beats; 64 scratchpad words, 24 groups, 16 records."""
GROUP_BYTES = word_bytes(ERROR_CONFIG, Opcode.LOAD_GROUPS)
RECORD_BYTES = word_bytes(ERROR_CONFIG, Opcode.LOAD_RECORDS)
BEYOND = {
    "activations over the end": load(Opcode.LOAD_ACTIVATIONS, run_bytes=64, target=62),
    "activations from beyond": load(Opcode.LOAD_ACTIVATIONS, run_bytes=1, target=64),
    "activations by a stride": load(
        Opcode.LOAD_ACTIVATIONS, run_bytes=16, target=1, target_stride_1=65534, count_1=3
    ),
    "groups over the end": load(Opcode.LOAD_GROUPS, run_bytes=3 * GROUP_BYTES, target=22),
    "groups from far beyond": load(Opcode.LOAD_GROUPS, run_bytes=GROUP_BYTES, target=65535),
    "records over the end": load(Opcode.LOAD_RECORDS, run_bytes=3 * RECORD_BYTES, target=15),
    "fill over the end": load(Opcode.FILL, n_words=9, target=60),
    "fill by a stride": load(Opcode.FILL, n_words=1, target=40, target_stride_0=24, count_0=3),
}
INCOMPLETE = {
    f"{opcode.text} with {extra} bytes": load(opcode, run_bytes=n_bytes + extra, count_0=2)
    for opcode, n_bytes in (
        (Opcode.LOAD_GROUPS, 2 * GROUP_BYTES),
        (Opcode.LOAD_RECORDS, 3 * RECORD_BYTES),
    )
    for extra in (-4, -1, 1, 4, 8)
}
GOOD = load(Opcode.LOAD_RECORDS, run_bytes=3 * RECORD_BYTES, target=2)


async def expect_error_then_recovery(ctx, bench: LoadBench, fields: dict, good: Instruction):
    """One error, no done, nothing more; after ``halt`` the next instruction runs."""
    await bench.issue(ctx, fields)
    await bench.wait_for(ctx, "error")
    n_events = len(bench.events)
    assert bench.events[-1][0] != "done"
    await ctx.tick().repeat(40)
    later = [name for name, _ in bench.events[n_events:] if name != "request"]
    assert not later
    assert not ctx.get(bench.dut.idle)
    assert not ctx.get(bench.dut.instruction.ready)
    await bench.halt(ctx)
    written, bench.buffers = bench.buffers, {}
    expected: dict = {}
    naive_load(bench.cfg, good.opcode, good.values, expected)
    await bench.issue(ctx, payload(good))
    await bench.wait_for(ctx, "done")
    assert bench.buffers == expected
    assert bench.count("error") == 1
    return written


@pytest.mark.parametrize("target", [16, 127, 256, 128 + 256, 65535])
def test_words_of_tables_go_behind_the_records(target):
    """Two tables of 64 words from 128 on: what lies before and behind is beyond."""
    cfg = config(dataclasses.replace(ENGINES["direct4"], activation_tables=2))
    assert (cfg.engine.table_base, cfg.engine.record_load_depth) == (128, 256)
    bench = LoadBench(cfg)
    good = load(Opcode.LOAD_RECORDS, run_bytes=5 * word_bytes(cfg, Opcode.LOAD_RECORDS), target=251)

    async def drive(ctx):
        wanted: dict = {}
        naive_load(cfg, good.opcode, good.values, wanted)
        await bench.issue(ctx, payload(good))
        await bench.wait_for(ctx, "done")
        assert bench.buffers == wanted and len(wanted) == 5
        beyond = load(
            Opcode.LOAD_RECORDS, run_bytes=word_bytes(cfg, Opcode.LOAD_RECORDS), target=target
        )
        await bench.issue(ctx, payload(beyond))
        await bench.wait_for(ctx, "error")
        assert bench.buffers == wanted

    bench.run(drive)


def check_load_error(cfg: Config, fields: dict) -> dict:
    """What was written before the error."""
    bench, written = LoadBench(cfg), {}

    async def drive(ctx):
        written.update(await expect_error_then_recovery(ctx, bench, fields, GOOD))

    bench.run(drive)
    return written


@pytest.mark.parametrize("name", BEYOND)
def test_a_write_beyond_the_buffer_is_an_error(name):
    """Every write before it is done, it and later ones are not."""
    instruction = BEYOND[name]
    expected: dict = {}
    naive_load(ERROR_CONFIG, instruction.opcode, instruction.values, expected)
    depth = {"scratchpad": 64, "group": 24, "record": 16}
    inside = {key: value for key, value in expected.items() if key[1] < depth[key[0]]}
    assert len(inside) < len(expected)
    assert check_load_error(ERROR_CONFIG, payload(instruction)) == inside


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_word_is_an_error(name):
    """Whole words before the last beat are written, nothing else."""
    instruction = INCOMPLETE[name]
    expected: dict = {}
    values = instruction.values | {"count_0": 1}
    naive_load(ERROR_CONFIG, instruction.opcode, values, expected)
    written = check_load_error(ERROR_CONFIG, payload(instruction))
    assert written.items() <= expected.items()
    assert len(written) >= len(expected) - 1


@pytest.mark.parametrize("opcode", [*LOADS, Opcode.FILL])
def test_an_empty_run_is_an_error(opcode):
    size = {"n_words": 1} if opcode is Opcode.FILL else {"run_bytes": 1}
    fields = payload(load(opcode, **size))
    assert not check_load_error(ERROR_CONFIG, fields | {"run_bytes": 0, "n_words": 0})


def test_the_deepest_buffer_has_an_end():
    """Addresses of a run do not wrap at 65536."""
    engine = dataclasses.replace(ERROR_CONFIG.engine, bank_depth=65536)
    instruction = load(Opcode.FILL, n_words=3, target=65534)
    written = check_load_error(config(engine), payload(instruction))
    assert {key[1] for key in written} == {65534, 65535}


@pytest.mark.parametrize("seed", range(4))
def test_load_halts_at_any_time(seed):
    """Nothing of the dropped instruction is left; the next one is right."""
    rng = np.random.default_rng(seed)
    cfg = config("vertical8")
    bench = LoadBench(cfg, seed)

    async def drive(ctx):
        for opcode in (*LOADS, Opcode.FILL):
            await bench.issue(ctx, payload(random_instruction(rng, opcode, cfg)))
            await ctx.tick().repeat(int(rng.integers(1, 25)))
            await bench.halt(ctx)
            assert ctx.get(bench.dut.idle)
            bench.buffers, bench.events = {}, []
            instruction = random_instruction(rng, LOADS[int(rng.integers(0, 3))], cfg)
            expected: dict = {}
            naive_load(cfg, instruction.opcode, instruction.values, expected)
            await bench.issue(ctx, payload(instruction))
            await bench.wait_for(ctx, "done")
            assert bench.buffers == expected

    bench.run(drive)


@pytest.mark.parametrize(("engine", "data_width"), [("v16x4", 64), ("vertical4", 256)])
def test_converts_to_verilog(engine, data_width):
    check_verilog(LoadUnit, config(engine, data_width))
