"""The whole engine in Amaranth's simulator: bit-exact, cycle-exact, and what it refuses."""

import dataclasses

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
from rtl_gen.engine import Engine
from tests.rtl.bench import PERIOD, bits
from tests.strategies import ENGINES, conv, random_activations, random_layer, word_int

COMMAND_LIMIT = 5000


class SimulatedEngine:
    """A :class:`gshw.device.Device` made of the engine in Amaranth's simulator.

    Each call hands one coroutine to a test bench that runs for ever, and advances the simulation
    until it has finished.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.engine = Engine(config)
        self.refused = {}
        self._jobs: list = []
        self._simulator = Simulator(self.engine)
        self._simulator.add_clock(PERIOD)
        self._simulator.add_testbench(self._serve)

    async def _serve(self, ctx):
        while True:
            if self._jobs:
                await self._jobs[0](ctx)
                self._jobs.pop()
            else:
                await ctx.tick()

    def call(self, job) -> None:
        """Run ``await job(ctx)`` to its end."""
        self._jobs.append(job)
        while self._jobs:
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
        arrays = {"count": words[7:10], "read_step": words[10:13], "write_step": words[13:16]}
        ends = {
            "signed_input": words[16],
            "low": requantisation.low,
            "high": requantisation.high,
            "continues": words[19],
        }
        return scalars | arrays | ends

    def run_values(self, values: dict) -> Counters:
        """Offer the command until it is accepted, then wait for ``done`` or a refusal."""
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
            await ctx.tick()
            assert ctx.get(engine.done) == (n_cycles > 0)
            await ctx.tick()
            assert not ctx.get(engine.done)
            for field in dataclasses.fields(Counters):
                counters[field.name] = ctx.get(getattr(engine, f"counter_{field.name}"))

        self.call(job)
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

    def read_scratchpad(self, address: int, n_rows: int, stall=lambda cycle: False):
        n_limbs = -(-self.config.scratchpad_row_width // 32)
        words: list[int] = []
        engine = self.engine

        async def job(ctx):
            asked = cycle = 0
            while len(words) < n_rows:
                ctx.set(engine.read_request.valid, asked < n_rows)
                ctx.set(engine.read_request.payload, (address + asked) % self.config.bank_depth)
                ctx.set(engine.read_response.ready, not stall(cycle))
                *_, ready, valid, payload = await ctx.tick().sample(
                    engine.read_request.ready,
                    engine.read_response.valid,
                    Value.cast(engine.read_response.payload),
                )
                if valid and not stall(cycle):
                    words.append(payload)
                asked += bool(asked < n_rows and ready)
                cycle += 1
            ctx.set(engine.read_request.valid, 0)
            ctx.set(engine.read_response.ready, 0)

        self.call(job)
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
    "empty_inner_loop": ("command", {"count": [0, 1, 1]}),
    "empty_outer_loop": ("command", {"count": [1, 1, 0]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tiny_run, case):
    """The right flag, no cycle, and the next command runs."""
    device, values = tiny_run
    flag, change = REFUSED[case]
    before = device.run_values(values)
    assert before.cycles > 0 and not any(device.refused.values())
    assert device.run_values(values | change) == before
    assert device.refused == {"config_hash": 0, "command": 0, "address": 0} | {flag: 1}
    assert device.run_values(values) == before
    assert not any(device.refused.values())


@pytest.mark.parametrize("change", [{"read_base": 62}, {"write_base": 63}], ids=["read", "write"])
def test_reports_addresses_beyond_the_bank(tiny_run, change):
    """The command runs to its end, the address flag tells."""
    device, values = tiny_run
    assert device.run_values(values | change).cycles > 0
    assert device.refused == {"config_hash": 0, "command": 0, "address": 1}


def test_reads_back_what_was_loaded_under_stall():
    """Responses keep order and data whatever the reader does, and commands wait for them."""
    config = ENGINES["hybrid4"]
    device = SimulatedEngine(config)
    rng = np.random.default_rng(8)
    rows = rng.integers(0, 1 << 32, (64, 4), dtype=np.uint32)
    device.load_scratchpad(0, rows)
    np.testing.assert_array_equal(device.read_scratchpad(0, 64), rows)
    pauses = rng.random(1000) < 0.5
    got = device.read_scratchpad(5, 40, stall=lambda cycle: bool(pauses[cycle]))
    np.testing.assert_array_equal(got, rows[5:45])


def test_config_hash_is_the_configs():
    config = ENGINES["direct4"]
    device = SimulatedEngine(config)
    seen = []

    async def job(ctx):
        seen.append(ctx.get(device.engine.config_hash))

    device.call(job)
    assert f"{seen[0]:08x}" == config.hash[:8]
