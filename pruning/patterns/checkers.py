"""Does a mask have a pattern's form? Counting, by code that shares nothing with the projections.

Shapes and sizes are read from the pattern's parameters; no threshold, score or sparsity is needed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.pattern import check_mask
from pruning.patterns.greedy import Greedy
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import (
    Block,
    BlockColumnRow,
    Node,
    RowColumn,
    SimdVector,
    Unstructured,
)
from pruning.patterns.neighbours_kernels import (
    BlockPunched,
    Grain,
    Granular,
    KernelGroup,
    KernelPattern,
)
from pruning.patterns.neighbours_rows import (
    BankBalanced,
    DensityAdaptive,
    NOfM,
    PeBalanced,
    Polarised,
)
from pruning.patterns.pattern import Pattern

_Mask = NDArray[np.bool_]


def violations(
    pattern: Pattern,
    mask: _Mask,
    geometry: Geometry,
    row_order: NDArray | None = None,
    *,
    weights: NDArray | None = None,
) -> list[str]:
    """Everything by which a mask breaks its pattern, one line each; empty if it has the form.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns), True where a weight is kept.
    row_order
        Rows in bundle order, for the patterns of an engine. Default: consecutive.
    weights
        Shape of the mask; only the polarised pattern looks at them.

    Raises
    ------
    GshwError
        For a mask of the wrong shape, a polarised mask without its weights, or a pattern that
        there is no check for.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.shape[1] != geometry.n_columns:
        raise GshwError(
            f"mask must be bool of shape (rows, {geometry.n_columns}), "
            f"not {mask.dtype} of {mask.shape}"
        )
    if isinstance(pattern, Gs | Greedy):
        try:
            return [str(found) for found in check_mask(pattern.config, mask, geometry, row_order)]
        except GshwError as error:
            return [str(error)]
    if isinstance(pattern, Polarised):
        if weights is None or weights.shape != mask.shape:
            raise GshwError(
                f"the polarised pattern is checked with weights of shape {mask.shape}, "
                f"not {None if weights is None else weights.shape}"
            )
        return list(_polarised(pattern, mask, weights))
    check = _CHECKS.get(type(pattern))
    if check is None:
        raise GshwError(f"no check for masks of {type(pattern).__name__}")
    return list(check(pattern, mask, geometry))


def _cuts(n: int, length: int) -> Iterator[slice]:
    for start in range(0, n, length):
        yield slice(start, min(start + length, n))


