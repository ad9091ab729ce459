"""Choosing the largest: of all scores, of every row, or whole groups under a budget of weights.

Selection costs a partition, not a sort. Ties go to the lower index.
"""

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gshw.encoding import scatter_rows
from gshw.errors import GshwError
from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix

_Dtype = TypeVar("_Dtype", bound=np.generic)


def check_counts(pattern: Pattern) -> None:
    """Refuse a parameter that must count something and does not.

    Raises
    ------
    GshwError
        Naming the parameter and its value.
    """
    for field in dataclasses.fields(pattern):
        value = getattr(pattern, field.name)
        if field.type is int and (type(value) is not int or value < 1):
            raise GshwError(f"{field.name} must be an integer of at least 1, not {value!r}")


def plain(scores: NDArray) -> NDArray:
    """Scores as float32 or float64; exact for float16 and for integers up to 2**53."""
    if scores.dtype in (np.float32, np.float64):
        return scores
    return scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)


def largest(values: NDArray, n_kept: int) -> NDArray[np.bool_]:
    """True at the ``n_kept`` largest values of an array of any shape."""
    if n_kept <= 0 or n_kept >= values.size:
        return np.full(values.shape, n_kept > 0)
    flat = values.reshape(-1)
    place = flat.size - n_kept
    threshold = np.partition(flat, place)[place]
    kept = flat >= threshold
    surplus = np.count_nonzero(kept) - n_kept
    if surplus:
        kept[np.flatnonzero(flat == threshold)[-surplus:]] = False
    return kept.reshape(values.shape)


def largest_in_rows(values: NDArray, n_kept: int) -> NDArray[np.bool_]:
    """True at the ``n_kept`` largest values of every row of a matrix."""
    n_columns = values.shape[1]
    if not values.size or n_kept <= 0 or n_kept >= n_columns:
        return np.full(values.shape, n_kept > 0)
    place = n_columns - n_kept
    threshold = np.partition(values, place, axis=1)[:, place, None]
    kept = values >= threshold
    tied = np.flatnonzero(np.count_nonzero(kept, axis=1) > n_kept)
    if tied.size:
        above = values[tied] > threshold[tied]
        equal = values[tied] == threshold[tied]
        room = n_kept - np.count_nonzero(above, axis=1)
        kept[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
    return kept


def largest_groups(
    means: NDArray[np.float64], sizes: NDArray[np.int64], n_weights: int
) -> NDArray[np.bool_]:
    """Groups in falling order of their mean, until the next does not fit.

    Parameters
    ----------
    means, sizes
        Of one shape: what a weight of each group is worth on average, and how many it has.
    n_weights
        Budget: at most as many are kept, and fewer by less than one group.
    """
    most, least = int(sizes.max()), int(sizes.min())
    if most == least:
        return largest(means, n_weights // most)
    flat = means.reshape(-1)
    candidates = np.flatnonzero(largest(flat, n_weights // least))
    order = candidates[np.argsort(-flat[candidates], kind="stable")]
    filled = np.cumsum(sizes.reshape(-1)[order])
    kept = np.zeros(flat.size, dtype=bool)
    kept[order[: np.searchsorted(filled, n_weights, side="right")]] = True
    return kept.reshape(means.shape)


def _extents(n: int, length: int) -> NDArray[np.int64]:
    """Lengths of the pieces of ``n`` things cut every ``length``; the last may be shorter."""
    return np.diff(np.append(np.arange(0, n, length), n))


def tile_means(
    values: NDArray, height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean and size of every tile of ``height`` rows and ``width`` of the last axis.

    Parameters
    ----------
    values
        Shape (n_rows, n_parts, n): tiles never span two parts. Tiles at the end may be smaller.

    Returns
    -------
    means, sizes
        Shape (ceil(n_rows / height), n_parts, ceil(n / width)).
    """
    n_rows, _, n = values.shape
    sums = np.add.reduceat(values, np.arange(0, n, width), axis=2, dtype=np.float64)
    sums = np.add.reduceat(sums, np.arange(0, n_rows, height), axis=0)
    area = np.multiply.outer(_extents(n_rows, height), _extents(n, width))
    sizes = np.broadcast_to(area[:, None, :], sums.shape)
    return sums / sizes, sizes


def spread_tiles(
    kept: NDArray[_Dtype], height: int, width: int, shape: tuple[int, int, int]
) -> NDArray[_Dtype]:
    """What :func:`tile_means` took together, apart again: one value per weight.

    Parameters
    ----------
    shape
        Of the values that were cut into tiles.
    """
    rows = np.repeat(kept, height, axis=0)[: shape[0]]
    return np.repeat(rows, width, axis=2)[:, :, : shape[2]]


def finish(
    pattern: Pattern,
    matrix: ScoredMatrix,
    mask: NDArray[np.bool_],
    sparsity: float,
    n_fewest: int,
    row_order: NDArray[np.int64] | None = None,
) -> Projection:
    """A projection from a mask, its rows in bundles of similar counts.

    Parameters
    ----------
    n_fewest
        Weights that surely suffice for a mask that is not empty.
    row_order
        The bundles, where the pattern has its own.

    Raises
    ------
    GshwError
        For an empty mask: the sparsity is beyond what the pattern can do.
    """
    if not mask.any():
        highest = max(0.0, 1.0 - n_fewest / mask.size)
        raise GshwError(
            f"layer {matrix.name!r}: sparsity must be at most {highest:g}, where "
            f"{pattern.label} keeps {n_fewest} of {mask.size} weights, not {sparsity:g}"
        )
    if row_order is None:
        row_order = matrix.row_order
    if row_order is None:
        row_order = scatter_rows(np.count_nonzero(mask, axis=1))
    mask = np.require(mask, requirements=["C", "W"])
    kept = float(matrix.scores[mask].sum(dtype=np.float64))
    return Projection(mask=mask, row_order=np.asarray(row_order, dtype=np.int64), kept_score=kept)
