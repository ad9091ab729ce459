"""The neighbours' patterns, as projections: weights, blocks and tiles anywhere in the matrix.

Patterns with a budget per row are in :mod:`pruning.patterns.neighbours_rows`, those of convolution
kernels in :mod:`pruning.patterns.neighbours_kernels`. Every pattern refuses a sparsity at which
nothing is left.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix, check_sparsity, kept_count
from pruning.patterns.selection import (
    check_counts,
    finish,
    largest,
    largest_groups,
    plain,
    spread_tiles,
    tile_means,
)


@dataclass(frozen=True, kw_only=True)
class Unstructured(Pattern):
    """The largest scores, anywhere; exactly as many as wanted.

    Source: Han et al. 2015, arXiv 1506.02626.
    """

    kind: ClassVar[str] = "unstructured"

    @property
    def label(self) -> str:
        return "unstructured"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        mask = largest(plain(matrix.scores), kept_count(matrix.scores.size, sparsity))
        return finish(self, matrix, mask, sparsity, 1)

    def project_all(self, matrices: list[ScoredMatrix], sparsity: float) -> list[Projection]:
        """The largest scores of all matrices together; ties go to the earlier matrix.

        Raises
        ------
        GshwError
            For a sparsity out of range, or one that empties a matrix.
        """
        check_sparsity(sparsity)
        if not matrices:
            return []
        scores = np.concatenate([plain(matrix.scores).reshape(-1) for matrix in matrices])
        kept = largest(scores, kept_count(scores.size, sparsity))
        ends = np.cumsum([matrix.scores.size for matrix in matrices])
        return [
            finish(self, matrix, part.reshape(matrix.scores.shape), sparsity, 1)
            for matrix, part in zip(matrices, np.split(kept, ends[:-1]), strict=True)
        ]


def _best_tiles(
    values: NDArray, height: int, width: int, n_weights: int
) -> tuple[NDArray[np.bool_], int]:
    """Mask of the tiles with the largest means, and the size of the largest tile."""
    parts = values[:, None, :]
    means, sizes = tile_means(parts, height, width)
    kept = largest_groups(means, sizes, n_weights)
    return spread_tiles(kept, height, width, parts.shape)[:, 0], int(sizes.max())


@dataclass(frozen=True, kw_only=True)
class Block(Pattern):
    """Aligned blocks of the flattened matrix, kept or dropped whole by their summed score.

    Blocks cut by the matrix's edge are smaller, and are compared by their mean. Keeps fewer weights
    than wanted by less than one block. Source: Narang et al. 2017, arXiv 1711.02782.

    Parameters
    ----------
    height, width
        Rows and columns of a block.
    """

    kind: ClassVar[str] = "block"
    height: int = 1
    width: int = 16

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"{self.height} x {self.width} blocks"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        wanted = kept_count(matrix.scores.size, sparsity)
        mask, size = _best_tiles(matrix.scores, self.height, self.width, wanted)
        return finish(self, matrix, mask, sparsity, size)


@dataclass(frozen=True, kw_only=True)
class SimdVector(Pattern):
    """Aligned runs of the SIMD width along a row, kept or dropped whole by their RMS.

    The last run of a row may be shorter. Keeps fewer weights than wanted by less than one run.
    Source: Scalpel (Yu et al., ISCA 2017).

    Parameters
    ----------
    width
        Weights in a SIMD register.
    """

    kind: ClassVar[str] = "simd-vector"
    width: int = 8

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"SIMD vectors of {self.width}"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        wanted = kept_count(matrix.scores.size, sparsity)
        mask, size = _best_tiles(_squares(matrix), 1, self.width, wanted)
        return finish(self, matrix, mask, sparsity, size)


@dataclass(frozen=True, kw_only=True)
class Node(Pattern):
    """Whole output neurons or feature maps, by the RMS of their rows.

    Keeps fewer weights than wanted by less than one row. Source: Scalpel (Yu et al., ISCA 2017).
    """

    kind: ClassVar[str] = "node"

    @property
    def label(self) -> str:
        return "whole rows"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        wanted = kept_count(matrix.scores.size, sparsity)
        mask, size = _best_tiles(_squares(matrix), 1, matrix.n_columns, wanted)
        return finish(self, matrix, mask, sparsity, size)


def _squares(matrix: ScoredMatrix) -> NDArray[np.float64]:
    return np.square(matrix.scores, dtype=np.float64)


# --- sub-rows and sub-columns of tiles ---------------------------------------------------------


@dataclass(frozen=True)
class _Tiles:
    """A matrix in tiles, those at the edges padded.

    Parameters
    ----------
    squares
        Shape (n_tiles, height, width), 0 in the padding.
    rows, columns
        Shapes (n_tiles, height) and (n_tiles, width): which sub-rows and sub-columns remain.
    """

    squares: NDArray[np.float64]
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]

    @staticmethod
    def cut(squares: NDArray[np.float64], height: int, width: int) -> "_Tiles":
        n_rows, n_columns = squares.shape
        high, wide = -(-n_rows // height), -(-n_columns // width)
        padded = np.zeros((high * height, wide * width))
        padded[:n_rows, :n_columns] = squares
        tiles = padded.reshape(high, height, wide, width).swapaxes(1, 2)
        rows = (np.arange(high * height) < n_rows).reshape(high, 1, height)
        columns = (np.arange(wide * width) < n_columns).reshape(1, wide, width)
        return _Tiles(
            squares=tiles.reshape(-1, height, width),
            rows=np.repeat(rows, wide, axis=1).reshape(-1, height),
            columns=np.repeat(columns, high, axis=0).reshape(-1, width),
        )

    @property
    def n_kept(self) -> int:
        return int((self.rows.sum(axis=1) * self.columns.sum(axis=1)).sum())

    def mask(self, n_rows: int, n_columns: int) -> NDArray[np.bool_]:
        kept = self.rows[:, :, None] & self.columns[:, None, :]
        _, height, width = kept.shape
        wide = -(-n_columns // width)
        matrix = kept.reshape(-1, wide, height, width).swapaxes(1, 2)
        return matrix.reshape(-1, wide * width)[:n_rows, :n_columns]


@dataclass(frozen=True, kw_only=True)
class _TiledLines(Pattern):
    """In each tile, the crossing of some rows and some columns survives.

    Keeps fewer weights than wanted by less than the longer side of a tile.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        check_counts(self)

    @abstractmethod
    def _thin(self, tiles: _Tiles, wanted: int) -> None:
        """Drop lines, in place, until at most ``wanted`` weights remain."""

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        n_rows, n_columns = matrix.scores.shape
        tiles = _Tiles.cut(_squares(matrix), min(self.height, n_rows), min(self.width, n_columns))
        self._thin(tiles, kept_count(matrix.scores.size, sparsity))
        longest = max(tiles.squares.shape[1:])
        return finish(self, matrix, tiles.mask(n_rows, n_columns), sparsity, longest)


