"""The neighbours' patterns that budget every row, bank or processing element by itself."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix, kept_count
from pruning.patterns.selection import check_counts, finish, largest, largest_in_rows, plain


@dataclass(frozen=True, kw_only=True)
class BankBalanced(Pattern):
    """Every row is cut into equal runs of columns, its banks; the same top n survive in each.

    Where the columns are no multiple of the banks, the first banks hold one column more, and a bank
    with n columns or fewer is kept whole. The step is one weight in every bank of every row: at
    most as many weights as wanted are kept, and fewer by less than that.
    Source: bank-balanced sparsity (Cao et al., FPGA 2019).

    Parameters
    ----------
    n_banks
        Banks of a row.
    """

    kind: ClassVar[str] = "bank-balanced"
    n_banks: int = 16

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"bank-balanced, {self.n_banks} banks"

    def refusal(self, n_rows: int, geometry: Geometry) -> str | None:
        if geometry.n_columns < self.n_banks:
            return f"{self.label} needs a column for every bank, not {geometry.n_columns} columns"
        return None

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        scores = plain(matrix.scores)
        n_rows, n_columns = scores.shape
        width, n_wider = divmod(n_columns, self.n_banks)
        per_row = kept_count(scores.size, sparsity) // n_rows
        n_kept = min(per_row // self.n_banks, width)
        if per_row == n_columns:
            n_kept = width + 1
        # Runs of width + 1 columns come first, then those of width.
        cut = n_wider * (width + 1)
        mask = np.empty(scores.shape, dtype=bool)
        for columns, run in ((slice(0, cut), width + 1), (slice(cut, None), width)):
            part = scores[:, columns]
            mask[:, columns] = largest_in_rows(part.reshape(-1, run), n_kept).reshape(part.shape)
        return finish(self, matrix, mask, sparsity, n_rows * self.n_banks)


@dataclass(frozen=True, kw_only=True)
class NOfM(Pattern):
    """Of every ``group_size`` consecutive columns of a row, the same n survive.

    n follows from the sparsity. A last group with fewer columns keeps its share of n, rounded
    down. The step is one weight in every group of every row: at most as many weights as wanted are
    kept, and fewer by less than that. Source: NVIDIA's 2:4 (Mishra et al. 2021, arXiv 2104.08378).

    Parameters
    ----------
    group_size
        The M of N:M.
    """

    kind: ClassVar[str] = "n-of-m"
    group_size: int = 4

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"n of {self.group_size}"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        scores = plain(matrix.scores)
        n_rows, n_columns = scores.shape
        n_groups, rest = divmod(n_columns, self.group_size)
        n = np.arange(self.group_size + 1)
        per_row = n_groups * n + n * rest // self.group_size
        wanted = kept_count(scores.size, sparsity)
        n_kept = int(np.searchsorted(per_row * n_rows, wanted, side="right")) - 1
        cut = n_groups * self.group_size
        mask = np.empty(scores.shape, dtype=bool)
        groups = largest_in_rows(scores[:, :cut].reshape(-1, self.group_size), n_kept)
        mask[:, :cut] = groups.reshape(n_rows, cut)
        mask[:, cut:] = largest_in_rows(scores[:, cut:], n_kept * rest // self.group_size)
        return finish(self, matrix, mask, sparsity, n_rows * int(per_row[per_row > 0][0]))


@dataclass(frozen=True, kw_only=True)
class PeBalanced(Pattern):
    """Rows are dealt to processing elements in turn; each element keeps the same share.

    Keeps exactly as many weights as wanted; every element is within one weight of its share.
    Source: ESE (Han et al., FPGA 2017), arXiv 1612.00694.

    Parameters
    ----------
    n_pes
        Processing elements: row r belongs to element ``r % n_pes``.
    """

    kind: ClassVar[str] = "pe-balanced"
    n_pes: int = 32

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"balanced over {self.n_pes} PEs"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        scores = plain(matrix.scores)
        wanted = kept_count(scores.size, sparsity)
        n_pes = min(self.n_pes, matrix.n_rows)
        sizes = [scores[pe::n_pes].size for pe in range(n_pes)]
        shares = [divmod(size * wanted, scores.size) for size in sizes]
        n_short = wanted - sum(share for share, _ in shares)
        by_remainder = sorted(range(n_pes), key=lambda pe: (-shares[pe][1], pe))
        mask = np.empty(scores.shape, dtype=bool)
        for rank, pe in enumerate(by_remainder):
            mask[pe::n_pes] = largest(scores[pe::n_pes], shares[pe][0] + (rank < n_short))
        return finish(self, matrix, mask, sparsity, 1)


@dataclass(frozen=True, kw_only=True)
class DensityAdaptive(Pattern):
    """One maximum per block of a row; the sparser the row, the longer its blocks (DARB).

    A row's count above the layer's threshold decides the length of its blocks; the last block may
    be shorter. Lengths round up, then the rows that lost most of a step get the next shorter
    length while the budget lasts. Keeps at most as many weights as wanted, and fewer by less than
    one row's step to the next shorter length. Source: DARB (Ren et al., AAAI 2020).
    """

    kind: ClassVar[str] = "density-adaptive"

    @property
    def label(self) -> str:
        return "density-adaptive blocks"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        scores = plain(matrix.scores)
        wanted = kept_count(scores.size, sparsity)
        above = np.count_nonzero(largest(scores, wanted), axis=1)
        length = _block_lengths(above, wanted, matrix.n_columns)
        mask = np.zeros(scores.shape, dtype=bool)
        for value in np.unique(length[length > 0]):
            rows = np.flatnonzero(length == value)
            mask[rows] = _block_maxima(scores[rows], int(value))
        return finish(self, matrix, mask, sparsity, 1)


def _block_lengths(above: NDArray[np.int64], wanted: int, n_columns: int) -> NDArray[np.int64]:
    """Length of each row's blocks, 0 where the row keeps nothing.

    Of the lengths with equally many blocks the shortest is used, so a mask's counts tell them.
    """
    length = -(-n_columns // np.maximum(above, 1))
    n_blocks = np.where(above > 0, -(-n_columns // length), 0)
    next_blocks = np.where(above > 0, -(-n_columns // np.maximum(length - 1, 1)), 1)
    cost = np.maximum(next_blocks - n_blocks, 1)
    order = np.argsort(-(above - n_blocks) / cost, kind="stable")
    fits = np.cumsum(cost[order]) <= wanted - n_blocks.sum()
    chosen = order[fits]
    n_blocks[chosen] = next_blocks[chosen]
    return np.where(n_blocks > 0, -(-n_columns // np.maximum(n_blocks, 1)), 0)


def _block_maxima(scores: NDArray, length: int) -> NDArray[np.bool_]:
    """True at the maximum of every ``length`` columns of each row."""
    n_rows, n_columns = scores.shape
    n_blocks = -(-n_columns // length)
    padded = np.full((n_rows, n_blocks * length), -np.inf, dtype=scores.dtype)
    padded[:, :n_columns] = scores
    best = padded.reshape(n_rows, n_blocks, length).argmax(axis=2) + np.arange(n_blocks) * length
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, best, True, axis=1)
    return mask


@dataclass(frozen=True, kw_only=True)
class Polarised(Pattern):
    """All weights of a fragment have one sign: the minority sign goes (FORMS).

    A crossbar column holds one output's weights, so its sub-column is a run of ``fragment`` columns
    of a row here; the last may be shorter. A fragment takes the sign whose weights score more in
    sum, positive on a tie; of the weights with that sign (or zero) the largest of the layer
    survive. Keeps exactly as many as wanted where so many have their fragment's sign, else all that
    have it. Signs are those at the time of the projection: training that follows may turn a kept
    weight's. Source: FORMS (Yuan et al., ISCA 2021), arXiv 2106.09144.

    Parameters
    ----------
    fragment
        Weights that share a sign.
    """

    kind: ClassVar[str] = "polarised"
    fragment: int = 8

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"polarised fragments of {self.fragment}"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        if matrix.weights is None:
            raise GshwError(f"layer {matrix.name!r}: {self.label} need the weights, not None")
        scores = plain(matrix.scores)
        weights = matrix.weights
        sums = np.add.reduceat(
            np.where(weights < 0, -scores, scores) * (weights != 0),
            np.arange(0, matrix.n_columns, self.fragment),
            axis=1,
            dtype=np.float64,
        )
        positive = np.repeat(sums >= 0, self.fragment, axis=1)[:, : matrix.n_columns]
        candidates = np.flatnonzero(np.where(positive, weights >= 0, weights <= 0))
        wanted = min(kept_count(scores.size, sparsity), candidates.size)
        mask = np.zeros(scores.size, dtype=bool)
        mask[candidates[largest(scores.reshape(-1)[candidates], wanted)]] = True
        return finish(self, matrix, mask.reshape(scores.shape), sparsity, 1)
