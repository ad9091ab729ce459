"""cocotb benches of single components as emitted, each against NumPy or a naive loop.

Environment: ``GSHW_BENCH_CONFIG`` names the config file, ``GSHW_BENCH_SEED`` the seed.
"""

import itertools
import os
from collections.abc import Callable
from random import Random

import cocotb
import numpy as np
from amaranth.lib import data
from cocotb.triggers import FallingEdge, ReadOnly

from gshw.benes import switch_settings
from gshw.config import Gather, load_config
from gshw.encoding import Requantisation
from gshw.golden import requantise
from gshw.layout import group_fields, group_head_fields, record_fields, word_width
from gshw.pipeline import SCATTER_LEAD, TAG_LEAD, Pipeline
from gshw.plan import Command
from rtl_gen.layouts import (
    issue_layout,
    load_layout,
    record_layout,
    route_width,
    scratchpad_load_layout,
    tag_layout,
)
from sim_tests.bench_support import (
    Stream,
    check_pipeline,
    cycles,
    reset,
    start_clock_and_reset,
)
from sim_tests.components import LOOP_DEPTH, LOOP_WIDTH, ODD_TREE, components, input_ports

CONFIG = load_config(os.environ["GSHW_BENCH_CONFIG"]).engine
SEED = int(os.environ["GSHW_BENCH_SEED"])
INPUTS = input_ports(CONFIG)
LATENCY = {
    name: component.latency
    for name, component in components(CONFIG).items()
    if hasattr(component, "latency")
}
N_WORDS = 100


async def start(dut) -> Random:
    """Bring the components out of reset; return the bench's source of chance."""
    await start_clock_and_reset(dut, INPUTS)
    return Random(SEED)


def pack(layout: data.Layout, elements=None, **values) -> int:
    """Bits of a payload: fields by name, or the elements of an array."""
    return layout.const(values if elements is None else elements).as_bits()


def spread(port: str, values) -> dict[str, int]:
    """Port values of an array member."""
    return {f"{port}_{index}": value for index, value in enumerate(values)}


def skewed(vectors: list[dict[str, int]], n_columns: int) -> list[dict[str, int]]:
    """Port values, columns fastest, as they come when each column is a cycle behind another."""
    late: list[dict[str, int]] = [{} for _ in range(len(vectors) + n_columns - 1)]
    for cycle, vector in enumerate(vectors):
        for n, (port, value) in enumerate(vector.items()):
            late[cycle + n % n_columns][port] = value
    return late


