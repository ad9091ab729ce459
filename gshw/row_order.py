"""Which rows share a bundle, where nothing says so."""

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import consecutive_rows, scatter_rows
from gshw.geometry import Geometry


def groups_of_order(
    config: EngineConfig,
    bank_counts: NDArray[np.int64],
    row_order: NDArray[np.int64],
) -> int:
    """Groups that a layer takes with its rows bundled in this order.

    Parameters
    ----------
    bank_counts
        Shape (n_rows, lanes): kept blocks of every row and bank.
    """
    n_rows, n_banks = bank_counts.shape
    n_bundles = -(-n_rows // config.rows)
    counts = np.zeros((n_bundles * config.rows, n_banks), dtype=np.int64)
    counts[:n_rows] = bank_counts[row_order]
    counts = counts.reshape(n_bundles, config.rows, n_banks)
    longest = -(-counts.sum(axis=2).max(axis=1) // config.lanes_per_row)
    return int(np.maximum(longest, counts.sum(axis=1).max(axis=1)).sum())


def choose_row_order(
    config: EngineConfig,
    geometry: Geometry,
    kept: NDArray[np.bool_],
    own: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The order of fewest groups: the mask's own, consecutive rows, or rows by falling count.

    Parameters
    ----------
    kept
        Shape (n_rows, n_columns).
    own
        That the mask was made for, if any; it wins a tie.
    """
    bank_counts = geometry.to_blocks(config, kept).any(axis=3).sum(axis=1)
    orders = [consecutive_rows(len(kept)), scatter_rows(bank_counts.sum(axis=1))]
    if own is not None:
        orders.insert(0, own)
    return min(orders, key=lambda order: groups_of_order(config, bank_counts, order))