def _unstructured(pattern: Unstructured, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    yield from ()


def _whole(part: _Mask, name: str) -> Iterator[str]:
    n_kept = int(part.sum())
    if n_kept not in (0, part.size):
        yield f"{name} keeps {n_kept} of {part.size} weights, not all or none"


def _tiles(mask: _Mask, height: int, width: int) -> Iterator[str]:
    for rows in _cuts(mask.shape[0], height):
        for columns in _cuts(mask.shape[1], width):
            yield from _whole(
                mask[rows, columns], f"block at row {rows.start}, column {columns.start}"
            )


def _block(pattern: Block, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    yield from _tiles(mask, pattern.height, pattern.width)


def _simd_vector(pattern: SimdVector, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    yield from _tiles(mask, 1, pattern.width)


def _node(pattern: Node, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    for row, kept in enumerate(mask):
        yield from _whole(kept, f"row {row}")


def _granular(pattern: Granular, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    height, width = geometry.kernel
    for row, kept in enumerate(mask):
        filter_ = kept.reshape(height, width, geometry.in_channels)
        if pattern.grain is Grain.FILTER:
            yield from _whole(filter_, f"filter {row}")
        elif pattern.grain is Grain.KERNEL:
            for channel in range(geometry.in_channels):
                yield from _whole(filter_[:, :, channel], f"kernel {row}, {channel}")
        elif pattern.grain is Grain.VECTOR:
            for channel in range(geometry.in_channels):
                for y in range(height):
                    name = f"row {y} of kernel {row}, {channel}"
                    yield from _whole(filter_[y, :, channel], name)


def _bank_balanced(pattern: BankBalanced, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    banks = np.array_split(np.arange(mask.shape[1]), pattern.n_banks)
    counts = np.stack([mask[:, bank].sum(axis=1) for bank in banks], axis=1)
    most = int(counts.max())
    for row, bank in np.ndindex(*counts.shape):
        wanted = min(most, len(banks[bank]))
        if counts[row, bank] != wanted:
            yield f"bank {bank} of row {row} keeps {counts[row, bank]} weights, not {wanted}"


def _n_of_m(pattern: NOfM, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    groups = list(_cuts(mask.shape[1], pattern.group_size))
    counts = np.stack([mask[:, group].sum(axis=1) for group in groups], axis=1)
    first = int(counts[0, 0])
    for (row, group), count in np.ndenumerate(counts):
        size = groups[group].stop - groups[group].start
        whole = size == pattern.group_size or group == 0
        wanted = first if whole else first * size // pattern.group_size
        if count != wanted:
            yield f"group {group} of row {row} keeps {count} of {size} weights, not {wanted}"


def _pe_balanced(pattern: PeBalanced, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    density = int(mask.sum()), mask.size
    for pe in range(min(pattern.n_pes, len(mask))):
        kept, size = int(mask[pe :: pattern.n_pes].sum()), mask[pe :: pattern.n_pes].size
        if abs(kept * density[1] - size * density[0]) >= density[1]:
            share = size * density[0] / density[1]
            yield f"PE {pe} keeps {kept} weights, more than one off its share of {share:.2f}"


def _density_adaptive(pattern: DensityAdaptive, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    for row, kept in enumerate(mask):
        n_blocks = int(kept.sum())
        if not n_blocks:
            continue
        length = -(-kept.size // n_blocks)
        for block in _cuts(kept.size, length):
            n_kept = int(kept[block].sum())
            if n_kept != 1:
                yield (
                    f"block at row {row}, column {block.start} keeps {n_kept} weights, not 1 "
                    f"of {length} ({n_blocks} in the row)"
                )


def _crossings(
    pattern: BlockColumnRow | RowColumn, mask: _Mask, geometry: Geometry
) -> Iterator[str]:
    for rows in _cuts(mask.shape[0], pattern.height):
        for columns in _cuts(mask.shape[1], pattern.width):
            tile = mask[rows, columns]
            full = int(tile.any(axis=1).sum()) * int(tile.any(axis=0).sum())
            if tile.sum() != full:
                yield (
                    f"tile at row {rows.start}, column {columns.start} keeps {int(tile.sum())} "
                    f"of the {full} weights where its rows and columns cross"
                )


def _shared_positions(pattern: KernelGroup, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    kernels = mask.reshape(len(mask), geometry.n_taps, geometry.in_channels)
    for rows in _cuts(len(mask), pattern.filters):
        for channels in _cuts(geometry.in_channels, pattern.channels):
            for tap in range(geometry.n_taps):
                name = f"position {tap} of filter {rows.start}, channel {channels.start}"
                yield from _whole(kernels[rows, tap, channels], name)


def _kernel_pattern(pattern: KernelPattern, mask: _Mask, geometry: Geometry) -> Iterator[str]:
    shapes = set()
    for row, kept in enumerate(mask):
        for channel in range(geometry.in_channels):
            positions = np.flatnonzero(kept[channel :: geometry.in_channels])
            if not positions.size:
                continue
            shapes.add(tuple(positions.tolist()))
            if positions.size != 4 or 4 not in positions:
                yield (
                    f"kernel {row}, {channel} keeps positions {positions.tolist()}, "
                    "not 4 with the centre"
                )
    if len(shapes) > pattern.n_shapes:
        yield f"kernels have {len(shapes)} shapes, not at most {pattern.n_shapes}"


def _polarised(pattern: Polarised, mask: _Mask, weights: NDArray) -> Iterator[str]:
    for row in range(len(mask)):
        for columns in _cuts(mask.shape[1], pattern.fragment):
            kept = weights[row, columns][mask[row, columns]]
            if (kept > 0).any() and (kept < 0).any():
                yield f"fragment at row {row}, column {columns.start} keeps both signs"


_CHECKS: dict[type[Pattern], Callable[[Any, _Mask, Geometry], Iterator[str]]] = {
    Unstructured: _unstructured,
    Block: _block,
    SimdVector: _simd_vector,
    Node: _node,
    Granular: _granular,
    BankBalanced: _bank_balanced,
    NOfM: _n_of_m,
    PeBalanced: _pe_balanced,
    DensityAdaptive: _density_adaptive,
    BlockColumnRow: _crossings,
    RowColumn: _crossings,
    KernelGroup: _shared_positions,
    BlockPunched: _shared_positions,
    KernelPattern: _kernel_pattern,
}
