"""Projections: masks that match, as dense as asked, and of the largest score there is.

The oracles are brute force on tiny cases and linear programs on larger ones; they share no code
with the solvers, and the masks are checked by :mod:`gshw.pattern`, which only counts.
"""

import itertools
import re

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array

from gshw.config import EngineConfig, load_config, preset_names
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.pattern import check_mask
from pruning.projection import (
    RowGrouping,
    block_mask,
    check_scores,
    least_bank,
    project,
    unstructured_mask,
)
from tests.strategies import conv


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def engine(lanes: int, rows: int, block: int = 1) -> EngineConfig:
    return EngineConfig(lanes=lanes, rows=rows, bank_width=8 * block)


def uniform(rng, shape):
    return rng.random(shape)


def gaussian(rng, shape):
    return np.abs(rng.normal(size=shape))


def heavy_tailed(rng, shape):
    """Student's t with 4 degrees of freedom, rows and columns of log-normal scale."""
    rows, columns = np.exp(rng.normal(size=(shape[0], 1))), np.exp(rng.normal(size=(1, shape[1])))
    return np.abs(rng.standard_t(4, shape)) * rows * columns


def tied(rng, shape):
    return rng.integers(0, 3, shape).astype(float)


def mixed_sign(rng, shape):
    return rng.normal(size=shape)


SCORES = [uniform, gaussian, heavy_tailed, tied, mixed_sign]


# --- oracles -------------------------------------------------------------------------------------


