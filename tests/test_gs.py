"""The exact GS projection as its callers see it: counts, dtypes, layouts, odd scores, errors.

That the masks are the best ones is shown against linear programs in ``test_gs_oracle``; here only
brute force on tiny cases and one-group masks. Masks are checked by :mod:`gshw.pattern`, which only
counts.
"""

import itertools
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from gshw.config import EngineConfig, load_config, preset_names
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.pattern import check_mask
from pruning.patterns import solver
from pruning.patterns.gs import Budget, Gs, least_bank
from pruning.patterns.gs_torch import project_tensor
from pruning.patterns.neighbours import Unstructured
from pruning.patterns.pattern import Projection, RowGrouping, ScoredMatrix, check_finite
from tests.strategies import conv

CERTIFIED = 1e-6


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def scored(scores: np.ndarray, geometry: Geometry | None = None, **options) -> ScoredMatrix:
    window = Geometry.linear(scores.shape[1]) if geometry is None else geometry
    return ScoredMatrix(name="fc", scores=scores, geometry=window, **options)


def project(config: EngineConfig, scores: np.ndarray, sparsity: float, **options) -> Projection:
    return Gs(config=config, **options).project(scored(scores), sparsity)


def assert_sound(config: EngineConfig, matrix: ScoredMatrix, found: Projection) -> None:
    """The mask matches its engine, its score is what it says, and no more is possible."""
    assert check_mask(config, found.mask, matrix.geometry, found.row_order) == []
    scores = matrix.scores.astype(np.float64)
    kept = float(scores[found.mask].sum())
    size = float(np.abs(scores[found.mask]).sum())
    assert found.kept_score == pytest.approx(kept, rel=0, abs=1e-9 * size)
    n_kept = int(found.mask.sum())
    ceiling = float(np.sort(scores, axis=None)[scores.size - n_kept :].sum())
    assert found.kept_score <= ceiling + 1e-9 * size
    assert found.bound is not None and found.kept_score <= found.bound
    assert found.bound - found.kept_score <= CERTIFIED * size


