"""One conformance suite for every pattern, on every shape that it accepts."""

import dataclasses
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import load_config
from gshw.encoding import Requantisation, decode_weights, encode_layer
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.models.masking import set_mask
from pruning.models.weights import find_weights
from pruning.patterns.checkers import violations
from pruning.patterns.greedy import Greedy
from pruning.patterns.gs import Budget, Gs
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
from pruning.patterns.pattern import Pattern, Projection, RowGrouping, ScoredMatrix, kept_count
from pruning.patterns.registry import PATTERNS, make_pattern
from tests.strategies import conv

ENGINES = {name: load_config(name).engine for name in ("v16x4", "h16", "tiny")}
V16, H16, TINY = ENGINES.values()
HYBRID = load_config("hybrid16").engine

CASES: dict[str, Pattern] = {
    "unstructured": Unstructured(),
    "gs-v16x4": Gs(config=V16),
    "gs-consecutive": Gs(config=V16, grouping=RowGrouping.CONSECUTIVE),
    "gs-hybrid16": Gs(config=HYBRID),
    "gs-h16": Gs(config=H16),
    "gs-tiny": Gs(config=TINY),
    "gs-fixed": Gs(config=TINY, budget=Budget.FIXED),
    "greedy-v16x4": Greedy(config=V16),
    "greedy-hybrid16": Greedy(config=HYBRID, grouping=RowGrouping.CONSECUTIVE),
    "greedy-tiny": Greedy(config=TINY),
    "block-1x16": Block(),
    "block-16x1": Block(height=16, width=1),
    "block-4x4": Block(height=4, width=4),
    "simd-vector": SimdVector(),
    "node": Node(),
    "weight": Granular(grain=Grain.WEIGHT),
    "vector": Granular(grain=Grain.VECTOR),
    "kernel": Granular(grain=Grain.KERNEL),
    "filter": Granular(grain=Grain.FILTER),
    "bank-balanced": BankBalanced(n_banks=4),
    "bank-balanced-16": BankBalanced(),
    "n-of-4": NOfM(),
    "n-of-16": NOfM(group_size=16),
    "pe-balanced": PeBalanced(n_pes=5),
    "density-adaptive": DensityAdaptive(),
    "block-column-row": BlockColumnRow(),
    "row-column": RowColumn(height=8, width=8),
    "kernel-group": KernelGroup(),
    "block-punched": BlockPunched(),
    "kernel-pattern": KernelPattern(),
    "polarised": Polarised(),
}


@dataclass(frozen=True)
class Shape:
    n_rows: int
    geometry: Geometry


SHAPES = {
    "linear": Shape(48, Geometry.linear(96)),
    "conv": Shape(24, conv(16, (3, 3))),
    "odd": Shape(21, conv(19, (3, 3))),
    "tiny": Shape(4, Geometry.linear(5)),
    "row": Shape(1, Geometry.linear(64)),
}

ACCEPTED = [
    pytest.param(pattern, shape, id=f"{case}-{name}")
    for (case, pattern), (name, shape) in itertools.product(CASES.items(), SHAPES.items())
    if pattern.refusal(shape.n_rows, shape.geometry) is None
]
each_pattern = pytest.mark.parametrize(("pattern", "shape"), ACCEPTED)


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def random_scores(shape: Shape, seed: int = 0) -> np.ndarray:
    """Positive, rows of different scale."""
    rng = np.random.default_rng(seed)
    size = (shape.n_rows, shape.geometry.n_columns)
    return (np.abs(rng.normal(size=size)) + 1e-3) * np.exp(rng.normal(size=(size[0], 1)) / 2)


def signs(shape: Shape) -> np.ndarray:
    size = (shape.n_rows, shape.geometry.n_columns)
    return np.random.default_rng(99).choice([-1.0, 1.0], size)


def matrix_of(shape: Shape, scores: np.ndarray, row_order=None) -> ScoredMatrix:
    return ScoredMatrix(
        name="fc",
        scores=scores,
        geometry=shape.geometry,
        weights=signs(shape),
        row_order=row_order,
    )


def project(pattern: Pattern, shape: Shape, scores: np.ndarray, sparsity: float) -> Projection:
    return pattern.project(matrix_of(shape, scores), sparsity)


