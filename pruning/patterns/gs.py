"""GS(B, k): the pattern that the engine dictates, projected onto exactly.

Source of the pattern: arXiv 2112.10898; the solver is ours (:mod:`pruning.patterns.solver`).
Horizontal engines (one row per bundle) need only sorting: the i-th group of a row is the i-th
largest block of every bank, and the best groups of all rows are kept.
"""

import enum
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import consecutive_rows, scatter_rows
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.patterns import solver
from pruning.patterns.pattern import Pattern, Projection, RowGrouping, ScoredMatrix, check_sparsity

_BATCH_ELEMENTS = 1 << 18
"""Scores worked on at a time: about what a second-level cache holds."""

_FIRST_SPREAD = 1.7
"""Half width of the first band, in expected largest deviations of a bank's count. Narrower bands
are listed again too often, wider ones list more for nothing (tried from 1 to 3)."""

_PILOT_SHRINKAGE = 2.0
"""Bundles without a bias of their banks that the mean of the bank prices so far counts with."""

_LARGEST_GAP = 1e-6
"""Of the sum of the kept scores' magnitudes."""


class Budget(enum.Enum):
    """How many groups each bundle may have."""

    FREE = "free"
    FIXED = "fixed"


@dataclass(frozen=True, kw_only=True)
class Gs(Pattern):
    """GS(B, k) with 1 x C blocks of an engine.

    The mask is the best one for its bundles and its number of blocks, and carries the proof. It
    keeps at most the blocks asked for, and fewer by less than one group, or the most that is
    balanced where padded channels leave a bank less than that.

    Parameters
    ----------
    config
        The engine: B, R = B / k, and C.
    grouping
        Scatter: rows are sorted by how many of their blocks exceed the matrix's threshold, and
        neighbours share a bundle. Consecutive: as they come.
    budget
        Free: groups go to the bundles where they gain most. Fixed: every bundle has the same
        number, to within one; over several matrices, but where padding allows no more.
    """

    kind: ClassVar[str] = "gs"

    config: EngineConfig
    grouping: RowGrouping = RowGrouping.SCATTER
    budget: Budget = Budget.FREE

    @property
    def label(self) -> str:
        name = self.config.pattern_name
        if self.config.rows > 1 and self.grouping is RowGrouping.CONSECUTIVE:
            name += ", consecutive rows"
        return name + (", fixed groups" if self.budget is Budget.FIXED else "")

    def refusal(self, n_rows: int, geometry: Geometry) -> str | None:
        if least_bank(self.config, geometry) == 0:
            return (
                f"{geometry.n_columns} columns leave a bank of {self.config.lanes} empty, "
                "so no mask but the empty one is balanced"
            )
        return None

    def project(self, matrix: ScoredMatrix, sparsity: float) -> Projection:
        return self.project_all([matrix], sparsity)[0]

    def project_all(self, matrices: list[ScoredMatrix], sparsity: float) -> list[Projection]:
        """Best masks under one budget over all matrices: where groups gain most, they go.

        Raises
        ------
        GshwError
            For a sparsity out of range or that leaves less than one group, a matrix with fewer
            columns than banks, or a block's score of more than 1e300 either way (float32: 1e38).
        """
        check_sparsity(sparsity)
        if not matrices:
            return []
        for matrix in matrices:
            self.require(matrix, sparsity)
        problems = [_Problem(self.config, matrix) for matrix in matrices]
        n_blocks = sum(problem.matrix.scores.size for problem in problems) / self.config.block
        budget = int(n_blocks * (1.0 - sparsity) + 1e-6)
        group = max(problem.largest_group for problem in problems)
        if budget < group:
            one = len(matrices) == 1
            where = f"layer {matrices[0].name!r}" if one else f"{len(matrices)} layers"
            raise GshwError(
                f"{where}: sparsity {sparsity:g} leaves {budget} blocks, less than one group of "
                f"{group}; possible is at most {max(0.0, 1.0 - group / n_blocks):.4f}"
            )
        if self.config.rows == 1:
            return _project_horizontal(problems, budget, self.budget)
        return _project_bundles(problems, budget, self.grouping, self.budget)


