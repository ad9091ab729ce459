"""Switch settings, checked with a network built here from its recursive definition."""

import itertools

import numpy as np
import pytest

from gshw.benes import apply_switches, stage_bits, stage_pairs, switch_settings


def naive_stages(log2_size: int) -> list[int]:
    """Index bit of each stage: outer columns around the network of half the size."""
    if log2_size == 1:
        return [0]
    return [log2_size - 1, *naive_stages(log2_size - 1), log2_size - 1]


def naive_pairs(log2_size: int, base: int = 0, distance: int = 1) -> list[set[tuple[int, int]]]:
    """Switches by stage, from the recursion: the first output of every network has none.

    A network of positions ``base + n * distance`` joins n and its neighbour in bit
    ``log2_size - 1``; between its outer stages lie two networks of half the size.
    """
    half = 1 << (log2_size - 1)
    outer = [(base + n * distance, base + (n + half) * distance) for n in range(half)]
    if log2_size == 1:
        return [set(outer)]
    halves = [naive_pairs(log2_size - 1, base + n * half * distance, distance) for n in (0, 1)]
    inner = [upper | lower for upper, lower in zip(*halves, strict=True)]
    return [set(outer), *inner, set(outer[1:])]


def naive_network(values: list, controls: list[int]) -> list:
    """Send values through the switches, exchanging positions that differ in one index bit."""
    values = list(values)
    control = iter(controls)
    for pairs in naive_pairs(len(values).bit_length() - 1):
        for low, high in sorted(pairs):
            if next(control):
                values[low], values[high] = values[high], values[low]
    assert next(control, None) is None
    return values


@pytest.mark.parametrize("log2_size", range(1, 7))
def test_stage_order(log2_size):
    size = 1 << log2_size
    assert stage_bits(log2_size) == naive_stages(log2_size)
    stages = stage_pairs(log2_size)
    assert stages == [sorted(pairs) for pairs in naive_pairs(log2_size)]
    for bit, pairs in zip(stage_bits(log2_size), stages, strict=True):
        assert all(high - low == 2**bit for low, high in pairs)
    assert sum(map(len, stages)) == size * log2_size - size + 1


@pytest.mark.parametrize("size", [2, 4])
def test_every_permutation(size):
    source = np.array(list(itertools.permutations(range(size))))
    for wanted, controls in zip(source, switch_settings(source), strict=True):
        assert naive_network(list(range(size)), list(controls)) == list(wanted)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_random_and_regular_permutations(size):
    rng = np.random.default_rng(size)
    order = np.arange(size)
    regular = [order, order[::-1], np.roll(order, 1), np.roll(order, size // 2), order ^ 1]
    source = np.array(regular + [rng.permutation(size) for _ in range(100)])
    log2_size = size.bit_length() - 1
    switches = switch_settings(source)
    assert switches.shape == (len(source), size * log2_size - size + 1)
    assert switches.dtype == np.uint8 and switches.max() == 1
    for wanted, controls in zip(source, switches, strict=True):
        assert naive_network(list(range(size)), list(controls)) == list(wanted)


def test_settings_do_not_depend_on_the_neighbours():
    """Parallel over groups: one by one gives the same."""
    rng = np.random.default_rng(5)
    source = np.array([rng.permutation(16) for _ in range(40)])
    one_by_one = [switch_settings(row[None])[0] for row in source]
    np.testing.assert_array_equal(switch_settings(source), one_by_one)


def test_no_groups():
    assert switch_settings(np.zeros((0, 8), dtype=np.int64)).shape == (0, 17)


def test_input_is_left_alone():
    source = np.array([[3, 1, 0, 2]])
    switch_settings(source)
    assert source.tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize("size", [2, 8, 32])
def test_reference_network_is_the_network(size):
    """``apply_switches`` with any settings, not only useful ones."""
    rng = np.random.default_rng(6)
    log2_size = size.bit_length() - 1
    switches = rng.integers(0, 2, (20, size * log2_size - size + 1))
    values = rng.integers(0, 256, (20, size))
    expected = [naive_network(list(v), list(s)) for v, s in zip(values, switches)]
    np.testing.assert_array_equal(apply_switches(values, switches), expected)
