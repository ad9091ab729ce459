"""cocotb bench of the whole engine, ``gshw_core``, as emitted.

The engine is driven through its streams and observed at its ports only. Environment:
``GSHW_BENCH_CONFIG`` names the config file, ``GSHW_BENCH_SEED`` the seed.
"""

import os
from dataclasses import replace
from random import Random

import cocotb
import numpy as np
from cocotb.task import bridge, resume
from cocotb.triggers import FallingEdge, RisingEdge, with_timeout
from numpy.typing import NDArray

from gshw import golden, runtime
from gshw.config import load_config
from gshw.device import Counters, command_words
from gshw.encoding import Requantisation
from gshw.image import LayerImage
from gshw.plan import Command, Plan, stored_items
from gshw.registers import COUNTERS, ERRORS
from rtl_gen.top import Core
from sim_tests.bench_support import (
    PERIOD_NS,
    Stream,
    cycles,
    half_cycles,
    reset,
    start_clock_and_reset,
)
from sim_tests.layers import (
    Case,
    corner_cases,
    expected_counters,
    extreme_cases,
    linear_case,
    random_case,
)

CONFIG = load_config(os.environ["GSHW_BENCH_CONFIG"]).engine
SEED = int(os.environ["GSHW_BENCH_SEED"])
PORTS = Core(CONFIG).ports
COMMAND_PORTS = [
    port.name
    for port in PORTS
    if port.name.startswith("command_") and port.name not in ("command_valid", "command_ready")
]
WHOLE_ROW = {
    "channel_enable": (1 << CONFIG.channels_per_row) - 1,
    "column_enable": (1 << CONFIG.columns) - 1,
}
CYCLE_GOAL = 4_000
CYCLE_LIMIT = 200_000


def _to_words(values: list[int], n_limbs: int) -> NDArray[np.uint32]:
    raw = b"".join(value.to_bytes(4 * n_limbs, "little") for value in values)
    return np.frombuffer(raw, dtype="<u4").reshape(-1, n_limbs)


