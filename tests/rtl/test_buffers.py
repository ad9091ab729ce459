"""Loop buffers: contents, order, latency and behaviour under stall."""

import numpy as np
import pytest
from amaranth.hdl import Value

from gshw.config import Gather
from gshw.layout import group_fields, group_head_fields, record_fields, word_width
from gshw.pipeline import Pipeline
from rtl_gen.buffers import GroupBuffer, LoopBuffer, RowBuffer
from rtl_gen.layouts import issue_layout
from tests.rtl.bench import at_random, collector, feeder, hold_watcher, never, simulate
from tests.strategies import ENGINES

SHAPES = [(1, 2), (8, 16), (41, 5), (33, 64)]
"""Width and depth of loop buffers; a depth need not be a power of two."""


def random_words(seed: int, width: int, depth: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [
        int.from_bytes(rng.bytes(width // 8 + 1), "little") % (1 << width) for _ in range(depth)
    ]


def loads(words: list[int], address_width: int) -> list[int]:
    """Load payloads: address in the low bits, then the data."""
    return [address | word << address_width for address, word in enumerate(words)]


def fill(dut, words: list[int], depth: int):
    return feeder(dut.load, loads(words, (depth - 1).bit_length()))


async def start(ctx, dut, base: int, n_entries: int):
    """Pulse start for one cycle; returns in the cycle after."""
    ctx.set(dut.start, 1)
    ctx.set(dut.base, base)
    ctx.set(dut.end_word, base + n_entries)
    await ctx.tick()
    ctx.set(dut.start, 0)


def outputs(words: list[int], base: int, n_entries: int, n_passes: int) -> list[tuple]:
    """(data, address, last) of whole passes over a range."""
    order = [base + i for i in range(n_entries)] * n_passes
    return [(words[a], a, int(a == base + n_entries - 1)) for a in order]


def unpacked(dut, width: int, depth: int, payload: int) -> tuple:
    address_width = (depth - 1).bit_length()
    data = payload & ((1 << width) - 1)
    address = payload >> width & ((1 << address_width) - 1)
    return data, address, payload >> (width + address_width)


@pytest.mark.parametrize(("width", "depth"), SHAPES)
def test_latency_and_full_rate(width, depth):
    """First entry exactly ``latency`` cycles after start, then one per cycle, looping."""
    dut = LoopBuffer(width, depth)
    words = random_words(1, width, depth)

    async def bench(ctx):
        await fill(dut, words, depth)(ctx)
        ctx.set(dut.o.ready, 1)
        for base, n_entries in ((0, depth), (depth - 1, 1), (1, depth - 1)):
            await start(ctx, dut, base, n_entries)
            n_cycles = 1
            while not ctx.get(dut.o.valid):
                await ctx.tick()
                n_cycles += 1
            assert n_cycles == dut.latency
            for expected in outputs(words, base, n_entries, 3):
                assert ctx.get(dut.o.valid)
                payload = ctx.get(Value.cast(dut.o.payload))
                assert unpacked(dut, width, depth, payload) == expected
                await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize(("width", "depth"), SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_stalls(width, depth, seed):
    """Every entry once per pass and in order, whatever the sink does; the host loads meanwhile."""
    dut = LoopBuffer(width, depth)
    words = random_words(seed, width, depth)
    base, n_entries = depth // 3, depth - depth // 3
    expected = outputs(words, base, n_entries, 4)
    got, stalls = [], []

    async def bench(ctx):
        await fill(dut, words, depth)(ctx)
        await start(ctx, dut, base, n_entries)
        await collector(dut.o, len(expected), got, at_random(seed))(ctx)

    async def rewrite(ctx):
        """Load the same words again, at random times."""
        await ctx.tick().repeat(depth + 2)
        await feeder(dut.load, loads(words, (depth - 1).bit_length()), at_random(seed + 9))(ctx)

    simulate(dut, bench, rewrite, watchers=[hold_watcher(dut.o, seen=stalls)])
    assert [unpacked(dut, width, depth, payload) for payload in got] == expected
    assert stalls


def test_restart_while_stalled_and_running():
    """A new start drops what was on its way and begins with the new bounds."""
    width, depth = 8, 16
    dut = LoopBuffer(width, depth)
    words = random_words(3, width, depth)

    async def bench(ctx):
        await fill(dut, words, depth)(ctx)
        for n_before, ready in ((1, 0), (2, 1), (3, 0), (4, 1), (9, 0), (10, 1)):
            ctx.set(dut.o.ready, ready)
            await start(ctx, dut, 2, 3)
            await ctx.tick().repeat(n_before)
            await start(ctx, dut, 7, 5)
            for _ in range(dut.latency - 1):
                assert not ctx.get(dut.o.valid)
                await ctx.tick()
            got = []
            await collector(dut.o, 10, got)(ctx)
            expected = outputs(words, 7, 5, 2)
            assert [unpacked(dut, width, depth, payload) for payload in got] == expected

    simulate(dut, bench)


def test_stop_ends_the_stream():
    """Nothing is valid from the cycle after stop, until the next start."""
    width, depth = 8, 16
    dut = LoopBuffer(width, depth)
    words = random_words(4, width, depth)

    async def bench(ctx):
        await fill(dut, words, depth)(ctx)
        for n_before, ready in ((0, 1), (1, 0), (2, 1), (5, 0), (6, 1)):
            ctx.set(dut.o.ready, ready)
            await start(ctx, dut, 0, 4)
            await ctx.tick().repeat(n_before) if n_before else None
            ctx.set(dut.stop, 1)
            await ctx.tick()
            ctx.set(dut.stop, 0)
            for _ in range(8):
                assert not ctx.get(dut.o.valid)
                ctx.set(dut.o.ready, 1)
                await ctx.tick()
        got = []
        await start(ctx, dut, 5, 2)
        await collector(dut.o, 4, got)(ctx)
        expected = outputs(words, 5, 2, 2)
        assert [unpacked(dut, width, depth, payload) for payload in got] == expected

    simulate(dut, bench)


def test_no_output_before_start_or_without_entries():
    dut = LoopBuffer(8, 4)

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for _ in range(2):
            for _ in range(8):
                assert not ctx.get(dut.o.valid)
                await ctx.tick()
            await start(ctx, dut, 1, 0)

    simulate(dut, bench)


def test_load_replaces_an_entry_while_streaming():
    """A word loaded between two passes is in the next one."""
    width, depth = 8, 4
    dut = LoopBuffer(width, depth)

    async def bench(ctx):
        await fill(dut, [10, 11, 12, 13], depth)(ctx)
        await start(ctx, dut, 0, 4)
        got = []
        await collector(dut.o, 4, got)(ctx)
        await ctx.tick().repeat(5)
        await feeder(dut.load, [3 | 99 << 2])(ctx)
        await collector(dut.o, 8, got)(ctx)
        assert [payload & 255 for payload in got] == [10, 11, 12, 13, 10, 11, 12, 99]

    simulate(dut, bench)


@pytest.mark.parametrize("stall", [never, at_random(5)], ids=["full_rate", "stalls"])
@pytest.mark.parametrize("name", ENGINES)
def test_group_parts_appear_when_the_pipeline_needs_them(name, stall):
    """Head at issue; offsets, route and weight exactly as many cycles later as they should."""
    config = ENGINES[name]
    pipeline = Pipeline(config)
    dut = GroupBuffer(config)
    depth, base, n_groups = config.group_buffer_depth, 5, 11
    width = word_width(group_fields(config))
    head_width = word_width(group_head_fields(config))
    issue_width = issue_layout(config).size
    scheduled = config.gather is Gather.SCHEDULED
    weight_bits = config.weight_width * config.lanes * config.block
    words = random_words(6, width, depth)
    heads, routes, weights, issues, offsets = [], [], [], [], []

    async def bench(ctx):
        await fill(dut, words, depth)(ctx)
        ctx.set(dut.start, 1)
        ctx.set(dut.base, base)
        ctx.set(dut.end_word, base + n_groups)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for cycle in range(80):
            ctx.set(dut.head.ready, not stall(cycle))
            weights.append(
                sum(
                    ctx.get(dut.weight[i]) << (config.weight_width * i)
                    for i in range(len(dut.weight))
                )
            )
            routes.append(ctx.get(dut.route) if len(dut.route) else 0)
            if scheduled:
                offsets.append(
                    sum(
                        ctx.get(offset) << (config.address_width * bank)
                        for bank, offset in enumerate(dut.offset)
                    )
                )
            if ctx.get(dut.head.valid) and ctx.get(dut.head.ready):
                issues.append(cycle)
                heads.append(
                    (
                        ctx.get(Value.cast(dut.head.payload.group)),
                        ctx.get(dut.head.payload.ends),
                        ctx.get(dut.head.payload.last),
                    )
                )
            await ctx.tick()

    simulate(dut, bench, watchers=[hold_watcher(dut.head)])
    issues = [cycle for cycle in issues if cycle + pipeline.weight_delay < 80]
    assert len(issues) > 2 * n_groups
    assert stall is not never or np.all(np.diff(issues) == 1)
    for index, cycle in enumerate(issues):
        word = words[base + index % n_groups]
        assert heads[index] == (
            word & ((1 << issue_width) - 1),
            int(word & ((1 << config.drain_width) - 1) != 0),
            int(index % n_groups == n_groups - 1),
        )
        if scheduled:
            wanted = (word & ((1 << head_width) - 1)) >> issue_width
            assert offsets[cycle + pipeline.offset_latency] == wanted
        route = word >> head_width & ((1 << (width - head_width - weight_bits)) - 1)
        assert routes[cycle + pipeline.route_delay] == route
        assert weights[cycle + pipeline.weight_delay] == word >> (width - weight_bits)


@pytest.mark.parametrize("stall", [never, at_random(7)], ids=["full_rate", "stalls"])
@pytest.mark.parametrize("name", ["direct4", "hybrid4", "vertical4"])
def test_row_buffer_streams_records(name, stall):
    """Fields arrive under their names, pass after pass."""
    config = ENGINES[name]
    dut = RowBuffer(config)
    fields = record_fields(config)
    words = random_words(8, word_width(fields), config.row_buffer_depth)
    base, n_records = 3, 6
    got = []

    async def bench(ctx):
        await fill(dut, words, config.row_buffer_depth)(ctx)
        ctx.set(dut.start, 1)
        ctx.set(dut.base, base)
        ctx.set(dut.end_word, base + n_records)
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycle = 0
        while len(got) < 3 * n_records:
            ctx.set(dut.record.ready, not stall(cycle))
            if ctx.get(dut.record.valid) and ctx.get(dut.record.ready):
                row = dut.record.payload.row
                values = {f.name: [ctx.get(row[f.name][i]) for i in range(f.count)] for f in fields}
                got.append((values, ctx.get(dut.record.payload.last)))
            cycle += 1
            await ctx.tick()

    simulate(dut, bench, watchers=[hold_watcher(dut.record)])
    for index, (values, last) in enumerate(got):
        word = words[base + index % n_records]
        assert last == (index % n_records == n_records - 1)
        for name_of_field in ("advance", "valid", "bias", "multiplier", "shift", "row"):
            width = {
                "advance": 1,
                "valid": 1,
                "bias": config.accumulator_width,
                "multiplier": 16,
                "shift": 6,
                "row": config.row_width,
            }[name_of_field]
            count = 1 if name_of_field == "advance" else config.drain_rows
            for i in range(count):
                value = word & ((1 << width) - 1)
                word >>= width
                if name_of_field == "bias" and value >> (width - 1):
                    value -= 1 << width
                assert values[name_of_field][i] == value
