"""The pattern checker: does a mask match an engine, and if not, where not.

Independent of the projections and of the encoder: it only counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry


@dataclass(frozen=True)
class Violation:
    """One count that breaks the pattern.

    Parameters
    ----------
    bundle
        Which bundle.
    place
        ``row 17`` (a row of the matrix) or ``bank 3``.
    count, wanted
        Blocks kept there, and how many it must be (at most, where ``at_most``).
    """

    bundle: int
    place: str
    count: int
    wanted: int
    at_most: bool = False

    def __str__(self) -> str:
        limit = "at most " if self.at_most else ""
        wanted = f"not {limit}{self.wanted}"
        return f"bundle {self.bundle}: {self.place} keeps {self.count} blocks, {wanted}"


def check_mask(
    config: EngineConfig,
    mask: NDArray[np.bool_],
    geometry: Geometry,
    row_order: NDArray | None = None,
) -> list[Violation]:
    """All counts by which a mask does not match the engine; empty if it matches.

    A full bundle that keeps ``total`` blocks has ``g = total / lanes`` groups: every row must keep
    ``g * lanes_per_row`` blocks and every bank ``g``. A last bundle with fewer rows needs equal
    rows of ``g * lanes_per_row`` blocks and at most ``g`` in a bank.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns), True where a weight is kept.
    geometry
        The layer's window, which decides each column's bank.
    row_order
        Rows in bundle order. Default: consecutive.

    Raises
    ------
    GshwError
        For a mask of the wrong shape, or one that keeps part of a block.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or mask.shape[1] != geometry.n_columns or not len(mask):
        raise GshwError(f"mask must have shape (rows, {geometry.n_columns}), not {mask.shape}")
    order = np.arange(len(mask)) if row_order is None else np.asarray(row_order)
    whole_numbers = np.issubdtype(order.dtype, np.integer)
    if not whole_numbers or not np.array_equal(np.sort(order), np.arange(len(mask))):
        raise GshwError(f"row order must be a permutation of the {len(mask)} rows")
    order = order.astype(np.int64)
    kept = geometry.to_blocks(config, mask)
    real = geometry.to_blocks(config, np.ones_like(mask))
    whole = kept.any(axis=3)
    partial = whole & (kept != real).any(axis=3)
    if partial.any():
        row, word, bank = (int(i) for i in np.argwhere(partial)[0])
        raise GshwError(
            f"mask must keep whole blocks of {config.block} channels, but keeps a part of the "
            f"block at row {row}, word {word}, bank {bank}"
        )
    violations: list[Violation] = []
    for bundle, start in enumerate(range(0, len(order), config.rows)):
        rows = order[start : start + config.rows]
        violations += _check_bundle(config, bundle, rows, whole[rows].sum(axis=1))
    return violations


def _check_bundle(
    config: EngineConfig, bundle: int, rows: NDArray, counts: NDArray[np.int64]
) -> list[Violation]:
    """``counts`` has shape (rows of the bundle, lanes): blocks of each row in each bank."""
    in_row, in_bank = counts.sum(axis=1), counts.sum(axis=0)
    per_row = config.lanes_per_row
    full = len(rows) == config.rows
    n_groups = int(in_row.sum()) // config.lanes if full else int(in_row.max()) // per_row
    violations = [
        Violation(bundle, f"row {rows[i]}", int(count), n_groups * per_row)
        for i, count in enumerate(in_row)
        if count != n_groups * per_row
    ]
    violations += [
        Violation(bundle, f"bank {bank}", int(count), n_groups, at_most=not full)
        for bank, count in enumerate(in_bank)
        if (count != n_groups if full else count > n_groups)
    ]
    return violations


def require_match(
    config: EngineConfig,
    mask: NDArray[np.bool_],
    geometry: Geometry,
    row_order: NDArray | None = None,
    name: str = "mask",
) -> None:
    """Raise one line for a mask that does not match, naming the first bundle, row or bank.

    Raises
    ------
    GshwError
        With the first violation and how many there are.
    """
    violations = check_mask(config, mask, geometry, row_order)
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise GshwError(
            f"{name} does not match {config.pattern_name}, {config.rows} rows per bundle: "
            f"{violations[0]}{more}"
        )


def highest_sparsity(config: EngineConfig, n_columns: int) -> float:
    """Highest sparsity of a layer of this many columns whose rows all keep weights, no padding.

    One group per bundle: every row keeps ``lanes_per_row`` blocks. 0 where the columns leave a
    bank empty, so that no balanced mask keeps anything.
    """
    n_blocks = -(-n_columns // config.block)
    if n_blocks < config.lanes:
        return 0.0
    return max(0.0, 1.0 - config.lanes_per_row * config.block / n_columns)