class CocotbEngine:
    """The engine under test as a :class:`gshw.device.Device`.

    :func:`gshw.runtime.run_layer` calls the methods from a bridged thread; each resumes the
    coroutine of the same name with an underscore.

    Parameters
    ----------
    random
        Stalls every stream at random, both the ones driven and the one read.
    """

    def __init__(self, dut, random: Random | None = None) -> None:
        self.dut = dut
        self.random = random
        self.n_done = 0
        self.n_commands = 0

        def load_stream(name: str, *enables: str) -> Stream:
            keys = ("address", "data", *enables)
            payload = {key: f"{name}_{key}" for key in keys}
            return Stream(dut, f"{name}_valid", f"{name}_ready", payload)

        self.scratchpad = load_stream("load_scratchpad", *WHOLE_ROW)
        self.group = load_stream("load_group")
        self.record = load_stream("load_record")
        self.command = Stream(
            dut, "command_valid", "command_ready", {port: port for port in COMMAND_PORTS}
        )
        self.request = Stream(
            dut, "read_request_valid", "read_request_ready", {"data": "read_request_data"}
        )
        self.response = Stream(
            dut, "read_response_valid", "read_response_ready", {"data": "read_response_data"}
        )
        cocotb.start_soon(self._count_done())

    async def _count_done(self) -> None:
        """Count pulses of ``done``; each must last one cycle."""
        while True:
            await RisingEdge(self.dut.done)
            assert not int(self.dut.busy.value), "done while busy"
            started = half_cycles()
            await FallingEdge(self.dut.done)
            assert half_cycles() - started == 2, "done must last one cycle"
            self.n_done += 1

    # --- Device ------------------------------------------------------------------------------

    def load_scratchpad(self, address: int, words: NDArray[np.uint32]) -> None:
        resume(self._load)(self.scratchpad, address, words, **WHOLE_ROW)

    def load_groups(self, address: int, words: NDArray[np.uint32]) -> None:
        resume(self._load)(self.group, address, words)

    def load_records(self, address: int, words: NDArray[np.uint32]) -> None:
        resume(self._load)(self.record, address, words)

    def run(self, command: Command, requantisation: Requantisation) -> Counters:
        return resume(self._run)(command, requantisation)

    def read_output(self, address: int, n_rows: int) -> NDArray[np.uint32]:
        return resume(self._read_output)(address, n_rows)

    # --- coroutines --------------------------------------------------------------------------

    async def _load(
        self, stream: Stream, address: int, words: NDArray[np.uint32], **enables: int
    ) -> None:
        items = (
            {
                "address": address + index,
                "data": int.from_bytes(row.astype("<u4").tobytes(), "little"),
                **enables,
            }
            for index, row in enumerate(words)
        )
        await stream.send(items, random=self.random)

    async def start(self, values: dict[str, int]) -> None:
        """Send a command by its port values."""
        await self.command.send([values], random=self.random)

    async def _run(self, command: Command, requantisation: Requantisation) -> Counters:
        await self.start(port_values(command, requantisation))
        return await self.finish()

    async def finish(self) -> Counters:
        """Wait for the end of an accepted command and read the counters.

        The cycle counter is checked against simulated time.
        """
        dut = self.dut
        assert int(dut.busy.value), "not busy in the cycle after an accepted command"
        # The command was taken at the rising edge half a period ago.
        started = half_cycles() - 1
        await with_timeout(FallingEdge(dut.busy), CYCLE_LIMIT * PERIOD_NS, "ns")
        n_cycles = (half_cycles() - started) / 2
        await with_timeout(RisingEdge(dut.done), 2 * PERIOD_NS, "ns")
        await FallingEdge(dut.clk)
        counters = self.counters()
        assert counters.cycles == n_cycles, f"counted {counters.cycles}, took {n_cycles} cycles"
        await cycles(dut, 2)
        self.n_commands += 1
        assert self.n_done == self.n_commands, "done must come once per command"
        assert not self.errors()
        return counters

    def counters(self) -> Counters:
        values = {name: int(getattr(self.dut, f"counter_{name}").value) for name in COUNTERS}
        return Counters(**values)

    def errors(self) -> set[str]:
        """Names of the error flags that are set."""
        return {name for name in ERRORS if int(getattr(self.dut, f"error_{name}").value)}

    async def clear_errors(self) -> None:
        self.dut.clear_errors.value = 1
        await cycles(self.dut, 1)
        self.dut.clear_errors.value = 0
        await cycles(self.dut, 1)

    async def _read_output(self, address: int, n_rows: int) -> NDArray[np.uint32]:
        requests = cocotb.start_soon(
            self.request.send(
                ({"data": address + index} for index in range(n_rows)), random=self.random
            )
        )
        items = await self.response.receive(n_rows, random=self.random)
        await requests
        return _to_words([item["data"] for item in items], -(-CONFIG.scratchpad_row_width // 32))

    async def run_layer(self, case: Case) -> runtime.LayerRun:
        """Run a layer through the product's own driver."""
        return await bridge(runtime.run_layer)(CONFIG, case.layer, self, case.activations)

    async def check_layer(self, case: Case) -> None:
        """Run a layer; its output and counters must be exact."""
        run = await self.run_layer(case)
        wanted = golden.run_layer(CONFIG, case.layer, case.activations)
        np.testing.assert_array_equal(run.output, wanted, err_msg=case.label)
        law = expected_counters(CONFIG, case.layer, case.activations.shape)
        assert run.counters == law, f"{case.label}: {run.counters}, cycle law {law}"


def port_values(command: Command, requantisation: Requantisation) -> dict[str, int]:
    """Value of every command port."""
    words = command_words(CONFIG, command, requantisation)
    return dict(zip(COMMAND_PORTS, map(int, words), strict=True))


async def start(dut, random: Random | None = None) -> CocotbEngine:
    """Bring the device out of reset."""
    inputs = [port.name for port in PORTS if port.direction == "input"]
    await start_clock_and_reset(dut, inputs)
    return CocotbEngine(dut, random)


def generator(scenario: int) -> np.random.Generator:
    return np.random.default_rng([SEED, scenario])


def one_command_case(rng: np.random.Generator) -> Case:
    """A linear layer, of two bundles if they fit, that runs as one command with room to spare."""
    most = CONFIG.row_buffer_depth // 2
    sizes = [(CONFIG.rows + 1, min(2 * CONFIG.channels_per_row, 64)), (CONFIG.rows, 8), (1, 8)]
    for n_rows, n_columns in [*sizes, (1, 1)]:
        weights = rng.integers(-1, 2, (max(1, min(n_rows, most)), n_columns))
        weights[rng.random(weights.shape) < 0.7] = 0
        weights[:, 0] = 1
        case = linear_case(rng, CONFIG, "one command", weights, n_samples=2 * CONFIG.columns)
        image, _ = plan_of(case)
        if 2 * image.n_groups <= CONFIG.group_buffer_depth:
            break
    return case


def plan_of(case: Case) -> tuple[LayerImage, Plan]:
    image = LayerImage(CONFIG, case.layer)
    return image, Plan(CONFIG, image, *case.activations.shape[:3])


async def run_one_command(
    engine: CocotbEngine, scenario: int
) -> tuple[Case, runtime.LayerRun, NDArray[np.uint32]]:
    """Run a one-command layer; its counters, and its :func:`results`."""
    case = one_command_case(generator(scenario))
    run = await engine.run_layer(case)
    return case, run, await results(engine, case, 0)


def written(case: Case) -> NDArray[np.uint32]:
    """Rows of the output buffer with the bits set that a one-command layer writes."""
    _, plan = plan_of(case)
    n_positions = plan.n_sets * plan.item_shape[0] * plan.item_shape[1]
    shape = (n_positions, plan.output_words * CONFIG.channels_per_row, CONFIG.columns)
    ones = np.zeros(shape, dtype=np.int64)
    ones[:, : case.layer.n_rows] = -1
    return runtime.pack_rows(CONFIG, ones.reshape(-1, CONFIG.lanes, CONFIG.block, CONFIG.columns))


async def results(engine: CocotbEngine, case: Case, base: int) -> NDArray[np.uint32]:
    """The output buffer from ``base``, zero in what a one-command layer does not write."""
    mask = written(case)
    return await engine._read_output(base, len(mask)) & mask


def good_command(case: Case) -> dict[str, int]:
    """Port values of the only command of a layer."""
    _, plan = plan_of(case)
    ((_, command),) = plan.commands(plan.tile_runs[0])
    return port_values(command, case.layer.requantisation)


# --- scenarios -----------------------------------------------------------------------------------


@cocotb.test()
async def random_layers(dut):
    """Random linear and convolution layers at full rate."""
    engine = await start(dut)
    rng = generator(1)
    for _ in range(16):
        await engine.check_layer(random_case(rng, CONFIG, cycle_goal=CYCLE_GOAL))


@cocotb.test()
async def corner_layers(dut):
    """No weights, empty bundles, one row, ragged bundles, drain-bound bundles."""
    engine = await start(dut)
    for case in corner_cases(generator(2), CONFIG):
        await engine.check_layer(case)


@cocotb.test()
async def extreme_values(dut):
    """Weights and activations at their limits, the accumulator at both its bounds."""
    engine = await start(dut)
    for case in extreme_cases(CONFIG, n_columns_goal=2 * CONFIG.channels_per_row):
        await engine.check_layer(case)


@cocotb.test()
async def stalled_streams(dut):
    """Random gaps in every load, request and response; the response holds while stalled."""
    engine = await start(dut, Random(SEED))
    cocotb.start_soon(engine.response.watch())
    rng = generator(3)
    for _ in range(6):
        await engine.check_layer(random_case(rng, CONFIG, cycle_goal=CYCLE_GOAL // 4))


@cocotb.test()
async def response_holds_until_taken(dut):
    """A response waits any number of cycles and later requests wait behind it."""
    engine = await start(dut)
    case, _, wanted = await run_one_command(engine, 4)
    cocotb.start_soon(engine.response.watch())
    asked = [row for _ in range(6) for row in range(len(wanted))]
    requests = cocotb.start_soon(engine.request.send({"data": row} for row in asked))
    await cycles(dut, 40)
    assert not requests.done(), "requests must wait behind a response that is not taken"
    items = await engine.response.receive(len(asked))
    await requests
    got = _to_words([item["data"] for item in items], wanted.shape[1])
    np.testing.assert_array_equal(got & written(case)[asked], wanted[asked])
    await engine.check_layer(case)


@cocotb.test()
async def reads_while_running(dut):
    """Rows of the command before are read, stalled, while the next one writes elsewhere."""
    engine = await start(dut)
    case, run, wanted = await run_one_command(engine, 5)
    cocotb.start_soon(engine.response.watch())
    await engine.request.send([{"data": 0}])
    base = CONFIG.output_depth // 2
    await engine.start(good_command(case) | {"command_write_base": base})
    finishing = cocotb.start_soon(engine.finish())
    asked = [Random(SEED).randrange(len(wanted)) for _ in range(50)]
    requests = cocotb.start_soon(engine.request.send({"data": row} for row in asked))
    await cycles(dut, 5)
    items = await engine.response.receive(1 + len(asked), random=Random(SEED))
    await requests
    assert await finishing == run.counters
    got = _to_words([item["data"] for item in items], wanted.shape[1])
    asked = [0, *asked]
    np.testing.assert_array_equal(got & written(case)[asked], wanted[asked])
    np.testing.assert_array_equal(await results(engine, case, base), wanted)


@cocotb.test()
async def loads_while_running(dut):
    """Any elements of other rows loaded during a run arrive, and leave the run as it is."""
    engine = await start(dut)
    rng = generator(6)
    case, run, wanted = await run_one_command(engine, 6)
    _, plan = plan_of(case)
    n_rows = plan.n_sets * plan.item_input_words
    base = CONFIG.bank_depth - n_rows
    assert base >= n_rows
    shape = (n_rows, CONFIG.lanes, CONFIG.block, CONFIG.columns)
    low, high = CONFIG.activation_range(case.layer.requantisation.signed_input)
    noise = rng.integers(low, high + 1, shape)
    (tile,) = plan.stream_tiles()
    stored = runtime._stored_input(case.layer, case.activations)
    inputs = stored_items(CONFIG, case.layer.geometry, plan, stored, tile)
    during = []

    async def load() -> None:
        await engine._load(engine.scratchpad, base, runtime.pack_rows(CONFIG, noise), **WHOLE_ROW)
        during.append(int(dut.busy.value))
        words = runtime.pack_rows(CONFIG, inputs)
        for channel in range(CONFIG.channels_per_row):
            for column in range(CONFIG.columns):
                one = {"channel_enable": 1 << channel, "column_enable": 1 << column}
                await engine._load(engine.scratchpad, base, words, **one)

    await engine.start(good_command(case))
    finishing = cocotb.start_soon(engine.finish())
    await load()
    assert await finishing == run.counters
    assert during == [1], "the engine must still have been running"
    np.testing.assert_array_equal(await results(engine, case, 0), wanted)
    await engine.start(good_command(case) | {"command_read_base": base, "command_write_base": 1})
    assert await engine.finish() == run.counters
    np.testing.assert_array_equal(await results(engine, case, 1), wanted)


@cocotb.test()
async def reset_in_the_middle(dut):
    """After a reset at any moment of a run, reload and rerun are exact."""
    engine = await start(dut)
    rng = generator(7)
    case = one_command_case(rng)
    run = await engine.run_layer(case)
    total = run.counters.cycles
    moments = sorted({1, 2, 3, total // 4, total // 2, total - 8, total - 4, total - 1} - {0})
    for moment in moments:
        await engine.start(good_command(case))
        await cycles(dut, moment - 1)
        assert int(dut.busy.value), f"must still run after {moment} of {total} cycles"
        await reset(dut)
        assert not int(dut.busy.value)
        assert engine.counters() == Counters() and not engine.errors()
        await cycles(dut, 30)
        assert not int(dut.busy.value) and engine.counters() == Counters()
        assert engine.n_done == engine.n_commands, "a command that was cut off is never done"
        await engine.check_layer(case)


@cocotb.test()
async def reset_while_loading_and_reading(dut):
    """A reset with streams in flight leaves no word behind."""
    engine = await start(dut)
    case = one_command_case(generator(8))
    await engine.request.send([{"data": 0}])
    await cycles(dut, 10)
    assert int(dut.read_response_valid.value)
    await reset(dut)
    assert not int(dut.read_response_valid.value)
    engine.scratchpad.valid.value = 1
    engine.group.valid.value = 1
    engine.record.valid.value = 1
    await reset(dut)
    for stream in (engine.scratchpad, engine.group, engine.record):
        stream.valid.value = 0
    await engine.check_layer(case)


@cocotb.test()
async def refused_commands(dut):
    """A foreign hash and ranges outside the buffers are refused; the engine stays usable."""
    engine = await start(dut)
    assert int(dut.config_hash.value) == CONFIG.hash32
    case = one_command_case(generator(9))
    run = await engine.run_layer(case)
    good = good_command(case)
    groups, records = CONFIG.group_buffer_depth, CONFIG.row_buffer_depth
    # An illegal value must fit its port.
    bad = [
        ("config_hash", {"command_config_hash": good["command_config_hash"] ^ 1}),
        ("config_hash", {"command_config_hash": good["command_config_hash"] ^ 1 << 31}),
        ("command", {"command_n_groups": 0}),
        ("command", {"command_n_groups": groups + 1}),
        ("command", {"command_group_base": groups - 1, "command_n_groups": 2}),
        ("command", {"command_n_records": records + 1}),
        ("command", {"command_record_base": records - 1, "command_n_records": 2}),
    ]
    rows = await engine._read_output(0, 4)
    for error, change in bad:
        await engine.start(good | change | {"command_write_base": 2})
        await with_timeout(RisingEdge(dut.done), 10 * PERIOD_NS, "ns")
        await FallingEdge(dut.clk)
        assert engine.errors() == {error}, f"{change}: {engine.errors()}"
        await cycles(dut, 20)
        engine.n_commands += 1
        assert not int(dut.busy.value) and int(dut.command_ready.value)
        assert engine.errors() == {error}, "the flag must stick"
        counters = engine.counters()
        assert counters == Counters(cycles=counters.cycles), "a refused command must do nothing"
        np.testing.assert_array_equal(await engine._read_output(0, 4), rows)
        await engine.clear_errors()
        assert not engine.errors()
    for error, change in (bad[0], bad[2]):
        await engine.start(good | change)
        await engine.start(good)
        assert engine.errors() == {error}, "a good command must not clear the flag"
        await with_timeout(FallingEdge(dut.busy), CYCLE_LIMIT * PERIOD_NS, "ns")
        await cycles(dut, 3)
        engine.n_commands += 2
        assert engine.counters() == run.counters
        await engine.clear_errors()
    await engine.check_layer(case)
    assert engine.n_done == engine.n_commands


@cocotb.test()
async def addresses_beyond_the_banks(dut):
    """A read or write past a bank's end sets the flag, and the write does not wrap."""
    engine = await start(dut)
    rng = generator(10)
    n_rows = min(CONFIG.channels_per_row + 1, CONFIG.row_buffer_depth, CONFIG.group_buffer_depth)
    n_columns = CONFIG.channels_per_row + 1
    weights = np.zeros((n_rows, n_columns), dtype=np.int64)
    weights[:, -1] = 1
    case = linear_case(rng, CONFIG, "two words", weights, n_samples=1)
    await engine.check_layer(case)
    good = good_command(case)
    changes = [{"command_read_base": CONFIG.bank_depth - 1, "command_write_base": 4}]
    if n_rows > CONFIG.channels_per_row:
        changes.append({"command_write_base": CONFIG.output_depth - 1})
    for change in changes:
        before = await engine._read_output(0, 2)
        await engine.start(good | change)
        await with_timeout(FallingEdge(dut.busy), CYCLE_LIMIT * PERIOD_NS, "ns")
        await cycles(dut, 3)
        engine.n_commands += 1
        assert engine.errors() == {"address"}, f"{change}: {engine.errors()}"
        np.testing.assert_array_equal(await engine._read_output(0, 2), before)
        await engine.clear_errors()
        assert not engine.errors()
    await engine.check_layer(case)


@cocotb.test()
async def bases_move_the_run(dut):
    """Words loaded during a run, anywhere in their buffers, give the same codes in the next run."""
    engine = await start(dut)
    case = one_command_case(generator(11))
    parameters = case.layer.requantisation
    run = await engine.run_layer(case)
    image, plan = plan_of(case)
    ((_, command),) = plan.commands(plan.tile_runs[0])
    n_rows = plan.n_sets * plan.item_output_words
    wanted = await results(engine, case, 0)
    moved = replace(
        command,
        group_base=CONFIG.group_buffer_depth - command.n_groups,
        record_base=CONFIG.row_buffer_depth - command.n_records,
        write_base=CONFIG.output_depth - n_rows,
    )
    assert moved.group_base >= command.n_groups and moved.record_base >= command.n_records
    assert moved.write_base >= n_rows
    await engine.start(port_values(command, parameters))
    finishing = cocotb.start_soon(engine.finish())
    await engine._load(engine.group, moved.group_base, image.pack_groups(plan.pitch))
    await engine._load(engine.record, moved.record_base, image.pack_records())
    assert await finishing == run.counters
    await engine.start(port_values(moved, parameters))
    assert await engine.finish() == run.counters
    np.testing.assert_array_equal(await results(engine, case, moved.write_base), wanted)
    np.testing.assert_array_equal(await results(engine, case, 0), wanted)
