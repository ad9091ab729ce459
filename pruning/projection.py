"""Projections: scores to the mask of largest total score that has a given form.

GS(B, k): source arXiv 2112.10898 for the pattern; the solvers are ours. Horizontal engines need
only sorting and are exact for a free number of groups per row. With several rows per bundle the
mask is exact for its number of groups in every bundle: rows start with their own largest blocks,
then single blocks move along best paths from banks that have too many to banks that have too few
(successive shortest paths of the transportation problem). The layer's budget is split over bundles
by exchanging groups until no exchange gains; the best score is concave in the groups of a bundle,
so that split is the best one too. Only a partial last bundle keeps its rounded share.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import consecutive_rows, scatter_rows
from gshw.errors import GshwError
from gshw.geometry import Geometry


class RowGrouping(enum.Enum):
    """Which rows share a bundle."""

    CONSECUTIVE = "consecutive"
    SCATTER = "scatter"


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A mask and the bundles that it is balanced over.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns), True where a weight is kept.
    row_order
        Shape (n_rows,): rows in bundle order.
    """

    mask: NDArray[np.bool_]
    row_order: NDArray[np.int64]

    @property
    def density(self) -> float:
        return float(self.mask.mean())


def check_scores(name: str, scores: NDArray) -> NDArray[np.float64]:
    """Refuse scores that cannot be ordered.

    Raises
    ------
    GshwError
        For NaN or infinite scores, naming the layer and the first place.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(scores))[0])
        raise GshwError(f"layer {name!r}: scores must be finite, not {scores[place]} at {place}")
    return scores


def unstructured_mask(scores: NDArray, sparsity: float) -> NDArray[np.bool_]:
    """The largest scores anywhere; ties by position (Han et al. 2015).

    Parameters
    ----------
    scores
        Shape (n_rows, n_columns).
    """
    n_kept = round(scores.size * (1.0 - sparsity))
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:n_kept]] = True
    return mask.reshape(scores.shape)


def block_mask(scores: NDArray, sparsity: float, width: int) -> NDArray[np.bool_]:
    """Aligned 1 x ``width`` blocks by their summed score (Narang et al. 2017).

    Columns beyond the last whole block form a shorter one. The last block kept may exceed the
    target density by a part of a block.
    """
    n_rows, n_columns = scores.shape
    n_blocks = -(-n_columns // width)
    padded = np.zeros((n_rows, n_blocks * width))
    padded[:, :n_columns] = scores
    sums = padded.reshape(n_rows, n_blocks, width).sum(axis=2)
    n_kept = round(scores.size * (1.0 - sparsity) / width)
    kept = np.zeros(sums.size, dtype=bool)
    kept[np.argsort(-sums.reshape(-1), kind="stable")[:n_kept]] = True
    return np.repeat(kept.reshape(sums.shape), width, axis=1)[:, :n_columns]


def least_bank(config: EngineConfig, geometry: Geometry) -> int:
    """Real blocks of one row in its emptiest bank: 0 where no balanced mask exists."""
    real = geometry.to_blocks(config, np.ones((1, geometry.n_columns), dtype=bool))
    return int(real.any(axis=3)[0].sum(axis=0).min())


def project(
    config: EngineConfig,
    name: str,
    scores: NDArray,
    geometry: Geometry,
    sparsity: float,
    grouping: RowGrouping = RowGrouping.SCATTER,
    row_order: NDArray | None = None,
) -> Projection:
    """Best mask of the engine's pattern at a sparsity.

    Parameters
    ----------
    scores
        Shape (n_rows, n_columns), finite; a block's score is the sum over its channels.
    sparsity
        Wanted, in [0, 1); met to within half a group of a full bundle, or the densest balanced mask
        where padded channels leave a bank less than that.
    grouping
        Whether bundles hold rows of similar density, or consecutive ones.
    row_order
        Keep these bundles instead of grouping anew.

    Raises
    ------
    GshwError
        For scores that are not finite, or a layer with fewer columns than banks.
    """
    scores = check_scores(name, scores)
    capacity = least_bank(config, geometry)
    if capacity == 0:
        raise GshwError(
            f"layer {name!r}: {geometry.n_columns} columns leave a bank of {config.lanes} empty, "
            "so no mask but the empty one is balanced"
        )
    blocks = geometry.to_blocks(config, scores).sum(axis=3)
    real = geometry.to_blocks(config, np.ones(scores.shape, dtype=bool)).any(axis=3)[0]
    blocks[:, ~real] = -np.inf
    n_rows = scores.shape[0]
    n_kept = scores.size * (1.0 - sparsity) / config.block
    if config.rows == 1:
        kept = _horizontal(blocks, round(n_kept / config.lanes), capacity)
        order = consecutive_rows(n_rows)
    else:
        flat = blocks.reshape(n_rows, -1)
        threshold = -np.partition(-flat.reshape(-1), max(0, round(n_kept) - 1))[
            max(0, round(n_kept) - 1)
        ]
        above = (flat >= threshold).sum(axis=1)
        order = row_order
        if order is None:
            scatter = grouping is RowGrouping.SCATTER
            order = scatter_rows(above) if scatter else consecutive_rows(n_rows)
        kept = _bundled(config, blocks, np.asarray(order), above, n_kept, capacity)
    mask = geometry.from_blocks(config, np.repeat(kept[..., None], config.block, axis=3))
    return Projection(mask=mask, row_order=order)


def _horizontal(blocks: NDArray, n_groups: int, capacity: int) -> NDArray[np.bool_]:
    """The i-th group of a row is the i-th largest block of every bank; take the best groups."""
    n_rows = blocks.shape[0]
    order = np.argsort(-blocks, axis=1, kind="stable")
    ranked = np.take_along_axis(blocks, order, axis=1)[:, :capacity]
    gain = ranked.sum(axis=2).reshape(-1)
    best = np.argsort(-gain, kind="stable")[:n_groups]
    depth = np.bincount(best // capacity, minlength=n_rows)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(blocks.shape[1])[None, :, None], axis=1)
    return rank < depth[:, None, None]


def _split_budget(
    wanted: NDArray[np.float64], weight: NDArray[np.int64], n_kept: float, most: int
) -> NDArray[np.int64]:
    """Groups per bundle near ``wanted``, whose blocks (``weight`` per group) sum to ``n_kept``."""
    groups = np.clip(np.rint(wanted), 0, most).astype(np.int64)
    while True:
        short = n_kept - float((groups * weight).sum())
        step = 1 if short > 0 else -1
        movable = (groups < most) if step > 0 else (groups > 0)
        movable &= abs(short) > weight / 2
        if not movable.any():
            return groups
        # Move the bundles whose rounding lost (or gained) most, as many as the shortfall asks.
        regret = np.where(movable, step * (wanted - groups), -np.inf)
        n_moves = max(1, int(abs(short) / weight.max()))
        chosen = np.argsort(-regret, kind="stable")[: min(n_moves, int(movable.sum()))]
        groups[chosen] += step


def _bundled(
    config: EngineConfig,
    blocks: NDArray,
    order: NDArray,
    above: NDArray,
    n_kept: float,
    capacity: int,
) -> NDArray[np.bool_]:
    n_rows, n_words, n_banks = blocks.shape
    n_bundles = -(-n_rows // config.rows)
    position = np.full(n_bundles * config.rows, -1, dtype=np.int64)
    position[:n_rows] = order
    rows_in = (position.reshape(n_bundles, config.rows) >= 0).sum(axis=1)
    in_bundle = np.zeros(n_bundles)
    np.add.at(in_bundle, np.arange(n_rows) // config.rows, above[order])
    weight = rows_in * config.lanes_per_row
    wanted = in_bundle * (n_kept / max(1, above.sum())) / weight
    most = config.rows * capacity
    groups = _split_budget(wanted, weight, n_kept, most)
    ranking = np.argsort(-blocks, axis=1, kind="stable")
    ranked = np.take_along_axis(blocks, ranking, axis=1)
    _exchange_groups(config, ranked, position, groups, most, rows_in == config.rows)
    counts = np.zeros((n_bundles * config.rows, n_banks), dtype=np.int64)
    _solve_bundles(ranked, position, groups, config.rows, config.lanes_per_row, counts)
    depth = np.zeros((n_rows, n_banks), dtype=np.int64)
    depth[position[position >= 0]] = counts[position >= 0]
    rank = np.empty_like(ranking)
    np.put_along_axis(rank, ranking, np.arange(n_words)[None, :, None], axis=1)
    return rank < depth[:, None, :]


def _exchange_groups(
    config: EngineConfig,
    ranked: NDArray,
    position: NDArray[np.int64],
    groups: NDArray[np.int64],
    most: int,
    full: NDArray[np.bool_],
) -> None:
    """Move groups between full bundles, in place, until no move gains: the best split.

    The best score of a bundle is concave in its groups, so a split is optimal iff no bundle gains
    more from one group than another loses by one.
    """

    def scores_at(bundles: NDArray, counts: NDArray) -> NDArray[np.float64]:
        rows = position.reshape(-1, config.rows)[bundles].reshape(-1)
        legal = np.clip(counts, 0, most)
        found = np.zeros((rows.size, config.lanes), dtype=np.int64)
        _solve_bundles(ranked, rows, legal, config.rows, config.lanes_per_row, found)
        values = np.zeros(len(bundles))
        _kept_scores(ranked, rows, config.rows, found, values)
        return np.where(legal == counts, values, -np.inf)

    bundles = np.flatnonzero(full)
    if len(bundles) < 2:
        return
    value = scores_at(bundles, groups[bundles])
    gain = scores_at(bundles, groups[bundles] + 1) - value
    loss = value - scores_at(bundles, groups[bundles] - 1)
    while True:
        to, source = int(np.argmax(gain)), int(np.argmin(loss))
        if to == source or not gain[to] > loss[source] * (1.0 + 1e-12):
            return
        groups[bundles[to]] += 1
        groups[bundles[source]] -= 1
        loss[to], gain[source] = gain[to], loss[source]
        changed = bundles[[to, source]]
        value = scores_at(changed, groups[changed])
        gain[to] = scores_at(changed[:1], groups[changed[:1]] + 1)[0] - value[0]
        loss[source] = value[1] - scores_at(changed[1:], groups[changed[1:]] - 1)[0]


@njit(cache=True, parallel=True)
def _kept_scores(ranked, position, rows, counts, values):
    for bundle in prange(values.size):
        total = 0.0
        for slot in range(bundle * rows, (bundle + 1) * rows):
            row = position[slot]
            for bank in range(counts.shape[1]):
                for rank in range(counts[slot, bank]):
                    total += ranked[row, rank, bank]
        values[bundle] = total


@njit(cache=True)
def _best_move(ranked, count, source, target, n_rows):
    """Largest gain of moving one block of any row from bank ``source`` to ``target``."""
    best, best_row = -np.inf, -1
    n_words = ranked.shape[1]
    for row in range(n_rows):
        taken, free = count[row, source], count[row, target]
        if taken > 0 and free < n_words:
            gain = ranked[row, free, target] - ranked[row, taken - 1, source]
            if gain > best:
                best, best_row = gain, row
    return best, best_row


@njit(cache=True)
def _largest(ranked):
    largest = 0.0
    for value in ranked.flat:
        if np.isfinite(value) and abs(value) > largest:
            largest = abs(value)
    return largest


@njit(cache=True)
def _solve_bundle(ranked, n_groups, per_row, count):
    """Exact counts of one bundle: rows keep ``n_groups * per_row`` blocks, banks ``n_groups``.

    ``ranked`` is (rows, words, banks), falling along words; fills ``count`` (rows, banks).
    """
    n_rows, _, n_banks = ranked.shape
    for row in range(n_rows):
        flat = ranked[row].ravel()
        best = np.argsort(-flat, kind="mergesort")
        for index in best[: n_groups * per_row]:
            count[row, index % n_banks] += 1
    surplus = np.zeros(n_banks, dtype=np.int64)
    for bank in range(n_banks):
        surplus[bank] = count[:, bank].sum() - n_groups
    gain = np.full((n_banks, n_banks), -np.inf)
    mover = np.full((n_banks, n_banks), -1, dtype=np.int64)
    for source in range(n_banks):
        for target in range(n_banks):
            if source != target:
                gain[source, target], mover[source, target] = _best_move(
                    ranked, count, source, target, n_rows
                )
    reach = np.empty(n_banks)
    came = np.empty(n_banks, dtype=np.int64)
    # A path must gain more than rounding noise, or ties could close a cycle.
    tolerance = 1e-12 * _largest(ranked)
    while True:
        for bank in range(n_banks):
            reach[bank] = 0.0 if surplus[bank] > 0 else -np.inf
            came[bank] = -1
        changed = True
        rounds = 0
        while changed and rounds < n_banks:
            changed = False
            rounds += 1
            for source in range(n_banks):
                if reach[source] == -np.inf:
                    continue
                for target in range(n_banks):
                    total = reach[source] + gain[source, target]
                    if total > reach[target] + tolerance:
                        reach[target] = total
                        came[target] = source
                        changed = True
        end = -1
        for bank in range(n_banks):
            wanting = surplus[bank] < 0 and reach[bank] > -np.inf
            if wanting and (end < 0 or reach[bank] > reach[end]):
                end = bank
        if end < 0:
            return
        surplus[end] += 1
        bank = end
        touched = np.zeros(n_banks, dtype=np.bool_)
        while came[bank] >= 0:
            source = came[bank]
            row = mover[source, bank]
            count[row, source] -= 1
            count[row, bank] += 1
            touched[source] = True
            touched[bank] = True
            bank = source
        surplus[bank] -= 1
        for source in range(n_banks):
            for target in range(n_banks):
                if source != target and (touched[source] or touched[target]):
                    gain[source, target], mover[source, target] = _best_move(
                        ranked, count, source, target, n_rows
                    )


@njit(cache=True, parallel=True)
def _solve_bundles(ranked, position, groups, rows, per_row, counts):
    n_words, n_banks = ranked.shape[1], ranked.shape[2]
    for bundle in prange(groups.size):
        # Rows beyond the matrix score nothing and may take any block: they leave banks room.
        scores = np.zeros((rows, n_words, n_banks))
        count = np.zeros((rows, n_banks), dtype=np.int64)
        for slot in range(rows):
            row = position[bundle * rows + slot]
            if row >= 0:
                scores[slot] = ranked[row]
        _solve_bundle(scores, groups[bundle], per_row, count)
        counts[bundle * rows : (bundle + 1) * rows] = count
