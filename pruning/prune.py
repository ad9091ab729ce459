"""Masks for a whole model, in any of the patterns, one-shot or along a schedule."""

import enum
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import scatter_rows
from gshw.errors import GshwError
from pruning.layers import ModelLayer
from pruning.masking import dense_weight, set_mask
from pruning.projection import (
    Projection,
    RowGrouping,
    block_mask,
    check_scores,
    least_bank,
    project,
    unstructured_mask,
)


class Pattern(enum.Enum):
    """What may survive."""

    GS = "gs"
    UNSTRUCTURED = "unstructured"
    BLOCK = "block"


@dataclass(kw_only=True)
class PruningPlan:
    """What was decided for a model.

    Parameters
    ----------
    projections
        Mask and row order by layer name.
    kept_dense
        Reason by layer name.
    warnings
        One line each.
    """

    projections: dict[str, Projection] = field(default_factory=dict)
    kept_dense: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def cubic_sparsity(final: float, step: int, n_steps: int) -> float:
    """Sparsity after ``step`` of ``n_steps``: ``final * (1 - (1 - t)**3)`` (Zhu & Gupta 2017)."""
    progress = min(1.0, max(0.0, step / n_steps))
    return final * (1.0 - (1.0 - progress) ** 3)


def keep_dense_reason(config: EngineConfig, layer: ModelLayer, asked: list[str]) -> str | None:
    """Why a layer is not pruned, or None."""
    if layer.name in asked:
        return "asked for"
    if least_bank(config, layer.geometry) == 0:
        return f"{layer.geometry.n_columns} columns leave a bank of {config.lanes} empty"
    return None


def project_pattern(
    config: EngineConfig,
    layer: ModelLayer,
    scores: NDArray,
    pattern: Pattern,
    sparsity: float,
    grouping: RowGrouping,
) -> Projection:
    """One layer's mask; masks that are not GS get rows grouped by count, as suits them best."""
    if pattern is Pattern.GS:
        return project(config, layer.name, scores, layer.geometry, sparsity, grouping)
    scores = check_scores(layer.name, scores)
    mask = (
        unstructured_mask(scores, sparsity)
        if pattern is Pattern.UNSTRUCTURED
        else block_mask(scores, sparsity, config.lanes)
    )
    return Projection(mask=mask, row_order=scatter_rows(mask.sum(axis=1)))


def prune_step(
    config: EngineConfig,
    layers: list[ModelLayer],
    sparsity: float,
    *,
    pattern: Pattern = Pattern.GS,
    grouping: RowGrouping = RowGrouping.SCATTER,
    keep_dense: list[str] | None = None,
) -> PruningPlan:
    """Project every layer's weight magnitudes and set the masks.

    Pruned weights keep their value below the mask, so a later step may bring them back.

    Parameters
    ----------
    sparsity
        Of every pruned layer, in [0, 1).
    keep_dense
        Names of layers to leave alone.

    Raises
    ------
    GshwError
        For an unknown name in ``keep_dense``, or weights that are not finite.
    """
    asked = keep_dense or []
    names = [layer.name for layer in layers]
    for name in asked:
        if name not in names:
            raise GshwError(f"no layer {name!r} to keep dense; the layers are {', '.join(names)}")
    plan = PruningPlan()
    for layer in layers:
        scores = np.abs(layer.to_matrix(dense_weight(layer.module)))
        check_scores(layer.name, scores)
        reason = keep_dense_reason(config, layer, asked)
        if reason is not None:
            plan.kept_dense[layer.name] = reason
            continue
        projection = project_pattern(config, layer, scores, pattern, sparsity, grouping)
        plan.projections[layer.name] = projection
        with torch.no_grad():
            set_mask(layer.module, layer.from_matrix(projection.mask))
        too_sparse = 1.0 - projection.density - sparsity
        if pattern is Pattern.GS and too_sparse * projection.mask.size > (
            config.lanes * config.block
        ):
            plan.warnings.append(
                f"layer {layer.name!r}: no balanced mask is denser than "
                f"{100 * projection.density:.1f} %, because padded channels fill some banks"
            )
        empty = int((~projection.mask.any(axis=1)).sum())
        if empty:
            plan.warnings.append(
                f"layer {layer.name!r}: {empty} of {len(projection.mask)} rows keep no weight; "
                "fewer lanes or a lower sparsity would keep them"
            )
    return plan
