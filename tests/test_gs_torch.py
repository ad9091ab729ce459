"""The GS pattern on tensors: balanced, exact where it says so, near the bound elsewhere."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.pattern import check_mask
from pruning.patterns.gs_torch import TensorProjection, project_tensor
from pruning.patterns.pattern import RowGrouping
from tests.gs_oracle import best_total, bundles_of, split_regret
from tests.strategies import conv

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
GAP = 1e-3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine(lanes: int, rows: int, block: int = 1) -> EngineConfig:
    return EngineConfig(lanes=lanes, rows=rows, bank_width=8 * block)


def gaussian(seed: int, n_rows: int, n_columns: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(np.abs(rng.normal(size=(n_rows, n_columns))), dtype=torch.float32)


def heavy(seed: int, n_rows: int, n_columns: int) -> Tensor:
    """Rows and columns of different scales, as in trained layers."""
    rng = np.random.default_rng(seed)
    scores = np.abs(rng.standard_t(4, (n_rows, n_columns)))
    scores *= np.exp(0.5 * rng.normal(size=(n_rows, 1)))
    scores *= np.exp(0.5 * rng.normal(size=(1, n_columns)))
    return torch.tensor(scores, dtype=torch.float32)


def checked(
    config: EngineConfig, scores: Tensor, geometry: Geometry, sparsity: float, **options
) -> TensorProjection:
    """A projection whose mask matches the engine, on the scores' device, of the budget asked."""
    found = project_tensor(config, "layer", scores, geometry, sparsity, **options)
    assert found.mask.dtype == torch.bool
    assert found.mask.device == found.row_order.device == scores.device
    mask, order = found.mask.cpu().numpy(), found.row_order.cpu().numpy()
    assert check_mask(config, mask, geometry, order) == []
    kept = float(scores[found.mask].sum(dtype=torch.float64))
    assert found.kept_score == pytest.approx(kept, rel=1e-12)
    assert found.bound >= found.kept_score
    return found


def oracle_bundles(config: EngineConfig, scores: Tensor, geometry: Geometry, order: Tensor):
    exact = scores.cpu().double().numpy()
    return bundles_of(config, exact, geometry, order.cpu().numpy())


def kept_groups(config: EngineConfig, found: TensorProjection, geometry: Geometry) -> list[int]:
    """Groups of every bundle, from the blocks that its first row keeps."""
    bundles = oracle_bundles(config, found.mask.double(), geometry, found.row_order)
    return [int((b.scores[0] > 0).sum()) * config.rows // config.lanes for b in bundles]


def assert_optimal(
    config: EngineConfig, scores: Tensor, geometry: Geometry, found: TensorProjection
) -> None:
    """No mask with as many blocks on the same bundles keeps more, to float32 rounding."""
    bundles = oracle_bundles(config, scores, geometry, found.row_order)
    groups = kept_groups(config, found, geometry)
    costs = [b.blocks_per_group for b in bundles]
    budget = sum(g * cost for g, cost in zip(groups, costs, strict=True))
    optimum = best_total([b.all_values() for b in bundles], costs, budget)
    tolerance = 1e-6 * max(1.0, abs(optimum))
    assert found.kept_score == pytest.approx(optimum, abs=tolerance)
    assert optimum - tolerance <= found.bound <= optimum + GAP * max(1.0, abs(optimum))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [gaussian, heavy])
@pytest.mark.parametrize(
    ("geometry", "block"),
    [
        (Geometry.linear(40), 1),
        (Geometry.linear(37), 2),  # the last block is half full, and banks differ
        (conv(11, (2, 2)), 1),
    ],
)
def test_horizontal_masks_are_optimal(geometry, block, spread, dtype, device):
    config = engine(8, 1, block)
    scores = spread(1, 9, geometry.n_columns).to(dtype=dtype, device=device)
    found = checked(config, scores, geometry, 0.6)
    assert_optimal(config, scores, geometry, found)
    assert found.gap <= 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(30))