def best_scores(
    scores: np.ndarray,
    lanes: int,
    rows_per_bundle: int,
    n_groups: list[int] | None = None,
    n_kept: float | None = None,
) -> float:
    """Largest total score of balanced masks of 1 x 1 blocks, consecutive bundles, by one LP.

    The groups of every bundle are given, or free and fractional under a total of ``n_kept``
    blocks: then the value is an upper bound.

    Parameters
    ----------
    scores
        Shape (n_rows, n_columns); column c is in bank ``c % lanes``.
    """
    n_rows = len(scores)
    per_row = lanes // rows_per_bundle
    n_bundles = -(-n_rows // rows_per_bundle)
    n_weights = scores.size
    row, column = (a.reshape(-1) for a in np.indices(scores.shape))
    bundle = row // rows_per_bundle
    bank = bundle * lanes + column % lanes
    first_group = n_weights
    index = np.arange(n_weights)
    rows = np.arange(n_rows)
    # Each row keeps per_row * g of its bundle.
    equal = coo_array(
        (
            np.concatenate([np.ones(n_weights), np.full(n_rows, -per_row)]),
            (
                np.concatenate([row, rows]),
                np.concatenate([index, first_group + rows // rows_per_bundle]),
            ),
        ),
        shape=(n_rows, n_weights + n_bundles),
    )
    # Each bank keeps g, or at most g where rows are missing; the sums make it g elsewhere.
    banks = np.arange(n_bundles * lanes)
    below = coo_array(
        (
            np.concatenate([np.ones(n_weights), -np.ones(banks.size)]),
            (np.concatenate([bank, banks]), np.concatenate([index, first_group + banks // lanes])),
        ),
        shape=(banks.size, n_weights + n_bundles),
    )
    bounds = [(0, 1)] * n_weights
    limit = np.zeros(banks.size)
    if n_groups is not None:
        bounds += [(g, g) for g in n_groups]
    else:
        bounds += [(0, None)] * n_bundles
        budget = coo_array(
            (np.ones(n_weights), (np.zeros(n_weights, int), index)),
            shape=(1, n_weights + n_bundles),
        )
        equal = coo_array(np.vstack([equal.toarray(), budget.toarray()]))
    wanted = np.zeros(equal.shape[0])
    if n_groups is None:
        wanted[-1] = n_kept
    cost = np.concatenate([-scores.reshape(-1), np.zeros(n_bundles)])
    result = linprog(
        cost,
        A_eq=equal.tocsr(),
        b_eq=wanted,
        A_ub=below.tocsr(),
        b_ub=limit,
        bounds=bounds,
        method="highs",
    )
    assert result.status == 0, result.message
    return -result.fun


def groups_of(mask: np.ndarray, order: np.ndarray, rows_per_bundle: int, lanes: int) -> list[int]:
    """Groups of every bundle, from any of its rows."""
    counts = mask[order].sum(axis=1)[::rows_per_bundle]
    return (counts * rows_per_bundle // lanes).tolist()


# --- the mask matches ----------------------------------------------------------------------------

WINDOWS = [
    (Geometry.linear(256), 40),
    (Geometry.linear(200), 33),
    (conv(32, (3, 3)), 16),
    (conv(70, (1, 3)), 50),
    (conv(8, (4, 3), unfold=True), 37),
]


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.93])
def test_presets(name, sparsity):
    """Every preset and window: the checker finds nothing, the density is as asked."""
    config = load_config(name).engine
    rng = np.random.default_rng(1)
    for geometry, n_rows in WINDOWS:
        if least_bank(config, geometry) == 0:
            continue
        scores = gaussian(rng, (n_rows, geometry.n_columns))
        for grouping in RowGrouping:
            found = project(config, "fc", scores, geometry, sparsity, grouping)
            assert check_mask(config, found.mask, geometry, found.row_order) == []
            assert sorted(found.row_order) == list(range(n_rows))
            if geometry.in_channels % config.block == 0:
                wanted = scores.size * (1 - sparsity)
                spare = config.lanes * config.block / 2
                assert abs(int(found.mask.sum()) - wanted) <= spare + 1e-6
                assert found.density == found.mask.sum() / scores.size


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("make", SCORES)
def test_every_row_count(rows, make):
    """16 lanes from horizontal to vertical, a partial last bundle, densities up to full."""
    config = engine(16, rows)
    rng = np.random.default_rng(rows)
    window = Geometry.linear(96)
    scores = make(rng, (37, 96))
    for sparsity in (0.0, 0.1, 0.5, 0.75, 0.9, 0.97, 0.999):
        found = project(config, "fc", scores, window, sparsity)
        assert check_mask(config, found.mask, window, found.row_order) == []
        assert abs(int(found.mask.sum()) - scores.size * (1 - sparsity)) <= 8 + 1e-9


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_blocks_are_scored_by_their_sum(rows):
    """1 x 4 blocks of equal sums fall together; the mask never cuts one."""
    config, window = engine(16, rows, block=4), Geometry.linear(16 * 4 * 5)
    scores = gaussian(np.random.default_rng(2), (32, window.n_columns))
    found = project(config, "fc", scores, window, 0.8)
    assert check_mask(config, found.mask, window, found.row_order) == []
    summed = scores.reshape(32, -1, 4).sum(axis=2)
    whole = project(engine(16, rows), "fc", summed, Geometry.linear(80), 0.8)
    np.testing.assert_array_equal(found.mask, np.repeat(whole.mask, 4, axis=1))


def test_columns_beyond_the_channels_are_never_kept():
    """50 columns on 16 banks: 14 banks have 3 blocks or fewer, padding takes no place."""
    for rows in (1, 4, 16):
        config, window = engine(16, rows), Geometry.linear(50)
        scores = -1 - gaussian(np.random.default_rng(3), (32, 50))
        found = project(config, "fc", scores, window, 0.1)
        assert check_mask(config, found.mask, window, found.row_order) == []
        assert found.mask.sum() == 32 * 16 * 3 - abs(32 * 48 - round(32 * 50 * 0.9 / 16) * 16)


# --- the best mask -------------------------------------------------------------------------------


def best_horizontal(scores: np.ndarray, lanes: int, n_groups: int) -> float:
    """Brute force: every way to give the rows their groups, best blocks of each bank."""
    n_rows, n_columns = scores.shape
    per_bank = n_columns // lanes
    value = np.zeros((n_rows, per_bank + 1))
    for row in range(n_rows):
        for depth in range(1, per_bank + 1):
            for bank in range(lanes):
                best = sorted(scores[row, bank::lanes].tolist(), reverse=True)
                value[row, depth] += sum(best[:depth])
    return max(
        sum(value[row, depth] for row, depth in enumerate(depths))
        for depths in itertools.product(range(per_bank + 1), repeat=n_rows)
        if sum(depths) == n_groups
    )


@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("seed", range(6))
def test_horizontal_is_exact(make, seed):
    rng = np.random.default_rng(seed)
    lanes = int(rng.choice([2, 4]))
    n_rows, per_bank = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    scores = make(rng, (n_rows, lanes * per_bank))
    for n_groups in range(n_rows * per_bank + 1):
        sparsity = 1 - n_groups / (n_rows * per_bank)
        found = project(engine(lanes, 1), "fc", scores, Geometry.linear(lanes * per_bank), sparsity)
        assert found.mask.sum() == n_groups * lanes
        wanted = best_horizontal(scores, lanes, n_groups)
        assert scores[found.mask].sum() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("seed", range(16))
def test_bundles_are_exact_for_their_groups(make, seed):
    """80 small layers, some with a partial bundle: the score is that of the linear program."""
    rng = np.random.default_rng(1000 + seed)
    lanes = int(rng.choice([2, 4, 8]))
    rows = int(rng.choice([r for r in (2, 4, 8) if r <= lanes]))
    n_rows = rows * int(rng.integers(1, 4)) + int(rng.integers(0, rows)) * (seed % 2)
    n_columns = lanes * int(rng.integers(1, 6))
    scores = make(rng, (n_rows, n_columns))
    sparsity = float(rng.uniform(0.05, 0.9))
    grouping = list(RowGrouping)[seed % 2]
    config = engine(lanes, rows)
    found = project(config, "fc", scores, Geometry.linear(n_columns), sparsity, grouping)
    order = found.row_order
    n_groups = groups_of(found.mask, order, rows, lanes)
    wanted = best_scores(scores[order], lanes, rows, n_groups)
    assert scores[found.mask].sum() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_bundles_with_padding_are_exact():
    """22 columns on 4 banks: two banks have a block fewer."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        scores = heavy_tailed(rng, (8, 22))
        config = engine(4, 4)
        found = project(config, "fc", scores, Geometry.linear(22), 0.4)
        order = found.row_order
        wanted = best_scores(scores[order], 4, 4, groups_of(found.mask, order, 4, 4))
        assert scores[found.mask].sum() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-20, 2.0**40])
def test_the_unit_of_the_scores_does_not_matter(scale):
    """Squared gradients are tiny; a power of two changes no bit of a score's order."""
    rng = np.random.default_rng(5)
    for rows in (1, 4, 16):
        config, window = engine(16, rows), Geometry.linear(64)
        scores = gaussian(rng, (32, 64))
        found = project(config, "fc", scores, window, 0.8)
        scaled = project(config, "fc", scores * scale, window, 0.8)
        np.testing.assert_array_equal(found.mask, scaled.mask)


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("make", [gaussian, heavy_tailed])
@pytest.mark.parametrize("sparsity", [0.7, 0.9])
def test_split_over_bundles_is_near_the_best(rows, make, sparsity):
    """The gap to the linear program with fractional groups is below 0.1 %."""
    config, window = engine(16, rows), Geometry.linear(128)
    scores = make(np.random.default_rng(6), (64, 128))
    found = project(config, "fc", scores, window, sparsity)
    bound = best_scores(scores[found.row_order], 16, rows, n_kept=float(found.mask.sum()))
    kept = float(scores[found.mask].sum())
    assert kept <= bound * (1 + 1e-9)
    assert kept >= bound * (1 - 1e-3)


def test_scatter_beats_consecutive_rows():
    """Rows of different scale: bundles of like rows keep more."""
    rng = np.random.default_rng(7)
    scores = gaussian(rng, (64, 128)) * np.exp(1.5 * rng.normal(size=(64, 1)))
    for rows in (4, 16):
        config, window = engine(16, rows), Geometry.linear(128)
        kept = {
            grouping: scores[project(config, "fc", scores, window, 0.8, grouping).mask].sum()
            for grouping in RowGrouping
        }
        assert kept[RowGrouping.SCATTER] > 1.02 * kept[RowGrouping.CONSECUTIVE]


def test_finer_patterns_keep_more():
    """Unstructured is the limit; vertical (k = 1) with scatter comes within 5 % of it here."""
    scores = heavy_tailed(np.random.default_rng(8), (64, 128))
    limit = scores[unstructured_mask(scores, 0.8)].sum()
    for rows in (1, 4, 16):
        kept = scores[project(engine(16, rows), "fc", scores, Geometry.linear(128), 0.8).mask].sum()
        assert 0.8 * limit < kept <= limit


# --- interface -----------------------------------------------------------------------------------


def test_same_scores_same_mask():
    rng = np.random.default_rng(9)
    for rows in (1, 4, 16):
        scores = tied(rng, (32, 64))
        first = project(engine(16, rows), "fc", scores, Geometry.linear(64), 0.7)
        again = project(engine(16, rows), "fc", scores.copy(), Geometry.linear(64), 0.7)
        np.testing.assert_array_equal(first.mask, again.mask)
        np.testing.assert_array_equal(first.row_order, again.row_order)


def test_scores_are_not_changed():
    scores = gaussian(np.random.default_rng(10), (32, 64))
    before = scores.copy()
    project(engine(16, 16), "fc", scores, Geometry.linear(64), 0.7)
    project(engine(16, 1), "fc", scores, Geometry.linear(64), 0.7)
    np.testing.assert_array_equal(scores, before)


def test_given_row_order_is_kept():
    rng = np.random.default_rng(11)
    scores, order = gaussian(rng, (24, 64)), rng.permutation(24)
    config, window = engine(16, 8), Geometry.linear(64)
    found = project(config, "fc", scores, window, 0.7, row_order=order)
    np.testing.assert_array_equal(found.row_order, order)
    assert check_mask(config, found.mask, window, order) == []


def test_row_orders_by_grouping():
    scores = np.ones((4, 64))
    scores[[1, 3]] = 2.0
    config, window = engine(16, 2), Geometry.linear(64)
    scatter = project(config, "fc", scores, window, 0.5)
    assert scatter.row_order.tolist() == [1, 3, 0, 2]
    assert scatter.mask.all(axis=1).tolist() == [False, True, False, True]
    plain = project(config, "fc", scores, window, 0.5, RowGrouping.CONSECUTIVE)
    assert plain.row_order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_cannot_be_ordered(bad):
    scores = np.ones((4, 64))
    scores[2, 5] = bad
    message = f"layer 'fc': scores must be finite, not {bad} at (2, 5)"
    with raises(message):
        project(engine(16, 4), "fc", scores, Geometry.linear(64), 0.5)
    with raises(message):
        check_scores("fc", scores)


def test_too_few_columns():
    with raises(
        "layer 'fc': 15 columns leave a bank of 16 empty, so no mask but the empty one is balanced"
    ):
        project(engine(16, 4), "fc", np.ones((4, 15)), Geometry.linear(15), 0.5)
    with raises(
        "layer 'fc': 27 columns leave a bank of 16 empty, so no mask but the empty one is balanced"
    ):
        project(engine(16, 4), "fc", np.ones((4, 27)), conv(3, (3, 3)), 0.5)


@pytest.mark.parametrize(
    ("config", "geometry", "wanted"),
    [
        (engine(16, 4), Geometry.linear(15), 0),
        (engine(16, 4), Geometry.linear(16), 1),
        (engine(16, 4), Geometry.linear(47), 2),
        (engine(16, 4, block=2), Geometry.linear(31), 1),
        (engine(16, 4, block=2), Geometry.linear(30), 0),
        (engine(4, 4), conv(5, (3, 3)), 9),
        (engine(16, 4), conv(3, (3, 3)), 0),
        (engine(16, 4), conv(3, (3, 3), unfold=True), 1),
    ],
)
def test_least_bank(config, geometry, wanted):
    assert least_bank(config, geometry) == wanted


# --- other patterns ------------------------------------------------------------------------------


@pytest.mark.parametrize(("sparsity", "n_kept"), [(0.0, 70), (0.5, 35), (0.9, 7), (0.99, 1)])
def test_unstructured_keeps_the_largest(sparsity, n_kept):
    scores = gaussian(np.random.default_rng(12), (7, 10))
    mask = unstructured_mask(scores, sparsity)
    assert mask.sum() == n_kept
    assert n_kept == 70 or scores[mask].min() > scores[~mask].max()


def test_unstructured_ties_go_by_position():
    mask = unstructured_mask(np.ones((2, 4)), 0.625)
    assert mask.tolist() == [[True, True, True, False], [False] * 4]
    scores = np.array([[1.0, 2.0, 1.0], [2.0, 1.0, 2.0]])
    kept = unstructured_mask(scores, 1 / 3)
    assert kept.tolist() == [[True, True, False], [True, False, True]]


def test_block_mask_by_hand():
    """Blocks by their sum, not by their largest weight; the last block is short."""
    scores = np.array([[9.0, 0.0, 5.0, 5.0, 3.0], [1.0, 1.0, 4.0, 4.0, 8.5]])
    assert block_mask(scores, 0.6, 2).tolist() == [
        [True, True, True, True, False],
        [False, False, False, False, False],
    ]
    assert block_mask(scores, 0.2, 2).tolist() == [
        [True, True, True, True, False],
        [False, False, True, True, True],
    ]
    assert block_mask(scores, 0.0, 1).all()


def test_block_mask_of_one_column_is_unstructured():
    scores = gaussian(np.random.default_rng(13), (9, 11))
    np.testing.assert_array_equal(block_mask(scores, 0.8, 1), unstructured_mask(scores, 0.8))
