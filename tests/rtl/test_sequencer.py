"""Position loops and the addresses that follow them, against nested Python loops."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gshw.plan import COUNT_WIDTH, N_LOOPS, Command
from rtl_gen.sequencer import PositionLoops, SteppedAddress
from tests.rtl.bench import at_random, never, simulate

DEPTH = 64
ADDRESS_WIDTH = 6

BOXES = {
    "one_position": ((1, 1, 1), (5, 6, 7), 3),
    "line": ((5, 1, 1), (1, 9, 9), 0),
    "column": ((1, 4, 1), (50, 3, 2), 1),
    "sets": ((1, 1, 6), (50, 40, 10), 2),
    "box": ((3, 2, 4), (1, 3, 6), 8),
    "overlapping_windows": ((4, 3, 2), (2, 5, 1), 0),
    "wraps_the_bank": ((4, 3, 3), (9, 31, 57), 60),
    "standing_still": ((2, 3, 2), (0, 0, 0), 17),
    "long_inner_loop": ((300, 2, 1), (1, 7, 0), 4),
    "long_outer_loop": ((1, 1, 260), (3, 3, 63), 4),
}


class Walk(wiring.Component):
    """Loops and an address together, as the engine wires them for reads."""

    def __init__(self) -> None:
        self.loops = PositionLoops()
        self.address_unit = SteppedAddress(ADDRESS_WIDTH)
        super().__init__(
            {
                "start": In(1),
                "base": In(ADDRESS_WIDTH),
                "count_less_1": In(COUNT_WIDTH).array(N_LOOPS),
                "steps": In(data.ArrayLayout(ADDRESS_WIDTH, N_LOOPS)),
                "advance": In(1),
                "address": Out(ADDRESS_WIDTH),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.loops = loops = self.loops
        m.submodules.address_unit = unit = self.address_unit
        m.d.comb += [loops.count_less_1[i].eq(self.count_less_1[i]) for i in range(N_LOOPS)]
        m.d.comb += [
            loops.start.eq(self.start),
            loops.advance.eq(self.advance),
            unit.start.eq(self.start),
            unit.base.eq(self.base),
            unit.advance.eq(self.advance),
            unit.step.eq(loops.step),
            unit.steps.eq(self.steps),
            self.address.eq(unit.address),
            self.last.eq(loops.last),
        ]
        return m


def command(counts, strides, base: int) -> Command:
    return Command(
        group_base=0,
        n_groups=1,
        record_base=0,
        n_records=1,
        read_base=base,
        write_base=0,
        counts=counts,
        read_strides=strides,
        write_strides=(0, 0, 0),
    )


def naive_addresses(counts, strides, base: int) -> list[int]:
    addresses = []
    for k in range(counts[2]):
        for j in range(counts[1]):
            for i in range(counts[0]):
                addresses.append((base + i * strides[0] + j * strides[1] + k * strides[2]) % DEPTH)
    return addresses


async def walk(ctx, dut, box: Command, pause) -> list[tuple[int, int]]:
    """(address, last) of every position; the base changes once start has passed."""
    ctx.set(dut.base, box.read_base)
    for i, step in enumerate(box.steps(box.read_strides, DEPTH)):
        ctx.set(dut.count_less_1[i], box.counts[i] - 1)
        ctx.set(dut.steps[i], step)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    ctx.set(dut.base, 63)
    ctx.set(dut.advance, 0)
    seen = []
    for position in range(box.n_positions):
        while pause(position):
            here = ctx.get(dut.address), ctx.get(dut.last)
            await ctx.tick()
            assert (ctx.get(dut.address), ctx.get(dut.last)) == here
        seen.append((ctx.get(dut.address), ctx.get(dut.last)))
        ctx.set(dut.advance, position + 1 < box.n_positions)
        await ctx.tick()
        ctx.set(dut.advance, 0)
    return seen


@pytest.mark.parametrize("pause", [never, at_random(1)], ids=["full_rate", "gaps"])
@pytest.mark.parametrize("name", BOXES)
def test_walks_the_box_as_nested_loops_do(name, pause):
    counts, strides, base = BOXES[name]
    expected = naive_addresses(counts, strides, base)
    dut = Walk()

    async def bench(ctx):
        seen = await walk(ctx, dut, command(counts, strides, base), pause)
        assert [address for address, _ in seen] == expected
        assert [last for _, last in seen] == [0] * (len(expected) - 1) + [1]

    simulate(dut, bench)


def test_starts_anew_from_any_position():
    """A start in the middle of a walk, together with an advance, wins."""
    dut = Walk()
    rng = np.random.default_rng(3)

    async def bench(ctx):
        for _ in range(12):
            counts = tuple(int(n) for n in rng.integers(1, 5, 3))
            strides = tuple(int(n) for n in rng.integers(0, DEPTH, 3))
            base = int(rng.integers(0, DEPTH))
            ctx.set(dut.advance, 1)
            seen = await walk(ctx, dut, command(counts, strides, base), never)
            expected = naive_addresses(counts, strides, base)
            assert [address for address, _ in seen] == expected
            assert [last for _, last in seen] == [0] * (len(expected) - 1) + [1]
            ctx.set(dut.advance, 1)
            await ctx.tick().repeat(int(rng.integers(1, 9)))

    simulate(dut, bench)


@pytest.mark.parametrize("count", [1 << COUNT_WIDTH, (1 << (COUNT_WIDTH - 1)) + 1])
@pytest.mark.parametrize("loop", range(N_LOOPS))
def test_large_counts_do_not_end_early(loop, count):
    """The highest bits of a count are no sign."""
    dut = Walk()

    async def bench(ctx):
        ctx.set(dut.count_less_1[loop], count - 1)
        ctx.set(dut.steps[loop], 1)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.advance, 1)
        for position in range(100):
            assert (ctx.get(dut.address), ctx.get(dut.last)) == (position % DEPTH, 0)
            await ctx.tick()

    simulate(dut, bench)
