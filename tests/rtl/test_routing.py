"""Routing networks: right words at the right lanes, with the latency they state."""

import numpy as np
import pytest

from gshw.benes import switch_settings
from rtl_gen.routing import BenesNetwork, Crossbar, DirectRouting
from tests.rtl.bench import observed_latencies, respond

N_VECTORS = 24
SIZES = [2, 4, 8, 16, 32]


def random_words(rng, n_lanes: int, width: int) -> list[int]:
    """Words of one cycle, all-zero and all-one ones among them."""
    words = [int(n) for n in rng.integers(0, 1 << width, n_lanes)]
    words[int(rng.integers(0, n_lanes))] = (1 << width) - 1
    return words


def set_all(ctx, signals, values):
    for signal, value in zip(signals, values, strict=True):
        ctx.set(signal, value)


def read_all(dut):
    return lambda ctx: [ctx.get(o) for o in dut.o]


@pytest.mark.parametrize("n_lanes", SIZES)
def test_direct(n_lanes):
    rng = np.random.default_rng(1)
    dut = DirectRouting(n_lanes, 13)
    words = [random_words(rng, n_lanes, 13) for _ in range(N_VECTORS)]
    outputs = respond(dut, words, lambda ctx, i: set_all(ctx, dut.i, i), read_all(dut))
    assert observed_latencies(words, outputs) == [dut.latency]


@pytest.mark.parametrize("n_lanes", SIZES)
def test_crossbar(n_lanes):
    """Any bank to any lane, several lanes from one bank; disabled lanes get 0."""
    rng = np.random.default_rng(2)
    dut = Crossbar(n_lanes, 8)
    inputs, expected = [], []
    for index in range(N_VECTORS):
        words = random_words(rng, n_lanes, 8)
        bank = [int(n) for n in rng.integers(0, n_lanes, n_lanes)]
        enable = int(rng.integers(0, 1 << n_lanes)) if index % 3 else (1 << n_lanes) - 1
        inputs.append((words, bank, enable))
        expected.append([words[bank[lane]] if enable >> lane & 1 else 0 for lane in range(n_lanes)])

    def drive(ctx, vector):
        words, bank, enable = vector
        set_all(ctx, dut.i, words)
        set_all(ctx, dut.bank, bank)
        ctx.set(dut.enable, enable)

    outputs = respond(dut, inputs, drive, read_all(dut))
    assert observed_latencies(expected, outputs) == [dut.latency]


@pytest.mark.parametrize("n_lanes", SIZES)
def test_benes(n_lanes):
    """A new permutation every cycle, with the encoder's switch settings."""
    rng = np.random.default_rng(3)
    dut = BenesNetwork(n_lanes, 8)
    source = np.array([rng.permutation(n_lanes) for _ in range(N_VECTORS)])
    source[0] = np.arange(n_lanes)
    source[1] = np.arange(n_lanes)[::-1]
    switches = switch_settings(source)
    inputs, expected = [], []
    for index in range(N_VECTORS):
        words = random_words(rng, n_lanes, 8)
        inputs.append((words, sum(int(s) << place for place, s in enumerate(switches[index]))))
        expected.append([words[bank] for bank in source[index]])

    def drive(ctx, vector):
        set_all(ctx, dut.i, vector[0])
        ctx.set(dut.switch, vector[1])

    outputs = respond(dut, inputs, drive, read_all(dut))
    assert observed_latencies(expected, outputs) == [dut.latency]


def test_benes_switches_all_off_and_all_on():
    """Without the encoder: no exchange keeps the order; every exchange swaps neighbours.

    Stages exchange index bits 1, 0, 1; of the last one, the first pair has no switch.
    """
    dut = BenesNetwork(4, 8)
    words = [11, 22, 33, 44]

    def drive(ctx, switch):
        set_all(ctx, dut.i, words)
        ctx.set(dut.switch, switch)

    outputs = respond(dut, [0] * 8, drive, read_all(dut))
    assert outputs[-1] == words
    outputs = respond(dut, [0b1111] * 8, drive, read_all(dut))
    assert outputs[-1] == [44, 33, 22, 11]
    outputs = respond(dut, [0b11111] * 8, drive, read_all(dut))
    assert outputs[-1] == [44, 11, 22, 33]
    outputs = respond(dut, [1 << 4] * 8, drive, read_all(dut))
    assert outputs[-1] == [11, 44, 33, 22]
