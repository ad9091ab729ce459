"""What every pattern has in common: a scored matrix in, a mask and its bundles out."""

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError
from gshw.geometry import Geometry


class RowGrouping(enum.Enum):
    """Which rows share a bundle."""

    CONSECUTIVE = "consecutive"
    SCATTER = "scatter"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredMatrix:
    """One weight matrix, and what each weight is worth.

    Parameters
    ----------
    name
        Of the weight in its model; named in errors.
    scores
        Shape (n_rows, n_columns), float32 or float64, finite; the larger, the rather kept.
    geometry
        The window: columns are ordered (kernel row, kernel column, input channel).
    weights
        Shape (n_rows, n_columns): the weights themselves, for patterns that look at signs.
    row_order
        Keep these bundles instead of grouping the rows anew. Shape (n_rows,), a permutation.

    Raises
    ------
    GshwError
        For NaN or infinite scores, another shape, no weight at all, or a row order that is no
        permutation.
    """

    name: str
    scores: NDArray
    geometry: Geometry
    weights: NDArray | None = None
    row_order: NDArray | None = None

    def __post_init__(self) -> None:
        scores = self.scores
        if scores.ndim != 2 or not scores.size or scores.shape[1] != self.geometry.n_columns:
            raise GshwError(
                f"layer {self.name!r}: scores must have shape (rows, {self.geometry.n_columns}), "
                f"not {scores.shape}"
            )
        check_finite(self.name, scores)
        if self.weights is not None and self.weights.shape != scores.shape:
            raise GshwError(
                f"layer {self.name!r}: weights must have the scores' shape {scores.shape}, "
                f"not {self.weights.shape}"
            )
        if self.row_order is not None and not np.array_equal(
            np.sort(self.row_order), np.arange(len(scores))
        ):
            raise GshwError(
                f"layer {self.name!r}: row order must be a permutation of the {len(scores)} rows"
            )

    @property
    def n_rows(self) -> int:
        return self.scores.shape[0]

    @property
    def n_columns(self) -> int:
        return self.scores.shape[1]


def check_finite(name: str, scores: NDArray) -> None:
    """Refuse scores that cannot be ordered, naming the layer and the first place.

    Raises
    ------
    GshwError
        For NaN or infinite scores.
    """
    # A sum is finite only if all its terms are; it may overflow without any being infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        total = scores.sum(dtype=np.float64)
    if not np.isfinite(total) and not np.isfinite(scores).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(scores))[0])
        raise GshwError(f"layer {name!r}: scores must be finite, not {scores[place]} at {place}")


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1).

    Raises
    ------
    GshwError
        Naming the value.
    """
    if not 0.0 <= sparsity < 1.0:
        raise GshwError(f"sparsity must be at least 0 and below 1, not {sparsity:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """A mask, the bundles it is meant for, and how good it provably is.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns), True where a weight is kept.
    row_order
        Shape (n_rows,): rows in bundle order.
    kept_score
        Sum of the scores kept.
    bound
        No mask of the pattern with as many blocks on these bundles keeps more; None where the
        pattern's projection proves nothing.
    ceiling
        Sum of as many scores of the matrix, the largest of all: what an unstructured mask would
        keep. Patterns leave it out; :meth:`pruning.targets.Targets.project` fills it in.
    """

    mask: NDArray[np.bool_]
    row_order: NDArray[np.int64]
    kept_score: float
    bound: float | None = None
    ceiling: float | None = None

    @property
    def density(self) -> float:
        return float(np.count_nonzero(self.mask) / self.mask.size)

    @property
    def gap(self) -> float | None:
        """Certified distance from the optimum, relative to the bound; None without a bound."""
        if self.bound is None:
            return None
        return max(0.0, self.bound - self.kept_score) / abs(self.bound) if self.bound else 0.0


class Pattern(ABC):
    """A family of masks. Subclasses are frozen dataclasses; their fields are the parameters.

    A projection is deterministic (ties go to the lower row, then the lower column), takes scores
    of any real dtype and leaves them unchanged. Projecting positive scores that were set to zero
    outside a mask of the pattern, at that mask's sparsity, gives the same mask again.
    """

    kind: ClassVar[str]
    """The name in recipes."""

    @property
    @abstractmethod
    def label(self) -> str:
        """For tables and plots: ``GS(16, 1)``, ``1 x 16 blocks``."""

    def refusal(self, n_rows: int, geometry: Geometry) -> str | None:
        """Why no mask of the pattern suits a matrix of this shape, or None."""
        return None

    @abstractmethod
    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        """The mask to keep at a sparsity.

        Parameters
        ----------
        sparsity
            Wanted, in [0, 1). The mask keeps at most as many weights, and fewer by less than the
            pattern's smallest step, unless the pattern's docstring says otherwise.

        Raises
        ------
        GshwError
            For a sparsity out of range or a matrix that the pattern refuses.
        """

    def require(self, matrix: ScoredMatrix, sparsity: float) -> None:
        """Common checks of :meth:`project`."""
        check_sparsity(sparsity)
        reason = self.refusal(matrix.n_rows, matrix.geometry)
        if reason is not None:
            raise GshwError(f"layer {matrix.name!r}: {reason}")

    def project_all(self, matrices: list[ScoredMatrix], sparsity: float) -> list[Projection]:
        """Masks under one budget over all matrices.

        Raises
        ------
        GshwError
            Where the pattern has no such projection.
        """
        raise GshwError(f"{self.label} has no budget over several layers; use one per layer")


def kept_count(n: int, sparsity: float) -> int:
    """How many of ``n`` survive: ``n * (1 - sparsity)`` to the nearest, ties to even."""
    return round(n * (1.0 - sparsity))