def edge_values(random: Random, width: int, n_random: int) -> list[int]:
    """Signed values of ``width`` bits: the limits, their neighbours, around zero, and others."""
    half = 1 << (width - 1)
    edges = [-half, -half + 1, half - 2, half - 1, 0, 1, -1, 3, -3, half // 2, -half // 2]
    return edges + [random.randrange(-half, half) for _ in range(n_random)]


# --- compute -------------------------------------------------------------------------------------


@cocotb.test()
async def requantiser_is_the_golden_requantise(dut):
    """All shifts, extreme accumulators and multipliers, ties, every kind of clamp."""
    random = await start(dut)
    width = CONFIG.accumulator_width
    half = 1 << (width - 1)
    code_mask = (1 << CONFIG.activation_width) - 1
    clamp_mask = (1 << (CONFIG.activation_width + 1)) - 1
    unsigned, signed_range = (CONFIG.activation_range(s) for s in (False, True))
    for low, high in (signed_range, unsigned, (0, signed_range[1]), (-2, 3), (5, 5)):
        vectors = [
            (acc, multiplier, shift)
            for acc in edge_values(random, width, 5)
            for multiplier in (1 << 15, (1 << 16) - 1, random.randrange(1 << 15, 1 << 16))
            for shift in range(1, 48)
        ]
        random.shuffle(vectors)
        acc, multiplier, shift = (np.array(column) for column in zip(*vectors))
        parameters = Requantisation(
            bias=np.zeros(len(vectors), dtype=np.int64),
            multiplier=multiplier,
            shift=shift,
            low=low,
            high=high,
        )
        wanted = requantise(acc, parameters)
        dut.requantiser_low.value = low & clamp_mask
        dut.requantiser_high.value = high & clamp_mask
        inputs = []
        for a, m, s in vectors:
            i = random.randrange(max(-half, a - half + 1), min(half - 1, a + half) + 1)
            inputs.append(
                {
                    "requantiser_i": i & (1 << width) - 1,
                    "requantiser_bias": (a - i) & (1 << width) - 1,
                    "requantiser_multiplier": m,
                    "requantiser_shift": s,
                }
            )
        expected = [{"requantiser_o": int(code) & code_mask} for code in wanted]
        latency = LATENCY["requantiser"]
        await check_pipeline(
            dut, latency, inputs, expected, what=lambda n, v=vectors, c=(low, high): f"{v[n]} {c}"
        )


@cocotb.test()
async def multipliers_are_exact(dut):
    """Signed weights times signed or unsigned codes, extremes in every place."""
    random = await start(dut)
    n_weights = CONFIG.lanes * CONFIG.block
    per_word = CONFIG.block * CONFIG.columns
    width = CONFIG.activation_width
    mask = (1 << (CONFIG.weight_width + width)) - 1
    for is_signed in (False, True):
        dut.multipliers_signed_input.value = int(is_signed)
        await cycles(dut, 1)
        low, high = CONFIG.activation_range(is_signed)
        top = CONFIG.max_weight
        inputs, expected = [], []
        for _ in range(30):
            weights = [
                random.choice((top, -top, 0, random.randint(-top, top))) for _ in range(n_weights)
            ]
            codes = [
                [random.choice((low, high, random.randint(low, high))) for _ in range(per_word)]
                for _ in range(CONFIG.lanes)
            ]
            words = [
                sum((code & (1 << width) - 1) << (n * width) for n, code in enumerate(lane))
                for lane in codes
            ]
            products = [
                weights[lane * CONFIG.block + channel]
                * codes[lane][channel * CONFIG.columns + column]
                for lane in range(CONFIG.lanes)
                for channel in range(CONFIG.block)
                for column in range(CONFIG.columns)
            ]
            weight_mask = (1 << CONFIG.weight_width) - 1
            inputs.append(
                spread("multipliers_word", words)
                | spread("multipliers_weight", (w & weight_mask for w in weights))
            )
            expected.append(spread("multipliers_product", (p & mask for p in products)))
        late = skewed(expected, CONFIG.columns)
        inputs += [inputs[-1]] * (CONFIG.columns - 1)
        await check_pipeline(dut, LATENCY["multipliers"], inputs, late)


async def check_tree(
    dut, name: str, random: Random, n_inputs: int, input_width: int, output_width: int
) -> None:
    half = 1 << (input_width - 1)
    vectors = [[-half] * n_inputs, [half - 1] * n_inputs]
    vectors += [[random.randrange(-half, half) for _ in range(n_inputs)] for _ in range(N_WORDS)]
    await check_pipeline(
        dut,
        LATENCY[name],
        [spread(f"{name}_i", (v & (1 << input_width) - 1 for v in vector)) for vector in vectors],
        [{f"{name}_o": sum(vector) & (1 << output_width) - 1} for vector in vectors],
    )


@cocotb.test()
async def adder_trees_sum_and_wrap(dut):
    """The engine's tree, and a ragged one whose sums wrap."""
    random = await start(dut)
    n_inputs = CONFIG.lanes_per_row * CONFIG.block
    product_width = CONFIG.weight_width + CONFIG.activation_width
    await check_tree(dut, "tree", random, n_inputs, product_width, CONFIG.accumulator_width)
    await check_tree(dut, "odd_tree", random, *ODD_TREE)


def _value(dut, port: str) -> int | None:
    """None while the port is unknown."""
    value = getattr(dut, port).value
    return int(value) if value.is_resolvable else None


@cocotb.test()
async def accumulators_keep_finished_sums_while_the_next_add_up(dut):
    """Bundles of one group and more, gaps, and rows shifted out at any time."""
    random = await start(dut)
    width, columns = CONFIG.accumulator_width, CONFIG.columns
    half, mask = 1 << (width - 1), (1 << width) - 1
    n_sums, stride = CONFIG.rows * columns, CONFIG.drain_rows * columns
    n_slices = CONFIG.rows // CONFIG.drain_rows
    layout = tag_layout(CONFIG)
    sums, finished, current = [0] * n_sums, None, 0
    ahead = [{"valid": 0, "first": 0, "drain": 0}] * TAG_LEAD
    due: list = [None] * (LATENCY["accumulators"] + columns - 1)
    upcoming = [[0] * n_sums] * columns
    seen: list[list[int]] = []
    for _ in range(40):
        n_groups = random.randint(1, 5)
        left = n_groups
        while left:
            valid = random.random() < 0.7
            first, last = left == n_groups, left == 1
            left -= valid
            drain = random.randint(1, CONFIG.rows) if last or not valid else 0
            ahead.append({"valid": int(valid), "first": int(first or not valid), "drain": drain})
            shift = int(finished is not None and current + 1 < n_slices and random.random() < 0.6)
            values = [random.choice((-half, half - 1, random.randrange(-half, half))) for _ in sums]
            dut.accumulators_tag.value = pack(layout, **ahead[-1])
            dut.accumulators_shift.value = shift
            upcoming.append(values)
            for index in range(n_sums):
                value = upcoming[-1 - index % columns][index]
                getattr(dut, f"accumulators_i_{index}").value = value & mask
            current += shift
            tag = ahead.pop(0)
            if tag["valid"]:
                sums = [(0 if tag["first"] else s) + v for s, v in zip(sums, values)]
                if tag["drain"]:
                    finished, current = list(sums), 0
            await FallingEdge(dut.clk)
            rows = finished and finished[current * stride : (current + 1) * stride]
            due.append(rows and [row & mask for row in rows])
            wanted = due.pop(0)
            seen.append([_value(dut, f"accumulators_o_{n}") for n in range(stride)])
            if wanted is not None:
                got = [seen[n % columns - columns][n] for n in range(stride)]
                assert got == wanted


# --- routing -------------------------------------------------------------------------------------


@cocotb.test()
async def benes_network_permutes(dut):
    """Random permutations, the identity and the reversal, one per cycle."""
    random = await start(dut)
    lanes = CONFIG.lanes
    sources = [list(range(lanes)), list(range(lanes))[::-1]]
    sources += [random.sample(range(lanes), lanes) for _ in range(N_WORDS)]
    switches = switch_settings(np.array(sources))
    inputs, expected = [], []
    for source, setting in zip(sources, switches):
        words = [random.getrandbits(CONFIG.bank_width) for _ in range(lanes)]
        control = sum(int(bit) << n for n, bit in enumerate(setting))
        inputs.append(spread("benes_i", words) | {"benes_switch": control})
        expected.append(spread("benes_o", (words[s] for s in source)))
    await check_pipeline(dut, LATENCY["benes"], inputs, expected)


@cocotb.test()
async def crossbar_routes_any_bank_to_any_lane(dut):
    """Banks wanted by several lanes, and lanes disabled."""
    random = await start(dut)
    lanes = CONFIG.lanes
    inputs, expected = [], []
    for index in range(N_WORDS):
        words = [random.getrandbits(CONFIG.bank_width) for _ in range(lanes)]
        banks = [index % lanes if index < lanes else random.randrange(lanes) for _ in range(lanes)]
        enable = random.getrandbits(lanes)
        inputs.append(
            spread("crossbar_i", words)
            | spread("crossbar_bank", banks)
            | {"crossbar_enable": enable}
        )
        routed = (words[bank] if enable >> lane & 1 else 0 for lane, bank in enumerate(banks))
        expected.append(spread("crossbar_o", routed))
    await check_pipeline(dut, LATENCY["crossbar"], inputs, expected)


@cocotb.test()
async def scratchpad_reads_what_was_written(dut):
    """A load of any elements of a row and a read of every bank in every cycle."""
    random = await start(dut)
    lanes, block, columns, depth = CONFIG.lanes, CONFIG.block, CONFIG.columns, 16
    width = CONFIG.activation_width
    layout = scratchpad_load_layout(CONFIG)
    memory = [[0] * depth for _ in range(lanes)]

    def load(valid: int, address: int, channels: int, columns_mask: int, row: int) -> None:
        dut.scratchpad_load_valid.value = valid
        fields = {"address": address, "channel_enable": channels, "column_enable": columns_mask}
        dut.scratchpad_load_payload.value = pack(layout, **fields, data=row)
        for b, c, v in itertools.product(range(lanes), range(block), range(columns)):
            if valid and channels >> (b * block + c) & 1 and columns_mask >> v & 1:
                bits = (1 << width) - 1 << (c * columns + v) * width
                word = row >> b * CONFIG.bank_width
                memory[b][address] = memory[b][address] & ~bits | word & bits

    every_channel, every_column = (1 << lanes * block) - 1, (1 << columns) - 1
    for address in range(depth):
        load(1, address, every_channel, every_column, 0)
        await cycles(dut, 1)
    pipe: list[list[int]] = []
    for _ in range(4 * N_WORDS):
        address = random.randrange(depth)
        read = [(address + random.randrange(1, depth)) % depth for _ in range(lanes)]
        pipe = [[memory[b][read[b]] for b in range(lanes)], *pipe][: LATENCY["scratchpad"]]
        for b in range(lanes):
            getattr(dut, f"scratchpad_read_address_{b}").value = read[b]
        row = random.getrandbits(CONFIG.scratchpad_row_width)
        channels, columns_mask = (random.getrandbits(n) for n in (lanes * block, columns))
        load(random.getrandbits(1), address, channels, columns_mask, row)
        await FallingEdge(dut.clk)
        if len(pipe) == LATENCY["scratchpad"]:
            names = (f"scratchpad_read_data_{b}" for b in range(lanes))
            assert [int(getattr(dut, name).value) for name in names] == pipe[-1]


# --- buffers -------------------------------------------------------------------------------------


async def load(dut, name: str, width: int, address_width: int, entries: dict[int, int]) -> None:
    """Load entries by address, one per cycle."""
    port = f"{name}_load"
    stream = Stream(dut, f"{port}_valid", None, {"payload": f"{port}_payload"})
    layout = load_layout(address_width, width)
    await stream.send({"payload": pack(layout, address=a, data=d)} for a, d in entries.items())


async def kick(dut, name: str, base: int, n_entries: int) -> None:
    """One cycle of ``start``."""
    getattr(dut, f"{name}_start").value = 1
    getattr(dut, f"{name}_base").value = base
    getattr(dut, f"{name}_end_word").value = base + n_entries
    await cycles(dut, 1)
    getattr(dut, f"{name}_start").value = 0


async def check_loop(
    dut,
    random: Random,
    name: str,
    output: str,
    *,
    width: int,
    depth: int,
    payload: Callable[[int, int, bool], int],
) -> None:
    """Bounds, full rate, stalls with a watcher, restart, stop, loads under way, reset."""
    address_width = (depth - 1).bit_length()
    n_loaded = min(depth, 40)
    window = depth - n_loaded
    entries = {window + n: random.getrandbits(width) for n in range(n_loaded)}
    await load(dut, name, width, address_width, entries)
    stream = Stream(dut, f"{output}_valid", f"{output}_ready", {"payload": f"{output}_payload"})
    cocotb.start_soon(stream.watch())

    def wanted(base: int, n_entries: int, n_items: int) -> list[int]:
        order = [base + index % n_entries for index in range(n_items)]
        return [payload(entries[a], a, a == base + n_entries - 1) for a in order]

    windows = ((window, 1), (window, n_loaded), (window + 1, 2), (window + 3, 5))
    for base, n_entries in windows:
        if base + n_entries > depth:
            continue
        n_items = 3 * n_entries + 2
        await kick(dut, name, base, n_entries)
        for _ in range(LATENCY["loop"] - 1):
            assert not int(stream.valid.value), "an entry of the run before, or too early"
            await cycles(dut, 1)
        for item in wanted(base, n_entries, n_items):
            stream.ready.value = 1
            await ReadOnly()
            assert int(stream.valid.value), "one entry per cycle"
            assert int(stream.payload["payload"].value) == item
            await FallingEdge(dut.clk)
        await kick(dut, name, base, n_entries)
        items = await stream.receive(n_items, random=random)
        assert [item["payload"] for item in items] == wanted(base, n_entries, n_items)
        await cycles(dut, 3)
        # The next start withdraws the waiting entry; taken in that cycle, it breaks no handshake.
        stream.ready.value = 1
    base, n_entries = window, n_loaded
    await kick(dut, name, base, n_entries)
    if n_entries >= 8:
        # Entries read ahead would be too late to change.
        await stream.receive(3)
        changed = {base + n_entries - 1: random.getrandbits(width)}
        await load(dut, name, width, address_width, changed)
        entries |= changed
        items = await stream.receive(n_entries, random=random)
        following = wanted(base, n_entries, 3 + n_entries)[3:]
        assert [item["payload"] for item in items] == following
    for stop in ("stop", "reset", "nothing to do"):
        stream.ready.value = 1
        if stop == "reset":
            await reset(dut)
        elif stop == "nothing to do":
            await kick(dut, name, base, 0)
        else:
            getattr(dut, f"{name}_stop").value = 1
            await cycles(dut, 1)
            getattr(dut, f"{name}_stop").value = 0
        for _ in range(6):
            assert not int(stream.valid.value), f"an entry after {stop}"
            await cycles(dut, 1)
        await kick(dut, name, base, n_entries)
        items = await stream.receive(n_entries)
        assert [item["payload"] for item in items] == wanted(base, n_entries, n_entries)
    stream.ready.value = 1


@cocotb.test()
async def loop_buffer_repeats_its_window(dut):
    """Alone, with a depth that is no power of two."""
    random = await start(dut)
    address_width = (LOOP_DEPTH - 1).bit_length()
    await check_loop(
        dut,
        random,
        "loop",
        "loop_o",
        width=LOOP_WIDTH,
        depth=LOOP_DEPTH,
        payload=lambda entry, address, last: (
            entry | address << LOOP_WIDTH | last << (LOOP_WIDTH + address_width)
        ),
    )


@cocotb.test()
async def row_buffer_repeats_its_records(dut):
    """The engine's row buffer."""
    random = await start(dut)
    width = word_width(record_fields(CONFIG))
    await check_loop(
        dut,
        random,
        "records",
        "records_record",
        width=width,
        depth=CONFIG.row_buffer_depth,
        payload=lambda entry, address, last: entry | last << width,
    )


@cocotb.test()
async def group_buffer_reads_route_and_weights_late(dut):
    """Every head's routing and weights come a fixed time after it was presented, also stalled."""
    random = await start(dut)
    fields = group_fields(CONFIG)
    head_width = word_width(group_head_fields(CONFIG))
    width, n_route = word_width(fields), route_width(CONFIG)
    issue_width = issue_layout(CONFIG).size
    pipeline = Pipeline(CONFIG)
    offset_latency = pipeline.offset_latency
    n_groups = min(20, CONFIG.group_buffer_depth)
    base = CONFIG.group_buffer_depth - n_groups
    words = [random.getrandbits(width) for _ in range(n_groups)]
    entries = {base + n: word for n, word in enumerate(words)}
    await load(dut, "groups", width, CONFIG.group_address_width, entries)
    weight_mask = (1 << CONFIG.weight_width) - 1
    for stalling in (False, True):
        await kick(dut, "groups", base, n_groups)
        await cycles(dut, LATENCY["loop"] - 1)
        index = 0
        presented: list[int] = []
        for _ in range(5 * n_groups):
            ready = not stalling or random.random() < 0.5
            dut.groups_head_ready.value = int(ready)
            await ReadOnly()
            assert int(dut.groups_head_valid.value)
            presented.append(words[index])
            last = index == n_groups - 1
            ends = words[index] & (1 << CONFIG.drain_width) - 1 != 0
            head = words[index] & (1 << issue_width) - 1
            head |= ends << issue_width | last << (issue_width + 1)
            assert int(dut.groups_head_payload.value) == head
            if issue_width < head_width and len(presented) > offset_latency:
                word = presented[-1 - offset_latency] >> issue_width
                for b in range(CONFIG.lanes):
                    offset = int(getattr(dut, f"groups_offset_{b}").value)
                    assert offset == word >> (b * CONFIG.address_width) & CONFIG.bank_depth - 1
            if n_route and len(presented) > pipeline.route_delay:
                word = presented[-1 - pipeline.route_delay]
                assert int(dut.groups_route.value) == word >> head_width & (1 << n_route) - 1
            if len(presented) > pipeline.weight_delay:
                word = presented[-1 - pipeline.weight_delay] >> (head_width + n_route)
                for n in range(CONFIG.lanes * CONFIG.block):
                    weight = int(getattr(dut, f"groups_weight_{n}").value)
                    assert weight == word >> (n * CONFIG.weight_width) & weight_mask
            index = (index + ready) % n_groups
            await FallingEdge(dut.clk)


# --- sequencing ----------------------------------------------------------------------------------


@cocotb.test()
async def position_loops_walk_a_box(dut):
    """Every position of a nested loop in order, whether advanced every cycle or now and then."""
    random = await start(dut)
    depth = CONFIG.bank_depth

    def set_both(port: str, value: int) -> None:
        getattr(dut, f"loops_{port}").value = value
        getattr(dut, f"base_{port}").value = value

    for trial in range(40):
        counts = tuple(random.choice((1, 1, 2, 3, random.randint(1, 7))) for _ in range(3))
        strides = tuple(random.randrange(depth) for _ in range(3))
        base = random.randrange(depth)
        command = Command(
            group_base=0,
            n_groups=1,
            record_base=0,
            n_records=0,
            read_base=base,
            write_base=0,
            counts=counts,
            read_strides=strides,
            write_strides=strides,
        )
        steps = command.steps(strides, depth)
        dut.base_base.value = base
        dut.base_steps.value = pack(data.ArrayLayout(CONFIG.address_width, 3), steps)
        for loop, count in enumerate(counts):
            getattr(dut, f"loops_count_less_1_{loop}").value = count - 1
        set_both("start", 1)
        set_both("advance", random.getrandbits(1))
        await cycles(dut, 1)
        set_both("start", 0)
        set_both("advance", 0)
        # The base counts only with start.
        dut.base_base.value = random.randrange(depth)
        positions = [
            (x, y, z) for z in range(counts[2]) for y in range(counts[1]) for x in range(counts[0])
        ]
        for index, place in enumerate(positions):
            while trial % 2 and random.random() < 0.5:
                await cycles(dut, 1)
            wanted = base + sum(p * s for p, s in zip(place, strides))
            assert int(dut.base_address.value) == wanted % depth, f"{counts} {strides} {place}"
            assert int(dut.loops_last.value) == (index == len(positions) - 1)
            dut.base_step.value = int(dut.loops_step.value)
            set_both("advance", 1)
            await cycles(dut, 1)
            set_both("advance", 0)


def random_head(random: Random, drain: int) -> dict:
    """What the gather unit reads of a group."""
    lanes = CONFIG.lanes
    values = {"drain": [drain]}
    if CONFIG.gather is Gather.ARBITRATED:
        values["offset"] = [random.randrange(CONFIG.bank_depth) for _ in range(lanes)]
        n_banks = random.choice((1, 2, lanes))
        values["active"] = [random.getrandbits(1) for _ in range(lanes)]
        values["bank"] = [random.randrange(n_banks) for _ in range(lanes)]
    return values


@cocotb.test()
async def gather_serves_every_lane_once(dut):
    """Groups take as many cycles as their busiest bank, and bundle ends keep their distance."""
    random = await start(dut)
    lanes, tags = CONFIG.lanes, tag_layout(CONFIG)
    arbitrated = CONFIG.gather is Gather.ARBITRATED
    issued = issue_layout(CONFIG)
    width = issued.size
    since_capture, hold = 1 << 16, 1
    first = True
    for _ in range(150):
        drain = random.choice((0, 0, random.randint(1, CONFIG.rows)))
        head = random_head(random, drain)
        last = random.getrandbits(1)
        payload = pack(issued, **head)
        dut.gather_i_payload.value = payload | (drain != 0) << width | last << (width + 1)
        dut.gather_i_valid.value = 0
        while random.random() < 0.3:
            await ReadOnly()
            assert not tags.from_bits(int(dut.gather_tag.value)).valid
            since_capture += 1
            await FallingEdge(dut.clk)
        dut.gather_i_valid.value = 1
        served: dict[int, int] = {}
        n_issued, n_stalled, done = 0, 0, False
        while not done:
            await ReadOnly()
            tag = tags.from_bits(int(dut.gather_tag.value))
            done = bool(int(dut.gather_i_ready.value))
            since_capture += 1
            assert int(dut.gather_stalled.value) == (not tag.valid)
            assert int(dut.gather_pass_end.value) == (done and last)
            assert done <= tag.valid, "a group leaves with its last part"
            if tag.valid:
                assert int(dut.gather_replayed.value) == (n_issued > 0)
                n_issued += 1
                assert tag.first == first
                assert tag.drain == (drain if done else 0)
                first = bool(done and drain)
            else:
                n_stalled += 1
                assert since_capture < hold, "stalled for nothing"
            if tag.valid and done and drain:
                assert since_capture >= hold, "captured before the drain had finished"
                since_capture, hold = 0, drain
            await FallingEdge(dut.clk)
            if arbitrated and tag.valid:
                enabled = int(dut.gather_enable.value)
                for lane in range(lanes):
                    if enabled >> lane & 1:
                        bank = int(getattr(dut, f"gather_bank_{lane}").value)
                        assert bank == head["bank"][lane]
                        served[lane] = int(getattr(dut, f"gather_offset_{bank}").value)
        if arbitrated:
            active = [lane for lane in range(lanes) if head["active"][lane]]
            assert served == {lane: head["offset"][lane] for lane in active}
            banks = [head["bank"][lane] for lane in active]
            assert n_issued == max([banks.count(bank) for bank in banks], default=1)
        else:
            assert n_issued == 1
    dut.gather_i_valid.value = 0


@cocotb.test()
async def drain_control_takes_a_record_per_cycle(dut):
    """Each capture takes as many records as its drain count, from the cycle after it."""
    random = await start(dut)
    tags, rows = tag_layout(CONFIG), record_layout(CONFIG)
    width = rows.size
    n_left = 0
    dut.drain_i_valid.value = 1
    for _ in range(3 * N_WORDS):
        capture = n_left <= 1 and random.random() < 0.5
        amount = random.randint(1, CONFIG.rows)
        word, last = random.getrandbits(width), random.getrandbits(1)
        noise = {"valid": 0, "first": random.getrandbits(1), "drain": amount}
        tag = {"valid": 1, "first": 0, "drain": amount} if capture else noise
        dut.drain_tag.value = pack(tags, **tag)
        dut.drain_i_payload.value = word | last << width
        await ReadOnly()
        active = n_left > 0
        assert int(dut.drain_active.value) == active == int(dut.drain_i_ready.value)
        assert int(dut.drain_record.value) == word
        assert int(dut.drain_shift.value) == (active and word & 1)
        assert int(dut.drain_pass_end.value) == (active and last)
        n_left = amount if capture else max(0, n_left - 1)
        await FallingEdge(dut.clk)


@cocotb.test()
async def scatter_writer_finds_every_rows_word(dut):
    """Rows of different banks or of one word, anywhere; what leaves the bank is not written."""
    random = await start(dut)
    lanes, block, columns = CONFIG.lanes, CONFIG.block, CONFIG.columns
    depth, width = CONFIG.output_depth, CONFIG.activation_width
    code_width = columns * width
    n_overflows = 0
    for _ in range(4 * N_WORDS):
        base = random.choice((0, depth - 1, random.randrange(depth)))
        rows, banks = [], {}
        for _ in range(CONFIG.drain_rows):
            word = random.choice((0, 1, random.randrange(depth)))
            row = (word * lanes + random.randrange(lanes)) * block + random.randrange(block)
            if rows and block > 1 and random.random() < 0.4:
                row = rows[0] // block * block + random.randrange(block)
            legal = banks.setdefault(row // block % lanes, row // block) == row // block
            if not legal or row in rows:
                row = None
            rows.append(row if row is not None else rows[0])
        valid = [row not in rows[:n] and random.random() < 0.8 for n, row in enumerate(rows)]
        codes = [[random.getrandbits(width) for _ in range(columns)] for _ in rows]
        written: dict[tuple[int, int], tuple[int, int]] = {}
        overflow = False
        for row, is_valid, code in zip(rows, valid, codes):
            if is_valid:
                address = base + row // block // lanes
                if address < depth:
                    bits = sum(c << n * width for n, c in enumerate(code))
                    written[row // block % lanes, row % block] = address, bits
                else:
                    overflow = True
        n_overflows += overflow
        dut.scatter_base.value = base
        dut.scatter_valid.value = sum(v << n for n, v in enumerate(valid))
        for d, (row, code) in enumerate(zip(rows, codes)):
            getattr(dut, f"scatter_row_{d}").value = row
            for column in range(columns):
                getattr(dut, f"scatter_code_{d * columns + column}").value = code[column]
        await cycles(dut, SCATTER_LEAD + LATENCY["scatter"])
        assert int(dut.scatter_overflow.value) == overflow
        got = {}
        for b in range(lanes):
            enable = int(getattr(dut, f"scatter_enable_{b}").value)
            word = int(getattr(dut, f"scatter_data_{b}").value)
            address = int(getattr(dut, f"scatter_address_{b}").value)
            for channel in range(block):
                if enable >> channel & 1:
                    bits = word >> channel * code_width & (1 << code_width) - 1
                    got[b, channel] = address, bits
        assert got == written
    assert n_overflows


@cocotb.test()
async def output_buffer_answers_in_order_while_written(dut):
    """Rows of the lower half, while single channels of the upper half are written."""
    random = await start(dut)
    lanes, block = CONFIG.lanes, CONFIG.block
    channel_width = CONFIG.bank_width // block
    n_rows = min(32, CONFIG.output_depth // 2)
    rows = [[0] * lanes for _ in range(n_rows)]

    async def write(address: int, enables: list[int], words: list[int]) -> None:
        for b in range(lanes):
            getattr(dut, f"results_write_enable_{b}").value = enables[b]
            getattr(dut, f"results_write_address_{b}").value = address
            getattr(dut, f"results_write_data_{b}").value = words[b]
        await cycles(dut, 1)

    def noise(width: int) -> list[int]:
        return [random.getrandbits(width) for _ in range(lanes)]

    for address in range(n_rows):
        await write(address, [(1 << block) - 1] * lanes, [0] * lanes)
    for _ in range(2 * N_WORDS):
        address, enables, words = random.randrange(n_rows), noise(block), noise(CONFIG.bank_width)
        await write(address, enables, words)
        for b in range(lanes):
            for channel in range(block):
                if enables[b] >> channel & 1:
                    bits = (1 << channel_width) - 1 << channel * channel_width
                    rows[address][b] = rows[address][b] & ~bits | words[b] & bits

    async def scribble() -> None:
        while True:
            address = random.randrange(n_rows, CONFIG.output_depth)
            await write(address, noise(block), noise(CONFIG.bank_width))

    cocotb.start_soon(scribble())
    name = "results_request"
    request = Stream(dut, f"{name}_valid", f"{name}_ready", {"row": f"{name}_payload"})
    name = "results_response"
    response = Stream(dut, f"{name}_valid", f"{name}_ready", {"row": f"{name}_payload"})
    cocotb.start_soon(response.watch())
    for chance in (None, random):
        asked = [random.randrange(n_rows) for _ in range(N_WORDS)]
        cocotb.start_soon(request.send(({"row": row} for row in asked), random=chance))
        items = await response.receive(N_WORDS, random=chance, limit=100)
        wanted = [sum(w << b * CONFIG.bank_width for b, w in enumerate(rows[n])) for n in asked]
        assert [item["row"] for item in items] == wanted
