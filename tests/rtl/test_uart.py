"""Bytes and frames on a serial line, each side against a line made by hand."""

import zlib

import numpy as np
import pytest

from gshw.uart_protocol import FrameDecoder, encode_frame
from rtl_gen.uart import UartReceiver, UartTransmitter
from rtl_gen.uart_frames import FrameReceiver, FrameTransmitter
from tests.rtl.bench import simulate

BYTES = [0x00, 0xFF, 0x55, 0xAA, 0x7E, 0x7D, 0x01, 0x80, 0x3C]


def line_of(data, cycles_per_bit: float, *, stop: int = 1, idle: int = 0) -> list[int]:
    """Level of the line in every cycle: idle, then the bytes without a pause."""
    bits = [1] * idle
    for byte in data:
        bits += [0, *(byte >> i & 1 for i in range(8)), stop]
    n_cycles = round(len(bits) * cycles_per_bit)
    return [bits[min(int(cycle / cycles_per_bit), len(bits) - 1)] for cycle in range(n_cycles)]


def received(levels: list[int], divisor: int) -> list[int]:
    dut = UartReceiver()
    found: list[int] = []

    async def drive(ctx):
        ctx.set(dut.divisor, divisor)
        for level in [1] * 5 + levels + [1] * 12 * divisor:
            ctx.set(dut.rx, level)
            await ctx.tick()

    async def watch(ctx):
        while True:
            await ctx.tick()
            if ctx.get(dut.valid):
                found.append(ctx.get(dut.byte))

    simulate(dut, drive, watchers=[watch])
    return found


@pytest.mark.parametrize(
    ("divisor", "cycles_per_bit"), [(4, 4), (5, 5), (16, 16), (16, 15.7), (16, 16.3), (40, 40.8)]
)
def test_bytes_arrive_at_rates_that_differ(divisor, cycles_per_bit):
    assert received(line_of(BYTES, cycles_per_bit), divisor) == BYTES


def test_pulses_of_one_cycle_and_short_start_bits_are_ignored():
    levels = line_of(BYTES, 16, idle=4)
    for cycle in range(3, len(levels), 7):
        levels[cycle] ^= 1
    assert received(levels, 16) == BYTES
    short_start = [0] * 6 + [1] * 40
    assert received([*short_start, *line_of(BYTES, 16)], 16) == BYTES


def test_a_byte_without_a_stop_bit_is_dropped():
    levels = [*line_of([0x55], 8, stop=0), *[1] * 20, *line_of(BYTES, 8)]
    assert received(levels, 8) == BYTES


@pytest.mark.parametrize("divisor", [4, 7])
def test_what_is_sent_has_start_and_stop_bits(divisor):
    dut = UartTransmitter()
    levels: list[int] = []

    async def drive(ctx):
        ctx.set(dut.divisor, divisor)
        for number, byte in enumerate(BYTES):
            await ctx.tick().repeat(1 + 13 * (number % 3))
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)
        await ctx.tick().repeat(12 * divisor)

    async def watch(ctx):
        while True:
            levels.append(ctx.get(dut.tx))
            await ctx.tick()

    simulate(dut, drive, watchers=[watch])
    found, cycle = [], 0
    while 0 in levels[cycle:]:
        start = levels.index(0, cycle)
        bits = [levels[start + bit * divisor : start + (bit + 1) * divisor] for bit in range(10)]
        assert all(len(set(bit)) == 1 for bit in bits) and bits[9][0] == 1
        found.append(sum(bits[1 + i][0] << i for i in range(8)))
        cycle = start + 10 * divisor
    assert found == BYTES


def frames_in(line: bytes) -> tuple[list[bytes], int]:
    """Contents of the good frames that the receiver finds, and how many it calls bad."""
    dut = FrameReceiver()
    frames, n_bad = [], 0

    async def drive(ctx):
        nonlocal n_bad
        frame = bytearray()
        for byte in line:
            ctx.set(dut.i, byte)
            ctx.set(dut.i_valid, 1)
            await ctx.delay(0)
            if ctx.get(dut.valid):
                expected = len(frame) if len(frame) < 12 else 12 + len(frame) % 4
                assert ctx.get(dut.index) == expected
                frame.append(ctx.get(dut.byte))
            if ctx.get(dut.good):
                frames.append(bytes(frame[:-4]))
            n_bad += ctx.get(dut.bad)
            if ctx.get(dut.begin):
                frame.clear()
            await ctx.tick()
            ctx.set(dut.i_valid, 0)
            await ctx.tick().repeat(10)

    simulate(dut, drive, n_cycles=60_000)
    return frames, n_bad


def test_frames_are_found_between_noise():
    rng = np.random.default_rng(1)
    bodies = [rng.integers(0, 256, 4 * n, dtype=np.uint8).tobytes() for n in (1, 2, 3, 5, 9)]
    bodies += [bytes([0x7E, 0x7D, 0x5E, 0x5D] * 3)]
    damaged = bytearray(encode_frame(bodies[3]))
    damaged[6] ^= 0x10
    short = encode_frame(bodies[2][:7])
    cut = encode_frame(bodies[4])[:-9]
    parts = [encode_frame(bodies[0]), encode_frame(bodies[1]), b"\x7e\x7e\x7e", bytes(damaged)]
    parts += [encode_frame(bodies[2]), short, b"\x12\x34", encode_frame(bodies[3]), cut]
    parts += [encode_frame(bodies[4]), b"\x7d\x7e", encode_frame(bodies[5])]
    frames, n_bad = frames_in(b"".join(parts))
    assert frames == bodies
    # Damaged, not of whole words, two stray bytes, cut off, an escape before a flag.
    assert n_bad == 5
    # One flag may end a frame and begin the next.
    shared = encode_frame(bodies[0])[:-1] + encode_frame(bodies[1])
    assert frames_in(shared) == (bodies[:2], 0)


def naive_frame(body: bytes) -> bytes:
    out = [0x7E]
    for byte in body + zlib.crc32(body).to_bytes(4, "little"):
        out += [0x7D, byte ^ 0x20] if byte in (0x7D, 0x7E) else [byte]
    return bytes([*out, 0x7E])


@pytest.mark.parametrize("stalls", [False, True])
def test_frames_are_made(stalls):
    rng = np.random.default_rng(2)
    bodies = [rng.integers(0, 256, n, dtype=np.uint8).tobytes() for n in (1, 4, 13)]
    bodies += [bytes([0x7E, 0x7D, 0x7D, 0x7E])]
    dut = FrameTransmitter()
    line: list[int] = []

    async def drive(ctx):
        for body in bodies:
            for number, byte in enumerate(body):
                await ctx.tick().repeat(1 + (int(rng.integers(60)) if stalls else 0))
                ctx.set(dut.i.payload.data, byte)
                ctx.set(dut.i.payload.last, number == len(body) - 1)
                ctx.set(dut.i.valid, 1)
                await ctx.tick().until(dut.i.ready)
                ctx.set(dut.i.valid, 0)
        await ctx.tick().repeat(400)

    async def take(ctx):
        while True:
            ctx.set(dut.o.ready, 0)
            await ctx.tick().repeat(10 + (int(rng.integers(30)) if stalls else 0))
            ctx.set(dut.o.ready, 1)
            while not ctx.get(dut.o.valid):
                await ctx.tick()
            line.append(ctx.get(dut.o.payload))
            await ctx.tick()

    simulate(dut, drive, watchers=[take])
    assert bytes(line) == b"".join(map(naive_frame, bodies))
    assert FrameDecoder().feed(bytes(line)) == bodies