@dataclass(frozen=True, kw_only=True)
class BlockColumnRow(_TiledLines):
    """In every tile, whole sub-columns go and then whole sub-rows, by the RMS of what remains.

    Both steps keep the same share of the layer; tiles may differ. Lines that score nothing go
    first. Tiles cut by the matrix's edge are smaller. Keeps fewer weights than wanted by less than
    the longer side of a tile. Source: GRIM (Niu et al. 2021), arXiv 2108.11033.

    Parameters
    ----------
    height, width
        Rows and columns of a tile.
    """

    kind: ClassVar[str] = "block-column-row"
    height: int = 4
    width: int = 16

    @property
    def label(self) -> str:
        return f"columns, then rows of {self.height} x {self.width} tiles"

    def _thin(self, tiles: _Tiles, wanted: int) -> None:
        squares = tiles.squares
        for limit in (0.0, np.inf):
            share = wanted if limit == 0.0 else int(math.sqrt(wanted * tiles.n_kept))
            high = tiles.rows.sum(axis=1, keepdims=True)
            worth = np.einsum("thw,th->tw", squares, tiles.rows) / np.maximum(high, 1)
            _drop(tiles.columns, worth, high, limit, tiles.n_kept - share)
            wide = tiles.columns.sum(axis=1, keepdims=True)
            worth = np.einsum("thw,tw->th", squares, tiles.columns) / np.maximum(wide, 1)
            _drop(tiles.rows, worth, wide, limit, tiles.n_kept - wanted)


