"""The GS authors' own projection, group by group: the baseline of the exact one.

Source: arXiv 2112.10898. The repair of dead ends is ours.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import consecutive_rows, scatter_rows
from gshw.geometry import Geometry
from pruning.patterns.pattern import Pattern, Projection, RowGrouping, ScoredMatrix, kept_count
from pruning.patterns.selection import finish, largest_groups, plain


@dataclass(frozen=True, kw_only=True)
class Greedy(Pattern):
    """GS(B, k) as its authors fill it: always the largest block that still fits its group.

    A bundle gets its count of blocks above the layer's threshold, divided by the blocks of a group
    and rounded: the mask keeps up to half a group per bundle more or fewer than wanted. A group
    takes blocks in falling order, each if its row has room in the group and its bank is free. Where
    no block fits any more but rows are short (a dead end), blocks of earlier choices move along the
    shortest alternating path of rows and banks; blocks that score nothing are used only after that.
    A last bundle with fewer rows has smaller groups, in which some banks idle. A mask projected
    again stays as it is if its bundles are given: rows of equal counts would be grouped anew.

    Parameters
    ----------
    config
        The engine that dictates the pattern.
    grouping
        Whether bundles hold rows of similar counts, or consecutive ones.
    """

    kind: ClassVar[str] = "gs-greedy"
    config: EngineConfig
    grouping: RowGrouping = RowGrouping.SCATTER

    @property
    def label(self) -> str:
        name = f"{self.config.pattern_name}, greedy"
        return name if self._scatters or self.config.rows == 1 else f"{name}, consecutive rows"

    @property
    def _scatters(self) -> bool:
        return self.grouping is RowGrouping.SCATTER and self.config.rows > 1

    def refusal(self, n_rows: int, geometry: Geometry) -> str | None:
        if not _block_sizes(self.config, geometry).any(axis=0).all():
            return (
                f"{geometry.n_columns} columns leave a bank of {self.config.lanes} empty, "
                "so no mask but the empty one is balanced"
            )
        return None

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        config, n_rows = self.config, matrix.n_rows
        sizes = _block_sizes(config, matrix.geometry)
        blocks = matrix.geometry.to_blocks(config, plain(matrix.scores))
        blocks = blocks.sum(axis=3, dtype=np.float64)
        real = sizes > 0
        wanted = kept_count(matrix.scores.size, sparsity)
        above = largest_groups(
            blocks[:, real], np.broadcast_to(sizes[real], (n_rows, real.sum())), wanted
        ).sum(axis=1)
        order = matrix.row_order
        if order is None:
            order = scatter_rows(above) if self._scatters else consecutive_rows(n_rows)
        starts = np.arange(0, n_rows, config.rows)
        n_in = np.minimum(config.rows, n_rows - starts)
        groups = np.rint(np.add.reduceat(above[order], starts) / (n_in * config.lanes_per_row))
        most = [_most_groups(real.sum(axis=0), int(n), config.lanes_per_row) for n in n_in]
        groups = np.minimum(groups.astype(np.int64), most)
        blocks[:, ~real] = -np.inf
        ranking = np.argsort(-blocks, axis=1, kind="stable")
        ranked = np.take_along_axis(blocks, ranking, axis=1)
        capacity = np.broadcast_to(real.sum(axis=0), (n_rows, config.lanes))
        counts = np.zeros((n_rows, config.lanes), dtype=np.int64)
        for start, n_groups in zip(starts, groups, strict=True):
            # Within a bundle, ties go to the lower row of the matrix.
            rows = np.sort(order[start : start + config.rows])
            counts[rows] = _fill(
                ranked[rows],
                ranking[rows],
                (blocks[rows] > 0).sum(axis=1),
                capacity[rows],
                n_groups,
                config.lanes_per_row,
            )
        rank = np.empty_like(ranking)
        np.put_along_axis(rank, ranking, np.arange(ranking.shape[1])[None, :, None], axis=1)
        kept = np.repeat((rank < counts[:, None, :])[..., None], config.block, axis=3)
        mask = matrix.geometry.from_blocks(config, kept)
        n_fewest = min(mask.size, len(starts) * config.lanes * config.block)
        return finish(self, matrix, mask, sparsity, n_fewest, np.asarray(order))


def _block_sizes(config: EngineConfig, geometry: Geometry) -> NDArray[np.int64]:
    """Weights in each block of a row, (n_words, lanes); 0 where all channels are padding."""
    ones = np.ones((1, geometry.n_columns), dtype=np.int64)
    return geometry.to_blocks(config, ones)[0].sum(axis=2)


def _most_groups(n_words: NDArray[np.int64], n_rows: int, per_row: int) -> int:
    """Groups of a bundle that its banks can fill.

    Spread evenly over its rows, ``g`` groups need ``g * per_row * n_rows`` blocks; a bank gives
    at most ``g`` of them, and no more than it has.
    """
    groups = np.arange(n_words.sum() // per_row + 1)
    supply = np.minimum(n_rows * n_words[:, None], groups).sum(axis=0)
    return int(groups[supply >= groups * per_row * n_rows].max())


@njit(cache=True)
def _fill(ranked, ranking, positive, capacity, n_groups, per_row):
    """Counts (rows, banks) of one bundle after ``n_groups`` groups.

    ``ranked`` and ``ranking`` are (rows, words, banks): blocks falling along words, and their word.
    ``positive`` and ``capacity`` are (rows, banks): blocks that score, and blocks there are.
    """
    n_rows, _, n_banks = ranked.shape
    counts = np.zeros((n_rows, n_banks), dtype=np.int64)
    in_row = np.zeros(n_rows, dtype=np.int64)
    in_bank = np.zeros(n_banks, dtype=np.int64)
    for group in range(1, n_groups + 1):
        for limit in (positive, capacity):
            _take_largest(ranked, ranking, limit, counts, in_row, in_bank, group, per_row)
            for row in range(n_rows):
                while in_row[row] < group * per_row:
                    if not _move(row, limit, counts, in_bank, group):
                        break
                    in_row[row] += 1
    return counts


@njit(cache=True)
def _take_largest(ranked, ranking, limit, counts, in_row, in_bank, group, per_row):
    """Take blocks in falling order, ties by row and column, where row and bank have room."""
    n_rows, n_words, n_banks = ranked.shape
    value = np.empty(n_rows * n_banks)
    place = np.empty(n_rows * n_banks, dtype=np.int64)
    n = 0
    for row in range(n_rows):
        for bank in range(n_banks):
            count = counts[row, bank]
            open_here = in_row[row] < group * per_row and in_bank[bank] < group
            if open_here and count < limit[row, bank]:
                value[n] = -ranked[row, count, bank]
                place[n] = (row * n_words + ranking[row, count, bank]) * n_banks + bank
                n += 1
    order = np.argsort(value[:n], kind="mergesort")
    for i in range(1, n):
        j = i
        while (
            j > 0
            and value[order[j - 1]] == value[order[j]]
            and place[order[j - 1]] > place[order[j]]
        ):
            order[j - 1], order[j] = order[j], order[j - 1]
            j -= 1
    for index in order:
        row = place[index] // (n_words * n_banks)
        bank = place[index] % n_banks
        if in_row[row] < group * per_row and in_bank[bank] < group:
            counts[row, bank] += 1
            in_row[row] += 1
            in_bank[bank] += 1


@njit(cache=True)
def _move(start, limit, counts, in_bank, group):
    """Give a row one more block by a shortest alternating path; False where there is none."""
    n_rows, n_banks = counts.shape
    bank_of = np.full(n_rows, -1, dtype=np.int64)
    row_of = np.full(n_banks, -1, dtype=np.int64)
    queue = np.empty(n_rows, dtype=np.int64)
    queue[0] = start
    head, tail = 0, 1
    while head < tail:
        row = queue[head]
        head += 1
        for bank in range(n_banks):
            if row_of[bank] >= 0 or counts[row, bank] >= limit[row, bank]:
                continue
            row_of[bank] = row
            if in_bank[bank] < group:
                in_bank[bank] += 1
                while True:
                    giver = row_of[bank]
                    counts[giver, bank] += 1
                    if giver == start:
                        return True
                    bank = bank_of[giver]
                    counts[giver, bank] -= 1
            for other in range(n_rows):
                if other != start and bank_of[other] < 0 and counts[other, bank] > 0:
                    bank_of[other] = bank
                    queue[tail] = other
                    tail += 1
    return False
