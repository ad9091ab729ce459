"""Benes permutation network in Waksman's form: switch settings by the looping algorithm.

Source: V. E. Benes, "Mathematical Theory of Connecting Networks" (1965); A. Waksman, "A
Permutation Network" (1968); looping algorithm after Opferman and Tsao-Wu (1971). The network
works in place: stage s may exchange positions that differ in one index bit, and the bits run
``n-1, ..., 1, 0, 1, ..., n-1`` for ``2**n`` positions. In every sub-network the looping algorithm
starts with the first output and leaves its switch straight, so that switch is a pair of wires.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


def stage_bits(log2_size: int) -> list[int]:
    """Index bit that each of the ``2 * log2_size - 1`` stages exchanges, inputs first."""
    falling = list(range(log2_size - 1, -1, -1))
    return falling + falling[-2::-1]


def stage_pairs(log2_size: int) -> list[list[tuple[int, int]]]:
    """Position pairs with a switch, per stage, by their lower position.

    Flattened, this is the order of the control bits. Positions in no pair of a stage pass it
    unchanged.
    """
    return [
        [
            (low, low | 1 << bit)
            for low in range(1 << log2_size)
            if not low & 1 << bit and _has_switch(log2_size, stage, bit, low)
        ]
        for stage, bit in enumerate(stage_bits(log2_size))
    ]


def _has_switch(log2_size: int, stage: int, bit: int, low: int) -> bool:
    """Whether the pair of ``low`` can be exchanged: not the first output pair of a sub-network."""
    return stage < log2_size or low % (2 << bit) != 0


@njit(cache=True)
def _pair_index(low, bit):
    """Rank of the pair whose lower position is ``low`` among the positions with ``bit`` clear."""
    return ((low >> (bit + 1)) << bit) | (low & ((1 << bit) - 1))


@njit(cache=True, parallel=True)
def _settings(source, log2_size, switches):
    size = 1 << log2_size
    half_size = size // 2
    for index in prange(source.shape[0]):
        wanted = source[index].copy()
        for bit in range(log2_size - 1, -1, -1):
            # Sub-networks of 2 ** (bit + 1) positions, side by side; `wanted[o]` is the input
            # position of the sub-network's input side that its output position o must get.
            span = 1 << bit
            first = (log2_size - 1 - bit) * half_size
            last = (log2_size - 1 + bit) * half_size
            where = np.empty(size, dtype=np.int64)
            for output in range(size):
                where[wanted[output]] = output
            if bit == 0:
                for low in range(0, size, 2):
                    switches[index, first + low // 2] = wanted[low] != low
                continue
            lower_half = np.full(size, -1, dtype=np.int8)
            following = np.empty(size, dtype=np.int64)
            for start in range(size):
                output = start
                while lower_half[output] < 0:
                    # This output comes through the half with the bit clear, its partner through
                    # the other; the partner's source shares an input switch with the next output.
                    partner = output ^ span
                    lower_half[output] = 0
                    lower_half[partner] = 1
                    output = where[wanted[partner] ^ span]
            for output in range(size):
                source_position = wanted[output]
                half = span if lower_half[output] else 0
                through_in = (source_position & ~span) | half
                through_out = (output & ~span) | half
                following[through_out] = through_in
                if not output & span:
                    switches[index, last + _pair_index(output, bit)] = lower_half[output]
                if not source_position & span:
                    switches[index, first + _pair_index(source_position, bit)] = lower_half[output]
            wanted[:] = following


def switch_settings(source: NDArray) -> NDArray[np.uint8]:
    """Settings that bring input ``source[i, lane]`` to output ``lane``.

    Parameters
    ----------
    source
        Shape (n_groups, lanes): each row a permutation of 0..lanes-1; lanes a power of two.

    Returns
    -------
    ndarray
        Shape (n_groups, lanes * log2(lanes) - lanes + 1), uint8 of 0 or 1: 1 exchanges the pair.
        In the order of :func:`stage_pairs`.
    """
    n_groups, size = source.shape
    log2_size = size.bit_length() - 1
    pairs = np.zeros((n_groups, (2 * log2_size - 1) * (size // 2)), dtype=np.uint8)
    _settings(source.astype(np.int64), log2_size, pairs)
    has_switch = [
        _has_switch(log2_size, stage, bit, low)
        for stage, bit in enumerate(stage_bits(log2_size))
        for low in range(size)
        if not low & 1 << bit
    ]
    return pairs[:, has_switch]


def apply_switches(values: NDArray, switches: NDArray) -> NDArray:
    """Reference network: send ``values`` (..., lanes) through the switches (..., n_switches)."""
    result = values.copy()
    control = 0
    for pairs in stage_pairs(values.shape[-1].bit_length() - 1):
        for low, high in pairs:
            exchange = switches[..., control].astype(bool)
            a, b = result[..., low].copy(), result[..., high].copy()
            result[..., low] = np.where(exchange, b, a)
            result[..., high] = np.where(exchange, a, b)
            control += 1
    return result
