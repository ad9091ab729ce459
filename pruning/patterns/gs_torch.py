"""The GS pattern on torch tensors: on the scores' device, without numba or NumPy copies.

Horizontal engines need only sorting. Otherwise each (row, bank) cell is sorted once, and
:mod:`pruning.patterns.transport_torch` finds how many of each survive, in all bundles at once.
Either way the mask is the best one for its bundles and its number of blocks, to the rounding of the
scores' dtype, and comes with the dual bound that says so. :mod:`pruning.patterns.gs` does the same,
faster on a CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.patterns.pattern import RowGrouping, check_sparsity
from pruning.patterns.transport_torch import Bundles


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorProjection:
    """A mask on the scores' device, and how good it provably is.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns), bool, True where a weight is kept.
    row_order
        Shape (n_rows,), int64: rows in bundle order.
    kept_score
        Sum of the scores kept.
    bound
        No mask of the pattern with as many blocks on these bundles keeps more.
    """

    mask: Tensor
    row_order: Tensor
    kept_score: float
    bound: float

    @property
    def gap(self) -> float:
        """Certified distance from the optimum, relative to the bound."""
        return max(0.0, self.bound - self.kept_score) / abs(self.bound) if self.bound else 0.0


@torch.no_grad()
def project_tensor(
    config: EngineConfig,
    name: str,
    scores: Tensor,
    geometry: Geometry,
    sparsity: float,
    *,
    grouping: RowGrouping = RowGrouping.SCATTER,
    row_order: Tensor | None = None,
) -> TensorProjection:
    """Best mask of the engine's pattern at a sparsity, free groups per bundle.

    Deterministic; of equal scores in a cell the lower column stays.

    Parameters
    ----------
    name
        Of the weight, for errors.
    scores
        Shape (n_rows, n_columns), any floating dtype (half precision is computed in float32).
    sparsity
        Wanted, in [0, 1). At most as many blocks are kept, and fewer by less than a group, or as
        many as balanced masks can.
    grouping
        Which rows share a bundle: neighbours in the order of falling counts above the layer's
        threshold (ties by row), or consecutive ones.
    row_order
        Shape (n_rows,): keep these bundles instead.

    Raises
    ------
    GshwError
        For scores of the wrong shape or dtype, or not finite; for a sparsity out of range; for a
        layer that leaves a bank empty; for a row order that is no permutation.
    """
    check_sparsity(sparsity)
    _check_scores(name, scores, geometry)
    n_rows = scores.shape[0]
    blocks, real = _to_blocks(config, geometry, scores)
    depth = real.sum(dim=0)
    if int(depth.min()) == 0:
        raise GshwError(
            f"layer {name!r}: {geometry.n_columns} columns leave a bank of {config.lanes} empty, "
            "so no mask but the empty one is balanced"
        )
    budget = int(scores.numel() * (1.0 - sparsity) / config.block * (1.0 + 1e-12))
    order = _given_order(name, row_order, n_rows, scores.device)
    threshold = _largest(blocks, budget) if config.rows > 1 else None
    if order is None:
        order = torch.arange(n_rows, device=scores.device)
        if threshold is not None and grouping is RowGrouping.SCATTER:
            above = (blocks >= threshold).sum(dim=(1, 2))
            order = torch.argsort(above, descending=True, stable=True)
    rest = n_rows % config.rows or config.rows
    if budget < rest * config.lanes_per_row:
        raise GshwError(
            f"layer {name!r}: sparsity {sparsity:g} leaves {budget} blocks, less than one group "
            f"of {rest * config.lanes_per_row}"
        )
    # Horizontal bundles are rows, whose order does not matter to the mask.
    sequence = None if threshold is None else order
    arranged = blocks.transpose(1, 2)
    arranged = arranged if sequence is None else arranged[sequence]
    cells = arranged.contiguous().sort(dim=2).values
    if threshold is None:
        counts, bound = _horizontal(cells, budget // config.lanes, int(depth.min()))
    else:
        bundles = Bundles(config, cells, depth)
        bundles.solve(bundles.price(budget, float(threshold)), budget)
        counts, bound = bundles.x.reshape(-1, config.lanes)[:n_rows], bundles.bound()
    kept = _lowest_columns(blocks, cells, counts, sequence)
    mask = _from_blocks(config, geometry, kept)
    kept_scores = scores[mask].double()
    kept_score = float(kept_scores.sum())
    assert bound >= kept_score - 1e-5 * float(kept_scores.abs().sum()), "prices prove nothing"
    return TensorProjection(
        mask=mask, row_order=order, kept_score=kept_score, bound=max(bound, kept_score)
    )


def _check_scores(name: str, scores: Tensor, geometry: Geometry) -> None:
    if scores.ndim != 2 or not scores.numel() or scores.shape[1] != geometry.n_columns:
        raise GshwError(
            f"layer {name!r}: scores must have shape (rows, {geometry.n_columns}), "
            f"not {tuple(scores.shape)}"
        )
    if not scores.is_floating_point():
        raise GshwError(f"layer {name!r}: scores must be floating point, not {scores.dtype}")
    # A sum is finite only if all its terms are; it may overflow without any being infinite.
    finite = scores.sum().isfinite()
    if not bool(finite) and not bool((finite := torch.isfinite(scores)).all()):
        place = tuple(int(i) for i in (~finite).nonzero()[0])
        raise GshwError(
            f"layer {name!r}: scores must be finite, not {float(scores[place])} at {place}"
        )


def _given_order(
    name: str, row_order: Tensor | None, n_rows: int, device: torch.device
) -> Tensor | None:
    if row_order is None:
        return None
    order = row_order.to(device=device, dtype=torch.int64)
    if not torch.equal(order.sort().values, torch.arange(n_rows, device=device)):
        raise GshwError(f"layer {name!r}: row order must be a permutation of the {n_rows} rows")
    return order


def _to_blocks(config: EngineConfig, geometry: Geometry, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks' scores (n_rows, n_words, n_banks), -inf where padded; which are real, of a row."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    channels = geometry.stored_channels
    words = geometry.words_per_pixel(config)
    padding = words * config.channels_per_row - channels
    pixels = functional.pad(scores.reshape(len(scores), -1, channels), (0, padding))
    blocks = pixels.reshape(len(scores), -1, config.lanes, config.block)
    blocks = blocks.sum(dim=3) if config.block > 1 else blocks.squeeze(3)
    channel = torch.arange(words * config.lanes, device=scores.device) * config.block
    real = (channel < channels).reshape(words, config.lanes).repeat(blocks.shape[1] // words, 1)
    return blocks.masked_fill(~real, -torch.inf) if padding else blocks, real


def _from_blocks(config: EngineConfig, geometry: Geometry, kept: Tensor) -> Tensor:
    words = geometry.words_per_pixel(config)
    wide = kept.repeat_interleave(config.block, dim=2) if config.block > 1 else kept
    pixels = wide.reshape(len(kept), -1, words * config.channels_per_row)
    return pixels[:, :, : geometry.stored_channels].reshape(len(kept), -1)


def _largest(values: Tensor, n: int) -> Tensor:
    """The n-th largest value; the largest for n = 0."""
    flat = values.reshape(-1)
    return flat.kthvalue(flat.numel() - min(max(n, 1), flat.numel()) + 1).values


def _lowest_columns(blocks: Tensor, cells: Tensor, counts: Tensor, order: Tensor | None) -> Tensor:
    """The ``counts`` largest blocks of each cell; of equal ones those of the lowest words.

    Parameters
    ----------
    blocks
        Shape (n_rows, n_words, n_banks).
    cells, counts
        Shapes (n_rows, n_banks, n_words), rising, and (n_rows, n_banks): rows in ``order``, where
        it is given.

    Returns
    -------
    Tensor
        The blocks' shape, bool.
    """
    ends = (cells.shape[2] - counts).clamp_max(cells.shape[2] - 1)[:, :, None]
    least = cells.gather(2, ends).squeeze(2).masked_fill(counts == 0, torch.inf)
    if order is not None:
        back = torch.argsort(order)
        least, counts = least[back], counts[back]
    kept = blocks >= least[:, None, :]
    row, bank = (kept.sum(dim=1) != counts).nonzero(as_tuple=True)
    if row.numel():
        cell, limit = blocks[row, :, bank], least[row, bank][:, None]
        equal = cell == limit
        room = counts[row, bank] - (cell > limit).sum(dim=1)
        kept[row, :, bank] = (cell > limit) | (equal & (equal.cumsum(dim=1) <= room[:, None]))
    return kept


def _horizontal(cells: Tensor, n_groups: int, most: int) -> tuple[Tensor, float]:
    """Counts (n_rows, n_banks), and the bound: group i of a row is the i-th largest of each bank.

    A row's groups fall in score, so the largest groups of all rows are the best mask.
    """
    n_rows, n_banks, _ = cells.shape
    gains = cells.sum(dim=1, dtype=torch.float64).flip(1)[:, :most].contiguous().reshape(-1)
    n_groups = min(n_groups, gains.numel())
    best, chosen = torch.sort(gains, descending=True, stable=True)
    depth = torch.bincount(chosen[:n_groups] // most, minlength=n_rows)
    price = best[max(0, n_groups - 1)]
    bound = float((gains - price).clamp_min(0).sum() + price * n_groups)
    return depth[:, None].expand(n_rows, n_banks), bound