def least_bank(config: EngineConfig, geometry: Geometry) -> int:
    """Real blocks of one row in its emptiest bank: 0 where no balanced mask exists."""
    blocks = -(-geometry.stored_channels // config.block)
    return geometry.n_words(config) // geometry.words_per_pixel(config) * (blocks // config.lanes)


class _Problem:
    """One matrix as blocks.

    Attributes
    ----------
    scores
        Shape (n_rows, n_words * lanes), float32 or float64; -inf where there is only padding.
    """

    def __init__(self, config: EngineConfig, matrix: ScoredMatrix) -> None:
        self.config = config
        self.matrix = matrix
        geometry = matrix.geometry
        scores = matrix.scores
        if scores.dtype not in (np.float32, np.float64):
            # Half precision has no compiled path; integers must not be rounded.
            scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
        blocks = geometry.to_blocks(config, scores)
        self.n_words = blocks.shape[1]
        n_rows = len(scores)
        if config.block == 1:
            blocks = blocks.reshape(n_rows, -1)
        else:
            blocks = blocks.sum(axis=3, dtype=np.float64).reshape(n_rows, -1)
        largest = max(float(blocks.max()), -float(blocks.min()))
        # Prices are added to scores and taken off them.
        limit = 1e300 if blocks.dtype == np.float64 else 1e38
        if largest > limit:
            raise GshwError(
                f"layer {matrix.name!r}: a block's score must be at most {limit:g} either way, "
                f"not {largest:g}"
            )
        self.capacity = least_bank(config, geometry)
        padded = self.n_words * config.lanes * config.block != geometry.n_columns
        if padded:
            real = geometry.to_blocks(config, np.ones((1, geometry.n_columns), dtype=bool))
            self.real = real.any(axis=3).reshape(-1)
            blocks = np.where(self.real, blocks, -np.inf).astype(blocks.dtype, copy=False)
        else:
            self.real = np.ones(blocks.shape[1], dtype=bool)
        # The compiled loops know one kind of array; a read-only one would compile them anew.
        self.scores = np.require(blocks, requirements=["C", "A", "W", "E"])

    @property
    def n_rows(self) -> int:
        return len(self.scores)

    @property
    def n_bundles(self) -> int:
        return -(-self.n_rows // self.config.rows)

    def most_groups(self, n_rows: int) -> int:
        """The densest balanced bundle of as many rows: padding limits what each bank has.

        A bank gives each row at most its real blocks, and the bundle at most one per group.
        """
        real = self.real.reshape(self.n_words, self.config.lanes).sum(axis=0)
        groups = np.arange(self.config.rows * self.n_words + 1)
        within = np.minimum(n_rows * real[None, :], groups[:, None]).sum(axis=1)
        return int(groups[within >= n_rows * self.config.lanes_per_row * groups].max())

    @property
    def largest_group(self) -> int:
        """Blocks of one group of the first bundle; the last one may have fewer rows."""
        return min(self.n_rows, self.config.rows) * self.config.lanes_per_row

    def given_order(self) -> NDArray[np.int64] | None:
        """A copy of the row order that the matrix asks for, if any."""
        order = self.matrix.row_order
        return None if order is None else np.array(order, dtype=np.int64)

    def projection(
        self, kept: NDArray[np.bool_], order: NDArray[np.int64], proof: tuple[float, float, float]
    ) -> Projection:
        """What :func:`pruning.patterns.solver.certify` found goes with the mask."""
        score, short, magnitude = proof
        if not kept.any():
            # No blocks score nothing: exact, where the prices leave rounding.
            short = 0.0
        # A mask that is not proved best is a defect here, not a property of the scores.
        assert short <= _LARGEST_GAP * magnitude, f"{self.matrix.name}: short of {short} by proof"
        config, geometry = self.config, self.matrix.geometry
        blocks = kept.reshape(self.n_rows, self.n_words, config.lanes, 1)
        if config.block > 1:
            blocks = np.repeat(blocks, config.block, axis=3)
        mask = geometry.from_blocks(config, blocks)
        return Projection(mask=mask, row_order=order, kept_score=score, bound=score + short)


def _threshold(problems: list[_Problem], budget: int) -> float:
    """The score that as many blocks reach as are to be kept, over all matrices."""
    flat = [problem.scores.reshape(-1) for problem in problems]
    scores = np.concatenate(flat)
    place = max(0, scores.size - max(1, budget))
    scores.partition(place)
    return float(scores[place])


@dataclass
class _Bundles:
    """All bundles of one matrix, as :mod:`pruning.patterns.solver` wants them."""

    problem: _Problem
    order: NDArray[np.int64]
    groups: NDArray[np.int64]
    n_real: NDArray[np.int64] = field(init=False)
    rows: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        config, n = self.problem.config, self.problem.n_bundles
        r, b = config.rows, config.lanes
        self.rows = np.zeros(n * r, dtype=np.int64)
        self.rows[: len(self.order)] = self.order
        self.rows = self.rows.reshape(n, r)
        self.n_real = np.full(n, r, dtype=np.int64)
        self.n_real[-1] = len(self.order) - (n - 1) * r
        self.above = np.zeros((n, r, b), dtype=np.int32)
        self.start = np.zeros((n, r * b + 1), dtype=np.int64)
        self.u, self.v = np.zeros((n, r)), np.zeros((n, b))
        self.x = np.zeros((n, r, b), dtype=np.int32)
        dtype = self.problem.scores.dtype
        self.low, self.high = np.zeros((n, r), dtype=dtype), np.zeros((n, r), dtype=dtype)
        self.laid = np.zeros((n, b))
        self.spread = np.full(n, _FIRST_SPREAD)
        self.value = np.empty(0)
        self.word = np.empty(0, dtype=np.int32)
        self.n_listed = 0
        self.split_short = 0.0
        self._pilot, self._n_pilots = np.zeros(b), 0

    @property
    def margin(self) -> float:
        """Relative rounding of a score less a bank price."""
        return 4.0 * float(np.finfo(self.problem.scores.dtype).eps)

    def solve(self) -> None:
        """Solve every bundle at its number of groups."""
        n_columns = self.problem.scores.shape[1]
        size = max(1, _BATCH_ELEMENTS // (self.problem.config.rows * n_columns))
        full = self.n_real == self.problem.config.rows
        batches: list[NDArray] = []
        for groups in np.unique(self.groups[full])[::-1]:
            same = np.flatnonzero(full & (self.groups == groups))
            batches += [same[i : i + size] for i in range(0, len(same), size)]
        for batch in batches:
            # The first bundle shows the banks' prices to the others.
            if self._n_pilots == 0 and len(batch) > 1:
                self._solve(batch[:1])
                batch = batch[1:]
            self._solve(batch)
        if not full[-1]:
            self._solve(np.flatnonzero(~full))

    def widen(self, bundle: int) -> None:
        """List a wider band of one bundle, and solve it again at its number of groups."""
        self.spread[bundle] *= 2.0
        self._solve(np.array([bundle]))

    def _solve(self, batch: NDArray[np.int64]) -> None:
        while len(batch):
            failed = self._try(batch)
            self.spread[failed] *= 2.0
            batch = failed

    def _try(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Solve bundles of equal groups and rows; returns those whose band was too narrow."""
        problem, config = self.problem, self.problem.config
        scores = problem.scores
        n_rows, groups = int(self.n_real[batch[0]]), int(self.groups[batch[0]])
        partial = n_rows < config.rows
        pilot = np.zeros(config.lanes)
        if self._n_pilots and not partial:
            pilot = self._pilot / (self._n_pilots + _PILOT_SHRINKAGE)
        pilot = pilot.astype(scores.dtype)
        rows = np.ascontiguousarray(self.rows[batch, :n_rows])
        shifted = scores[rows.reshape(-1)]
        if pilot.any():
            wide = shifted.reshape(len(shifted), -1, config.lanes)
            wide -= pilot
        low, high = self._lay_bands(shifted, groups, n_rows, float(self.spread[batch].max()))
        n = len(batch)
        value = np.empty(shifted.size + 1)
        word = np.empty(shifted.size, dtype=np.int32)
        above = np.zeros((n, config.rows, config.lanes), dtype=np.int32)
        start = np.zeros((n, config.rows * config.lanes + 1), dtype=np.int64)
        u, v = np.zeros((n, config.rows)), np.zeros((n, config.lanes))
        x = np.zeros((n, config.rows, config.lanes), dtype=np.int32)
        status = np.zeros(n, dtype=np.int64)
        used = solver.solve_batch(
            shifted.reshape(n, n_rows, -1), low, high, rows, scores, pilot.astype(np.float64),
            n_rows, config.lanes_per_row, groups, self.margin,
            above, start, value, word, u, v, x, status,
        )  # fmt: skip
        self.above[batch], self.u[batch], self.v[batch], self.x[batch] = above, u, v, x
        self.start[batch] = start + self.n_listed
        self.low[batch, :n_rows], self.high[batch, :n_rows] = low, high
        self.laid[batch] = pilot
        self._keep_lists(value[:used], word[:used])
        solved = status == solver.SOLVED
        if solved.any() and not partial:
            prices = v[solved]
            self._pilot += (prices - prices.mean(axis=1, keepdims=True)).sum(axis=0)
            self._n_pilots += int(solved.sum())
        return batch[~solved]

    def _keep_lists(self, value: NDArray, word: NDArray) -> None:
        end = self.n_listed + len(value)
        if end >= len(self.value):
            size = max(end + 1, 2 * len(self.value), self.problem.scores.size // 8)
            longer = np.empty(size), np.empty(size, dtype=np.int32)
            for new, old in zip(longer, (self.value, self.word), strict=True):
                new[: self.n_listed] = old[: self.n_listed]
            self.value, self.word = longer
        self.value[self.n_listed : end] = value
        self.word[self.n_listed : end] = word
        self.n_listed = end

    def _lay_bands(
        self, shifted: NDArray, groups: int, n_rows: int, spread: float
    ) -> tuple[NDArray, NDArray]:
        """Per row, scores so far below and above its threshold that prices stay between them."""
        config = self.problem.config
        n_real = int(self.problem.real.sum())
        need = groups * config.lanes_per_row
        share = min(1.0, need / n_real)
        # Deviation of a bank's count from its share if kept blocks fell anywhere, in blocks of
        # one row: the banks' prices have to make up for it.
        deviation = config.lanes / n_rows * np.sqrt(n_real / config.lanes * n_rows * share)
        deviation *= np.sqrt(max(1.0 - share, 0.02))
        # The largest of many deviations grows with the logarithm of their number.
        farthest = np.sqrt(2.0 * np.log(config.lanes))
        margin = int(spread * farthest * (deviation + config.lanes_per_row + 1))
        lines = shifted.reshape(-1, shifted.shape[1]).copy()
        n_columns = lines.shape[1]
        top, bottom = need - margin, need + margin
        largest = np.finfo(lines.dtype).max
        n = len(lines) // n_rows
        low = np.full(len(lines), -largest)
        high = np.full(len(lines), largest)
        if bottom < n_real:
            place = n_columns - bottom
            lines.partition(place, axis=1)
            low = lines[:, place]
            rest = np.ascontiguousarray(lines[:, place:])
        else:
            rest = lines
        if top > 0:
            place = rest.shape[1] - 1 - top
            rest.partition(place, axis=1)
            high = rest[:, place]
        return low.reshape(n, n_rows), high.reshape(n, n_rows)


def _most_groups(problem: _Problem) -> NDArray[np.int64]:
    """The most groups of every bundle."""
    rows = problem.config.rows
    most = np.full(problem.n_bundles, problem.most_groups(rows))
    most[-1] = problem.most_groups(problem.n_rows - (problem.n_bundles - 1) * rows)
    return most


def _fixed_level(problems: list[_Problem], budget: int) -> int:
    """The most groups that every bundle can have alike; padding keeps some matrices below."""
    caps = np.array([_most_groups(problem).min() for problem in problems])
    sizes = np.array([p.n_rows * p.config.lanes_per_row for p in problems])
    levels = np.arange(caps.max() + 1)
    needed = (np.minimum(levels[:, None], caps) * sizes).sum(axis=1)
    return int(levels[needed <= budget].max())


def _first_groups(
    above: NDArray, order: NDArray, config: EngineConfig, share: float, most: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Groups per bundle in proportion to its blocks above the threshold."""
    n_bundles = -(-len(order) // config.rows)
    bundle = np.arange(len(order)) // config.rows
    weight = np.bincount(bundle, minlength=n_bundles) * config.lanes_per_row
    wanted = np.bincount(bundle, weights=above[order], minlength=n_bundles) * share / weight
    return np.clip(np.rint(wanted), 0, most).astype(np.int64)


def _project_bundles(
    problems: list[_Problem], budget: int, grouping: RowGrouping, kind: Budget
) -> list[Projection]:
    config = problems[0].config
    threshold = _threshold(problems, budget)
    counts = [
        np.count_nonzero(problem.scores >= threshold, axis=1).astype(np.int64)
        for problem in problems
    ]
    share = budget / max(1, sum(int(count.sum()) for count in counts))
    level = _fixed_level(problems, budget)
    pool = []
    for problem, count in zip(problems, counts, strict=True):
        order = problem.given_order()
        if order is None:
            scatter = grouping is RowGrouping.SCATTER
            order = scatter_rows(count) if scatter else consecutive_rows(problem.n_rows)
        most = _most_groups(problem)
        if kind is Budget.FIXED:
            groups = np.full(problem.n_bundles, min(level, int(most.min())))
        else:
            groups = _first_groups(count, order, config, share, most)
        pool.append(_Bundles(problem, order, groups))
    for bundles in pool:
        bundles.solve()
    _split(pool, budget, kind)
    return [_read(bundles) for bundles in pool]


def _split(pool: list[_Bundles], budget: int, kind: Budget) -> None:
    """Share the budget over all bundles of all matrices."""
    config = pool[0].problem.config
    sizes = [bundles.problem.n_bundles for bundles in pool]
    ends = np.cumsum(sizes)
    n_bundles = int(ends[-1])

    def gathered(name: str) -> NDArray:
        parts = [getattr(bundles, name) for bundles in pool]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    capacities = [_most_groups(bundles.problem) for bundles in pool]
    most, least = np.concatenate(capacities), np.zeros(n_bundles, dtype=np.int64)
    if kind is Budget.FIXED:
        least = gathered("groups").copy()
        alike = np.repeat([capacity.min() for capacity in capacities], sizes)
        most = np.minimum(alike, least + 1)
    gain_up, loss_down = np.full(n_bundles, np.nan), np.full(n_bundles, np.nan)
    exact_up, exact_down = np.zeros(n_bundles, dtype=bool), np.zeros(n_bundles, dtype=bool)
    scale = max(float(np.abs(b.u).max() + np.abs(b.v).max()) for b in pool)
    while True:
        value, start = gathered("value"), gathered("start")
        if len(pool) > 1:
            offset = np.cumsum([0] + [len(bundles.value) for bundles in pool])[:-1]
            start = start + np.repeat(offset, sizes)[:, None]
        state = {name: gathered(name) for name in ("above", "low", "high", "laid")}
        groups, u, v, x = (gathered(name) for name in ("groups", "u", "v", "x"))
        narrow, price = solver.exchange_groups(
            budget, 1e-12 * scale, state["above"], start, value, state["low"],
            state["high"], state["laid"], max(b.margin for b in pool), gathered("n_real"),
            config.lanes_per_row, groups, least, most, u, v, x,
            gain_up, exact_up, loss_down, exact_down,
        )  # fmt: skip
        for bundles, first, last in zip(pool, ends - sizes, ends, strict=True):
            for name, found in (("groups", groups), ("u", u), ("v", v), ("x", x)):
                setattr(bundles, name, found[first:last])
        if narrow < 0:
            break
        which = int(np.searchsorted(ends, narrow, side="right"))
        pool[which].widen(narrow - int((ends - sizes)[which]))
    # What the search's bounds on marginals leave open at the common price: nothing, when every
    # bundle is solved to its optimum, as the prices prove, and the exchange has ended.
    step = gathered("n_real") * config.lanes_per_row
    short = np.zeros(n_bundles)
    more, fewer = groups < most, groups > least
    short[more] += np.maximum(0.0, gain_up[more] - price) * (most - groups)[more]
    short[fewer] += np.maximum(0.0, price - loss_down[fewer]) * (groups - least)[fewer]
    short *= step
    for bundles, first, last in zip(pool, ends - sizes, ends, strict=True):
        bundles.split_short = float(short[first:last].sum())


def _read(bundles: _Bundles) -> Projection:
    problem = bundles.problem
    mask = np.zeros(problem.scores.shape, dtype=bool)
    laid = bundles.laid.astype(problem.scores.dtype)
    solver.write_mask(
        problem.scores, bundles.rows, bundles.n_real, laid, bundles.high, bundles.start,
        bundles.word, bundles.x, mask,
    )  # fmt: skip
    kept, short, magnitude = solver.certify(
        problem.scores, mask, bundles.rows, bundles.n_real, bundles.u, bundles.v,
        problem.config.lanes_per_row, problem.config.rows,
    )  # fmt: skip
    short += bundles.split_short
    return problem.projection(mask, bundles.order, (kept, short, magnitude))


def _project_horizontal(problems: list[_Problem], budget: int, kind: Budget) -> list[Projection]:
    """Every row is a bundle: the i-th group of a row is the i-th largest block of every bank."""
    lanes = problems[0].config.lanes
    n_groups = budget // lanes
    ranked = [_ranked_banks(problem) for problem in problems]
    gains = [
        banks.sum(axis=1, dtype=np.float64)[:, : problem.capacity]
        for banks, problem in zip(ranked, problems, strict=True)
    ]
    floors = [np.zeros(problem.n_rows, dtype=np.int64) for problem in problems]
    if kind is Budget.FIXED:
        level = _fixed_level(problems, budget)
        floors = [np.full(p.n_rows, min(level, p.capacity)) for p in problems]
        n_groups -= sum(int(floor.sum()) for floor in floors)
        for gain, floor in zip(gains, floors, strict=True):
            rank = np.arange(gain.shape[1])
            gain[rank[None, :] != floor[:, None]] = -np.inf
    depths, price = _best_groups(gains, n_groups)
    projections = []
    for problem, banks, depth, floor in zip(problems, ranked, depths, floors, strict=True):
        most = np.full(problem.n_rows, problem.capacity)
        if kind is Budget.FIXED:
            most = np.minimum(most, floor + 1)
        projections.append(_cut(problem, banks, depth + floor, floor, most, price))
    return projections


def _ranked_banks(problem: _Problem) -> NDArray:
    """Scores of every bank, falling: shape (n_rows, lanes, n_words)."""
    lanes = problem.config.lanes
    ranked = np.empty((problem.n_rows, lanes, problem.n_words), dtype=problem.scores.dtype)
    size = max(1, _BATCH_ELEMENTS // problem.scores.shape[1])
    for first in range(0, problem.n_rows, size):
        rows = problem.scores[first : first + size].reshape(-1, problem.n_words, lanes)
        banks = np.negative(rows.transpose(0, 2, 1), order="C")
        banks.sort(axis=2)
        np.negative(banks, out=ranked[first : first + size])
    return ranked


def _best_groups(gains: list[NDArray], n_groups: int) -> tuple[list[NDArray], float]:
    """How many groups each row gets, and the gain of the last one that was given.

    Gains fall along a row, so that taking them in order of size, ties in order of place, takes
    the first of every row.
    """
    flat = np.concatenate([gain.reshape(-1) for gain in gains])
    n_real = int(np.count_nonzero(flat > -np.inf))
    n_groups = min(n_groups, n_real)
    taken = np.zeros(flat.size, dtype=bool)
    price = float(flat.max(initial=0.0))
    if n_groups > 0:
        price = float(np.partition(flat, flat.size - n_groups)[flat.size - n_groups])
        taken = flat > price
        ties = np.flatnonzero(flat == price)
        taken[ties[: n_groups - int(np.count_nonzero(taken))]] = True
    ends = np.cumsum([gain.size for gain in gains])[:-1]
    parts = np.split(taken, ends)
    return [
        part.reshape(gain.shape).sum(axis=1) for part, gain in zip(parts, gains, strict=True)
    ], price


def _cut(
    problem: _Problem,
    banks: NDArray,
    depth: NDArray[np.int64],
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    price: float,
) -> Projection:
    """Keep the ``depth`` largest blocks of every bank of every row.

    The proof: prices between the last block kept and the first one left out of every bank, moved
    so that a row's sum is the price of a group.
    """
    n_words = problem.n_words
    last = np.take_along_axis(banks, np.maximum(depth - 1, 0)[:, None, None], axis=2)[..., 0]
    following = np.take_along_axis(banks, np.minimum(depth, n_words - 1)[:, None, None], axis=2)
    following = following[..., 0]
    mask = np.zeros(problem.scores.shape, dtype=bool)
    solver.write_ranked(problem.scores, last, depth, mask)
    high, low = last.astype(np.float64), following.astype(np.float64)
    # Beyond a bank's last real block any lower price will do, and before its first any higher.
    more = (depth < n_words)[:, None] & (low > -np.inf)
    low = np.where(more, low, np.minimum(high, price) - abs(price))
    high = np.where((depth > 0)[:, None], high, np.maximum(low, price) + abs(price))
    span = (high - low).sum(axis=1)
    share = (price - low.sum(axis=1)) / np.where(span > 0, span, 1.0)
    v = low + np.clip(share, 0.0, 1.0)[:, None] * (high - low)
    rows = np.arange(problem.n_rows)[:, None]
    kept, short, magnitude = solver.certify(
        problem.scores, mask, rows, np.ones(problem.n_rows, dtype=np.int64),
        np.zeros((problem.n_rows, 1)), v, problem.config.lanes, 1,
    )  # fmt: skip
    # Rows whose group price is not the common one could give or take groups at a gain.
    off = price - v.sum(axis=1)
    short += float(np.maximum(off * (depth - least), -off * (most - depth)).sum())
    order = problem.given_order()
    if order is None:
        order = consecutive_rows(problem.n_rows)
    return problem.projection(mask, order, (kept, short, magnitude))
