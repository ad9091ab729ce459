"""The scratchpad and the output buffer against one dictionary per bank."""

import numpy as np
import pytest

from rtl_gen.scratchpad import OutputBuffer, Scratchpad
from tests.rtl.bench import (
    at_random,
    bits,
    collector,
    feeder,
    hold_watcher,
    never,
    simulate,
)
from tests.strategies import ENGINES

NAMES = ["direct2x2", "hybrid4", "vertical4"]


def element_mask(config, bank: int, channel_enable: int, column_enable: int) -> int:
    """Bits of a bank's word that a load writes."""
    mask, width = 0, config.activation_width
    for channel in range(config.block):
        for column in range(config.columns):
            chosen = channel_enable >> (bank * config.block + channel) & column_enable >> column & 1
            element = channel * config.columns + column
            mask |= (chosen * ((1 << width) - 1)) << (element * width)
    return mask


def offer(ctx, dut, address: int, channel_enable: int, column_enable: int, data: int):
    load = dut.load.payload
    ctx.set(dut.load.valid, 1)
    ctx.set(load.address, address)
    ctx.set(load.channel_enable, channel_enable)
    ctx.set(load.column_enable, column_enable)
    ctx.set(load.data, data)


async def load(ctx, dut, *arguments):
    offer(ctx, dut, *arguments)
    await ctx.tick()
    ctx.set(dut.load.valid, 0)


def all_ones(width: int) -> int:
    return (1 << width) - 1


@pytest.mark.parametrize("name", NAMES)
def test_read_follows_by_the_latency_and_write_is_seen_next_cycle(name):
    """A word read in the cycle after its write comes ``latency`` cycles later, and not before."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    channels, columns = all_ones(config.channels_per_row), all_ones(config.columns)
    word = all_ones(config.bank_width) - 1

    async def bench(ctx):
        await load(ctx, dut, 9, channels, columns, word << config.bank_width)
        ctx.set(dut.read_address[1], 9)
        n_cycles = 0
        while ctx.get(dut.read_data[1]) != word:
            await ctx.tick()
            ctx.set(dut.read_address[1], 0)
            n_cycles += 1
        assert n_cycles == dut.latency
        await ctx.tick()
        assert ctx.get(dut.read_data[1]) == 0
        assert ctx.get(dut.read_data[0]) == 0

    simulate(dut, bench, n_cycles=20)


@pytest.mark.parametrize("name", NAMES)
def test_each_element_is_written_alone(name):
    """One channel of one bank and one column: these bits and no others; and none without valid."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    row = all_ones(config.scratchpad_row_width)

    async def words(ctx):
        for bank in range(config.lanes):
            ctx.set(dut.read_address[bank], 3)
        await ctx.tick().repeat(dut.latency)
        return [ctx.get(dut.read_data[bank]) for bank in range(config.lanes)]

    async def bench(ctx):
        for channel in range(config.channels_per_row):
            for column in range(config.columns):
                everything = all_ones(config.channels_per_row), all_ones(config.columns)
                await load(ctx, dut, 3, *everything, 0)
                await ctx.tick()
                assert await words(ctx) == [0] * config.lanes
                await load(ctx, dut, 3, 1 << channel, 1 << column, row)
                assert await words(ctx) == [
                    element_mask(config, bank, 1 << channel, 1 << column)
                    for bank in range(config.lanes)
                ]

    simulate(dut, bench)