def groups_of(config: EngineConfig, found: Projection) -> list[int]:
    """Groups of every bundle of a mask of 1 x 1 blocks, from its first row."""
    counts = found.mask[found.row_order].sum(axis=1)[:: config.rows]
    return (counts // config.lanes_per_row).tolist()


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
        matrix = scored(gaussian(rng, (n_rows, geometry.n_columns)), geometry)
        for grouping in RowGrouping:
            found = Gs(config=config, grouping=grouping).project(matrix, sparsity)
            assert_sound(config, matrix, found)
            assert sorted(found.row_order) == list(range(n_rows))
            assert found.density == found.mask.sum() / matrix.scores.size
            if geometry.in_channels % config.block == 0:
                wanted = matrix.scores.size * (1 - sparsity)
                n_kept = int(found.mask.sum())
                assert wanted - config.lanes * config.block < n_kept <= wanted + 1e-6


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("make", SCORES)
def test_every_row_count(rows, make):
    """16 lanes from horizontal to vertical, a partial last bundle, densities up to full."""
    config = engine(16, rows)
    scores = make(np.random.default_rng(rows), (37, 96))
    for sparsity in (0.0, 0.1, 0.5, 0.75, 0.9, 0.97, 0.995):
        found = project(config, scores, sparsity)
        assert_sound(config, scored(scores), found)
        wanted = scores.size * (1 - sparsity)
        assert wanted - 16 < int(found.mask.sum()) <= wanted + 1e-6


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_blocks_are_scored_by_their_sum(rows):
    """The mask of 1 x 4 blocks is that of their sums, and never cuts one."""
    config = engine(16, rows, block=4)
    scores = gaussian(np.random.default_rng(2), (32, 16 * 4 * 5))
    found = project(config, scores, 0.8)
    assert_sound(config, scored(scores), found)
    whole = project(engine(16, rows), scores.reshape(32, -1, 4).sum(axis=2), 0.8)
    np.testing.assert_array_equal(found.mask, np.repeat(whole.mask, 4, axis=1))
    assert found.kept_score == pytest.approx(whole.kept_score, rel=1e-12)


def test_float32_blocks_are_summed_in_double_precision():
    """2**24 + 1 is no float32: a sum of two must still see which block has the one."""
    scores = np.full((4, 2 * 4 * 2), 2.0**24, dtype=np.float32)
    scores[:, 1::2] = 0.0
    scores[:, 9::2] = 1.0
    for rows in (1, 4):
        found = project(engine(4, rows, block=2), scores, 0.5)
        np.testing.assert_array_equal(
            found.mask, np.repeat([[False, True]], 8, axis=1).repeat(4, 0)
        )


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize(("sparsity", "n_kept"), [(0.1, 1440), (0.0, 1536)])
def test_columns_beyond_the_channels_are_never_kept(rows, sparsity, n_kept):
    """50 columns on 16 banks: 14 banks have 3 blocks, so that 48 of a row are the most."""
    config = engine(16, rows)
    matrix = scored(-1 - gaussian(np.random.default_rng(3), (32, 50)))
    found = Gs(config=config).project(matrix, sparsity)
    assert_sound(config, matrix, found)
    assert found.mask.sum() == n_kept


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_padded_blocks_count_as_whole(rows):
    """Each tap of 70 channels is 23 blocks of 3 and one of 1; padding adds 8 blocks of nothing."""
    config, geometry = engine(16, rows, block=4), conv(70, (1, 3))
    matrix = scored(gaussian(np.random.default_rng(4), (20, geometry.n_columns)), geometry)
    found = Gs(config=config).project(matrix, 0.6)
    assert_sound(config, matrix, found)
    wanted = matrix.scores.size * 0.4 / 4
    kept = np.add.reduceat(found.mask.reshape(20, 3, 70), np.arange(0, 70, 4), axis=2) > 0
    assert wanted - 16 < kept.sum() <= wanted


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
    for n_groups in range(1, n_rows * per_bank + 1):
        found = project(engine(lanes, 1), scores, 1 - n_groups / (n_rows * per_bank))
        assert found.mask.sum() == n_groups * lanes
        wanted = best_horizontal(scores, lanes, n_groups)
        assert scores[found.mask].sum() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("make", SCORES)
def test_a_single_group_is_the_best_assignment(rows, make):
    """Very high sparsity: one group of one bundle, every bank's word to a port of a row."""
    config = engine(16, rows)
    scores = make(np.random.default_rng(rows), (64, 128))
    found = project(config, scores, 1 - 16 / scores.size, grouping=RowGrouping.CONSECUTIVE)
    assert_sound(config, scored(scores), found)
    assert found.mask.sum() == 16 and sorted(groups_of(config, found))[-2:] in ([0, 1], [1])
    best = scores.reshape(64, 8, 16).max(axis=1)
    totals = []
    for bundle in best.reshape(-1, rows, 16):
        ports = np.repeat(bundle, 16 // rows, axis=0)
        totals.append(ports[linear_sum_assignment(ports, maximize=True)].sum())
    assert found.kept_score == pytest.approx(max(totals), rel=1e-9)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-20, 2.0**40])
def test_the_unit_of_the_scores_does_not_matter(scale):
    """Squared gradients are tiny; a power of two changes no bit of a score's order."""
    scores = gaussian(np.random.default_rng(5), (32, 64))
    for rows in (1, 4, 16):
        found = project(engine(16, rows), scores, 0.8)
        scaled = project(engine(16, rows), scores * scale, 0.8)
        np.testing.assert_array_equal(found.mask, scaled.mask)


def test_scatter_beats_consecutive_rows():
    """Rows of different scale: bundles of like rows keep more."""
    rng = np.random.default_rng(7)
    scores = gaussian(rng, (64, 128)) * np.exp(1.5 * rng.normal(size=(64, 1)))
    for rows in (4, 16):
        scatter, consecutive = (
            project(engine(16, rows), scores, 0.8, grouping=grouping).kept_score
            for grouping in (RowGrouping.SCATTER, RowGrouping.CONSECUTIVE)
        )
        assert scatter > 1.02 * consecutive


def test_finer_patterns_keep_more():
    """Unstructured is the limit; every row count comes within 20 % of it here."""
    scores = heavy_tailed(np.random.default_rng(8), (64, 128))
    limit = Unstructured().project(scored(scores), 0.8).kept_score
    for rows in (1, 4, 16):
        kept = project(engine(16, rows), scores, 0.8).kept_score
        assert 0.8 * limit < kept <= limit


# --- degenerate scores ---------------------------------------------------------------------------


def one_outlier(rng, shape):
    scores = gaussian(rng, shape)
    scores[7, 13] = 1e30
    return scores


def zero_columns(rng, shape):
    return gaussian(rng, shape) * (rng.random(shape[1]) < 0.4)


