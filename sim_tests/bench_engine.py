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
from gshw.plan import Command, Plan
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

        def load_stream(name: str) -> Stream:
            payload = {"address": f"{name}_address", "data": f"{name}_data"}
            return Stream(dut, f"{name}_valid", f"{name}_ready", payload)

        self.scratchpad = load_stream("load_scratchpad")
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
        resume(self._load)(self.scratchpad, address, words)

    def load_groups(self, address: int, words: NDArray[np.uint32]) -> None:
        resume(self._load)(self.group, address, words)

    def load_records(self, address: int, words: NDArray[np.uint32]) -> None:
        resume(self._load)(self.record, address, words)

    def run(self, command: Command, requantisation: Requantisation) -> Counters:
        return resume(self._run)(command, requantisation)

    def read_scratchpad(self, address: int, n_rows: int) -> NDArray[np.uint32]:
        return resume(self._read_scratchpad)(address, n_rows)

    # --- coroutines --------------------------------------------------------------------------

    async def _load(self, stream: Stream, address: int, words: NDArray[np.uint32]) -> None:
        items = (
            {
                "address": address + index,
                "data": int.from_bytes(row.astype("<u4").tobytes(), "little"),
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

    async def _read_scratchpad(self, address: int, n_rows: int) -> NDArray[np.uint32]:
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
    n_rows = 6
    rng = generator(4)
    codes = rng.integers(0, 2, (n_rows, CONFIG.lanes, CONFIG.block, CONFIG.columns))
    words = runtime.pack_rows(CONFIG, codes)
    await engine._load(engine.scratchpad, 0, words)
    cocotb.start_soon(engine.response.watch())
    requests = cocotb.start_soon(engine.request.send({"data": row} for row in range(n_rows)))
    await cycles(dut, 40)
    assert not requests.done(), "requests must wait behind a response that is not taken"
    items = await engine.response.receive(n_rows)
    await requests
    got = _to_words([item["data"] for item in items], words.shape[1])
    np.testing.assert_array_equal(got, words)


@cocotb.test()
async def a_command_waits_for_pending_reads(dut):
    """A command offered while a response is pending is taken only after it, and runs right."""
    engine = await start(dut)
    case = one_command_case(generator(5))
    first = await engine.run_layer(case)
    _, plan = plan_of(case)
    await engine.request.send([{"data": plan.write_base}])
    command = cocotb.start_soon(engine.command.send([good_command(case)]))
    await cycles(dut, 20)
    assert not command.done() and not int(dut.busy.value), "must wait for the response"
    await engine.response.receive(1)
    await command
    assert await engine.finish() == first.counters


@cocotb.test()
async def loads_while_running(dut):
    """Scratchpad rows loaded elsewhere during a run arrive, and leave the run as it is."""
    engine = await start(dut)
    rng = generator(6)
    case = one_command_case(rng)
    _, plan = plan_of(case)
    used = plan.write_base + plan.n_sets * plan.item_output_words
    free = CONFIG.bank_depth - used
    assert free >= 4
    n_rows = min(free, 200)
    low, high = CONFIG.activation_range(False)
    codes = rng.integers(low, high + 1, (n_rows, CONFIG.lanes, CONFIG.block, CONFIG.columns))
    words = runtime.pack_rows(CONFIG, codes)
    during = []

    async def load() -> None:
        await RisingEdge(dut.busy)
        await FallingEdge(dut.clk)
        await engine._load(engine.scratchpad, used, words[:1])
        during.append(int(dut.busy.value))
        await engine._load(engine.scratchpad, used + 1, words[1:])

    loading = cocotb.start_soon(load())
    await engine.check_layer(case)
    await loading
    assert during == [1], "the engine must still have been running"
    got = await engine._read_scratchpad(used, n_rows)
    np.testing.assert_array_equal(got, words)


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
        *(("command", {f"command_count_{loop}": 0}) for loop in range(3)),
    ]
    for error, change in bad:
        await engine.start(good | change)
        assert not int(dut.busy.value), f"{change}: must not start"
        assert engine.errors() == {error}, f"{change}: {engine.errors()}"
        await cycles(dut, 20)
        assert not int(dut.busy.value) and int(dut.command_ready.value)
        assert engine.errors() == {error}, "the flag must stick"
        assert engine.counters() == run.counters, "a refused command must not touch the counters"
        await engine.clear_errors()
        assert not engine.errors()
    for error, change in (bad[0], bad[2]):
        await engine.start(good | change)
        await engine.start(good)
        assert engine.errors() == {error}, "a good command must not clear the flag"
        await with_timeout(FallingEdge(dut.busy), CYCLE_LIMIT * PERIOD_NS, "ns")
        await cycles(dut, 3)
        engine.n_commands += 1
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
    last = CONFIG.bank_depth - 1
    changes = [{"command_read_base": last}]
    if n_rows > CONFIG.channels_per_row:
        changes.append({"command_write_base": last})
    for change in changes:
        before = await engine._read_scratchpad(0, 2)
        await engine.start(good | change)
        await with_timeout(FallingEdge(dut.busy), CYCLE_LIMIT * PERIOD_NS, "ns")
        await cycles(dut, 3)
        engine.n_commands += 1
        assert engine.errors() == {"address"}, f"{change}: {engine.errors()}"
        np.testing.assert_array_equal(await engine._read_scratchpad(0, 2), before)
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
    inputs = await engine._read_scratchpad(0, plan.write_base)
    nothing = np.zeros((n_rows, inputs.shape[1]), dtype=np.uint32)
    moved = replace(
        command,
        group_base=CONFIG.group_buffer_depth - command.n_groups,
        record_base=CONFIG.row_buffer_depth - command.n_records,
        read_base=CONFIG.bank_depth - plan.write_base,
        write_base=0,
    )
    assert moved.group_base >= command.n_groups and moved.record_base >= command.n_records
    assert moved.read_base >= plan.write_base + n_rows
    await engine._load(engine.scratchpad, plan.write_base, nothing)
    await engine.start(port_values(command, parameters))
    finishing = cocotb.start_soon(engine.finish())
    await engine._load(engine.group, moved.group_base, image.pack_groups(plan.pitch))
    await engine._load(engine.record, moved.record_base, image.pack_records())
    assert await finishing == run.counters
    wanted = await engine._read_scratchpad(plan.write_base, n_rows)
    await engine._load(engine.scratchpad, 0, nothing)
    await engine._load(engine.scratchpad, moved.read_base, inputs)
    await engine.start(port_values(moved, parameters))
    assert await engine.finish() == run.counters
    np.testing.assert_array_equal(await engine._read_scratchpad(0, n_rows), wanted)