def test_small_masks_are_optimal(seed, device):
    """Vertical and hybrid; partial bundles, blocks, padding, ties and negative scores."""
    rng = np.random.default_rng((4, seed))
    lanes = int(rng.choice([2, 4, 8]))
    rows = lanes >> int(rng.integers(0, lanes.bit_length() - 1))
    config = engine(lanes, rows, int(rng.choice([1, 2])))
    n_channels = (lanes - 1) * config.block + 1 + int(rng.integers(2 * lanes))
    geometry = (Geometry.linear(n_channels), conv(n_channels, (1, 2)))[int(rng.integers(2))]
    shape = (int(rng.integers(rows, 3 * rows + 1)), geometry.n_columns)
    drawn = (np.abs(rng.normal(size=shape)), rng.integers(0, 4, shape), rng.normal(size=shape))
    scores = torch.tensor(drawn[seed % 3], dtype=torch.float64, device=device)
    sparsity = float(rng.uniform(0.05, 0.7))
    found = checked(config, scores, geometry, sparsity)
    assert_optimal(config, scores, geometry, found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [gaussian, heavy])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
@pytest.mark.parametrize(
    ("lanes", "rows", "block", "shape"),
    [
        (16, 16, 1, (128, 512)),
        (16, 4, 1, (128, 512)),
        (8, 8, 2, (100, 576)),  # a partial bundle of four rows
        (16, 16, 1, (250, 320)),
        (32, 32, 1, (64, 1024)),
    ],
)
def test_the_gap_to_the_bound_is_small(lanes, rows, block, shape, sparsity, spread, device):
    config = engine(lanes, rows, block)
    geometry = Geometry.linear(shape[1])
    found = checked(config, spread(2, *shape).to(device), geometry, sparsity)
    assert found.gap <= GAP
    budget = (1.0 - sparsity) * shape[0] * shape[1]
    n_kept = int(found.mask.sum())
    assert budget - lanes * block < n_kept <= budget + 1e-6


@pytest.mark.parametrize("spread", [gaussian, heavy])
def test_no_group_is_worth_more_elsewhere(spread):
    config = engine(16, 16)
    scores, geometry = spread(3, 64, 256), Geometry.linear(256)
    found = checked(config, scores, geometry, 0.9)
    bundles = oracle_bundles(config, scores, geometry, found.row_order)
    total, regret = split_regret(bundles, kept_groups(config, found, geometry))
    assert found.kept_score == pytest.approx(total, rel=1e-6)
    assert regret <= 1e-6 * total


def test_the_bound_holds_for_other_masks():
    """What any other balanced mask of as many blocks keeps, here one of other scores."""
    config, geometry = engine(8, 8), Geometry.linear(128)
    scores = heavy(4, 32, 128)
    order = torch.arange(32)
    best = checked(config, scores, geometry, 0.8, row_order=order)
    noisy = scores * (1.0 + 0.2 * gaussian(5, 32, 128))
    other = checked(config, noisy, geometry, 0.8, row_order=order)
    assert int(other.mask.sum()) == int(best.mask.sum())
    kept = float(scores[other.mask].sum(dtype=torch.float64))
    assert kept < best.kept_score <= best.bound