@pytest.mark.parametrize("name", [*NAMES, "vertical8"])
def test_random_traffic_on_all_banks(name):
    """A read of every bank and a load of any elements of any row in every cycle."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    rng = np.random.default_rng(1)
    banks = range(config.lanes)
    stored = [[0] * 12 for _ in banks]
    n_checked = 0

    async def bench(ctx):
        nonlocal n_checked
        on_the_way: list[list] = []
        for _ in range(400):
            row = int(rng.integers(0, 12))
            channels = int(rng.integers(0, 1 << config.channels_per_row))
            columns = int(rng.integers(0, 1 << config.columns))
            data = int.from_bytes(rng.bytes(config.scratchpad_row_width // 8), "little")
            offer(ctx, dut, row, channels, columns, data)
            ctx.set(dut.load.valid, valid := bool(rng.random() < 0.8))
            wanted = []
            for bank in banks:
                read_address = (row + int(rng.integers(1, 12))) % 12
                ctx.set(dut.read_address[bank], read_address)
                wanted.append(stored[bank][read_address])
                mask = element_mask(config, bank, channels, columns) if valid else 0
                word = data >> (bank * config.bank_width)
                stored[bank][row] = (stored[bank][row] & ~mask) | (word & mask)
            on_the_way.append(wanted)
            await ctx.tick()
            if len(on_the_way) >= dut.latency:
                visible = on_the_way[len(on_the_way) - dut.latency]
                assert [ctx.get(dut.read_data[bank]) for bank in banks] == visible
                n_checked += any(visible)

    simulate(dut, bench)
    assert n_checked > 100


# --- output buffer -------------------------------------------------------------------------------


async def write(ctx, dut, bank: int, address: int, channels: int, data: int):
    ctx.set(dut.write_enable[bank], channels)
    ctx.set(dut.write_address[bank], address)
    ctx.set(dut.write_data[bank], data)
    await ctx.tick()
    ctx.set(dut.write_enable[bank], 0)


def written_rows(config, rng, n_rows: int) -> list[list[tuple[int, int, int, int]]]:
    """Per row the writes (bank, address, channels, data) of every bank and channel."""
    return [
        [
            (bank, row, 1 << channel, int.from_bytes(rng.bytes(config.bank_width // 8), "little"))
            for bank in range(config.lanes)
            for channel in range(config.block)
        ]
        for row in range(n_rows)
    ]


def row_word(config, writes) -> int:
    """The row that these writes leave; each brings one channel of its data."""
    width = config.columns * config.activation_width
    word = 0
    for bank, _, channels, data in writes:
        place = (channels.bit_length() - 1) * width
        word |= (data >> place & all_ones(width)) << (bank * config.bank_width + place)
    return word


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_read_in_the_next_cycle_and_comes_after_the_latency(name):
    config = ENGINES[name]
    dut = OutputBuffer(config)
    word = all_ones(config.bank_width)

    async def bench(ctx):
        ctx.set(dut.response.ready, 1)
        await write(ctx, dut, 1, 5, all_ones(config.block), word)
        ctx.set(dut.request.valid, 1)
        ctx.set(dut.request.payload, 5)
        assert ctx.get(dut.request.ready)
        for _ in range(dut.latency):
            assert not ctx.get(dut.response.valid)
            await ctx.tick()
            ctx.set(dut.request.valid, 0)
        assert ctx.get(dut.response.valid)
        assert ctx.get(bits(dut.response.payload)) == word << config.bank_width
        await ctx.tick()
        assert not ctx.get(dut.response.valid)

    simulate(dut, bench, n_cycles=20)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stall", [never, at_random(3)], ids=["full_rate", "stalls"])
def test_rows_come_in_order_while_others_are_written(name, stall):
    """Requests of one half, writes to the other; the response holds while it is not taken."""
    config = ENGINES[name]
    dut = OutputBuffer(config)
    rng = np.random.default_rng(2)
    n_rows = config.output_depth // 2
    lower = written_rows(config, rng, n_rows)
    asked = [int(n) for n in rng.integers(0, n_rows, 300)]
    got: list[int] = []
    stalls: list[int] = []
    filled = []

    async def bench(ctx):
        for writes in lower:
            for one in writes:
                await write(ctx, dut, *one)
        filled.append(True)
        await feeder(dut.request, asked, stall)(ctx)

    async def scribble(ctx):
        while True:
            if filled:
                bank = int(rng.integers(config.lanes))
                await write(ctx, dut, bank, n_rows + int(rng.integers(n_rows)), 1, 1)
            else:
                await ctx.tick()

    simulate(
        dut,
        bench,
        collector(dut.response, len(asked), got, at_random(5) if stall is not never else never),
        watchers=[hold_watcher(dut.response, seen=stalls), scribble],
    )
    assert got == [row_word(config, lower[row]) for row in asked]
    assert bool(stalls) == (stall is not never)
