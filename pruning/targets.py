"""The weights of one pruning run: what a method may ask of them and do to them."""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from pruning.models.masking import WeightMask, set_mask, weight_mask
from pruning.models.weights import PrunableWeight
from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix
from pruning.recovery.calibration import collect_moments
from pruning.scores import Score, loss_gradients, score_matrix


class Scope(enum.Enum):
    """Over what a sparsity is an average."""

    LAYER = "layer"
    NETWORK = "network"


@dataclass(kw_only=True, eq=False)
class Target:
    """One weight that is to become sparse.

    Parameters
    ----------
    weight
        Where it is, and its matrix.
    sparsity
        At the end.
    own_budget
        Its sparsity is its own even where the others share one.
    state
        The method's tensors, saved with the run.
    cache
        What the method can work out again; not saved.
    projection
        What its mask is; None while it is dense.
    kept
        A mask that it came with, which no update changes; None where there was none.
    """

    weight: PrunableWeight
    sparsity: float
    own_budget: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, Tensor] = field(default_factory=dict)
    projection: Projection | None = None
    kept: Projection | None = None

    @property
    def name(self) -> str:
        return self.weight.name

    def attach(self) -> None:
        """Put a mask on the weight that keeps all, unless it has one."""
        module, tensor_name = self.weight.module, self.weight.tensor_name
        if weight_mask(module, tensor_name) is None:
            whole = torch.ones(tuple(self.weight.dense.shape), dtype=torch.bool)
            set_mask(module, whole, tensor_name)

    @property
    def mask(self) -> WeightMask:
        """The parametrisation on the weight."""
        present = weight_mask(self.weight.module, self.weight.tensor_name)
        assert present is not None, "attached by the pruner's prepare"
        return present

    @property
    def mask_matrix(self) -> NDArray[np.bool_]:
        """The mask that is live in the model, shape (n_rows, n_columns)."""
        return self.weight.to_matrix(self.mask.mask)

    @property
    def current(self) -> Projection | None:
        """The projection, with the mask that is live in the model where there is one."""
        if weight_mask(self.weight.module, self.weight.tensor_name) is None:
            return self.projection
        return self.projection and replace(self.projection, mask=self.mask_matrix)

    def save(self) -> dict[str, Any]:
        """What the model does not hold, for ``torch.save``."""
        found = self.projection
        bundles = found and {
            "row_order": torch.from_numpy(found.row_order.copy()),
            "kept_score": float(found.kept_score),
            "bound": None if found.bound is None else float(found.bound),
            "ceiling": None if found.ceiling is None else float(found.ceiling),
        }
        return {"method": dict(self.state), "projection": bundles}

    def restore(self, saved: dict[str, Any]) -> None:
        """Inverse of :meth:`save`; the mask is the model's."""
        device = self.weight.dense.device
        self.state = {name: tensor.to(device) for name, tensor in saved["method"].items()}
        bundles = saved["projection"]
        self.projection = bundles and Projection(
            mask=self.mask_matrix,
            row_order=bundles["row_order"].numpy(),
            kept_score=bundles["kept_score"],
            bound=bundles["bound"],
            ceiling=bundles["ceiling"],
        )

    def place(self, matrix: NDArray) -> Tensor:
        """A matrix of the weight as a tensor that computes with it."""
        return _cut_like(self.weight.dense, self.weight.from_matrix(matrix))


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSource:
    """What weights are worth, asked for anew at every update.

    Parameters
    ----------
    model
        With its masks as they are.
    kind, function
        See :func:`pruning.scores.score_matrix`.
    calibration
        Batches of inputs, or tuples of (input, target, ...); may be None where the kind needs none.
    loss
        Of (output, target), for gradients.
    """

    model: nn.Module
    kind: Score = Score.MAGNITUDE
    function: str | None = None
    calibration: Sequence[Any] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, weights: list[PrunableWeight]) -> list[NDArray]:
        """Scores of each, shape (n_rows, n_columns).

        Raises
        ------
        GshwError
            Where calibration or loss is missing, and as the score itself.
        """
        moments, gradients = {}, {}
        if self.calibration is None and (self.kind.needs_moments or self.kind is Score.GRADIENT):
            raise GshwError(f"score {self.kind.value!r} needs calibration batches")
        if self.kind.needs_moments:
            wide = [] if self.kind is Score.HESSIAN else [weight.name for weight in weights]
            moments = collect_moments(self.model, weights, self.calibration, diagonal_only=wide)
        if self.kind is Score.GRADIENT:
            if self.loss is None:
                raise GshwError("score 'gradient' needs a loss of (output, target)")
            gradients = loss_gradients(self.model, weights, self.calibration, self.loss)
        return [
            score_matrix(
                self.kind,
                weight,
                moments=moments.get(weight.name),
                gradient=gradients.get(weight.name),
                function=self.function,
            )
            for weight in weights
        ]