def try_project(pattern, shape: Shape, scores: np.ndarray, sparsity: float) -> Projection | None:
    """None where the pattern says that so sparse a mask would be empty."""
    try:
        return project(pattern, shape, scores, sparsity)
    except GshwError as error:
        assert re.match(r"layer 'fc': sparsity (must be at most|[\d.]+ leaves) ", str(error))
        return None


def found(pattern: Pattern, shape: Shape, mask: np.ndarray, row_order=None) -> list[str]:
    return violations(pattern, mask, shape.geometry, row_order, weights=signs(shape))


def moderate(pattern: Pattern, shape: Shape) -> float:
    """The first of three sparsities that leaves the pattern two steps."""
    size = shape.n_rows * shape.geometry.n_columns
    room = (s for s in (0.7, 0.5) if kept_count(size, s) >= 2 * step(pattern, shape))
    return next(room, 0.0)


def step(pattern: Pattern, shape: Shape) -> int:
    """How many weights fewer than wanted a mask may keep, plus one: as the docstrings say."""
    n_rows, n_columns = shape.n_rows, shape.geometry.n_columns
    height, width = shape.geometry.kernel
    match pattern:
        case Unstructured() | PeBalanced() | Polarised():
            return 1
        case Block():
            return min(pattern.height, n_rows) * min(pattern.width, n_columns)
        case SimdVector():
            return min(pattern.width, n_columns)
        case Node():
            return n_columns
        case Granular():
            sizes = {"weight": 1, "vector": width, "kernel": height * width, "filter": n_columns}
            return sizes[pattern.grain.value]
        case BankBalanced():
            return n_rows * pattern.n_banks
        case NOfM():
            return n_rows * -(-n_columns // pattern.group_size)
        case DensityAdaptive():
            return n_columns - n_columns // 2
        case BlockColumnRow() | RowColumn():
            return max(min(pattern.height, n_rows), min(pattern.width, n_columns))
        case KernelGroup():
            return min(pattern.filters, n_rows) * min(pattern.channels, shape.geometry.in_channels)
        case KernelPattern():
            return 4
        case Gs():
            return pattern.config.lanes
        case Greedy():
            n_bundles = -(-n_rows // pattern.config.rows)
            return n_bundles * pattern.config.lanes
    raise AssertionError(pattern)


def densest(pattern: Pattern, shape: Shape) -> int:
    """Most weights that a mask of the pattern keeps; counted naively."""
    n_rows, n_columns = shape.n_rows, shape.geometry.n_columns
    if isinstance(pattern, KernelPattern):
        return n_rows * n_columns // 9 * 4
    if isinstance(pattern, Polarised):
        weights, scores = signs(shape), random_scores(shape)
        total = 0
        for row in range(n_rows):
            for start in range(0, n_columns, pattern.fragment):
                part = weights[row, start : start + pattern.fragment]
                worth = scores[row, start : start + pattern.fragment]
                positive = worth[part > 0].sum() >= worth[part < 0].sum()
                total += int((part > 0).sum() if positive else (part < 0).sum())
        return total
    if isinstance(pattern, Gs | Greedy):
        ends = shape.geometry.in_channels // pattern.config.lanes * pattern.config.lanes
        if ends != shape.geometry.in_channels or n_rows % pattern.config.rows:
            return 0  # Padded banks and partial bundles have limits of their own.
    return n_rows * n_columns


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.75, 0.9, 0.99])
@each_pattern
def test_keeps_at_most_the_wanted_and_less_than_a_step_fewer(pattern, shape, sparsity):
    scores = random_scores(shape)
    wanted = kept_count(scores.size, sparsity)
    fewest = min(wanted, densest(pattern, shape)) - step(pattern, shape) + 1
    projection = try_project(pattern, shape, scores, sparsity)
    if projection is None:
        assert fewest <= 0
        return
    n_kept = int(projection.mask.sum())
    slack = step(pattern, shape) // 2 if isinstance(pattern, Greedy) else 0
    assert max(fewest, 1) <= n_kept <= wanted + slack
    assert projection.kept_score == pytest.approx(scores[projection.mask].sum())
    assert projection.density == n_kept / scores.size


@each_pattern
def test_the_mask_has_the_pattern(pattern, shape):
    for seed, sparsity in enumerate((0.0, 0.4, 0.6, 0.75, 0.9)):
        projection = try_project(pattern, shape, random_scores(shape, seed), sparsity)
        if projection is not None:
            # Polarised masks depend on the scores only through their fragments' signs.
            assert found(pattern, shape, projection.mask, projection.row_order) == []


