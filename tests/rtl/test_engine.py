"""The whole engine in Amaranth's simulator: bit-exact, cycle-exact, and what it refuses."""

import dataclasses
import functools

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from gshw import golden, runtime
from gshw.config import EngineConfig
from gshw.cycles import plan_cycles
from gshw.device import Counters, command_words
from gshw.encoding import EncodedLayer
from gshw.geometry import Geometry
from gshw.image import LayerImage
from gshw.plan import Command, Plan
from gshw.program import optional_fields
from rtl_gen.engine import Engine
from tests.rtl.bench import PERIOD, bits
from tests.strategies import ENGINES, conv, random_activations, random_layer, word_int

COMMAND_LIMIT = 5000


class SimulatedEngine:
    """A :class:`gshw.device.Device` made of the engine in Amaranth's simulator.

    Each call hands its coroutines to test benches that run for ever, and advances the simulation
    until all have finished.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.engine = Engine(config)
        self.refused = {}
        self._jobs: list[list] = [[], []]
        self._simulator = Simulator(self.engine)
        self._simulator.add_clock(PERIOD)
        for jobs in self._jobs:
            self._simulator.add_testbench(functools.partial(self._serve, jobs))

    async def _serve(self, jobs, ctx):
        while True:
            if jobs:
                await jobs[0](ctx)
                jobs.pop()
            else:
                await ctx.tick()

    def call(self, *jobs) -> None:
        """Run ``await job(ctx)`` of each to its end, at the same time."""
        for queue, job in zip(self._jobs, jobs, strict=False):
            queue.append(job)
        while any(self._jobs):
            self._simulator.advance()

    def _load(self, stream, address: int, words) -> None:
        async def job(ctx):
            ctx.set(stream.valid, 1)
            for index, word in enumerate(words):
                ctx.set(stream.payload.address, address + index)
                ctx.set(bits(stream.payload.data), word_int(word))
                await ctx.tick().until(stream.ready)
            ctx.set(stream.valid, 0)

        self.call(job)

    def load_scratchpad(self, address, words):
        async def enable(ctx):
            payload = self.engine.load_scratchpad.payload
            ctx.set(payload.channel_enable, (1 << self.config.channels_per_row) - 1)
            ctx.set(payload.column_enable, (1 << self.config.columns) - 1)

        self.call(enable)
        self._load(self.engine.load_scratchpad, address, words)

    def load_groups(self, address, words):
        self._load(self.engine.load_group, address, words)

    def load_records(self, address, words):
        self._load(self.engine.load_record, address, words)

    def run(self, command: Command, requantisation) -> Counters:
        return self.run_values(self.values(command, requantisation))

    def values(self, command: Command, requantisation) -> dict:
        """The command's fields by name; arrays as lists."""
        words = [int(word) for word in command_words(self.config, command, requantisation)]
        scalars = dict(zip(("config_hash", "group_base", "n_groups", "record_base"), words))
        scalars |= dict(zip(("n_records", "read_base", "write_base"), words[4:7]))
        arrays = {
            "count_less_1": words[7:10],
            "read_step": words[10:13],
            "write_step": words[13:16],
        }
        ends = {
            "signed_input": words[16],
            "low": requantisation.low,
            "high": requantisation.high,
            "continues": words[19],
        }
        optional = dict(zip(optional_fields(self.config), words[20:], strict=True))
        return scalars | arrays | ends | optional

    def run_values(self, values: dict, beside=None) -> Counters:
        """Offer the command until it is accepted, then wait for ``done``.

        ``beside`` is a coroutine function to run at the same time.
        """
        counters = {}
        engine = self.engine

        async def job(ctx):
            payload = engine.command.payload
            for key, value in values.items():
                if isinstance(value, list):
                    for index, element in enumerate(value):
                        ctx.set(payload[key][index], element)
                else:
                    ctx.set(payload[key], value)
            ctx.set(engine.command.valid, 1)
            await ctx.tick().until(engine.command.ready)
            ctx.set(engine.command.valid, 0)
            n_cycles = 0
            while ctx.get(engine.busy):
                assert not ctx.get(engine.done)
                assert n_cycles < COMMAND_LIMIT, "the command does not end"
                await ctx.tick()
                n_cycles += 1
            assert n_cycles and not ctx.get(engine.command.ready)
            await ctx.tick()
            assert ctx.get(engine.done) and ctx.get(engine.command.ready)
            for field in dataclasses.fields(Counters):
                counters[field.name] = ctx.get(getattr(engine, f"counter_{field.name}"))
            assert counters["cycles"] == n_cycles
            await ctx.tick()
            assert not ctx.get(engine.done)

        self.call(job, *([beside] if beside else []))
        self.refused = self.errors()
        return Counters(**counters)

    def errors(self) -> dict[str, int]:
        """The error flags, which are then cleared."""
        flags = {}

        async def job(ctx):
            for name in ("config_hash", "command", "address"):
                flags[name] = ctx.get(getattr(self.engine, f"error_{name}"))
            ctx.set(self.engine.clear_errors, 1)
            await ctx.tick()
            ctx.set(self.engine.clear_errors, 0)
            for name in flags:
                assert not ctx.get(getattr(self.engine, f"error_{name}"))

        self.call(job)
        return flags

    def read_job(self, rows: list[int], into: list[int], stall=lambda cycle: False):
        """A coroutine function that reads these rows of the output buffer."""
        engine = self.engine

        async def job(ctx):
            asked = cycle = 0
            while len(into) < len(rows):
                ctx.set(engine.read_request.valid, asked < len(rows))
                ctx.set(engine.read_request.payload, rows[min(asked, len(rows) - 1)])
                ctx.set(engine.read_response.ready, not stall(cycle))
                *_, ready, valid, payload = await ctx.tick().sample(
                    engine.read_request.ready,
                    engine.read_response.valid,
                    Value.cast(engine.read_response.payload),
                )
                if valid and not stall(cycle):
                    into.append(payload)
                asked += bool(asked < len(rows) and ready)
                cycle += 1
            ctx.set(engine.read_request.valid, 0)
            ctx.set(engine.read_response.ready, 0)

        return job

    def read_output(self, address: int, n_rows: int):
        n_limbs = -(-self.config.scratchpad_row_width // 32)
        words: list[int] = []
        self.call(self.read_job(list(range(address, address + n_rows)), words))
        limbs = [[word >> (32 * i) & 0xFFFFFFFF for i in range(n_limbs)] for word in words]
        return np.array(limbs, dtype=np.uint32)


def check_layer(config: EngineConfig, layer: EncodedLayer, x) -> None:
    """Run a layer and compare codes, cycles and every counter with the models."""
    image = LayerImage(config, layer)
    device = SimulatedEngine(config)
    run = runtime.run_layer(config, layer, device, x, image=image)
    np.testing.assert_array_equal(run.output, golden.run_layer(config, layer, x))
    assert len(np.unique(run.output)) > 3
    law = plan_cycles(Plan(config, image, *golden.check_activations(config, layer, x).shape[:3]))
    assert run.counters.cycles == law.total
    assert run.counters.groups == law.groups
    assert run.counters.stalls == law.stalls
    assert run.counters.drains == law.drains
    assert run.counters.replays == law.replays
    assert run.counters.conflicts == law.conflicts
    assert run.n_commands == law.commands


@pytest.mark.parametrize("name", ENGINES)
def test_linear_layer(name):
    """Several samples; an empty row and a full row make bundles uneven."""
    config = ENGINES[name]
    n_rows, n_columns = 2 * config.rows + 1, 3 * config.channels_per_row - 1
    density = np.full(n_rows, 0.4)
    density[0], density[-1] = 0.0, 1.0
    signed = config.activation_width != 8
    layer = random_layer(
        1, config, n_rows, Geometry.linear(n_columns), density, signed_input=signed, shuffled=True
    )
    check_layer(config, layer, random_activations(2, config, (5, n_columns), signed=signed))


@pytest.mark.parametrize("name", ["direct4", "hybrid4", "arbitrated4"])
def test_convolution(name):
    """A padded, strided 3 x 2 window over two samples, unsigned codes after a ReLU."""
    config = ENGINES[name]
    geometry = conv(5, (3, 2), stride=(2, 1), padding=(1, 1))
    layer = random_layer(3, config, 5, geometry, 0.3, relu=True)
    check_layer(config, layer, random_activations(4, config, (2, 5, 4, 5)))


def test_bundle_larger_than_the_group_buffer():
    """Sums go on from one command to the next, one position at a time."""
    config = ENGINES["hybrid4"]
    n_columns = 20 * config.channels_per_row
    layer = random_layer(5, config, 4, Geometry.linear(n_columns), 0.9)
    assert layer.groups_per_bundle.max() > config.group_buffer_depth
    check_layer(config, layer, random_activations(6, config, (3, n_columns)))


def test_an_abandoned_part_leaves_nothing_behind():
    """The first part of a split bundle alone, then another layer: its sums start anew."""
    config = ENGINES["hybrid4"]
    n_columns = 20 * config.channels_per_row
    split = random_layer(5, config, 4, Geometry.linear(n_columns), 0.9)
    image = LayerImage(config, split)
    plan = Plan(config, image, 1, 1, 1)
    tile, command = plan.commands(plan.tile_runs[0])[0]
    assert tile.ends_inside
    device = SimulatedEngine(config)
    n_limbs = config.scratchpad_row_width // 32
    noise = np.random.default_rng(9).integers(0, 1 << 32, (20, n_limbs), dtype=np.uint32)
    device.load_scratchpad(0, noise)
    device.load_groups(0, image.pack_groups(plan.pitch, tile.group_start, tile.group_stop))
    device.run(command, split.requantisation)
    layer = random_layer(6, config, 4, Geometry.linear(12), 0.6)
    x = random_activations(7, config, (3, 12))
    run = runtime.run_layer(config, layer, device, x)
    np.testing.assert_array_equal(run.output, golden.run_layer(config, layer, x))


def test_a_drain_without_records_is_flagged(tiny_run):
    device, values = tiny_run
    device.run_values(values | {"n_records": 0})
    assert device.refused["command"]
    device.run_values(values)
    assert not any(device.refused.values())


@pytest.fixture(scope="module")
def tiny_run():
    """A small engine with a loaded layer, its only command, and the layer."""
    config = ENGINES["direct4"]
    layer = random_layer(7, config, 6, Geometry.linear(12), 0.5)
    image = LayerImage(config, layer)
    plan = Plan(config, image, 1, 1, 1)
    device = SimulatedEngine(config)
    device.load_groups(0, image.pack_groups(plan.pitch))
    device.load_records(0, image.pack_records())
    [(_, command)] = plan.commands(plan.tile_runs[0])
    return device, device.values(command, layer.requantisation)


REFUSED = {
    "foreign_hash": ("config_hash", {"config_hash": 0}),
    "no_groups": ("command", {"n_groups": 0}),
    "groups_beyond_the_buffer": ("command", {"group_base": 31, "n_groups": 2}),
    "records_beyond_the_buffer": ("command", {"record_base": 15, "n_records": 2}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tiny_run, case):
    """The right flag, nothing issued or written, and the next command runs."""
    device, values = tiny_run
    flag, change = REFUSED[case]
    before = device.run_values(values)
    assert before.cycles > 0 and not any(device.refused.values())
    rows = device.read_output(0, 4)
    change = change | {"write_base": 2}
    assert device.run_values(values | change) == Counters(cycles=3)
    np.testing.assert_array_equal(device.read_output(0, 4), rows)
    assert device.refused == {"config_hash": 0, "command": 0, "address": 0} | {flag: 1}
    assert device.run_values(values) == before
    assert not any(device.refused.values())


@pytest.mark.parametrize("n_tables", [1, 2, 4])
def test_refuses_tables_that_there_are_not(n_tables):
    """The numbers that the field has room for, and no table."""
    config = dataclasses.replace(ENGINES["direct4"], activation_tables=n_tables)
    layer = random_layer(1, config, 3, Geometry.linear(8))
    image = LayerImage(config, layer)
    plan = Plan(config, image, 1, 1, 1)
    ((_, command),) = plan.commands(plan.tile_runs[0])
    device = SimulatedEngine(config)
    device.load_groups(0, image.pack_groups(plan.pitch))
    device.load_records(0, image.pack_records())
    values = device.values(command, layer.requantisation)
    for table in range(1 << config.table_width):
        counters = device.run_values(values | {"table": table})
        assert (counters.groups > 0) == (table <= n_tables), table
        assert device.refused["command"] == (table > n_tables)


@pytest.mark.parametrize("change", [{"read_base": 62}, {"write_base": 31}], ids=["read", "write"])
def test_reports_addresses_beyond_the_bank(tiny_run, change):
    """The command runs to its end, the address flag tells."""
    device, values = tiny_run
    assert device.run_values(values | change).cycles > 0
    assert device.refused == {"config_hash": 0, "command": 0, "address": 1}


def tiny_results(device, base: int) -> list[int]:
    """What one position of the run wrote: six rows, a word of every bank and one of two banks."""
    first, second = (word_int(row) for row in device.read_output(base, 2))
    return [first, second & 0xFFFF]


def test_results_follow_the_write_strides(tiny_run):
    """Each of the loops steps reads and writes by its own strides, and nothing else is written."""
    device, values = tiny_run
    rng = np.random.default_rng(9)
    device.load_scratchpad(0, rng.integers(0, 1 << 32, (64, 1), dtype=np.uint32))
    counts, read_strides, write_strides = (2, 3, 2), (4, 7, 25), (2, 5, 16)
    places = [(x, y, z) for z in range(2) for y in range(3) for x in range(2)]

    def at(strides, place) -> int:
        return sum(p * s for p, s in zip(place, strides, strict=True))

    results = []
    for place in places:
        one = {"read_base": at(read_strides, place), "write_base": 30}
        device.run_values(values | one | {"count_less_1": [0, 0, 0]})
        results.append(tiny_results(device, 30))
    assert len(set(map(tuple, results))) > 6
    wanted = [word_int(row) for row in device.read_output(0, 32)]
    for place, rows in zip(places, results, strict=True):
        start = at(write_strides, place)
        kept = wanted[start + 1] >> 16 << 16
        wanted[start : start + 2] = [rows[0], kept | rows[1]]

    def steps(strides) -> list[int]:
        travel, found = 0, []
        for count, stride in zip(counts, strides, strict=True):
            found.append(stride - travel)
            travel += (count - 1) * stride
        return found

    loops = {"read_step": steps(read_strides), "write_step": steps(write_strides)}
    device.run_values(values | loops | {"count_less_1": [n - 1 for n in counts]})
    assert [word_int(row) for row in device.read_output(0, 32)] == wanted


def test_loads_and_reads_while_running(tiny_run):
    """Rows read under stall and scratchpad rows loaded beside a run: neither feels the other."""
    device, values = tiny_run
    before = device.run_values(values)
    results = tiny_results(device, 0)
    rows = [word_int(row) for row in device.read_output(0, 2)]
    rng = np.random.default_rng(8)
    order = [int(n) for n in rng.integers(0, 2, 12)]
    got: list[int] = []
    reading = device.read_job(order, got, lambda cycle: cycle % 3 == 1)
    assert device.run_values(values | {"write_base": 16}, reading) == before
    assert got == [rows[n] for n in order]
    stream = device.engine.load_scratchpad

    async def loading(ctx):
        for address in range(40, 60):
            ctx.set(stream.valid, 1)
            ctx.set(stream.payload.address, address)
            await ctx.tick()
        ctx.set(stream.valid, 0)

    assert device.run_values(values | {"write_base": 8}, loading) == before
    for base in (8, 16):
        assert tiny_results(device, base) == results


def test_config_hash_is_the_configs():
    config = ENGINES["direct4"]
    device = SimulatedEngine(config)
    seen = []

    async def job(ctx):
        seen.append(ctx.get(device.engine.config_hash))

    device.call(job)
    assert f"{seen[0]:08x}" == config.hash[:8]
