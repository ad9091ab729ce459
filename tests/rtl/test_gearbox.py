"""Gearbox and run loops, by themselves, against slices and nested loops."""

import numpy as np
import pytest

from rtl_gen.gearbox import Gearbox
from rtl_gen.run_loops import RunLoops
from tests.rtl.bench import at_random, never, simulate

SHAPES = [
    (32, 1),
    (32, 5),
    (64, 1),
    (64, 3),
    (64, 11),
    (64, 12),
    (128, 5),
    (128, 6),
    (128, 7),
    (256, 8),
    (256, 19),
    (512, 5),
    (512, 17),
    (512, 20),
]
"""Bits of a beat and limbs of a word: odd and even, shorter and longer than a beat."""


def random_run(rng: np.random.Generator, data_width: int, n_bytes: int) -> tuple[bytes, list]:
    """Bytes of a run, and its beats as (data, last); spare bytes are noise."""
    raw, n_beat = rng.bytes(n_bytes), data_width // 8
    padded = raw + rng.bytes(-n_bytes % n_beat)
    beats = [
        (int.from_bytes(padded[low : low + n_beat], "little"), low + n_beat >= n_bytes)
        for low in range(0, n_bytes, n_beat)
    ]
    return raw, beats


async def announce(ctx, dut: Gearbox, tail_bytes: int) -> None:
    """Give the tail of the next run, in time for its first beat."""
    ctx.set(dut.tail_bytes, tail_bytes)
    await ctx.tick()


async def push(ctx, dut: Gearbox, beats: list, stall) -> tuple[list[int], list[int], int]:
    """Feed a run; words, cycles of each beat, and how often it was incomplete."""
    words, paces, incomplete, finished = [], [], 0, False
    cycle = 0
    for data, last in [*beats, (None, 0)]:
        while stall(cycle) and not finished:
            cycle += 1
            ctx.set(dut.valid, 0)
            await ctx.tick()
        pace, ready = 0, False
        while not ready:
            ctx.set(dut.valid, data is not None)
            ctx.set(dut.data, data or 0)
            ctx.set(dut.last, last)
            if finished:
                words.append(ctx.get(dut.word))
            finished = bool(ctx.get(dut.finish))
            incomplete += ctx.get(dut.incomplete)
            ready = ctx.get(dut.ready) or data is None
            await ctx.tick()
            pace, cycle = pace + 1, cycle + 1
        paces.append(pace)
    return words, paces[:-1], incomplete


@pytest.mark.parametrize("stalls", [False, True], ids=["full rate", "stalls"])
@pytest.mark.parametrize(("data_width", "n_limbs"), SHAPES)
def test_words_of_runs(data_width, n_limbs, stalls):
    """Runs of any number of words, one after the other, each at the promised rate."""
    rng = np.random.default_rng(n_limbs)
    dut = Gearbox(data_width, n_limbs)
    n_bytes = 4 * n_limbs
    stall = at_random(5) if stalls else never

    async def bench(ctx):
        for n_words in (1, 2, 3, 1, 2 * data_width // 32 + 1):
            raw, beats = random_run(rng, data_width, n_words * n_bytes)
            await announce(ctx, dut, len(raw) % (data_width // 8))
            words, paces, incomplete = await push(ctx, dut, beats, stall)
            expected = [raw[low : low + n_bytes] for low in range(0, len(raw), n_bytes)]
            assert words == [int.from_bytes(word, "little") for word in expected]
            assert paces == [dut.n_parts] * len(beats)
            assert not incomplete

    simulate(dut, bench)
    limbs_per_cycle = data_width // 32 // dut.n_parts
    assert dut.n_parts == 1 or limbs_per_cycle <= n_limbs < 2 * limbs_per_cycle


@pytest.mark.parametrize(("data_width", "n_limbs"), SHAPES)
def test_incomplete_runs(data_width, n_limbs):
    """Every run whose bytes are not whole words is found; the one after it is right."""
    rng = np.random.default_rng(1)
    dut = Gearbox(data_width, n_limbs)
    n_bytes, n_beat = 4 * n_limbs, data_width // 8

    async def bench(ctx):
        lengths = range(1, n_bytes + n_beat + 1)
        for length in rng.permutation(lengths)[:40]:
            raw, beats = random_run(rng, data_width, int(length))
            await announce(ctx, dut, len(raw) % n_beat)
            words, _, incomplete = await push(ctx, dut, beats, never)
            assert incomplete == (len(raw) % n_bytes != 0)
            assert len(words) <= len(raw) // n_bytes
            expected = [raw[low : low + n_bytes] for low in range(0, len(raw), n_bytes)]
            whole = [int.from_bytes(word, "little") for word in expected]
            assert words == whole[: len(words)]

    simulate(dut, bench)


def test_clear_forgets_a_partial_word():
    rng = np.random.default_rng(2)
    dut = Gearbox(64, 3)

    async def bench(ctx):
        for n_beats in (1, 2):
            _, beats = random_run(rng, 64, 100)
            await push(ctx, dut, beats[:n_beats], never)
            ctx.set(dut.clear, 1)
            await ctx.tick()
            ctx.set(dut.clear, 0)
            raw, beats = random_run(rng, 64, 12)
            await announce(ctx, dut, 4)
            words, _, incomplete = await push(ctx, dut, beats, never)
            assert words == [int.from_bytes(raw, "little")]
            assert not incomplete

    simulate(dut, bench)


LOOPS = [((1, 1), (5, 7)), ((1, 4), (3, -9)), ((5, 1), (-1, 100)), ((3, 4), (0x7FFF, -0x8000))]


@pytest.mark.parametrize(("counts", "strides"), LOOPS)
@pytest.mark.parametrize("width", [16, 40])
def test_run_loops(width, counts, strides):
    """Each run once, innermost first, one per cycle and under pauses; then a new start."""
    dut = RunLoops(width)
    modulus = 1 << width
    expected = [
        (
            (0xFFFE + i * strides[0] + j * strides[1]) % modulus,
            int(i == counts[0] - 1),
            int(i == counts[0] - 1 and j == counts[1] - 1),
        )
        for j in range(counts[1])
        for i in range(counts[0])
    ]

    async def bench(ctx):
        for pause in (never, at_random(3), never):
            ctx.set(dut.load, 1)
            ctx.set(dut.base, 0xFFFE)
            for i in range(2):
                ctx.set(dut.count[i], counts[i])
                ctx.set(dut.stride[i], strides[i] % modulus)
            await ctx.tick()
            ctx.set(dut.load, 0)
            ctx.set(dut.base, 0)
            for i in range(2):
                ctx.set(dut.count[i], 0)
                ctx.set(dut.stride[i], 0)
            await ctx.tick()
            for wanted in expected:
                while pause(0):
                    await ctx.tick()
                found = (ctx.get(dut.value), ctx.get(dut.line_last), ctx.get(dut.last))
                assert found == wanted
                ctx.set(dut.advance, 1)
                await ctx.tick()
                ctx.set(dut.advance, 0)

    simulate(dut, bench)
