"""The scratchpad against one dictionary per bank."""

import numpy as np
import pytest

from rtl_gen.scratchpad import Scratchpad
from tests.rtl.bench import simulate
from tests.strategies import ENGINES


def idle(ctx, dut):
    for bank in range(dut.config.lanes):
        ctx.set(dut.write_enable[bank], 0)


async def write(ctx, dut, bank: int, address: int, channels: int, data: int):
    ctx.set(dut.write_enable[bank], channels)
    ctx.set(dut.write_address[bank], address)
    ctx.set(dut.write_data[bank], data)
    await ctx.tick()
    idle(ctx, dut)


@pytest.mark.parametrize("name", ["direct2x2", "hybrid4", "vertical4"])
def test_read_follows_by_the_latency_and_write_is_seen_next_cycle(name):
    """A word read in the cycle after its write comes ``latency`` cycles later, and not before."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    whole = (1 << config.block) - 1
    word = (1 << config.bank_width) - 2

    async def bench(ctx):
        ctx.set(dut.read_enable, 1)
        await write(ctx, dut, 1, 9, whole, word)
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


@pytest.mark.parametrize("name", ["direct2x2", "hybrid4", "vertical4"])
def test_channels_are_written_apart(name):
    """``write_enable`` bit c changes the bits of channel c only."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    width = config.columns * config.activation_width

    async def bench(ctx):
        ctx.set(dut.read_enable, 1)
        ones = (1 << config.bank_width) - 1
        for channel in range(config.block):
            await write(ctx, dut, 0, 3, (1 << config.block) - 1, 0)
            await write(ctx, dut, 0, 3, 1 << channel, ones)
            ctx.set(dut.read_address[0], 3)
            await ctx.tick().repeat(dut.latency)
            assert ctx.get(dut.read_data[0]) == ((1 << width) - 1) << (channel * width)

    simulate(dut, bench)


@pytest.mark.parametrize("name", ["direct2x2", "hybrid4", "vertical8"])
def test_random_traffic_on_all_banks(name):
    """Reads and writes of all banks at once, the read pipeline pausing at random."""
    config = ENGINES[name]
    dut = Scratchpad(config)
    rng = np.random.default_rng(1)
    banks = range(config.lanes)
    width = config.columns * config.activation_width
    stored = [{} for _ in banks]
    n_checked = 0

    async def bench(ctx):
        nonlocal n_checked
        on_the_way: list[list] = []
        for _ in range(400):
            enable = bool(rng.random() < 0.7)
            ctx.set(dut.read_enable, enable)
            wanted = []
            for bank in banks:
                read_address = int(rng.integers(0, 12))
                write_address = int(rng.integers(0, 12))
                channels = int(rng.integers(0, 1 << config.block))
                if write_address == read_address:
                    channels = 0
                data = int(rng.integers(0, 1 << 32)) & ((1 << config.bank_width) - 1)
                ctx.set(dut.read_address[bank], read_address)
                ctx.set(dut.write_enable[bank], channels)
                ctx.set(dut.write_address[bank], write_address)
                ctx.set(dut.write_data[bank], data)
                wanted.append(stored[bank].get(read_address, 0))
                mask = sum(
                    ((1 << width) - 1) << (c * width)
                    for c in range(config.block)
                    if channels >> c & 1
                )
                old = stored[bank].get(write_address, 0)
                stored[bank][write_address] = (old & ~mask) | (data & mask)
            await ctx.tick()
            if enable:
                on_the_way.append(wanted)
            if len(on_the_way) >= dut.latency:
                visible = on_the_way[len(on_the_way) - dut.latency]
                assert [ctx.get(dut.read_data[bank]) for bank in banks] == visible
                n_checked += any(visible)

    simulate(dut, bench)
    assert n_checked > 100
