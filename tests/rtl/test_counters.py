"""Counters in a memory: exact at any time, cleared at once, carried into the higher half."""

import numpy as np
import pytest

from gshw.registers import PROGRAM_COUNTERS, WIDE_COUNTERS
from rtl_gen.counters import CounterBank
from tests.rtl.bench import simulate

NAMES = (*WIDE_COUNTERS, *PROGRAM_COUNTERS)
SLOTS = {name: 2 * n for n, name in enumerate(WIDE_COUNTERS)} | {
    name: 2 * len(WIDE_COUNTERS) + n for n, name in enumerate(PROGRAM_COUNTERS)
}


def step(name: str, data_bytes: int) -> int:
    return data_bytes if name.startswith("bytes_") else 1


async def read(ctx, bank: CounterBank, slot: int) -> int:
    ctx.set(bank.read.slot, slot)
    ctx.set(bank.read.request, 1)
    await ctx.tick()
    ctx.set(bank.read.request, 0)
    for _ in range(bank.n_slots + 2):
        *_, valid, data = await ctx.tick().sample(bank.read.valid, bank.read.data)
        if valid:
            return data
    raise AssertionError("no answer within the latency that the bank states")


def events(bank: CounterBank, counts: dict[str, int], probability, running: list[bool]):
    """Bench part: random events in every cycle while ``running``; counts what it gave."""
    rng = np.random.default_rng(3)

    async def bench(ctx):
        while running:
            for name in NAMES:
                event = rng.random() < probability
                ctx.set(getattr(bank, f"event_{name}"), event)
                counts[name] += event
            await ctx.tick()
            ctx.set(bank.clear, 0)
        for name in NAMES:
            ctx.set(getattr(bank, f"event_{name}"), 0)

    return bench


@pytest.mark.parametrize(("data_bytes", "probability"), [(4, 1.0), (64, 0.5)])
def test_counts_exactly(data_bytes, probability):
    bank = CounterBank(data_bytes)
    counts = dict.fromkeys(NAMES, 0)
    running = [True]

    async def bench(ctx):
        for _ in range(3):
            for name in NAMES:
                before = counts[name]
                value = await read(ctx, bank, SLOTS[name])
                assert before - 4 <= value // step(name, data_bytes) <= counts[name], name
        running.clear()
        await ctx.tick()
        await ctx.tick()
        for name in NAMES:
            assert await read(ctx, bank, SLOTS[name]) == counts[name] * step(name, data_bytes)
            if name in WIDE_COUNTERS:
                assert await read(ctx, bank, SLOTS[name] + 1) == 0

    simulate(bank, bench, events(bank, counts, probability, running), n_cycles=4000)
    assert all(counts.values())


@pytest.mark.parametrize("phase", [0, 1, 2, 3, 4, 11, 17, 18, 19])
def test_clear(phase):
    """Old counts vanish, and so do their carries; new ones count, whoever's turn it is."""
    bank = CounterBank(8)

    async def bench(ctx):
        for name in NAMES:
            ctx.set(getattr(bank, f"event_{name}"), 1)
        await ctx.tick().repeat(60 + phase)
        for name in WIDE_COUNTERS:
            ctx.set(bank.contents[SLOTS[name]], 0xFFFFFFFF)
        await ctx.tick()
        ctx.set(bank.clear, 1)
        await ctx.tick()
        ctx.set(bank.clear, 0)
        await ctx.tick().repeat(30 - phase)
        for name in NAMES:
            ctx.set(getattr(bank, f"event_{name}"), 0)
        for name in NAMES:
            assert await read(ctx, bank, SLOTS[name]) == (30 - phase) * step(name, 8)
            if name in WIDE_COUNTERS:
                assert await read(ctx, bank, SLOTS[name] + 1) == 0

    simulate(bank, bench)


@pytest.mark.parametrize("name", [*WIDE_COUNTERS, NAMES[3], NAMES[-1]])
def test_wraps_and_carries(name):
    """From nearly 2**32, wide counters go on in the higher half; no neighbour is touched."""
    bank = CounterBank(8)
    slot, n_events = SLOTS[name], 50
    start = (1 << 32) - 3 * step(name, 8)
    total = start + n_events * step(name, 8)

    async def bench(ctx):
        await ctx.tick().repeat(bank.n_slots)
        await read(ctx, bank, slot)
        ctx.set(bank.contents[slot], start)
        ctx.set(getattr(bank, f"event_{name}"), 1)
        await ctx.tick().repeat(n_events)
        ctx.set(getattr(bank, f"event_{name}"), 0)
        await ctx.tick().repeat(bank.n_slots)
        expected = [0] * bank.n_slots
        expected[slot] = total & 0xFFFFFFFF
        if name in WIDE_COUNTERS:
            expected[slot + 1] = total >> 32
        for other, value in enumerate(expected):
            assert await read(ctx, bank, other) == value, other

    simulate(bank, bench)
