"""Scheduling: which group and lane each kept block of a bundle gets.

Source: Koenig's edge-colouring theorem. Each row's blocks are split evenly over its
``lanes_per_row`` ports; a bundle is then a bipartite multigraph of ports (lanes) and banks whose
edges are blocks and whose colours are groups. The colouring uses exactly ``max degree`` colours,
found edge by edge with alternating chains; a bit mask of free colours per node finds most colours
at once. Compiled by numba, parallel over bundles.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)


def _de_bruijn_table() -> NDArray[np.int64]:
    table = np.zeros(64, dtype=np.int64)
    for index in range(64):
        hashed = ((1 << index) * int(_DE_BRUIJN)) & 0xFFFFFFFFFFFFFFFF
        table[hashed >> 58] = index
    return table


_LOWEST_BIT = _de_bruijn_table()
_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_SHIFT = np.uint64(58)


@njit(cache=True, inline="always")
def _lowest_bit(mask):
    isolated = mask & (~mask + _ONE)
    return _LOWEST_BIT[np.int64((isolated * _DE_BRUIJN) >> _SHIFT)]


@njit(cache=True)
def _toggle(free, node, colour):
    free[node, colour >> 6] ^= _ONE << np.uint64(colour & 63)


@njit(cache=True)
def _first_free(free, node, n_words):
    for word in range(n_words):
        if free[node, word] != _ZERO:
            return word * 64 + _lowest_bit(free[node, word])
    return -1


@njit(cache=True)
def _colour_bundle(port, bank, n_nodes, n_colours, colour):
    """Colour the edges (port[e], bank[e]) with ``n_colours`` >= max degree; fills ``colour``."""
    n_words = (n_colours + 63) // 64
    free_port = np.empty((n_nodes, n_words), dtype=np.uint64)
    free_bank = np.empty((n_nodes, n_words), dtype=np.uint64)
    for word in range(n_words):
        n_bits = min(64, n_colours - word * 64)
        mask = ~_ZERO if n_bits == 64 else (_ONE << np.uint64(n_bits)) - _ONE
        for node in range(n_nodes):
            free_port[node, word] = mask
            free_bank[node, word] = mask
    edge_at_port = np.full((n_nodes, n_colours), -1, dtype=np.int32)
    edge_at_bank = np.full((n_nodes, n_colours), -1, dtype=np.int32)
    for edge in range(port.size):
        p = port[edge]
        b = bank[edge]
        common = -1
        for word in range(n_words):
            mask = free_port[p, word] & free_bank[b, word]
            if mask != _ZERO:
                common = word * 64 + _lowest_bit(mask)
                break
        if common >= 0:
            edge_at_port[p, common] = edge
            edge_at_bank[b, common] = edge
            colour[edge] = common
            _toggle(free_port, p, common)
            _toggle(free_bank, b, common)
            continue
        # No colour is free at both ends: take one free at the port, one free at the bank, and
        # swap the two along the chain that starts at the bank. It cannot come back to the port.
        alpha = _first_free(free_port, p, n_words)
        beta = _first_free(free_bank, b, n_words)
        edge_at_port[p, alpha] = edge
        moved = edge_at_bank[b, alpha]
        edge_at_bank[b, alpha] = edge
        colour[edge] = alpha
        _toggle(free_port, p, alpha)
        _toggle(free_bank, b, beta)
        while True:
            # `moved` joins port p1 to bank b; it turns from alpha to beta.
            p1 = port[moved]
            edge_at_bank[b, beta] = moved
            colour[moved] = beta
            following = edge_at_port[p1, beta]
            edge_at_port[p1, beta] = moved
            edge_at_port[p1, alpha] = following
            if following < 0:
                _toggle(free_port, p1, alpha)
                _toggle(free_port, p1, beta)
                break
            # `following` joins port p1 to the next bank; it turns from beta to alpha.
            b = bank[following]
            colour[following] = alpha
            moved = edge_at_bank[b, alpha]
            edge_at_bank[b, alpha] = following
            edge_at_bank[b, beta] = moved
            if moved < 0:
                _toggle(free_bank, b, alpha)
                _toggle(free_bank, b, beta)
                break


@njit(cache=True, parallel=True)
def _schedule_bundles(edge_ptr, slot, bank, n_groups, n_lanes, lanes_per_row, lane, group):
    for bundle in prange(edge_ptr.size - 1):
        start = edge_ptr[bundle]
        stop = edge_ptr[bundle + 1]
        n_in_row = np.zeros(n_lanes // lanes_per_row, dtype=np.int64)
        for edge in range(start, stop):
            row = slot[edge]
            lane[edge] = row * lanes_per_row + n_in_row[row] % lanes_per_row
            n_in_row[row] += 1
        if stop > start:
            _colour_bundle(
                lane[start:stop], bank[start:stop], n_lanes, n_groups[bundle], group[start:stop]
            )


@njit(cache=True)
def _rank_in_bank(edge_ptr, bank, n_lanes, group):
    for bundle in range(edge_ptr.size - 1):
        n_in_bank = np.zeros(n_lanes, dtype=np.int32)
        for edge in range(edge_ptr[bundle], edge_ptr[bundle + 1]):
            group[edge] = n_in_bank[bank[edge]]
            n_in_bank[bank[edge]] += 1


def minimum_groups(
    edge_ptr: NDArray[np.int64],
    slot: NDArray[np.int32],
    bank: NDArray[np.int32],
    n_lanes: int,
    lanes_per_row: int,
) -> NDArray[np.int64]:
    """Fewest groups of each bundle: ``max(max_row ceil(row / k), max_bank)``; 0 if empty.

    Parameters
    ----------
    edge_ptr
        Shape (n_bundles + 1,): the blocks of bundle b are ``edge_ptr[b]:edge_ptr[b + 1]``.
    slot, bank
        Shape (n_blocks,): the row's place in its bundle, and the bank, of each block.
    """
    n_bundles = edge_ptr.size - 1
    bundle = np.repeat(np.arange(n_bundles), np.diff(edge_ptr))
    n_rows = n_lanes // lanes_per_row
    in_row = np.bincount(bundle * n_rows + slot, minlength=n_bundles * n_rows)
    in_bank = np.bincount(bundle * n_lanes + bank, minlength=n_bundles * n_lanes)
    row_bound = -(-in_row.reshape(n_bundles, n_rows).max(axis=1, initial=0) // lanes_per_row)
    return np.maximum(row_bound, in_bank.reshape(n_bundles, n_lanes).max(axis=1, initial=0))


def schedule(
    edge_ptr: NDArray[np.int64],
    slot: NDArray[np.int32],
    bank: NDArray[np.int32],
    n_groups: NDArray[np.int64],
    n_lanes: int,
    lanes_per_row: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Assign a lane and a group (within its bundle) to every block, without a conflict.

    A horizontal bundle (``lanes_per_row == n_lanes``) keeps its blocks in bank order: lane = bank.

    Returns
    -------
    lane, group
        Shape (n_blocks,), int32. No two blocks of a bundle share (group, lane) or (group, bank).
    """
    group = np.zeros(slot.size, dtype=np.int32)
    if lanes_per_row == n_lanes:
        _rank_in_bank(edge_ptr, bank, n_lanes, group)
        return bank.astype(np.int32), group
    lane = np.zeros(slot.size, dtype=np.int32)
    _schedule_bundles(edge_ptr, slot, bank, n_groups, n_lanes, lanes_per_row, lane, group)
    return lane, group
