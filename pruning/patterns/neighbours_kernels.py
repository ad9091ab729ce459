"""The neighbours' patterns of convolution kernels: whole kernels, shared positions, shapes.

Columns are ordered (kernel row, kernel column, input channel); a linear layer has kernels of one
position.
"""

import enum
import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix, kept_count
from pruning.patterns.selection import (
    check_counts,
    finish,
    largest,
    largest_groups,
    plain,
    spread_tiles,
    tile_means,
)


class Grain(enum.Enum):
    """What is kept or dropped whole."""

    WEIGHT = "weight"
    VECTOR = "vector"
    KERNEL = "kernel"
    FILTER = "filter"


@dataclass(frozen=True, kw_only=True)
class Granular(Pattern):
    """Weights, kernel rows, kernels or filters, by their sum of scores.

    Keeps fewer weights than wanted by less than one such group. Source: Mao et al. 2017,
    arXiv 1705.08922.

    Parameters
    ----------
    grain
        ``VECTOR`` is one row of one kernel.
    """

    kind: ClassVar[str] = "granular"
    grain: Grain = Grain.KERNEL

    @property
    def label(self) -> str:
        return f"whole {self.grain.value}s"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        height, width = matrix.geometry.kernel
        window = plain(matrix.scores).reshape(matrix.n_rows, height, width, -1)
        axes = {
            Grain.WEIGHT: (),
            Grain.VECTOR: (2,),
            Grain.KERNEL: (1, 2),
            Grain.FILTER: (1, 2, 3),
        }[self.grain]
        sums = window.sum(axis=axes, keepdims=True, dtype=np.float64) if axes else window
        size = window.size // sums.size
        kept = largest(sums, kept_count(window.size, sparsity) // size)
        mask = np.broadcast_to(kept, window.shape).reshape(matrix.scores.shape)
        return finish(self, matrix, mask, sparsity, size)


@dataclass(frozen=True, kw_only=True)
class KernelGroup(Pattern):
    """Groups of kernels that share one set of positions (KGS).

    ``filters`` x ``channels`` kernels form a group; a position of a group is kept or dropped in all
    its kernels, by its RMS over the group. Groups cut by the matrix's edge are smaller. Keeps fewer
    weights than wanted by less than one position of a group. A linear layer has one position, so
    its groups are blocks. Source: RT3D (Niu et al., AAAI 2021), arXiv 2007.09835.

    Parameters
    ----------
    filters, channels
        Kernels of a group: output rows times input channels.
    """

    kind: ClassVar[str] = "kernel-group"
    filters: int = 4
    channels: int = 4

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def label(self) -> str:
        return f"kernel groups of {self.filters} x {self.channels}"

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        geometry = matrix.geometry
        shape = (matrix.n_rows, geometry.n_taps, geometry.in_channels)
        squares = np.square(matrix.scores, dtype=np.float64).reshape(shape)
        means, sizes = tile_means(squares, self.filters, self.channels)
        kept = largest_groups(means, sizes, kept_count(squares.size, sparsity))
        mask = spread_tiles(kept, self.filters, self.channels, shape)
        return finish(self, matrix, mask.reshape(matrix.scores.shape), sparsity, int(sizes.max()))


@dataclass(frozen=True, kw_only=True)
class BlockPunched(KernelGroup):
    """In a block of filters x channels the same kernel positions survive in all (block-punched).

    The same family of masks as :class:`KernelGroup`, with the larger blocks that suit mobile CPUs
    and GPUs. Source: NPAS (Li et al., CVPR 2021), arXiv 2012.00596.
    """

    kind: ClassVar[str] = "block-punched"
    filters: int = 8
    channels: int = 4

    @property
    def label(self) -> str:
        return f"punched blocks of {self.filters} x {self.channels}"


_CENTRE = 4
_SHAPES = np.array(
    [
        [tap == _CENTRE or tap in corner for tap in range(9)]
        for corner in itertools.combinations([t for t in range(9) if t != _CENTRE], 3)
    ]
)
"""Shape (56, 9): the centre of a 3 x 3 kernel and any three others."""


@dataclass(frozen=True, kw_only=True)
class KernelPattern(Pattern):
    """Each 3 x 3 kernel keeps 4 weights of one of a few shapes, or nothing (PatDNN).

    A kernel's natural shape is its centre and the three others that score most; the shapes most
    frequent in the layer form its library. Every kernel takes the shape of the library that keeps
    most; then the kernels that keep most survive (connectivity). The densest mask keeps 4 of 9:
    below a sparsity of 5/9 it is the answer. Above, at most as many weights as wanted are kept, and
    fewer by less than 4. Source: PatDNN (Niu et al., ASPLOS 2020), arXiv 2001.00138.

    Parameters
    ----------
    n_shapes
        Shapes in the library, at most 56.
    """

    kind: ClassVar[str] = "kernel-pattern"
    n_shapes: int = 8

    def __post_init__(self) -> None:
        check_counts(self)
        if self.n_shapes > len(_SHAPES):
            raise GshwError(f"n_shapes must be at most {len(_SHAPES)}, not {self.n_shapes}")

    @property
    def label(self) -> str:
        return f"kernel patterns, {self.n_shapes} shapes"

    def refusal(self, n_rows: int, geometry: Geometry) -> str | None:
        if geometry.kernel != (3, 3):
            height, width = geometry.kernel
            return f"{self.label} need a 3 x 3 kernel, not {height} x {width}"
        return None

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        self.require(matrix, sparsity)
        window = matrix.scores.reshape(matrix.n_rows, 9, -1)
        kernels = np.ascontiguousarray(window.swapaxes(1, 2), dtype=np.float64).reshape(-1, 9)
        library = self._library(kernels)
        sums = kernels @ library.T.astype(np.float64)
        shape = sums.argmax(axis=1)
        worth = np.take_along_axis(sums, shape[:, None], axis=1)[:, 0]
        kept = largest(worth, kept_count(window.size, sparsity) // 4)
        mask = (library[shape] & kept[:, None]).reshape(matrix.n_rows, -1, 9).swapaxes(1, 2)
        return finish(self, matrix, mask.reshape(matrix.scores.shape), sparsity, 4)

    def _library(self, kernels: NDArray[np.float64]) -> NDArray[np.bool_]:
        """The most frequent natural shapes, (n_shapes, 9). Kernels without a score do not vote."""
        voting = kernels[kernels.any(axis=1)]
        others = np.delete(np.arange(9), _CENTRE)
        best = others[np.argsort(-voting[:, others], axis=1, kind="stable")[:, :3]]
        bits = 1 << np.arange(9)
        votes = np.bincount((1 << best).sum(axis=1) + bits[_CENTRE], minlength=512)
        order = np.argsort(-votes[_SHAPES @ bits], kind="stable")
        return _SHAPES[order[: self.n_shapes]]