def detectable(pattern: Pattern, shape: Shape) -> str:
    """How many single flips break the pattern: "none", "some" or "all"."""
    if isinstance(pattern, Unstructured | Block | Granular) and step(pattern, shape) == 1:
        return "none"
    if isinstance(pattern, BlockColumnRow | RowColumn):
        return "some" if shape.n_rows > 1 else "none"  # A line has no crossings.
    if isinstance(pattern, Gs | Greedy) and shape.n_rows < pattern.config.rows:
        single = shape.n_rows == 1 and pattern.config.lanes_per_row == 1
        return "none" if single else "some"
    return "some" if isinstance(pattern, DensityAdaptive | Polarised) else "all"


@each_pattern
def test_the_checker_finds_a_flipped_weight(pattern, shape):
    if isinstance(pattern, PeBalanced):
        return  # One weight more or fewer is within the tolerance of a share.
    projection = project(pattern, shape, random_scores(shape), moderate(pattern, shape))
    places = np.random.default_rng(1).integers(0, projection.mask.size, 30)
    n_found = 0
    for place in places:
        mask = projection.mask.copy()
        mask.reshape(-1)[place] ^= True
        n_found += bool(found(pattern, shape, mask, projection.row_order))
    expected = {"none": 0, "some": n_found or 1, "all": len(places)}
    assert n_found == expected[detectable(pattern, shape)]


# --- what holds for any projection ---------------------------------------------------------------


@each_pattern
def test_projecting_a_mask_gives_it_again(pattern, shape):
    for seed, sparsity in enumerate((0.0, 0.35, 0.5, 0.8)):
        scores = random_scores(shape, seed)
        first = try_project(pattern, shape, scores, sparsity)
        if first is None:
            continue
        rest = 1.0 - first.mask.sum() / first.mask.size
        again = pattern.project(
            matrix_of(shape, np.where(first.mask, scores, 0.0), first.row_order), rest
        )
        np.testing.assert_array_equal(again.mask, first.mask)


@pytest.mark.parametrize("n_values", [1, 3])
@each_pattern
def test_ties(pattern, shape, n_values):
    """Equal scores still give a mask of the pattern, of the right size, and the same each time."""
    rng = np.random.default_rng(3)
    scores = rng.integers(0, n_values, (shape.n_rows, shape.geometry.n_columns)) + 1.0
    projection = project(pattern, shape, scores, moderate(pattern, shape))
    assert found(pattern, shape, projection.mask, projection.row_order) == []
    wanted = kept_count(scores.size, moderate(pattern, shape))
    slack = step(pattern, shape) // 2 if isinstance(pattern, Greedy) else 0
    assert 0 < projection.mask.sum() <= wanted + slack
    if not isinstance(pattern, Gs | Greedy | KernelPattern | Polarised):
        assert projection.mask.sum() > wanted - step(pattern, shape)
    again = project(pattern, shape, scores.copy(), moderate(pattern, shape))
    np.testing.assert_array_equal(again.mask, projection.mask)
    np.testing.assert_array_equal(again.row_order, projection.row_order)


@each_pattern
def test_all_scores_zero(pattern, shape):
    scores = np.zeros((shape.n_rows, shape.geometry.n_columns))
    projection = project(pattern, shape, scores, moderate(pattern, shape))
    assert projection.mask.any() and projection.kept_score == 0.0
    assert found(pattern, shape, projection.mask, projection.row_order) == []


