"""The best balanced mask by linear programs and dynamic programming: slow, plain, independent.

Shares no code with ``pruning``: it reads only the definition of the pattern. For a fixed number of
groups a bundle is a transportation problem whose constraint matrix is totally unimodular, so the
linear program over single blocks has an integer optimum, which HiGHS finds. Bundles meet only in
the budget: dynamic programming where every value is at hand, else the test of neighbours, which is
enough because a bundle's value is concave in its groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from gshw.config import EngineConfig
from gshw.geometry import Geometry


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """The blocks of the rows that share groups.

    Parameters
    ----------
    scores
        Shape (n_rows, n_blocks): what each block is worth.
    bank
        Shape (n_blocks,): where each block of a row lies.
    lanes, rows
        Of the engine. Fewer than ``rows`` rows: a last, partial bundle.
    """

    scores: NDArray[np.float64]
    bank: NDArray[np.int64]
    lanes: int
    rows: int

    @property
    def blocks_per_group(self) -> int:
        """Blocks that one group keeps: fewer than ``lanes`` in a partial bundle."""
        return len(self.scores) * self.lanes // self.rows

    @property
    def most_groups(self) -> int:
        """No row can feed more groups than this."""
        return self.scores.shape[1] * self.rows // self.lanes

    def values(self, groups: Sequence[int]) -> NDArray[np.float64]:
        """Largest sum of kept scores for each number of groups; -inf where no mask exists.

        One linear program holds a copy of the problem for every number of groups. Each row has an
        escape: blocks without a bank, so bad that they are kept only where no mask exists.
        """
        values = np.full(len(groups), -np.inf)
        tried = [i for i, g in enumerate(groups) if 0 <= g <= self.most_groups]
        if not tried:
            return values
        counts = np.array([groups[i] for i in tried])
        n_rows, n_blocks = self.scores.shape
        n_real = self.scores.size
        ruin = 1.0 + 4.0 * self.lanes * float(np.abs(self.scores).max())
        worth = np.append(self.scores.reshape(-1), np.full(n_rows, -ruin))
        in_row = np.append(np.repeat(np.arange(n_rows), n_blocks), np.arange(n_rows))
        in_bank = np.tile(self.bank, n_rows)
        most = np.append(np.ones(n_real), np.full(n_rows, n_blocks))
        copy = np.arange(len(tried))[:, None]
        index = copy * worth.size + np.arange(worth.size)
        # "At most" for the banks: in a full bundle the rows' sums then force equality.
        found = linprog(
            -np.tile(worth, len(tried)),
            A_eq=_sums(copy * n_rows + in_row, index, len(tried) * n_rows, index.size),
            b_eq=np.repeat(counts * self.lanes // self.rows, n_rows),
            A_ub=_sums(
                copy * self.lanes + in_bank,
                index[:, :n_real],
                len(tried) * self.lanes,
                index.size,
            ),
            b_ub=np.repeat(counts, self.lanes),
            bounds=np.stack([np.zeros(index.size), np.tile(most, len(tried))], axis=1),
            method="highs-ds",
        )
        assert found.status == 0, found.message
        kept = np.rint(found.x)
        # Sums are taken over whole blocks, free of the solver's tolerance.
        assert np.abs(found.x - kept).max() < 1e-6
        for i, x in zip(tried, kept.reshape(len(tried), worth.size), strict=True):
            if not x[n_real:].any():
                values[i] = np.dot(x[:n_real], worth[:n_real])
        return values

    def all_values(self) -> NDArray[np.float64]:
        """Shape (most_groups + 1,): the value of 0, 1, 2, ... groups."""
        return self.values(range(self.most_groups + 1))


def _sums(constraint: NDArray, variable: NDArray, n_constraints: int, n_variables: int):
    """Sparse matrix of ones: which variables each constraint adds up."""
    entries = (constraint.reshape(-1), variable.reshape(-1))
    shape = (n_constraints, n_variables)
    return coo_array((np.ones(constraint.size), entries), shape=shape).tocsc()


def bundles_of(
    config: EngineConfig, scores: NDArray, geometry: Geometry, row_order: Sequence[int] | NDArray
) -> list[Bundle]:
    """Cut a scored matrix into bundles, by the definition of banks and blocks alone.

    Parameters
    ----------
    scores
        Shape (n_rows, n_columns), columns ordered (tap, input channel).
    row_order
        Rows in bundle order.
    """
    column = np.arange(scores.shape[1])
    if geometry.unfold:
        tap, channel = np.zeros_like(column), column
    else:
        tap, channel = column // geometry.in_channels, column % geometry.in_channels
    places = np.stack([tap, channel // config.block])
    blocks, block_of_column = np.unique(places, axis=1, return_inverse=True)
    sums = np.zeros((len(scores), blocks.shape[1]))
    for c in column:
        sums[:, block_of_column.reshape(-1)[c]] += scores[:, c]
    bank = blocks[1] % config.lanes
    return [
        Bundle(
            scores=sums[np.asarray(row_order[start : start + config.rows], dtype=int)],
            bank=bank,
            lanes=config.lanes,
            rows=config.rows,
        )
        for start in range(0, len(scores), config.rows)
    ]


def best_total(values: Sequence[NDArray], costs: Sequence[int], budget: int) -> float:
    """Largest sum of one value of every bundle whose groups cost exactly ``budget``.

    Parameters
    ----------
    values
        Of each bundle (of any number of layers): the value of 0, 1, 2, ... groups.
    costs
        Cost of one group of each bundle: its blocks, or 1 to count groups.
    """
    best = np.full(budget + 1, -np.inf)
    best[0] = 0.0
    for value, cost in zip(values, costs, strict=True):
        longer = np.full(budget + 1, -np.inf)
        for g, worth in enumerate(value):
            spent = g * cost
            if spent <= budget and worth > -np.inf:
                longer[spent:] = np.maximum(longer[spent:], best[: budget + 1 - spent] + worth)
        best = longer
    return float(best[budget])


def split_regret(bundles: Sequence[Bundle], groups: Sequence[int]) -> tuple[float, float]:
    """Value of the best masks with these groups, and the most that moving one group could gain.

    A split of the budget over bundles of equal cost is optimal iff that gain is not positive.

    Returns
    -------
    tuple of float
        Sum of the bundles' values; largest gain of giving a group less the smallest loss of
        taking one from another bundle (-inf for a single bundle).
    """
    near = [bundle.values([g - 1, g, g + 1]) for bundle, g in zip(bundles, groups, strict=True)]
    total = sum(float(v[1]) for v in near)
    regret = -np.inf
    for i, more in enumerate(near):
        for j, fewer in enumerate(near):
            if i != j:
                regret = max(regret, (more[2] - more[1]) - (fewer[1] - fewer[0]))
    return total, regret
