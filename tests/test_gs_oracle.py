"""The exact GS projection against an oracle, and the oracle against all masks there are."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.geometry import Geometry
from gshw.pattern import check_mask
from pruning.patterns.gs import Budget, Gs
from pruning.patterns.pattern import Projection, RowGrouping, ScoredMatrix
from tests.gs_oracle import Bundle, best_total, bundles_of, split_regret
from tests.strategies import conv

EXACT = 1e-9
CERTIFIED = 1e-6


def engine(lanes: int, rows: int, block: int = 1) -> EngineConfig:
    return EngineConfig(lanes=lanes, rows=rows, bank_width=8 * block)


def gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return np.abs(rng.normal(size=shape))


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Rows and columns of different scales, as in trained layers."""
    rows = np.exp(0.5 * rng.normal(size=(shape[0], 1)))
    columns = np.exp(0.5 * rng.normal(size=(1, shape[1])))
    return np.abs(rng.standard_t(4, shape)) * rows * columns


def tied(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.integers(0, 4, shape).astype(np.float64)


def signed(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.normal(size=shape)


# --- the oracle against all masks ----------------------------------------------------------------


def all_masks(bundle: Bundle) -> dict[int, float]:
    """Best score of every number of groups, from every set of blocks of the bundle."""
    n_rows, n_blocks = bundle.scores.shape
    per_row = bundle.lanes // bundle.rows
    best: dict[int, float] = {}
    for kept in itertools.product((False, True), repeat=bundle.scores.size):
        mask = np.reshape(kept, (n_rows, n_blocks))
        in_row = mask.sum(axis=1)
        n_groups, rest = divmod(int(in_row[0]), per_row)
        in_bank = [int(mask[:, bundle.bank == b].sum()) for b in range(bundle.lanes)]
        if rest or (in_row != in_row[0]).any() or max(in_bank) > n_groups:
            continue
        score = float(bundle.scores[mask].sum())
        best[n_groups] = max(best.get(n_groups, -np.inf), score)
    return best


@pytest.mark.parametrize(
    ("lanes", "rows", "block", "geometry", "n_rows"),
    [
        (2, 2, 1, Geometry.linear(4), 3),
        (2, 2, 1, Geometry.linear(5), 2),  # a bank has one block more than the other
        (2, 1, 1, Geometry.linear(6), 2),
        (4, 2, 1, Geometry.linear(6), 3),
        (4, 4, 1, Geometry.linear(4), 3),
        (2, 2, 2, Geometry.linear(7), 3),  # the last block has one channel
        (2, 2, 1, conv(3, (1, 2)), 2),  # padded in each tap
        (2, 2, 1, conv(3, (1, 2), unfold=True), 2),
    ],
)
@pytest.mark.parametrize("spread", [gaussian, tied, signed])
def test_the_oracle_finds_the_best_of_all_masks(lanes, rows, block, geometry, n_rows, spread):
    config = engine(lanes, rows, block)
    rng = np.random.default_rng(5)
    scores = spread(rng, (n_rows, geometry.n_columns))
    order = rng.permutation(n_rows)
    bundles = bundles_of(config, scores, geometry, order)
    brute = [all_masks(bundle) for bundle in bundles]
    for bundle, best in zip(bundles, brute, strict=True):
        values = bundle.all_values()
        assert {g for g, v in enumerate(values) if v > -np.inf} == set(best)
        for g, score in best.items():
            assert values[g] == pytest.approx(score, rel=1e-12, abs=1e-12)
    totals: dict[int, float] = {}
    for choice in itertools.product(*(best.items() for best in brute)):
        cost = sum(g * b.blocks_per_group for (g, _), b in zip(choice, bundles, strict=True))
        totals[cost] = max(totals.get(cost, -np.inf), sum(score for _, score in choice))
    values, costs = _values(bundles)
    for cost in range(scores.size + 1):
        expected = totals.get(cost, -np.inf)
        assert best_total(values, costs, cost) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_oracle_banks_are_the_geometry_s():
    """Every real block of a row lies where the scratchpad holds it."""
    config = engine(4, 2, 2)
    for geometry in (Geometry.linear(21), conv(11, (2, 3)), conv(3, (2, 3), unfold=True)):
        scores = np.random.default_rng(0).random((2, geometry.n_columns))
        (bundle,) = bundles_of(config, scores, geometry, [0, 1])
        laid_out = geometry.to_blocks(config, scores).sum(axis=3)
        for bank in range(config.lanes):
            there = laid_out[0, :, bank]
            mine = bundle.scores[0, bundle.bank == bank]
            assert np.allclose(np.sort(there[there > 0]), np.sort(mine))


# --- the projection against the oracle -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One matrix to project, and how."""

    config: EngineConfig
    matrix: ScoredMatrix
    grouping: RowGrouping
    sparsity: float

    def gs(self, budget: Budget = Budget.FREE) -> Gs:
        return Gs(config=self.config, grouping=self.grouping, budget=budget)


def small_case(seed: int, config: EngineConfig | None = None) -> Case:
    """Few rows and columns, every option of the pattern."""
    rng = np.random.default_rng((1, seed))
    if config is None:
        lanes = int(rng.choice([2, 4, 8]))
        rows = lanes >> int(rng.integers(0, lanes.bit_length()))
        config = engine(lanes, rows, int(rng.choice([1, 1, 2])))
    spread = (gaussian, heavy, tied, signed)[seed % 4]
    # At least one channel in every bank; often not a whole number of scratchpad rows.
    least = (config.lanes - 1) * config.block + 1
    n_channels = least + int(rng.integers(0, 2 * config.channels_per_row))
    kernel = ((1, 1), (1, 1), (1, 2), (2, 2))[int(rng.integers(4))]
    geometry = Geometry.linear(n_channels) if kernel == (1, 1) else conv(n_channels, kernel)
    n_rows = int(rng.integers(1, 2 * config.rows + 4))
    grouping = (RowGrouping.SCATTER, RowGrouping.CONSECUTIVE)[int(rng.integers(2))]
    matrix = ScoredMatrix(
        name=f"case{seed}",
        scores=spread(rng, (n_rows, geometry.n_columns)),
        geometry=geometry,
        row_order=rng.permutation(n_rows) if rng.random() < 0.3 else None,
    )
    # At least one whole group is asked for.
    most = 1.0 - (config.channels_per_row + config.block) / matrix.scores.size
    sparsity = float(rng.uniform(0.0, max(0.0, min(0.95, most))))
    return Case(config=config, matrix=matrix, grouping=grouping, sparsity=sparsity)


def checked_bundles(case: Case, found: Projection) -> list[Bundle]:
    """The bundles of a projection, whose mask matches and whose kept score is the mask's."""
    matrix = case.matrix
    assert check_mask(case.config, found.mask, matrix.geometry, found.row_order) == []
    if matrix.row_order is not None and case.config.rows > 1:
        assert np.array_equal(found.row_order, matrix.row_order)
    elif matrix.row_order is None and case.grouping is RowGrouping.CONSECUTIVE:
        assert np.array_equal(found.row_order, np.arange(matrix.n_rows))
    kept = float(matrix.scores[found.mask].sum())
    assert found.kept_score == pytest.approx(kept, rel=EXACT, abs=EXACT)
    return bundles_of(case.config, matrix.scores, matrix.geometry, found.row_order)


def kept_groups(case: Case, found: Projection) -> list[int]:
    """Groups of every bundle, from the blocks that its first row keeps."""
    indicator = bundles_of(
        case.config, found.mask.astype(np.float64), case.matrix.geometry, found.row_order
    )
    return [int((b.scores[0] > 0).sum()) * case.config.rows // case.config.lanes for b in indicator]


def assert_optimal(kept_score: float, bound: float, optimum: float) -> None:
    scale = max(1.0, abs(optimum))
    assert abs(kept_score - optimum) <= EXACT * scale
    assert bound >= optimum - EXACT * scale
    assert bound - kept_score <= CERTIFIED * scale


def _values(bundles: list[Bundle]) -> tuple[list[NDArray], list[int]]:
    return [b.all_values() for b in bundles], [b.blocks_per_group for b in bundles]


def n_blocks_kept(case: Case, found: Projection, bundles: list[Bundle]) -> int:
    groups = kept_groups(case, found)
    return sum(g * b.blocks_per_group for g, b in zip(groups, bundles, strict=True))


@pytest.mark.parametrize("seed", range(200))
def test_small_masks_are_optimal(seed):
    case = small_case(seed)
    found = case.gs().project(case.matrix, case.sparsity)
    bundles = checked_bundles(case, found)
    optimum = best_total(*_values(bundles), n_blocks_kept(case, found, bundles))
    assert found.bound is not None
    assert_optimal(found.kept_score, found.bound, optimum)


@pytest.mark.parametrize("seed", range(40))
def test_a_fixed_budget_is_optimal_for_its_groups(seed):
    case = small_case(seed)
    found = case.gs(Budget.FIXED).project(case.matrix, case.sparsity)
    bundles = checked_bundles(case, found)
    groups = kept_groups(case, found)
    assert max(groups) - min(groups) <= 1
    optimum = sum(float(b.values([g])[0]) for b, g in zip(bundles, groups, strict=True))
    assert found.bound is not None
    assert_optimal(found.kept_score, found.bound, optimum)


@pytest.mark.parametrize("seed", range(20))
def test_one_budget_over_layers_is_optimal(seed):
    rng = np.random.default_rng((2, seed))
    lanes = int(rng.choice([2, 4, 8]))
    config = engine(lanes, lanes >> int(rng.integers(0, lanes.bit_length())))
    cases = [small_case(1000 * (seed + 1) + i, config) for i in range(3)]
    gs = Gs(config=config, grouping=RowGrouping.SCATTER)
    found = gs.project_all([case.matrix for case in cases], cases[0].sparsity)
    values, costs, budget = [], [], 0
    for case, projection in zip(cases, found, strict=True):
        scatter = Case(
            config=config,
            matrix=case.matrix,
            grouping=RowGrouping.SCATTER,
            sparsity=case.sparsity,
        )
        bundles = checked_bundles(scatter, projection)
        budget += n_blocks_kept(scatter, projection, bundles)
        for more, into in zip(_values(bundles), (values, costs), strict=True):
            into.extend(more)
    optimum = best_total(values, costs, budget)
    kept = sum(p.kept_score for p in found)
    assert_optimal(kept, sum(p.bound or 0.0 for p in found), optimum)


def medium_cases() -> Iterator[Case]:
    """Twelve layers of several full bundles: 16 and 32 banks, vertical, hybrid and horizontal."""
    shapes = [(16, 16), (16, 4), (16, 1), (32, 32), (32, 8), (32, 1)]
    for seed, (lanes, rows) in enumerate(shapes * 2):
        rng = np.random.default_rng((3, seed))
        geometry = (Geometry.linear(512), conv(64, (2, 2)))[seed % 2]
        n_rows = 128 if rows == 32 else 64
        spread = (heavy, gaussian)[seed // len(shapes)]
        yield Case(
            config=engine(lanes, rows),
            matrix=ScoredMatrix(
                name=f"medium{seed}",
                scores=spread(rng, (n_rows, geometry.n_columns)),
                geometry=geometry,
            ),
            grouping=RowGrouping.SCATTER,
            sparsity=(0.5, 0.9, 0.8, 0.95)[seed % 4],
        )


@pytest.mark.parametrize("case", list(medium_cases()), ids=lambda case: case.matrix.name)
def test_medium_masks_are_optimal(case):
    """No group is worth more in another bundle; concavity makes that enough."""
    found = case.gs().project(case.matrix, case.sparsity)
    bundles = checked_bundles(case, found)
    total, regret = split_regret(bundles, kept_groups(case, found))
    assert regret <= EXACT * total
    assert found.bound is not None
    assert_optimal(found.kept_score, found.bound, total)
