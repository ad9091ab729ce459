"""Methods that keep weights dense and press them into the pattern by a penalty, then prune."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gshw.config import EngineConfig
from gshw.geometry import Geometry
from pruning.checks import is_integer, is_number, require
from pruning.methods.method import Span
from pruning.targets import Target, Targets

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Admm(Span):
    """Alternating directions (Zhang et al. 2018, arXiv 1804.03294).

    Between ``start`` and ``stop`` weights stay dense and the loss gains
    ``rho / 2 * sum(||W - Z + U||^2)``. At ``start`` Z is the projection of W and U is zero; at
    every update in between Z becomes the projection of W + U and U grows by W - Z. Projections are
    by squares, which is Euclidean for every pattern that keeps the largest sum. At ``stop`` the
    recipe's score prunes for good.

    Parameters
    ----------
    rho
        Weight of the penalty.
    """

    kind = "admm"
    updates: int = 4
    rho: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_number(self.rho) and self.rho > 0, "rho", "above 0", self.rho)

    @property
    def settled(self) -> float:
        return self.stop

    def update(self, targets: Targets, number: int) -> None:
        if number == self.updates:
            targets.prune()
            for target in targets:
                target.state.clear()
            return
        with torch.no_grad():
            for target in targets:
                dense = target.weight.dense.detach()
                dual = target.state.setdefault("dual", torch.zeros_like(dense))
                target.state["auxiliary"] = dense + dual
            scores = [
                np.square(target.weight.to_matrix(target.state["auxiliary"])) for target in targets
            ]
            for target, projection in zip(targets, targets.project(scores), strict=True):
                target.state["auxiliary"] *= target.place(projection.mask)
                if number:
                    target.state["dual"] += target.weight.dense - target.state["auxiliary"]

    def penalty(self, targets: Targets) -> Tensor | None:
        terms = [
            (t.weight.dense - t.state["auxiliary"] + t.state["dual"]).square().sum()
            for t in targets
            if t.state
        ]
        return 0.5 * self.rho * _total(terms) if terms else None


@dataclass(frozen=True, kw_only=True)
class GroupLasso(Span):
    """Reweighted group lasso (Li et al. 2020, arXiv 2009.08065).

    Between ``start`` and ``stop`` weights stay dense and the loss gains
    ``strength * sum(alpha_g * ||W_g||)``, with ``alpha_g = 1 / (||W_g||^2 + epsilon)`` taken at
    ``start`` and anew at every update in between. At ``stop`` the recipe's score prunes for good.

    A group is what the pattern keeps or drops as one. The engine's pattern keeps as many 1 x C
    blocks in every row and bank of a bundle, so its groups are the blocks: to empty whole (row,
    bank) cells would work against it.

    Parameters
    ----------
    strength
        Weight of the penalty. A group far below epsilon is pulled by strength / epsilon, so the
        strength is small.
    epsilon
        Of alpha; a group of a squared norm far below it counts as zero.
    group_rows, group_columns
        Group of another pattern: so many rows, and consecutive columns of the matrix. Both 0: the
        engine's blocks.
    """

    kind = "group-lasso"
    updates: int = 4
    strength: float = 1e-6
    epsilon: float = 1e-3
    group_rows: int = 0
    group_columns: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("strength", "epsilon"):
            value = getattr(self, key)
            require(is_number(value) and value > 0, key, "above 0", value)
        for key in ("group_rows", "group_columns"):
            value = getattr(self, key)
            require(is_integer(value) and value >= 0, key, "an integer of at least 0", value)
        both = bool(self.group_rows) == bool(self.group_columns)
        require(both, "group_columns", "0 exactly where group_rows is", self.group_columns)

    @property
    def settled(self) -> float:
        return self.stop

    def update(self, targets: Targets, number: int) -> None:
        if number == self.updates:
            targets.prune()
            for target in targets:
                target.state.clear()
            return
        for target in targets:
            with torch.no_grad():
                squares = self._squares(targets.config, target)
                target.state["alpha"] = 1.0 / (squares + self.epsilon)

    def penalty(self, targets: Targets) -> Tensor | None:
        # The root's slope at zero is infinite; the tiny summand makes it zero.
        terms = [
            (t.state["alpha"] * (self._squares(targets.config, t) + _TINY).sqrt()).sum()
            for t in targets
            if t.state
        ]
        return self.strength * _total(terms) if terms else None

    def _squares(self, config: EngineConfig, target: Target) -> Tensor:
        """Sum of squares of every group, shape (n_groups,)."""
        dense = target.weight.dense
        if "group" not in target.cache:
            matrix = self._group_numbers(config, target)
            target.cache["group"] = target.weight.from_matrix(matrix).reshape(-1)
            target.cache["zeros"] = dense.new_zeros(int(matrix.max()) + 1)
        squares = dense.reshape(-1).square()
        return target.cache["zeros"].index_add(0, target.cache["group"], squares)

    def _group_numbers(self, config: EngineConfig, target: Target) -> NDArray[np.int64]:
        n_rows, n_columns = target.weight.shape
        if not self.group_rows:
            return block_numbers(config, target.weight.geometry, n_rows)
        across = -(-n_columns // self.group_columns)
        down = np.arange(n_rows)[:, None] // self.group_rows
        return down * across + np.arange(n_columns) // self.group_columns


def block_numbers(config: EngineConfig, geometry: Geometry, n_rows: int) -> NDArray[np.int64]:
    """Which 1 x C block of the engine each weight belongs to, shape (n_rows, n_columns)."""
    n_blocks = geometry.n_words(config) * config.lanes
    numbers = np.arange(n_rows * n_blocks).reshape(n_rows, -1, config.lanes, 1)
    return geometry.from_blocks(config, np.repeat(numbers, config.block, axis=3))


def _total(terms: Sequence[Tensor]) -> Tensor:
    """Sum of scalars that may lie on several devices."""
    first, *rest = terms
    for term in rest:
        first = first + term.to(first.device)
    return first