def zero_rows(rng, shape):
    return gaussian(rng, shape) * (rng.random((shape[0], 1)) < 0.4)


def a_zero_bank(rng, shape):
    scores = gaussian(rng, shape)
    scores[:, 3::16] = 0.0
    return scores


def mixed_magnitudes(rng, shape):
    """1e30 and 1e-30: a price near one says nothing in the precision of the other."""
    return np.where(rng.random(shape) < 0.5, 1e30, 1e-30) * rng.random(shape)


def every_magnitude(rng, shape):
    return 10.0 ** rng.uniform(-30, 30, shape)


DEGENERATE = {
    "zero": lambda rng, shape: np.zeros(shape),
    "equal": lambda rng, shape: np.full(shape, 0.1),
    "equal-negative": lambda rng, shape: np.full(shape, -3.0),
    "huge": lambda rng, shape: 1e37 * gaussian(rng, shape),
    "denormal": lambda rng, shape: 1e-43 * gaussian(rng, shape),
    "one-outlier": one_outlier,
    "zero-columns": zero_columns,
    "zero-rows": zero_rows,
    "zero-bank": a_zero_bank,
    "mixed-magnitudes": mixed_magnitudes,
    "every-magnitude": every_magnitude,
}


@pytest.mark.parametrize("make", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("budget", Budget)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_scores(make, rows, budget, dtype):
    """Certified as well, over whole matrices and partial bundles, dense to nearly empty."""
    config = engine(16, rows)
    for n_rows, n_columns in ((40, 96), (16, 90)):
        scores = make(np.random.default_rng(rows), (n_rows, n_columns)).astype(dtype)
        for sparsity in (0.0, 0.5, 0.9, 0.98):
            found = project(config, scores, sparsity, budget=budget)
            assert_sound(config, scored(scores), found)
            assert found.gap is not None and found.gap <= CERTIFIED
            n_kept, wanted = int(found.mask.sum()), int(scores.size * (1 - sparsity) + 1e-6)
            assert wanted - 16 < n_kept <= wanted or (n_columns == 90 and n_kept == 16 * 80)


def test_the_largest_and_the_smallest_scores_of_float64():
    scores = gaussian(np.random.default_rng(12), (32, 64))
    scores /= scores.max()
    for rows in (1, 4, 16):
        for scale in (1e300, 1e-307):
            found = project(engine(16, rows), scores * scale, 0.8)
            assert_sound(engine(16, rows), scored(scores * scale), found)
            assert found.gap is not None and found.gap <= CERTIFIED
            assert found.kept_score > 0.3 * scale * scores.size * 0.2


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_bundles_of_which_nothing_is_kept(rows):
    """One bundle's scores dwarf all others: with a free budget it takes everything."""
    config = engine(16, rows)
    scores = gaussian(np.random.default_rng(13), (4 * rows, 64))
    scores[rows : 2 * rows] += 100.0
    free = project(config, scores, 0.75, grouping=RowGrouping.CONSECUTIVE)
    assert_sound(config, scored(scores), free)
    assert groups_of(config, free) == [0, 4 * rows, 0, 0]
    fixed = project(config, scores, 0.75, grouping=RowGrouping.CONSECUTIVE, budget=Budget.FIXED)
    assert_sound(config, scored(scores), fixed)
    assert groups_of(config, fixed) == [rows] * 4


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("n_rows", [64, 39])
def test_a_fixed_budget_is_even(rows, make, n_rows):
    """To within one group, as many blocks as asked, and never more score than a free one."""
    config = engine(16, rows)
    scores = make(np.random.default_rng(14), (n_rows, 96))
    for sparsity in (0.3, 0.85, 0.99):
        fixed, free = (
            project(config, scores, sparsity, budget=b) for b in (Budget.FIXED, Budget.FREE)
        )
        assert_sound(config, scored(scores), fixed)
        groups = groups_of(config, fixed)
        assert max(groups) - min(groups) <= 1
        wanted = scores.size * (1 - sparsity)
        assert wanted - 16 < int(fixed.mask.sum()) <= wanted
        if fixed.mask.sum() == free.mask.sum():
            assert fixed.kept_score <= free.kept_score + 1e-9 * np.abs(scores).sum()


def layers(rng: np.random.Generator) -> list[ScoredMatrix]:
    """Three layers of different shapes, windows, dtypes and scales; the second is worth most."""
    made = []
    shapes = ((32, Geometry.linear(64)), (40, conv(16, (1, 3))), (16, Geometry.linear(50)))
    for i, (n_rows, geometry) in enumerate(shapes):
        scores = gaussian(rng, (n_rows, geometry.n_columns)) * (1.0, 5.0, 0.5)[i]
        dtype = (np.float32, np.float64, np.float16)[i]
        made.append(ScoredMatrix(name=f"{i}", scores=scores.astype(dtype), geometry=geometry))
    return made


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("grouping", RowGrouping)
def test_one_budget_over_layers(rows, grouping):
    """Groups go to the layer where they gain most; the total is as asked and beats equal shares."""
    gs = Gs(config=engine(16, rows), grouping=grouping)
    matrices = layers(np.random.default_rng(15))
    total = sum(matrix.scores.size for matrix in matrices)
    for sparsity in (0.5, 0.9):
        together = gs.project_all(matrices, sparsity)
        for matrix, found in zip(matrices, together, strict=True):
            assert_sound(gs.config, matrix, found)
        n_kept = sum(int(found.mask.sum()) for found in together)
        assert total * (1 - sparsity) - 16 < n_kept <= total * (1 - sparsity) + 1e-6
        alone = [gs.project(matrix, sparsity) for matrix in matrices]
        assert together[1].density > alone[1].density > together[2].density
        kept, apart = (sum(found.kept_score for found in all_) for all_ in (together, alone))
        assert kept > apart


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_a_layer_of_which_nothing_is_kept(rows):
    """Certified without rounding: its gap is relative to nothing."""
    scores = gaussian(np.random.default_rng(28), (20, 64))
    matrices = [scored(scores), scored(scores + 1e3)]
    empty, full = Gs(config=engine(16, rows)).project_all(matrices, 0.7)
    assert not empty.mask.any() and full.mask.any()
    assert (empty.kept_score, empty.bound, empty.gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_a_fixed_budget_over_layers_is_even(rows):
    config = engine(16, rows)
    matrices = [
        ScoredMatrix(name=f"{i}", scores=10.0**i * gaussian(np.random.default_rng(i), (n, 64)),
                     geometry=Geometry.linear(64))
        for i, n in enumerate((32, 16, 38))
    ]  # fmt: skip
    found = Gs(config=config, budget=Budget.FIXED).project_all(matrices, 0.83)
    groups = [g for projection in found for g in groups_of(config, projection)]
    assert max(groups) - min(groups) <= 1
    n_kept, wanted = sum(int(p.mask.sum()) for p in found), 86 * 64 * 0.17
    assert wanted - 16 < n_kept <= wanted


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("budget", Budget)
def test_one_layer_together_is_the_layer_alone(rows, budget):
    gs = Gs(config=engine(16, rows), budget=budget)
    matrix = scored(heavy_tailed(np.random.default_rng(16), (40, 96)))
    (together,) = gs.project_all([matrix], 0.8)
    alone = gs.project(matrix, 0.8)
    np.testing.assert_array_equal(together.mask, alone.mask)
    assert (together.kept_score, together.bound) == (alone.kept_score, alone.bound)
    assert gs.project_all([], 0.8) == []


# --- dtypes and layouts --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("block", [1, 2])
def test_integers_and_floats_keep_as_much(rows, block):
    """The same small integers, whatever holds them; many ties, so that masks may differ."""
    config = engine(16, rows, block)
    values = np.random.default_rng(17).integers(0, 2, (37, 96))
    exact = project(config, values.astype(np.float64), 0.7)
    for dtype in (np.float16, np.float32, ">f4", np.int8, np.uint8, np.int64, bool):
        scores = values.astype(dtype)
        found = project(config, scores, 0.7)
        assert_sound(config, scored(scores), found)
        assert found.kept_score == exact.kept_score
        np.testing.assert_array_equal(found.row_order, exact.row_order)


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("block", [1, 2])
def test_floats_of_any_width_agree(rows, block):
    """The same values without ties: one mask."""
    config = engine(16, rows, block)
    values = heavy_tailed(np.random.default_rng(17), (37, 96)).astype(np.float16)
    exact = project(config, values.astype(np.float64), 0.7)
    for dtype in (np.float16, np.float32, ">f4", ">f8"):
        found = project(config, values.astype(dtype), 0.7)
        np.testing.assert_array_equal(found.mask, exact.mask)
        np.testing.assert_array_equal(found.row_order, exact.row_order)
        assert found.kept_score == pytest.approx(exact.kept_score, rel=1e-12)


def test_integer_scores_are_not_rounded():
    """2**40 and a little: a float32 would not see the little."""
    little = np.random.default_rng(18).permutation(16 * 64).reshape(16, 64)
    for rows in (1, 4, 16):
        config = engine(16, rows)
        found = project(config, 2**40 + little, 0.7)
        np.testing.assert_array_equal(found.mask, project(config, little, 0.7).mask)


def test_half_precision_is_certified():
    scores = heavy_tailed(np.random.default_rng(19), (40, 96)).astype(np.float16)
    for rows in (1, 4, 16):
        assert_sound(engine(16, rows), scored(scores), project(engine(16, rows), scores, 0.8))


def read_only(scores):
    scores = scores.copy()
    scores.flags.writeable = False
    return scores


LAYOUTS = {
    "read-only": read_only,
    "read-only view": lambda s: read_only(np.pad(s, 2))[2:-2, 2:-2],
    "column-major": np.asfortranarray,
    "transposed": lambda s: s.T.copy().T,
    "every other": lambda s: np.repeat(np.repeat(s, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda s: s[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": lambda s: np.frombuffer(b"x" + s.tobytes(), s.dtype, offset=1).reshape(s.shape),
    "broadcast": lambda s: np.broadcast_to(s, (2, *s.shape))[1],
}


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_layouts_agree(rows, layout, dtype):
    """Nothing is compiled anew for them either, and the scores stay as they are."""
    config = engine(16, rows)
    scores = gaussian(np.random.default_rng(20), (40, 96)).astype(dtype)
    plain = project(config, scores, 0.8)
    compiled = [
        kernel.signatures
        for kernel in (solver.solve_batch, solver.write_mask, solver.certify, solver.write_ranked)
    ]
    view = layout(scores)
    before = view.tobytes()
    found = project(config, view, 0.8)
    np.testing.assert_array_equal(found.mask, plain.mask)
    np.testing.assert_array_equal(found.row_order, plain.row_order)
    assert (found.kept_score, found.bound) == (plain.kept_score, plain.bound)
    assert view.tobytes() == before
    assert compiled == [
        kernel.signatures
        for kernel in (solver.solve_batch, solver.write_mask, solver.certify, solver.write_ranked)
    ]


# --- rows and repetition -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 8, 16])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_given_row_order_is_kept(rows, dtype):
    """Whatever the grouping; a copy, so that neither side changes the other's."""
    rng = np.random.default_rng(11)
    order = read_only(rng.permutation(24).astype(dtype))
    matrix = scored(gaussian(rng, (24, 64)), row_order=order)
    config = engine(16, rows)
    for grouping in RowGrouping:
        found = Gs(config=config, grouping=grouping).project(matrix, 0.7)
        np.testing.assert_array_equal(found.row_order, order)
        assert found.row_order.dtype == np.int64
        assert not np.shares_memory(found.row_order, order)
        assert_sound(config, matrix, found)


def test_a_horizontal_mask_does_not_depend_on_the_order_of_rows():
    scores = gaussian(np.random.default_rng(21), (24, 64))
    order = np.arange(24)[::-1]
    found = Gs(config=engine(16, 1)).project(scored(scores, row_order=order), 0.7)
    plain = project(engine(16, 1), scores, 0.7)
    np.testing.assert_array_equal(found.mask, plain.mask)
    assert (found.kept_score, found.bound) == (plain.kept_score, plain.bound)
    np.testing.assert_array_equal(plain.row_order, np.arange(24))


def test_row_orders_by_grouping():
    scores = np.ones((4, 64))
    scores[[1, 3]] = 2.0
    scatter = project(engine(16, 2), scores, 0.5)
    assert scatter.row_order.tolist() == [1, 3, 0, 2]
    assert scatter.mask.all(axis=1).tolist() == [False, True, False, True]
    plain = project(engine(16, 2), scores, 0.5, grouping=RowGrouping.CONSECUTIVE)
    assert plain.row_order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("make", [tied, heavy_tailed])
@pytest.mark.parametrize("budget", Budget)
def test_same_scores_same_mask(rows, make, budget):
    """Whatever was projected in between."""
    config = engine(16, rows)
    scores = make(np.random.default_rng(9), (39, 64))
    first = project(config, scores, 0.7, budget=budget)
    project(config, scores[::-1], 0.4, budget=budget)
    again = project(config, scores.copy(), 0.7, budget=budget)
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_array_equal(first.row_order, again.row_order)
    assert (first.kept_score, first.bound) == (again.kept_score, again.bound)


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("make", [uniform, heavy_tailed])
@pytest.mark.parametrize("budget", Budget)
def test_projecting_what_was_kept_gives_the_mask_again(rows, block, make, budget):
    """On the same bundles: rows of equal counts could be bundled otherwise, and not balance."""
    config = engine(16, rows, block)
    for n_rows, n_columns in ((32, 96), (39, 70)):
        scores = make(np.random.default_rng(22), (n_rows, n_columns))
        for sparsity in (0.6, 0.9):
            found = project(config, scores, sparsity, budget=budget)
            kept = np.where(found.mask, scores, 0.0)
            rest = 1 - found.mask.sum() / scores.size
            matrix = scored(kept, row_order=found.row_order)
            again = Gs(config=config, budget=budget).project(matrix, rest)
            np.testing.assert_array_equal(again.mask, found.mask)
            assert again.kept_score == pytest.approx(found.kept_score, rel=1e-12)


# --- the same on tensors -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gaussian, heavy_tailed, tied, lambda rng, s: np.zeros(s)])
@pytest.mark.parametrize(
    ("config", "geometry", "n_rows"),
    [
        (engine(16, 16), Geometry.linear(256), 96),
        (engine(16, 4), conv(48, (3, 3)), 50),
        (engine(8, 8, block=2), Geometry.linear(210), 43),
        (engine(32, 1), Geometry.linear(320), 40),
        (engine(4, 2), Geometry.linear(37), 9),
    ],
)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_tensors_keep_as_much(make, config, geometry, n_rows, sparsity):
    """To 0.1 %, and what one of them has more of groups of the last bundle."""
    scores = make(np.random.default_rng(23), (n_rows, geometry.n_columns)).astype(np.float32)
    exact = Gs(config=config).project(scored(scores, geometry), sparsity)
    found = project_tensor(config, "fc", torch.from_numpy(scores), geometry, sparsity)
    order = found.row_order.numpy()
    assert check_mask(config, found.mask.numpy(), geometry, order) == []
    difference = abs(int(found.mask.sum()) - int(exact.mask.sum()))
    assert difference < config.channels_per_row
    slack = 1e-3 * exact.kept_score + difference * float(scores.max())
    assert found.kept_score == pytest.approx(exact.kept_score, abs=slack)


def test_tensors_of_few_values():
    """Nearly all scores are zero: where groups are first put says little."""
    rng = np.random.default_rng(27)
    for _ in range(20):
        scores = (rng.integers(1, 4, (25, 192)) * (rng.random((25, 192)) < 0.1)).astype(np.float32)
        exact = project(engine(8, 8), scores, 0.9)
        found = project_tensor(
            engine(8, 8), "fc", torch.from_numpy(scores), Geometry.linear(192), 0.9
        )
        assert found.kept_score == pytest.approx(exact.kept_score, rel=1e-3, abs=24)
        assert found.gap <= 1e-3


def test_tensors_of_tiny_scores():
    """Densities of scores of 1e-38 do not fit float32."""
    scores = 1e-38 * uniform(np.random.default_rng(27), (32, 64)).astype(np.float32)
    exact = project(engine(16, 16), scores, 0.5)
    found = project_tensor(engine(16, 16), "fc", torch.from_numpy(scores), Geometry.linear(64), 0.5)
    assert found.kept_score == pytest.approx(exact.kept_score, rel=1e-3)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_less_than_one_group(rows):
    scores = gaussian(np.random.default_rng(24), (32, 48))
    with raises(
        "layer 'fc': sparsity 0.99 leaves 15 blocks, less than one group of 16; "
        "possible is at most 0.9896"
    ):
        project(engine(16, rows), scores, 0.99)
    assert project(engine(16, rows), scores, 0.9895).mask.sum() == 16


def test_less_than_one_group_of_a_few_rows():
    """Three rows of an engine of four: a group is theirs alone, 12 blocks."""
    scores = gaussian(np.random.default_rng(25), (3, 64))
    with raises(
        "layer 'fc': sparsity 0.95 leaves 9 blocks, less than one group of 12; "
        "possible is at most 0.9375"
    ):
        project(engine(16, 4), scores, 0.95)
    assert project(engine(16, 4), scores, 0.9375).mask.sum() == 12


def test_less_than_one_group_of_the_full_bundles():
    """The last bundle's group of 9 would fit, but that of the others, which keep more, not."""
    scores = gaussian(np.random.default_rng(26), (41, 32))
    scores[:32] += 1.0
    with raises(
        "layer 'fc': sparsity 0.99 leaves 13 blocks, less than one group of 16; "
        "possible is at most 0.9878"
    ):
        project(engine(16, 16), scores, 0.99)


def test_less_than_one_group_over_layers():
    matrices = [scored(np.ones((8, 32))) for _ in range(3)]
    with raises(
        "3 layers: sparsity 0.99 leaves 7 blocks, less than one group of 16; "
        "possible is at most 0.9792"
    ):
        Gs(config=engine(16, 4)).project_all(matrices, 0.99)
    # The group of the layer of one row alone is not enough for the others.
    with raises(
        "2 layers: sparsity 0.95 leaves 14 blocks, less than one group of 16; "
        "possible is at most 0.9444"
    ):
        Gs(config=engine(16, 4)).project_all([scored(np.ones((1, 32))), matrices[0]], 0.95)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, np.nan, -np.inf])
def test_sparsity_out_of_range(sparsity):
    with raises(f"sparsity must be at least 0 and below 1, not {sparsity:g}"):
        project(engine(16, 4), np.ones((4, 64)), sparsity)
    with raises(f"sparsity must be at least 0 and below 1, not {sparsity:g}"):
        Gs(config=engine(16, 4)).project_all([], sparsity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_that_cannot_be_ordered(bad, dtype):
    scores = np.ones((4, 64), dtype=dtype)
    scores[2, 5] = bad
    message = f"layer 'fc': scores must be finite, not {bad} at (2, 5)"
    with raises(message):
        project(engine(16, 4), scores, 0.5)
    with raises(message):
        check_finite("fc", scores)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_whose_sums_would_overflow(rows, sign):
    """Of float64 only: a block's sum is taken in double precision."""
    scores = np.ones((4, 64))
    scores[2, 5] = sign * 1.7e308
    with raises("layer 'fc': a block's score must be at most 1e+300 either way, not 1.7e+308"):
        project(engine(16, rows), scores, 0.5)
    scores[2, 4:6] = sign * 0.6e300
    with raises("layer 'fc': a block's score must be at most 1e+300 either way, not 1.2e+300"):
        project(engine(16, rows, block=2), scores, 0.5)


def test_too_few_columns():
    """As the refusal says, before anything is projected."""
    for geometry in (Geometry.linear(15), conv(3, (3, 3))):
        reason = (
            f"{geometry.n_columns} columns leave a bank of 16 empty, so no mask but the empty one "
            "is balanced"
        )
        gs = Gs(config=engine(16, 4))
        assert gs.refusal(4, geometry) == reason
        matrix = scored(np.ones((4, geometry.n_columns)), geometry)
        with raises(f"layer 'fc': {reason}"):
            gs.project(matrix, 0.5)
        with raises(f"layer 'fc': {reason}"):
            gs.project_all([scored(np.ones((4, 64))), matrix], 0.5)
    assert Gs(config=engine(16, 4)).refusal(4, Geometry.linear(16)) is None


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 1, 2, 4], [0, 1, 1, 3], [-1, 0, 1, 2], [0, 1, 2, 3, 4]]
)
def test_row_orders_that_are_none(order):
    """Compiled loops would read beyond the scores."""
    with raises("layer 'fc': row order must be a permutation of the 4 rows"):
        scored(np.ones((4, 64)), row_order=np.array(order))


@pytest.mark.parametrize("shape", [(4, 63), (64,), (0, 64), (2, 4, 64)])
def test_scores_of_another_shape(shape):
    with raises(f"layer 'fc': scores must have shape (rows, 64), not {shape}"):
        scored(np.ones(shape), Geometry.linear(64))


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


def test_labels():
    config = engine(16, 4)
    assert Gs(config=config).label == "GS(16, 4)"
    consecutive = Gs(config=config, grouping=RowGrouping.CONSECUTIVE, budget=Budget.FIXED)
    assert consecutive.label == "GS(16, 4), consecutive rows, fixed groups"
    horizontal = Gs(config=engine(16, 1), grouping=RowGrouping.CONSECUTIVE)
    assert horizontal.label == "GS(16, 16)"
