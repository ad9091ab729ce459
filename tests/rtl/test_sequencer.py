"""Position loops against nested Python loops."""

import numpy as np
import pytest

from gshw.plan import Command
from rtl_gen.sequencer import PositionLoops
from tests.rtl.bench import at_random, never, simulate
from tests.strategies import ENGINES

CONFIG = ENGINES["hybrid4"]

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


def naive_addresses(counts, strides, base: int, depth: int) -> list[int]:
    addresses = []
    for k in range(counts[2]):
        for j in range(counts[1]):
            for i in range(counts[0]):
                addresses.append((base + i * strides[0] + j * strides[1] + k * strides[2]) % depth)
    return addresses


def drive_loops(ctx, dut, box: Command):
    ctx.set(dut.base, box.read_base)
    for i in range(3):
        ctx.set(dut.loops.count[i], box.counts[i])
        ctx.set(dut.loops.step[i], box.steps(box.read_strides, dut.config)[i])


async def walk(ctx, dut, box: Command, pause) -> list[tuple[int, int]]:
    """(address, last) of every position; the loop members change once start has passed."""
    drive_loops(ctx, dut, box)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    ctx.set(dut.base, 63)
    for i in range(3):
        ctx.set(dut.loops.count[i], 7)
        ctx.set(dut.loops.step[i], 11)
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
    expected = naive_addresses(counts, strides, base, CONFIG.bank_depth)
    dut = PositionLoops(CONFIG)

    async def bench(ctx):
        seen = await walk(ctx, dut, command(counts, strides, base), pause)
        assert [address for address, _ in seen] == expected
        assert [last for _, last in seen] == [0] * (len(expected) - 1) + [1]

    simulate(dut, bench)


def test_starts_anew_from_any_position():
    """A start in the middle of a walk, together with an advance, wins."""
    dut = PositionLoops(CONFIG)
    rng = np.random.default_rng(3)

    async def bench(ctx):
        for _ in range(12):
            counts = tuple(int(n) for n in rng.integers(1, 5, 3))
            strides = tuple(int(n) for n in rng.integers(0, 64, 3))
            base = int(rng.integers(0, 64))
            ctx.set(dut.advance, 1)
            box = command(counts, strides, base)
            drive_loops(ctx, dut, box)
            seen = await walk(ctx, dut, box, never)
            expected = naive_addresses(counts, strides, base, CONFIG.bank_depth)
            assert [address for address, _ in seen] == expected
            drive_loops(ctx, dut, command((9, 9, 9), (1, 2, 3), 0))
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.advance, 1)
            await ctx.tick().repeat(int(rng.integers(1, 9)))

    simulate(dut, bench)
