"""Store unit against naive loops over the instruction's description."""

from collections.abc import Callable

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.program import Instruction, Opcode
from rtl_gen.store import StoreUnit
from tests.rtl.bench import hold_watcher
from tests.rtl.movers import (
    CONFIGS,
    Bench,
    check_verilog,
    config,
    naive_store,
    payload,
    random_instruction,
    row_codes,
)


class RowMemory(wiring.Component):
    """An output buffer of known rows: two cycles from request to response, one enable."""

    def __init__(self, cfg: Config) -> None:
        self._depth = cfg.engine.output_depth
        self._width = cfg.engine.scratchpad_row_width
        width = cfg.engine.activation_width
        self._rows = [
            sum(code << (width * i) for i, code in enumerate(row_codes(cfg, address)))
            for address in range(self._depth)
        ]
        super().__init__(
            {
                "pause": In(1),
                "request": In(stream.Signature(cfg.engine.output_address_width)),
                "response": Out(stream.Signature(self._width)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        memory = Memory(shape=self._width, depth=self._depth, init=self._rows)
        m.submodules.memory = memory
        read = memory.read_port()
        move, read_valid = Signal(), Signal()
        m.d.comb += [
            move.eq(~self.response.valid | self.response.ready),
            self.request.ready.eq(move & ~self.pause),
            read.en.eq(move),
            read.addr.eq(self.request.payload),
        ]
        with m.If(move):
            m.d.sync += [
                read_valid.eq(self.request.valid & ~self.pause),
                self.response.valid.eq(read_valid),
                self.response.payload.eq(read.data),
            ]
        return m


class StoreSystem(wiring.Component):
    """A store unit and its output buffer; the tests use the unit's other members directly."""

    def __init__(self, cfg: Config) -> None:
        self.store, self.memory = StoreUnit(cfg), RowMemory(cfg)
        super().__init__({})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.store, m.submodules.memory = self.store, self.memory
        wiring.connect(m, self.store.read_request, self.memory.request)
        wiring.connect(m, self.memory.response, self.store.read_response)
        return m


class StoreBench(Bench):
    """A store unit, its output buffer, and a writer behind it.

    The writer is idle ``idle_lag`` cycles after it has got the last beat.
    """

    def __init__(self, cfg: Config, seed: int | None = None, idle_lag: int = 0) -> None:
        self.system = StoreSystem(cfg)
        super().__init__(cfg, self.system.store, seed)
        self.idle_lag = idle_lag
        self.lasts: list[int] = []
        self.stored: list[bytes] = []
        self.partial = b""

    async def clock(self, ctx):
        """Record what happens in every cycle."""
        dut = self.dut
        while True:
            _, _, asked, beat, is_last, last_request, *happened = await ctx.tick().sample(
                dut.read_request.valid & dut.read_request.ready,
                dut.data.payload.data,
                dut.data.payload.last,
                dut.request_last,
                *self.common_events(),
            )
            noted = self.note(happened, row=asked)
            if noted["beat"]:
                self.partial += beat.to_bytes(self.cfg.bus.data_bytes, "little")
                if is_last:
                    self.stored.append(self.partial)
                    self.partial = b""
            if noted["request"]:
                self.lasts.append(last_request)

    async def write(self, ctx):
        """Take beats at random, pause the row memory at random, be idle when all is written."""
        busy_until = 0
        while True:
            open_runs = len(self.stored) < len(self.requests) or self.partial
            busy_until = self.cycle + self.idle_lag if open_runs else busy_until
            ctx.set(self.dut.writer_idle, self.cycle >= busy_until and not open_runs)
            ctx.set(self.dut.data.ready, not self.stall[1](self.cycle))
            ctx.set(self.system.memory.pause, self.stall[2](self.cycle))
            await ctx.tick()

    def run(self, bench: Callable) -> None:
        streams = (self.dut.request, self.dut.data, self.dut.read_request)
        watchers = [hold_watcher(stream, unless=self.dut.halt) for stream in streams]
        self.simulate(self.system, bench, self.write, *watchers)

    def drop(self) -> None:
        """Forget what a halted unit left behind."""
        self.requests, self.stored, self.partial, self.lasts = [], [], b"", []


@pytest.mark.parametrize(("engine", "data_width"), CONFIGS)
def test_stores(engine, data_width):
    """Requests and bytes of every run are those of the naive loops."""
    cfg = config(engine, data_width)
    rng = np.random.default_rng(data_width)
    instructions = [random_instruction(rng, Opcode.STORE, cfg) for _ in range(4)]
    bench = StoreBench(cfg, seed=3, idle_lag=5)

    async def drive(ctx):
        for n_before, instruction in enumerate(instructions):
            await bench.issue(ctx, payload(instruction))
            await bench.wait_for(ctx, "done", n_before + 1)
            check_stored(bench, instruction)
        await ctx.tick().repeat(20)

    bench.run(drive)
    assert bench.count("done") == len(instructions)
    assert not bench.count("error")
    assert not bench.stored


def check_stored(bench: StoreBench, instruction: Instruction, n_times: int = 1) -> None:
    """The runs since the last check are those of the instruction, executed ``n_times``."""
    once = naive_store(bench.cfg, instruction.values)
    expected = once * n_times
    n_bytes = instruction["run_bytes"]
    assert bench.requests == [(address, n_bytes) for address, _ in expected]
    assert bench.lasts == ([0] * (len(once) - 1) + [1]) * n_times
    n_padded = -(-n_bytes // bench.cfg.bus.data_bytes) * bench.cfg.bus.data_bytes
    assert [len(found) for found in bench.stored] == [n_padded] * len(expected)
    assert [found[:n_bytes] for found in bench.stored] == [raw for _, raw in expected]
    assert not bench.partial
    bench.drop()


@pytest.mark.parametrize(
    ("engine", "data_width", "run_bytes", "rows_per_beat", "beats_per_row"),
    [("v16x4", 64, 40, 1, 2), ("vertical8", 128, 48, 1, 1), ("direct4", 64, 16, 2, 1)],
)
@pytest.mark.parametrize("idle_lag", [0, 9])
def test_timing_of_stores(engine, data_width, run_bytes, rows_per_beat, beats_per_row, idle_lag):
    """Requests, rows, beats and done in exactly the promised cycles, across runs."""
    cfg = config(engine, data_width)
    loops = {"count_0": 3, "count_1": 2, "source_stride_0": 4, "source_stride_1": 12}
    values = {"address": 64, "run_bytes": run_bytes, "memory_stride_0": 256} | loops
    instruction = Instruction(Opcode.STORE, values)
    bench = StoreBench(cfg, idle_lag=idle_lag)

    async def drive(ctx):
        for _ in range(2):
            await bench.issue(ctx, payload(instruction))
        await bench.wait_for(ctx, "done", 2)
        check_stored(bench, instruction, n_times=2)

    bench.run(drive)
    for start, done in zip(bench.cycles("accept"), bench.cycles("done"), strict=True):
        during = [(name, cycle) for name, cycle in bench.events if start <= cycle <= done]
        cycles = {name: [c for n, c in during if n == name] for name, _ in during}
        assert cycles["request"] == [start + 2 + i for i in range(6)]
        n_beats = 6 * -(-run_bytes // cfg.bus.data_bytes)
        first = start + 5 + 2 + rows_per_beat - 1
        assert cycles["beat"] == [first + rows_per_beat * i for i in range(n_beats)]
        assert cycles["row"][0] == start + 3
        if beats_per_row == 1:
            n_rows = n_beats * rows_per_beat
            assert cycles["row"] == [start + 3 + i for i in range(n_rows)]
        assert done == cycles["beat"][-1] + max(idle_lag, 2) + 1
    assert bench.cycles("accept")[1] == bench.cycles("done")[0]


SMALL = config("vertical8")
"""Rows of two beats, 32 of them."""
STORE = {"address": 0x100, "run_bytes": 16}
STORE_ERRORS = {
    "rows over the end": (STORE | {"run_bytes": 40, "source": 30}, 2),
    "rows from far beyond": (STORE | {"source": 65535}, 0),
    "rows by a stride": (STORE | {"source": 8, "source_stride_0": 65532, "count_0": 5}, 3),
    "a run longer than the buffer": (STORE | {"run_bytes": 16 * 32 + 1}, 0),
    "a very long run": (STORE | {"run_bytes": (1 << 24) - 1}, 0),
    "a column that is not there": (STORE | {"column": 1}, 0),
}
"""Values, and rows before the error."""


@pytest.mark.parametrize("name", [*STORE_ERRORS, "an empty run"])
def test_store_errors(name):
    """One error, no done, no byte of a row that is not there; halt recovers."""
    values, n_rows = STORE_ERRORS.get(name, (STORE, 0))
    fields = payload(Instruction(Opcode.STORE, values))
    if name not in STORE_ERRORS:
        fields |= {"run_bytes": 0}
    good = Instruction(Opcode.STORE, STORE | {"source": 3, "run_bytes": 37})
    bench = StoreBench(SMALL)

    async def drive(ctx):
        await bench.issue(ctx, fields)
        await bench.wait_for(ctx, "error")
        await ctx.tick().repeat(40)
        assert not ctx.get(bench.dut.instruction.ready)
        assert bench.count("beat") <= 2 * n_rows
        await bench.halt(ctx)
        bench.drop()
        await bench.issue(ctx, payload(good))
        await bench.wait_for(ctx, "done")
        check_stored(bench, good)

    bench.run(drive)
    assert (bench.count("error"), bench.count("done")) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_store_halts_at_any_time(seed):
    """Nothing of the dropped instruction is left; the next one is right."""
    rng = np.random.default_rng(seed)
    cfg = config("v16x4")
    bench = StoreBench(cfg, seed)

    async def drive(ctx):
        for _ in range(5):
            await bench.issue(ctx, payload(random_instruction(rng, Opcode.STORE, cfg)))
            await ctx.tick().repeat(int(rng.integers(1, 25)))
            await bench.halt(ctx)
            assert ctx.get(bench.dut.idle)
            bench.drop()
            bench.events = []
            instruction = random_instruction(rng, Opcode.STORE, cfg)
            await bench.issue(ctx, payload(instruction))
            await bench.wait_for(ctx, "done")
            check_stored(bench, instruction)

    bench.run(drive)


@pytest.mark.parametrize(("engine", "data_width"), [("v16x4", 64), ("vertical4", 256)])
def test_converts_to_verilog(engine, data_width):
    check_verilog(StoreUnit, config(engine, data_width))