@each_pattern
def test_dtypes_agree(pattern, shape):
    """Integers below 2048 are the same number in all of them."""
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 2048, (shape.n_rows, shape.geometry.n_columns))
    masks = [
        project(pattern, shape, scores.astype(dtype), moderate(pattern, shape)).mask
        for dtype in (np.float64, np.float32, np.float16, np.int32)
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


@each_pattern
def test_memory_layout_does_not_matter_and_inputs_stay(pattern, shape):
    scores = random_scores(shape)
    before = scores.copy()
    plain = project(pattern, shape, scores, moderate(pattern, shape))
    np.testing.assert_array_equal(scores, before)
    columns_first = project(pattern, shape, np.asfortranarray(before), moderate(pattern, shape))
    np.testing.assert_array_equal(columns_first.mask, plain.mask)
    assert plain.mask.dtype == np.bool_ and plain.mask.flags.writeable


@each_pattern
def test_negative_scores(pattern, shape):
    scores = np.random.default_rng(5).normal(size=(shape.n_rows, shape.geometry.n_columns))
    projection = project(pattern, shape, scores, moderate(pattern, shape))
    assert found(pattern, shape, projection.mask, projection.row_order) == []


@each_pattern
def test_bundles(pattern, shape):
    """A permutation of the rows, of falling counts unless an engine dictates it; or as given."""
    scores = random_scores(shape)
    projection = project(pattern, shape, scores, moderate(pattern, shape))
    assert sorted(projection.row_order) == list(range(shape.n_rows))
    assert projection.row_order.dtype == np.int64
    if not isinstance(pattern, Gs | Greedy):
        counts = projection.mask.sum(axis=1)[projection.row_order]
        assert (np.diff(counts) <= 0).all()
    if isinstance(pattern, Gs | Greedy) and pattern.config.rows == 1:
        return  # A bundle is a row; its place does not matter.
    order = np.random.default_rng(6).permutation(shape.n_rows)
    given = pattern.project(matrix_of(shape, scores, order), moderate(pattern, shape))
    np.testing.assert_array_equal(given.row_order, order)
    assert found(pattern, shape, given.mask, order) == []


@each_pattern
def test_keeps_more_than_random_masks(pattern, shape):
    """The projections of other scores are masks of the pattern too."""
    scores = random_scores(shape)
    best = project(pattern, shape, scores, moderate(pattern, shape))
    for seed in range(1, 6):
        order = best.row_order
        rest = 1.0 - best.density
        other = pattern.project(matrix_of(shape, random_scores(shape, seed), order), rest)
        share = other.mask.sum() / best.mask.sum()
        assert scores[other.mask].sum() <= best.kept_score * max(1.0, share) + 1e-9


# --- the engines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@each_pattern
def test_masks_encode_and_decode_exactly(pattern, shape, engine):
    config = ENGINES[engine]
    projection = project(pattern, shape, random_scores(shape), moderate(pattern, shape))
    size = projection.mask.shape
    weights = np.random.default_rng(7).integers(1, config.max_weight + 1, size)
    weights = weights * signs(shape).astype(np.int64) * projection.mask
    layer = encode_layer(
        config,
        "fc",
        weights,
        shape.geometry,
        Requantisation.identity(shape.n_rows, config),
        mask=projection.mask,
        row_order=projection.row_order,
    )
    np.testing.assert_array_equal(decode_weights(config, layer), weights)
    if isinstance(pattern, Gs | Greedy) and pattern.config == config:
        # Balanced: every slot of a full bundle holds a weight.
        full = shape.n_rows // config.rows
        n_kept = projection.mask[projection.row_order[: full * config.rows]].sum()
        assert layer.bundle_ptr[full] * config.lanes == n_kept


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_torch_weights(device, dtype):
    """Scores from tensors on any device; the mask goes back to where the weight is."""
    generator = torch.Generator().manual_seed(0)
    for module in (nn.Linear(64, 32), nn.Conv2d(16, 20, 3)):
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        module = module.to(device=device, dtype=dtype)
        [weight], _ = find_weights(V16, module)
        scores = weight.to_matrix(weight.dense.abs())
        values = weight.to_matrix(weight.dense)
        for pattern in CASES.values():
            if pattern.refusal(len(scores), weight.geometry) is not None:
                continue
            matrix = ScoredMatrix(
                name="fc", scores=scores, geometry=weight.geometry, weights=values
            )
            projection = pattern.project(matrix, 0.5)
            mask = weight.from_matrix(projection.mask)
            assert mask.device == weight.dense.device
            set_mask(module, mask)
            kept = weight.to_matrix(weight.masked) != 0
            np.testing.assert_array_equal(kept, projection.mask & (values != 0))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range(case, sparsity):
    shape = SHAPES["conv"]
    with raises(f"sparsity must be at least 0 and below 1, not {sparsity:g}"):
        project(CASES[case], shape, random_scores(shape), sparsity)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(value):
    scores = random_scores(SHAPES["linear"])
    scores[2, 3] = value
    with raises(f"layer 'fc': scores must be finite, not {value} at (2, 3)"):
        matrix_of(SHAPES["linear"], scores)


@pytest.mark.parametrize(
    ("pattern", "shape", "message"),
    [
        (
            BankBalanced(),
            SHAPES["tiny"],
            "bank-balanced, 16 banks needs a column for every bank, not 5 columns",
        ),
        (
            KernelPattern(),
            SHAPES["linear"],
            "kernel patterns, 8 shapes need a 3 x 3 kernel, not 1 x 1",
        ),
        (
            Greedy(config=V16),
            SHAPES["tiny"],
            "5 columns leave a bank of 16 empty, so no mask but the empty one is balanced",
        ),
    ],
)
def test_shapes_that_a_pattern_refuses(pattern, shape, message):
    assert pattern.refusal(shape.n_rows, shape.geometry) == message
    with raises(f"layer 'fc': {message}"):
        project(pattern, shape, random_scores(shape), 0.5)


@pytest.mark.parametrize(
    ("pattern", "highest", "label", "n_fewest"),
    [
        (NOfM(), 0.75, "n of 4", 48 * 24),
        (BankBalanced(), 5 / 6, "bank-balanced, 16 banks", 48 * 16),
        (Node(), 47 / 48, "whole rows", 96),
    ],
)
def test_a_sparsity_that_leaves_nothing(pattern, highest, label, n_fewest):
    shape = SHAPES["linear"]
    message = (
        f"layer 'fc': sparsity must be at most {highest:g}, where {label} keeps {n_fewest} "
        "of 4608 weights, not 0.99"
    )
    with raises(message):
        project(pattern, shape, random_scores(shape), 0.99)
    assert project(pattern, shape, random_scores(shape), highest).mask.sum() == n_fewest


def test_polarised_needs_weights():
    shape = SHAPES["linear"]
    matrix = ScoredMatrix(name="fc", scores=random_scores(shape), geometry=shape.geometry)
    with raises("layer 'fc': polarised fragments of 8 need the weights, not None"):
        Polarised().project(matrix, 0.5)


# --- the registry --------------------------------------------------------------------------------


def test_every_pattern_is_registered_and_tested():
    assert {type(pattern) for pattern in CASES.values()} == set(PATTERNS.values())
    assert all(pattern.kind == kind for kind, pattern in PATTERNS.items())


@pytest.mark.parametrize("kind", PATTERNS)
def test_make_pattern_with_defaults(kind):
    pattern = make_pattern(V16, kind, {})
    assert type(pattern) is PATTERNS[kind]
    assert getattr(pattern, "config", V16) is V16
    assert pattern.label


@pytest.mark.parametrize("case", CASES)
def test_make_pattern_from_plain_values(case):
    """What a recipe can say is all there is."""
    pattern = CASES[case]
    config = getattr(pattern, "config", V16)
    fields = {f.name: getattr(pattern, f.name) for f in dataclasses.fields(pattern)}
    fields.pop("config", None)
    values = {name: getattr(value, "value", value) for name, value in fields.items()}
    assert make_pattern(config, pattern.kind, values) == pattern


KINDS = ", ".join(PATTERNS)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("blok", {}, f"pattern kind must be one of {KINDS}, not 'blok'"),
        (
            "block",
            {"size": 4},
            "pattern 'block' has no parameter 'size'; its parameters are height, width",
        ),
        ("node", {"size": 4}, "pattern 'node' has no parameter 'size'; it has none"),
        (
            "gs",
            {"config": 1},
            "pattern 'gs' has no parameter 'config'; its parameters are grouping, budget",
        ),
        (
            "granular",
            {"grain": "row"},
            "pattern 'granular': grain must be one of weight, vector, kernel, filter, not 'row'",
        ),
        ("block", {"width": 0}, "pattern 'block': width must be an integer of at least 1, not 0"),
        (
            "simd-vector",
            {"width": "8"},
            "pattern 'simd-vector': width must be an integer of at least 1, not '8'",
        ),
        (
            "bank-balanced",
            {"n_banks": 4.0},
            "pattern 'bank-balanced': n_banks must be an integer of at least 1, not 4.0",
        ),
        (
            "pe-balanced",
            {"n_pes": True},
            "pattern 'pe-balanced': n_pes must be an integer of at least 1, not True",
        ),
        (
            "kernel-pattern",
            {"n_shapes": 57},
            "pattern 'kernel-pattern': n_shapes must be at most 56, not 57",
        ),
    ],
)
def test_make_pattern_refuses(kind, parameters, message):
    with raises(message):
        make_pattern(V16, kind, parameters)