def test_the_densest_mask_fills_what_a_partial_bundle_can():
    """Banks hold two blocks and one of a row: two rows keep two each, a row alone all three."""
    found = checked(engine(2, 2), gaussian(11, 3, 3), Geometry.linear(3), 0.0)
    assert found.mask.sum(dim=1)[found.row_order].tolist() == [2, 2, 3]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_ties_keep_the_lower_columns(rows, device):
    config, geometry = engine(8, rows), Geometry.linear(32)
    scores = torch.ones(8, 32, device=device)
    found = checked(config, scores, geometry, 0.5)
    in_bank = found.mask.reshape(8, 4, 8).cpu()
    # Kept words of every cell come first.
    assert bool((in_bank[:, :-1] | ~in_bank[:, 1:]).all())
    assert found.kept_score == 128.0
    assert found.gap <= 1e-6


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_same_scores_give_the_same_mask(rows):
    config, geometry = engine(16, rows), Geometry.linear(128)
    scores = (8 * gaussian(6, 40, 128)).round()
    first = checked(config, scores, geometry, 0.75)
    before = scores.clone()
    again = checked(config, scores, geometry, 0.75)
    assert torch.equal(scores, before)
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.row_order, again.row_order)
    assert (first.kept_score, first.bound) == (again.kept_score, again.bound)


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_projecting_what_was_kept_gives_the_mask_again(rows):
    config, geometry = engine(16, rows), Geometry.linear(128)
    scores = gaussian(7, 40, 128) + 0.01
    first = checked(config, scores, geometry, 0.75)
    kept = torch.where(first.mask, scores, 0.0)
    again = checked(config, kept, geometry, 0.75, row_order=first.row_order)
    assert torch.equal(first.mask, again.mask)


def test_rows_are_grouped_by_their_counts_or_as_they_come():
    config, geometry = engine(4, 4), Geometry.linear(64)
    scores = gaussian(8, 12, 64) * torch.tensor([1.0, 4.0, 0.5] * 4)[:, None]
    scatter = checked(config, scores, geometry, 0.75)
    assert {r % 3 for r in scatter.row_order[:4].tolist()} == {1}
    assert {r % 3 for r in scatter.row_order[-4:].tolist()} == {2}
    consecutive = checked(config, scores, geometry, 0.75, grouping=RowGrouping.CONSECUTIVE)
    assert consecutive.row_order.tolist() == list(range(12))
    assert consecutive.kept_score < scatter.kept_score
    given = torch.tensor([11, 3, 7, 0, 1, 2, 10, 9, 8, 6, 5, 4])
    assert torch.equal(checked(config, scores, geometry, 0.75, row_order=given).row_order, given)


def test_half_precision_is_computed_in_float32():
    config, geometry = engine(8, 8), Geometry.linear(64)
    scores = gaussian(9, 16, 64).to(torch.bfloat16)
    low = checked(config, scores, geometry, 0.8)
    assert torch.equal(low.mask, checked(config, scores.float(), geometry, 0.8).mask)


def refuses(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def test_bad_input_is_one_line():
    config, geometry = engine(4, 4), Geometry.linear(8)
    scores = torch.ones(4, 8)
    with refuses("layer 'fc': scores must have shape (rows, 8), not (4, 7)"):
        project_tensor(config, "fc", scores[:, :7], geometry, 0.5)
    with refuses("layer 'fc': scores must be floating point, not torch.int64"):
        project_tensor(config, "fc", scores.long(), geometry, 0.5)
    bad = scores.clone()
    bad[2, 3] = torch.inf
    with refuses("layer 'fc': scores must be finite, not inf at (2, 3)"):
        project_tensor(config, "fc", bad, geometry, 0.5)
    with refuses("sparsity must be at least 0 and below 1, not 1"):
        project_tensor(config, "fc", scores, geometry, 1.0)
    with refuses(
        "layer 'fc': 3 columns leave a bank of 4 empty, so no mask but the empty one is balanced"
    ):
        project_tensor(config, "fc", scores[:, :3], Geometry.linear(3), 0.5)
    with refuses("layer 'fc': row order must be a permutation of the 4 rows"):
        project_tensor(config, "fc", scores, geometry, 0.5, row_order=torch.tensor([0, 1, 1, 3]))
    with refuses("layer 'fc': sparsity 0.9 leaves 3 blocks, less than one group of 4"):
        project_tensor(config, "fc", scores, geometry, 0.9)


def test_scores_whose_sum_overflows_are_finite_enough():
    config, geometry = engine(4, 4), Geometry.linear(16)
    scores = gaussian(10, 8, 16) * 1e37
    found = project_tensor(config, "fc", scores, geometry, 0.5)
    assert int(found.mask.sum()) == 64