def _drop(
    lines: NDArray[np.bool_],
    worth: NDArray[np.float64],
    length: NDArray[np.int64],
    limit: float,
    n_weights: int,
) -> None:
    """Drop the lines of least worth, in place, until ``n_weights`` are gone.

    Parameters
    ----------
    lines, worth
        Shape (n_tiles, lines of a tile).
    length
        Shape (n_tiles, 1): weights of a line.
    limit
        Lines worth more stay in any case.
    """
    if n_weights <= 0:
        return
    flat = lines.reshape(-1)
    # Backwards, so that of equal lines the later ones go.
    candidates = np.flatnonzero((lines & (worth <= limit)).reshape(-1))[::-1]
    order = candidates[np.argsort(worth.reshape(-1)[candidates], kind="stable")]
    gone = np.cumsum(np.broadcast_to(length, lines.shape).reshape(-1)[order])
    flat[order[: np.searchsorted(gone, n_weights) + 1]] = False


@dataclass(frozen=True, kw_only=True)
class RowColumn(_TiledLines):
    """In every tile, rows and columns go by their l2 norm, whichever is worth least.

    The line with the least RMS of all tiles goes next, measured over what remains of it, until no
    more weights than wanted are left. Tiles cut by the matrix's edge are smaller. Keeps fewer
    weights than wanted by less than the longer side of a tile.
    Source: block-structured pruning of BERT (Li et al. 2020), arXiv 2009.08065.

    Parameters
    ----------
    height, width
        Rows and columns of a tile.
    """

    kind: ClassVar[str] = "row-column"
    height: int = 16
    width: int = 16

    @property
    def label(self) -> str:
        return f"rows and columns of {self.height} x {self.width} tiles"

    def _thin(self, tiles: _Tiles, wanted: int) -> None:
        excess = tiles.n_kept - wanted
        if excess <= 0:
            return
        worth, length, line = _removals(tiles)
        # Tiles do not touch each other, so the next line of the matrix is the least of the tiles'
        # next lines: a line worth less than one before it in its tile follows it at once.
        rank = np.maximum.accumulate(worth, axis=1)[::-1]
        order = np.argsort(rank, axis=None, kind="stable")
        gone = np.cumsum(length[::-1].reshape(-1)[order])
        order = order[: np.searchsorted(gone, excess) + 1]
        n_tiles, n_lines = worth.shape
        n_gone = np.bincount(order // n_lines, minlength=n_tiles)[::-1]
        tile, step = np.nonzero(np.arange(n_lines) < n_gone[:, None])
        dropped = line[tile, step]
        height = tiles.rows.shape[1]
        is_row = dropped < height
        tiles.rows[tile[is_row], dropped[is_row]] = False
        tiles.columns[tile[~is_row], dropped[~is_row] - height] = False


def _removals(
    tiles: _Tiles,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The order in which the lines of every tile go when the least goes first.

    Returns
    -------
    worth, length, line
        Shape (n_tiles, height + width), by step: mean square of the line that goes, the weights
        left in it (0 in a tile that is empty) and its number, rows before columns.
    """
    squares, (n_tiles, height, width) = tiles.squares, tiles.squares.shape
    n_lines = height + width
    alive = np.concatenate([tiles.rows, tiles.columns], axis=1)
    sums = np.concatenate([squares.sum(axis=2), squares.sum(axis=1)], axis=1)
    worth, length = np.empty((n_tiles, n_lines)), np.empty((n_tiles, n_lines), dtype=np.int64)
    line = np.empty((n_tiles, n_lines), dtype=np.int64)
    tile = np.arange(n_tiles)
    for step in range(n_lines):
        high, wide = alive[:, :height].sum(axis=1), alive[:, height:].sum(axis=1)
        lengths = np.repeat(np.stack([wide, high], axis=1), (height, width), axis=1)
        means = np.where(alive, sums / np.maximum(lengths, 1), np.inf)
        chosen = n_lines - 1 - np.argmin(means[:, ::-1], axis=1)
        worth[:, step], length[:, step] = means[tile, chosen], lengths[tile, chosen]
        length[:, step] *= alive[tile, chosen]
        line[:, step] = chosen
        alive[tile, chosen] = False
        of_row = chosen < height
        rows, columns = tile[of_row], tile[~of_row]
        sums[rows, height:] -= squares[rows, chosen[of_row]]
        sums[columns, :height] -= squares[columns, :, chosen[~of_row] - height]
    return worth, length, line
