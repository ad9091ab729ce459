"""The neighbours' projections against naive loops over the definitions, and published figures."""

import math

import numpy as np
import pytest

from gshw.config import EngineConfig
from gshw.encoding import scatter_rows
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
from pruning.patterns.pattern import Pattern, RowGrouping, ScoredMatrix
from tests.strategies import conv

CONV = conv(5, (3, 3))
N_ROWS = 7


def gaussian(seed: int, n_rows: int = N_ROWS, geometry: Geometry = CONV) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(size=(n_rows, geometry.n_columns)))


def projected(pattern: Pattern, scores, sparsity, geometry=CONV, weights=None) -> np.ndarray:
    matrix = ScoredMatrix(name="fc", scores=scores, geometry=geometry, weights=weights)
    return pattern.project(matrix, sparsity).mask


Group = list[tuple[int, int]]


def tiles(height: int, width: int, n_rows: int, n_columns: int) -> list[Group]:
    """Places of every aligned tile, those at the edges smaller."""
    groups: dict[tuple[int, int], Group] = {}
    for row in range(n_rows):
        for column in range(n_columns):
            groups.setdefault((row // height, column // width), []).append((row, column))
    return list(groups.values())


def kernel_groups(filters: int, channels: int) -> list[Group]:
    groups: dict[tuple[int, int, int], Group] = {}
    for row in range(N_ROWS):
        for column in range(CONV.n_columns):
            tap, channel = divmod(column, CONV.in_channels)
            key = row // filters, tap, channel // channels
            groups.setdefault(key, []).append((row, column))
    return list(groups.values())


def grains(grain: Grain) -> list[Group]:
    groups: dict[tuple, Group] = {}
    for row in range(N_ROWS):
        for column in range(CONV.n_columns):
            tap, channel = divmod(column, CONV.in_channels)
            key = {
                Grain.WEIGHT: (row, column),
                Grain.VECTOR: (row, tap // 3, channel),
                Grain.KERNEL: (row, channel),
                Grain.FILTER: (row,),
            }[grain]
            groups.setdefault(key, []).append((row, column))
    return list(groups.values())


def best_groups(scores: np.ndarray, groups: list[Group], power: int, budget: int) -> np.ndarray:
    """Whole groups in falling order of their mean (power 1) or mean square (2) until one is cut."""
    mask = np.zeros(scores.shape, dtype=bool)
    for group in sorted(groups, key=lambda g: -sum(scores[p] ** power for p in g) / len(g)):
        budget -= len(group)
        if budget < 0:
            break
        for place in group:
            mask[place] = True
    return mask


WHOLE = [
    (Unstructured(), tiles(1, 1, N_ROWS, 45), 1),
    (Block(height=2, width=4), tiles(2, 4, N_ROWS, 45), 1),
    (Block(height=1, width=9), tiles(1, 9, N_ROWS, 45), 1),
    (SimdVector(width=4), tiles(1, 4, N_ROWS, 45), 2),
    (Node(), tiles(1, 45, N_ROWS, 45), 2),
    *((Granular(grain=grain), grains(grain), 1) for grain in Grain),
    (KernelGroup(filters=3, channels=2), kernel_groups(3, 2), 2),
    (BlockPunched(filters=2, channels=5), kernel_groups(2, 5), 2),
]


@pytest.mark.parametrize(("pattern", "groups", "power"), WHOLE, ids=lambda p: None)
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_whole_groups(pattern, groups, power, sparsity):
    for seed in range(5):
        scores = gaussian(seed)
        budget = round(scores.size * (1 - sparsity))
        expected = best_groups(scores, groups, power, budget)
        np.testing.assert_array_equal(projected(pattern, scores, sparsity), expected)


def test_ties_go_to_the_lower_row_then_the_lower_column():
    scores = np.ones((4, 6))
    mask = projected(Unstructured(), scores, 0.5 - 1 / 24, Geometry.linear(6))
    assert mask.reshape(-1).tolist() == [True] * 13 + [False] * 11
    mask = projected(Block(height=2, width=2), scores, 0.3, Geometry.linear(6))
    assert mask.tolist() == [[True] * 6] * 2 + [[True] * 2 + [False] * 4] * 2


def test_integer_scores_are_not_rounded():
    scores = 2**40 + np.random.default_rng(0).permutation(60).reshape(6, 10)
    mask = projected(Unstructured(), scores, 0.5, Geometry.linear(10))
    np.testing.assert_array_equal(mask, scores >= 2**40 + 30)


def test_one_budget_over_several_matrices():
    scores = [gaussian(0), 3.0 * gaussian(1, 4, Geometry.linear(10)), gaussian(2)]
    geometries = [CONV, Geometry.linear(10), CONV]
    matrices = [
        ScoredMatrix(name=f"{i}", scores=s.astype(dtype), geometry=g)
        for i, (s, g, dtype) in enumerate(
            zip(scores, geometries, (np.float32, np.float64, np.float32), strict=True)
        )
    ]
    found = Unstructured().project_all(matrices, 0.8)
    together = np.concatenate([m.scores.reshape(-1).astype(float) for m in matrices])
    threshold = np.sort(together)[-round(together.size * 0.2)]
    for projection, matrix in zip(found, matrices, strict=True):
        np.testing.assert_array_equal(projection.mask, matrix.scores >= threshold)
    assert found[1].density > 0.4
    assert Unstructured().project_all([], 0.5) == []


@pytest.mark.parametrize("n_columns", [12, 14])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.6])
def test_bank_balanced(n_columns, sparsity):
    """Fourteen columns are banks of 4, 4, 3 and 3."""
    scores = gaussian(0, 3, Geometry.linear(n_columns))
    mask = projected(BankBalanced(n_banks=4), scores, sparsity, Geometry.linear(n_columns))
    n_kept = {0.0: 4, 0.4: n_columns * 6 // 10 // 4, 0.6: 1}[sparsity]
    for row in range(3):
        for bank in np.array_split(np.arange(n_columns), 4):
            best = sorted(bank, key=lambda c, row=row: -scores[row, c])[:n_kept]
            assert sorted(best) == [c for c in bank if mask[row, c]]


def test_n_of_m():
    scores = gaussian(0, 5, Geometry.linear(14))
    mask = projected(NOfM(group_size=4), scores, 0.5, Geometry.linear(14))
    for row in range(5):
        for start, n_kept in ((0, 2), (4, 2), (8, 2), (12, 1)):
            group = range(start, min(start + 4, 14))
            best = sorted(group, key=lambda c, row=row: -scores[row, c])[:n_kept]
            assert sorted(best) == [c for c in group if mask[row, c]]


def test_pe_balanced():
    """Seven rows over three elements: 3, 2 and 2 rows; 95 of 315 weights are kept."""
    scores = gaussian(0)
    mask = projected(PeBalanced(n_pes=3), scores, 1 - 95 / 315)
    for pe, n_kept in ((0, 41), (1, 27), (2, 27)):
        part = scores[pe::3]
        np.testing.assert_array_equal(mask[pe::3], part >= np.sort(part.reshape(-1))[-n_kept])


def test_density_adaptive():
    """Rows with 4, 2, 1 and 0 large weights of 8: blocks of 2, 4 and 8 columns, and nothing."""
    scores = np.array(
        [
            [9, 1, 8, 1, 1, 8, 1, 9],
            [1, 7, 1, 1, 2, 1, 1, 7],
            [1, 1, 2, 6, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1, 1],
        ],
        dtype=float,
    )
    mask = projected(DensityAdaptive(), scores, 1 - 7 / 32, Geometry.linear(8))
    np.testing.assert_array_equal(mask, scores >= 6)
    # Two large weights in one block: only its maximum stays.
    scores[1, 0] = 6.5
    scores[1, 7] = 1
    mask = projected(DensityAdaptive(), scores, 1 - 7 / 32, Geometry.linear(8))
    assert mask[1].tolist() == [False, True, False, False, True, False, False, False]


def naive_row_column(scores: np.ndarray, height: int, width: int, wanted: int) -> np.ndarray:
    mask = np.ones(scores.shape, dtype=bool)
    while mask.sum() > wanted:
        lines = []
        for group in tiles(height, width, *scores.shape):
            for axis in (0, 1):
                for number in {place[axis] for place in group}:
                    line = [p for p in group if p[axis] == number and mask[p]]
                    if line:
                        lines.append((sum(scores[p] ** 2 for p in line) / len(line), line))
        for place in min(lines)[1]:
            mask[place] = False
    return mask


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_row_column(sparsity):
    for seed in range(3):
        scores = gaussian(seed, N_ROWS, Geometry.linear(11))
        wanted = round(scores.size * (1 - sparsity))
        expected = naive_row_column(scores, 3, 4, wanted)
        found = projected(RowColumn(height=3, width=4), scores, sparsity, Geometry.linear(11))
        np.testing.assert_array_equal(found, expected)


def naive_column_row(scores: np.ndarray, height: int, width: int, wanted: int) -> np.ndarray:
    mask = np.ones(scores.shape, dtype=bool)
    for axis, limit in ((1, int(math.sqrt(wanted * scores.size))), (0, wanted)):
        lines = []
        for group in tiles(height, width, *scores.shape):
            for number in {place[axis] for place in group}:
                line = [p for p in group if p[axis] == number and mask[p]]
                if line:
                    lines.append((sum(scores[p] ** 2 for p in line) / len(line), line))
        for _, line in sorted(lines):
            if mask.sum() <= limit:
                break
            for place in line:
                mask[place] = False
    return mask


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_block_column_row(sparsity):
    for seed in range(3):
        scores = gaussian(seed, N_ROWS, Geometry.linear(11))
        wanted = round(scores.size * (1 - sparsity))
        expected = naive_column_row(scores, 3, 4, wanted)
        pattern = BlockColumnRow(height=3, width=4)
        found = projected(pattern, scores, sparsity, Geometry.linear(11))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.9])