@dataclass(kw_only=True, eq=False)
class Targets:
    """All weights of a run under one pattern and one budget.

    Every call that computes masks must be made on all ranks of a ``torch.distributed`` group;
    rank 0 computes them and the others get its own.

    Parameters
    ----------
    config
        The engine.
    pattern
        Of every mask.
    scope
        Whether targets without a budget of their own share one.
    items
        In the model's order.
    source
        Of the scores.
    seed
        Of :meth:`random`.
    """

    config: EngineConfig
    pattern: Pattern
    scope: Scope
    items: list[Target]
    source: ScoreSource
    seed: int = 0

    def __iter__(self) -> Iterator[Target]:
        return iter(self.items)

    @property
    def sparsity(self) -> float:
        """Masked share of all weights together."""
        n_kept = sum(int(target.mask.mask.sum()) for target in self)
        return 1.0 - n_kept / sum(target.mask.mask.numel() for target in self)

    def score(self) -> list[NDArray]:
        """What every weight is worth now, masked or not: one matrix per target."""
        return self.source([target.weight for target in self])

    def gradients(self) -> list[NDArray]:
        """Magnitudes of the captured dense gradients, mean over all ranks.

        Raises
        ------
        GshwError
            Naming a layer that no backward pass has reached.
        """
        found = []
        for target in self:
            gradient = target.mask.take_gradient()
            if gradient is None:
                raise GshwError(
                    f"layer {target.name!r}: weights grow by their gradient, but no backward pass "
                    "reached it since the last step"
                )
            found.append(np.abs(target.weight.to_matrix(gradient)))
        return found

    def random(self, update: int) -> list[NDArray]:
        """Uniform numbers in [0, 1) that depend on nothing but the seed and the update."""
        return [
            np.random.default_rng([self.seed, update, place]).random(target.weight.shape)
            for place, target in enumerate(self)
        ]

    def project(
        self,
        scores: Sequence[NDArray],
        level: Callable[[float], float] | None = None,
        *,
        keep_bundles: bool = False,
    ) -> list[Projection]:
        """Masks of the pattern for these scores; the model is left alone.

        Parameters
        ----------
        scores
            One matrix per target.
        level
            From a target's sparsity at the end to the one wanted now. Default: the one at the end.
        keep_bundles
            Rows stay in the bundles of the present mask.

        Raises
        ------
        GshwError
            As the pattern's own projection, on all ranks.
        """
        # Score functions and weights are collective under fully_shard: asked for on every rank.
        matrices = [
            ScoredMatrix(
                name=target.name,
                scores=matrix,
                geometry=target.weight.geometry,
                weights=target.weight.to_matrix(target.weight.dense),
                row_order=target.projection.row_order
                if keep_bundles and target.projection is not None
                else None,
            )
            for target, matrix in zip(self, scores, strict=True)
        ]
        return _on_first_rank(lambda: self._project(matrices, level or (lambda final: final)))

    def _project(
        self, matrices: list[ScoredMatrix], level: Callable[[float], float]
    ) -> list[Projection]:
        found: dict[int, Projection] = {}
        if self.scope is Scope.NETWORK:
            shared = [
                place
                for place, target in enumerate(self)
                if not target.own_budget and target.kept is None
            ]
            if shared:
                wanted = level(self.items[shared[0]].sparsity)
                together = self.pattern.project_all([matrices[i] for i in shared], wanted)
                found = dict(zip(shared, together, strict=True))
        for place, target in enumerate(self):
            if target.kept is not None:
                kept = matrices[place].scores[target.kept.mask].sum(dtype=np.float64)
                found[place] = replace(target.kept, kept_score=float(kept), bound=None)
            elif place not in found:
                found[place] = self.pattern.project(matrices[place], level(target.sparsity))
        return [
            replace(found[place], ceiling=_ceiling(matrix.scores, found[place].mask))
            for place, matrix in enumerate(matrices)
        ]

    def apply(self, projections: Sequence[Projection], *, clear_grown: bool = False) -> None:
        """Put masks into the model.

        Parameters
        ----------
        clear_grown
            Weights that come back start from zero instead of what lies below the mask.
        """
        for target, projection in zip(self, projections, strict=True):
            weight = target.weight
            mask = weight.from_matrix(projection.mask)
            with torch.no_grad():
                if clear_grown:
                    grown = _cut_like(weight.dense, mask & ~target.mask.mask)
                    weight.dense.copy_(torch.where(grown, 0, weight.dense))
                order = torch.from_numpy(projection.row_order)
                set_mask(weight.module, mask, weight.tensor_name, order)
            target.projection = projection

    def prune(self, level: Callable[[float], float] | None = None) -> None:
        """Mask every weight by the recipe's score, in bundles chosen anew."""
        self.apply(self.project(self.score(), level))


def _ceiling(scores: NDArray, mask: NDArray[np.bool_]) -> float:
    """Sum of the largest scores, as many as the mask keeps."""
    n_pruned = mask.size - np.count_nonzero(mask)
    if not n_pruned:
        return float(scores.sum(dtype=np.float64))
    return float(np.partition(scores.reshape(-1), n_pruned - 1)[n_pruned:].sum(dtype=np.float64))


def world_size() -> int:
    """Processes that train together; 1 outside of ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _cut_like(weight: Tensor, values: Tensor) -> Tensor:
    """Whole values as their weight is kept: cut as ``fully_shard`` has cut it."""
    if not hasattr(weight, "placements"):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, weight.device_mesh, weight.placements, src_data_rank=None)


def _on_first_rank(compute: Callable[[], list[Projection]]) -> list[Projection]:
    """Compute on rank 0 and hand the result, or the user's mistake, to all."""
    if world_size() == 1:
        return compute()
    box: list = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = compute()
        except GshwError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise GshwError(box[1])
    return box[0]
