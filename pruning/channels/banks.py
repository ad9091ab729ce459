"""Which channels share a bank, and a block: a good order for some layers that read them.

A balanced mask takes as many blocks from every bank, so what it keeps depends on which channels
share a bank, and with blocks of several channels also on which channels share a block.

The method is ours. Blocks: pairs of channels swap blocks while that brings channels closer
together that the same rows want, by the inner product of clipped scores. Banks: the blocks above
the layer's threshold are counted by (bundle, channel); channels start in snake order of their
counts, or as they are where that is better, and pairs swap banks while that lowers the sum over
(bundle, bank) of squared counts. Both are one search, the steepest swap of each channel in turn,
on the Gram matrix of the channels, in which a swap is judged in a few operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import consecutive_rows, scatter_rows
from gshw.errors import GshwError
from pruning.patterns.pattern import RowGrouping, ScoredMatrix, check_sparsity, kept_count

_CHUNK = 1024
"""Channels that swap among each other: the Gram matrix grows with the square of this."""

_N_SWEEPS = 50
"""Limit; the searches measured ended by themselves after 3 to 12."""

_CODES = 64
"""Steps of a score between 0 and the threshold: whole numbers add up alike in any order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A layer whose input channels, or some of them, are dealt.

    Parameters
    ----------
    matrix
        Its scores, columns as they are now.
    sparsity
        That it will be pruned to.
    channel
        Shape (n_columns,), int: which of the dealt channels each column holds, each as often as
        any other, -1 for a column that stays where it is. None: the layer's input channels are
        the dealt ones.

    Raises
    ------
    GshwError
        For an unfolded layer, a sparsity out of range or channels that do not match.
    """

    matrix: ScoredMatrix
    sparsity: float
    channel: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        name, geometry = self.matrix.name, self.matrix.geometry
        if geometry.unfold:
            raise GshwError(f"layer {name!r}: {UNFOLDED}")
        if self.channel is None:
            default = np.arange(geometry.n_columns) % geometry.in_channels
            object.__setattr__(self, "channel", default)
        times = np.bincount(self._channel[self._channel >= 0])
        if self._channel.shape != (geometry.n_columns,) or not times.size or np.ptp(times):
            raise GshwError(
                f"layer {name!r}: channel must say for each of {geometry.n_columns} columns which "
                f"dealt channel it holds, each as often, not {self.channel}"
            )

    @property
    def _channel(self) -> NDArray[np.int64]:
        assert self.channel is not None
        return self.channel

    @property
    def n_channels(self) -> int:
        return int(self._channel.max()) + 1

    @property
    def views(self) -> NDArray[np.int64]:
        """Columns of every channel, shape (n_views, n_channels): one view per tap or pixel."""
        own = np.flatnonzero(self._channel >= 0)
        own = own[np.argsort(self._channel[own], kind="stable")]
        return own.reshape(self.n_channels, -1).T


UNFOLDED = (
    "unfolded: its columns are (tap, channel) pairs that the driver lays out, "
    "so the order of its input channels decides no bank"
)


def deal_columns(
    config: EngineConfig, readers: Sequence[Reader], grouping: RowGrouping = RowGrouping.SCATTER
) -> NDArray[np.int64]:
    """A good order for the channels that some layers read.

    Parameters
    ----------
    readers
        All layers that read the channels; a convolution moves whole channels, with all taps.
    grouping
        How the pattern will group rows into bundles. An engine with ``rows = 1`` has none.

    Returns
    -------
    ndarray
        Shape (n_channels,): place p of the new order holds what is channel ``order[p]`` now.
        Deterministic. The present order where no better one is found.

    Raises
    ------
    GshwError
        Without a reader, or for readers of different numbers of channels.
    """
    sizes = sorted({reader.n_channels for reader in readers})
    if len(sizes) != 1:
        raise GshwError(f"dealing needs readers of one number of channels, not of {sizes}")
    n_channels, block = sizes[0], config.block
    order = np.arange(n_channels) if block == 1 else _form_blocks(block, readers)
    n_blocks = n_channels // block
    cells = [_bank_counts(config, reader, order, grouping) for reader in readers]
    counts = np.concatenate([c for c, _ in cells])
    fixed = np.concatenate([f for _, f in cells])
    dealt = _deal_blocks(config.lanes, counts, fixed)
    # A last, shorter block keeps its place.
    whole = order[: n_blocks * block].reshape(n_blocks, block)[dealt]
    return np.concatenate([whole.reshape(-1), order[n_blocks * block :]])


def _threshold(scores: NDArray, sparsity: float) -> float:
    """The smallest score among the largest, as many as are kept."""
    n_kept = max(1, kept_count(scores.size, sparsity))
    return float(np.partition(scores.reshape(-1), scores.size - n_kept)[scores.size - n_kept])


def _form_blocks(block: int, readers: Sequence[Reader]) -> NDArray[np.int64]:
    """Order in which each run of ``block`` channels is wanted by the same rows."""
    codes = np.concatenate([_codes(reader) for reader in readers])
    by_weight = np.argsort(-codes.sum(axis=0, dtype=np.float64), kind="stable")
    n_whole = codes.shape[1] // block * block

    def closeness(order: NDArray) -> float:
        runs = codes[:, order[:n_whole]].reshape(len(codes), -1, block).sum(axis=2)
        return float(np.square(runs, dtype=np.float64).sum())

    order = np.arange(codes.shape[1])
    if closeness(by_weight) > closeness(order):
        order = by_weight
    for start in range(0, order.size, _CHUNK):
        members = order[start : start + _CHUNK]
        own = codes[:, members].astype(np.float64)
        place = np.arange(members.size) // block
        sums = np.add.reduceat(own, np.arange(0, members.size, block), axis=1)
        _swap(-(own.T @ own), -(own.T @ sums), place, _N_SWEEPS)
        order[start : start + _CHUNK] = members[np.argsort(place, kind="stable")]
    return order


def _codes(reader: Reader) -> NDArray[np.float32]:
    """Scores in units of the threshold, at most 2, as codes; shape (n_rows * n_views, n_channels).

    Clipped, or a few large weights would decide alone: they are kept with any neighbours.
    """
    scores = reader.matrix.scores
    threshold = _threshold(scores, reader.sparsity)
    unit = threshold if threshold > 0.0 else 1.0
    codes = np.rint(np.clip(scores / unit, 0.0, 2.0) * _CODES).astype(np.float32)
    views = [codes[:, view] for view in reader.views]
    return np.concatenate(views)


def _bank_counts(
    config: EngineConfig, reader: Reader, order: NDArray, grouping: RowGrouping
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How many blocks above the threshold each (bundle, dealt block) has, and what is fixed.

    Where taps, pixels or parts of a concatenation start at different banks, each start counts as
    bundles of its own: then every one is to be balanced, which balances their sum. Channels that
    do not start at a block's start cannot be dealt as blocks, and are counted as fixed.

    Returns
    -------
    counts
        Shape (n_starts * n_bundles, n_blocks).
    fixed
        Shape (n_starts * n_bundles, lanes): by bank, of the columns that stay.
    """
    geometry, lanes, block = reader.matrix.geometry, config.lanes, config.block
    source = np.arange(geometry.n_columns)
    for view in reader.views:
        source[view] = view[order]
    scores = geometry.to_blocks(config, reader.matrix.scores[:, source])
    scores = scores.sum(axis=3).reshape(len(scores), -1)
    label = geometry.to_blocks(config, reader._channel[None] + 1)[0].reshape(-1, block)
    real = np.flatnonzero(geometry.to_blocks(config, np.ones_like(source)[None])[0].any(axis=2))
    above = np.zeros(scores.shape, dtype=np.int32)
    above[:, real] = scores[:, real] >= _threshold(scores[:, real], reader.sparsity)
    rows = np.arange(0, len(scores), config.rows)
    scatter = grouping is RowGrouping.SCATTER and config.rows > 1
    bundled = scatter_rows(above.sum(axis=1)) if scatter else consecutive_rows(len(scores))
    bundles = np.add.reduceat(above[bundled], rows, axis=0)

    n_blocks = reader.n_channels // block
    first = label[:, 0] - 1
    whole = (label == label[:, :1] + np.arange(block)).all(axis=1)
    own = whole & (first >= 0) & (first % block == 0)
    number = np.where(own, first // block, -1)
    bank = np.arange(len(label)) % lanes
    start = (bank - number) % lanes
    counts = [np.zeros((0, n_blocks), dtype=np.int32)]
    moved = np.zeros(len(label), dtype=bool)
    starts = []
    for value in np.unique(start[own]):
        words = np.flatnonzero(own & (start == value))
        times = np.bincount(number[words], minlength=n_blocks)
        if np.ptp(times) == 0:
            words = words[np.argsort(number[words], kind="stable")]
            counts.append(bundles[:, words].reshape(len(bundles), n_blocks, -1).sum(axis=2))
            moved[words] = True
            starts.append(value)
    still = np.where(moved, 0, bundles).reshape(len(bundles), -1, lanes).sum(axis=1)
    fixed = [np.zeros((0, lanes), dtype=np.int32)]
    fixed += [np.roll(still, -value, axis=1) for value in starts]
    return np.concatenate(counts), np.concatenate(fixed)


def _deal_blocks(lanes: int, counts: NDArray, fixed: NDArray) -> NDArray[np.int64]:
    """Order of the blocks, of which number b goes to bank b % lanes; see the module."""
    n_blocks = counts.shape[1]
    present = np.arange(n_blocks) % lanes
    by_count = np.argsort(-counts.sum(axis=0, dtype=np.int64), kind="stable")
    turn, lane = np.divmod(np.arange(n_blocks), lanes)
    in_turn = np.minimum(lanes, n_blocks - turn * lanes)
    snake = np.empty(n_blocks, dtype=np.int64)
    snake[by_count] = np.where(turn % 2 == 0, lane, in_turn - 1 - lane)

    def loads(bank: NDArray) -> NDArray[np.float64]:
        return counts @ np.eye(lanes)[bank] + fixed

    def squares(bank: NDArray) -> float:
        return float(np.square(loads(bank)).sum())

    bank = snake if squares(snake) < squares(present) else present.copy()
    n_chunks = -(-n_blocks // _CHUNK)
    for chunk in range(n_chunks):
        # Every chunk has channels of all weights.
        members = by_count[chunk::n_chunks]
        own = counts[:, members].astype(np.float64)
        place = bank[members]
        _swap(own.T @ own, own.T @ loads(bank), place, _N_SWEEPS)
        bank[members] = place
    order = np.empty(n_blocks, dtype=np.int64)
    order[np.argsort(present, kind="stable")] = np.argsort(bank, kind="stable")
    return order


@njit(cache=True)
def _swap(gram, loads, place, n_sweeps):
    """Swap the places of pairs of members while that lowers the sum of squared loads; in place.

    A member is a vector, a load the sum of a place's members (and of something fixed).

    Parameters
    ----------
    gram
        Shape (n_members, n_members): inner products of the members. Negated, with ``loads``, the
        sum of squares rises instead. Whole numbers, so that no rounding can make a cycle.
    loads
        Shape (n_members, n_places): inner products of members and loads.
    place
        Shape (n_members,).
    """
    n_members = place.size
    for _ in range(n_sweeps):
        done = True
        for i in range(n_members):
            a = place[i]
            best, partner = 0.0, -1
            for j in range(n_members):
                b = place[j]
                if a != b:
                    change = loads[i, b] - loads[i, a] + loads[j, a] - loads[j, b]
                    change += gram[i, i] + gram[j, j] - 2.0 * gram[i, j]
                    if change < best:
                        best, partner = change, j
            if partner >= 0:
                b = place[partner]
                for member in range(n_members):
                    step = gram[i, member] - gram[partner, member]
                    loads[member, a] -= step
                    loads[member, b] += step
                place[i], place[partner] = b, a
                done = False
        if done:
            return