def test_kernel_pattern(sparsity):
    scores = gaussian(0, 12)
    kernels = {
        (row, channel): {tap: scores[row, tap * 5 + channel] for tap in range(9)}
        for row in range(12)
        for channel in range(5)
    }
    votes: dict[frozenset, int] = {}
    for kernel in kernels.values():
        corners = sorted((t for t in range(9) if t != 4), key=lambda t, k=kernel: -k[t])[:3]
        shape = frozenset([4, *corners])
        votes[shape] = votes.get(shape, 0) + 1
    # Equally frequent shapes: the one of the lower positions.
    library = sorted(votes, key=lambda s: (-votes[s], sorted(s - {4})))[:3]
    best = {
        place: max(library, key=lambda s, k=kernel: sum(k[t] for t in s))
        for place, kernel in kernels.items()
    }
    worth = {place: sum(kernels[place][t] for t in best[place]) for place in kernels}
    n_kernels = min(60, round(scores.size * (1 - sparsity)) // 4)
    expected = np.zeros(scores.shape, dtype=bool)
    for row, channel in sorted(worth, key=lambda p: -worth[p])[:n_kernels]:
        for tap in best[row, channel]:
            expected[row, tap * 5 + channel] = True
    found = projected(KernelPattern(n_shapes=3), scores, sparsity)
    np.testing.assert_array_equal(found, expected)


def test_polarised():
    weights = np.array([[3.0, -2, -2, 1, -1, 0], [-1.0, 1, 4, 9, -8, 2]])
    for sparsity, expected in (
        # Fragments of three: -4 > 3; ties are positive; 5 > 1; 11 > 8.
        (0.0, [[0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1]]),
        (0.5, [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1]]),
        (0.75, [[0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]),
    ):
        mask = projected(
            Polarised(fragment=3), np.abs(weights), sparsity, Geometry.linear(6), weights
        )
        assert mask.astype(int).tolist() == expected


# --- the GS authors' greedy ----------------------------------------------------------------------


def naive_greedy(scores: np.ndarray, lanes: int, rows: int, wanted: int) -> np.ndarray | None:
    """As published; None at a dead end. Only whole bundles and unpadded columns."""
    everywhere = sorted(np.ndindex(*scores.shape), key=lambda p: -scores[p])
    above = np.bincount([row for row, _ in everywhere[:wanted]], minlength=len(scores))
    order = scatter_rows(above)
    mask = np.zeros(scores.shape, dtype=bool)
    for start in range(0, len(scores), rows):
        bundle = sorted(order[start : start + rows])
        places = [(r, c) for r in bundle for c in range(scores.shape[1])]
        remaining = sorted(places, key=lambda p: -scores[p])
        for _ in range(round(above[bundle].sum() / lanes)):
            room, free = dict.fromkeys(bundle, lanes // rows), set(range(lanes))
            for row, column in list(remaining):
                if room[row] and column % lanes in free:
                    room[row] -= 1
                    free.remove(column % lanes)
                    remaining.remove((row, column))
                    mask[row, column] = True
            if free:
                return None
    return mask


@pytest.mark.parametrize(("lanes", "rows"), [(4, 1), (4, 4), (8, 2), (8, 8)])
def test_greedy_is_the_published_one(lanes, rows):
    geometry = Geometry.linear(64)
    pattern = Greedy(config=EngineConfig(lanes=lanes, rows=rows, bank_width=8))
    if rows > 1:
        assert pattern.grouping is RowGrouping.SCATTER
    for seed in range(4):
        for scores in (gaussian(seed, 16, geometry), np.ceil(9 * gaussian(seed, 16, geometry))):
            expected = naive_greedy(scores, lanes, rows, 256)
            assert expected is not None
            np.testing.assert_array_equal(projected(pattern, scores, 0.75, geometry), expected)


def test_greedy_gets_out_of_dead_ends():
    """Seven groups of eight: often a row and a bank are left whose blocks are all taken."""
    config, geometry = EngineConfig(lanes=4, rows=4, bank_width=8), Geometry.linear(8)
    dead_ends = 0
    for seed in range(30):
        scores = gaussian(seed, 4, geometry)
        dead_ends += naive_greedy(scores, 4, 4, 28) is None
        mask = projected(Greedy(config=config), scores, 1 - 28 / 32, geometry)
        assert mask.sum() == 28
        assert check_mask(config, mask, geometry) == []
    assert dead_ends > 5


def test_greedy_last_bundle():
    """Two rows on an engine of four: groups of two blocks, of different banks."""
    config = EngineConfig(lanes=4, rows=4, bank_width=8)
    scores = gaussian(0, 6, Geometry.linear(16))
    pattern = Greedy(config=config, grouping=RowGrouping.CONSECUTIVE)
    for sparsity in (0.0, 0.25, 0.5, 0.75):
        matrix = ScoredMatrix(name="fc", scores=scores, geometry=Geometry.linear(16))
        projection = pattern.project(matrix, sparsity)
        assert check_mask(config, projection.mask, matrix.geometry, projection.row_order) == []
        counts = projection.mask[4:].sum(axis=1)
        assert counts[0] == counts[1] == projection.mask[4:, :].sum() / 2 > 0
        above = scores[4:] >= np.sort(scores.reshape(-1))[-round(96 * (1 - sparsity))]
        assert counts[0] == round(above.sum() / 2)


@pytest.mark.parametrize(
    ("lanes", "rows", "kept"), [(8, 8, 0.9974), (16, 16, 0.9975), (16, 4, 0.9938), (32, 32, 0.9963)]
)
def test_greedy_keeps_what_it_is_known_to_keep(lanes, rows, kept):
    """Kept magnitude relative to unstructured at 90 %, Gaussian weights, and less than exact."""
    geometry = Geometry.linear(1024)
    scores = gaussian(0, 64, geometry)
    config = EngineConfig(lanes=lanes, rows=rows, bank_width=8)
    matrix = ScoredMatrix(name="fc", scores=scores, geometry=geometry)
    best = Unstructured().project(matrix, 0.9).kept_score
    greedy = Greedy(config=config).project(matrix, 0.9)
    share = greedy.mask.sum() / (0.1 * scores.size)
    assert greedy.kept_score / best == pytest.approx(kept * share, abs=1.5e-3)
    exact = Gs(config=config).project(matrix, 1.0 - greedy.density)
    assert greedy.kept_score < exact.kept_score
