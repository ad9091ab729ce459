"""Methods in which weights go and others come, inside the pattern at every moment.

Which go and which come is said by scores: survivors rank above all candidates by more than the
pattern could gain from trading them. What goes is the pattern's own choice too, at a lower
density, so that whole blocks go where the pattern has blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import numpy as np
from numpy.typing import NDArray

from pruning.checks import is_number, require
from pruning.methods.method import Span
from pruning.targets import Scope, Targets

SURVIVOR_RANK = 1024.0
"""Score that every survivor has above any candidate's, which is at most 1.

One survivor may make room for several candidates: along an alternating path of a GS bundle at most
as many as it has rows and banks, 128. So this outweighs them, and is small enough for float64.
"""


def _survivors(
    targets: Targets, importance: Sequence[NDArray], keep: float
) -> list[NDArray[np.bool_]]:
    """Live weights that stay: the pattern's choice at ``keep`` times the target density."""
    live = [target.mask_matrix for target in targets]
    scores = [np.where(mask, value, 0.0) for mask, value in zip(live, importance, strict=True)]
    found = targets.project(scores, _denser(keep), keep_bundles=True)
    # Between bundles a pattern may trade a live weight for a dead one that costs it nothing.
    return [p.mask & mask for p, mask in zip(found, live, strict=True)]


def _grow(
    targets: Targets,
    survivors: Sequence[NDArray[np.bool_]],
    importance: Sequence[NDArray],
    candidates: Sequence[NDArray],
    keep: float = 1.0,
) -> None:
    """Fill the masks up to ``keep`` times the target density; what comes starts from zero."""
    scores = [
        np.where(stays, SURVIVOR_RANK + value, candidate)
        for stays, value, candidate in zip(
            survivors, _to_one(targets, importance), _to_one(targets, candidates), strict=True
        )
    ]
    grown = targets.project(scores, _denser(keep), keep_bundles=True)
    targets.apply(grown, clear_grown=True)


def _denser(factor: float) -> Callable[[float], float]:
    """From a sparsity to that of ``factor`` times the density."""
    return lambda final: max(0.0, 1.0 - (1.0 - final) * factor)


def _to_one(targets: Targets, values: Sequence[NDArray]) -> list[NDArray[np.float64]]:
    """Scaled to at most 1, alike for all that share a budget."""
    peaks = [float(matrix.max()) for matrix in values]
    if targets.scope is Scope.NETWORK:
        peaks = [max(peaks)] * len(peaks)
    return [
        matrix.astype(np.float64) / (peak if peak > 0 else 1.0)
        for matrix, peak in zip(values, peaks, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class RigL(Span):
    """Rigging the lottery (Evci et al. 2020, arXiv 1911.11134).

    At ``start`` the recipe's score prunes to the target. At update i of n before ``stop`` the
    fraction ``fraction / 2 * (1 + cos(pi * i / n))`` of the live weights goes, those of the lowest
    score, and as many come by the largest dense gradient of the step before, starting from zero;
    one that has just gone may come back as it was. Bundles stay.

    Parameters
    ----------
    fraction
        Share of the live weights that the first update would exchange.
    """

    kind = "rigl"
    stop: float = 0.75
    fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        good = is_number(self.fraction) and 0 < self.fraction < 1
        require(good, "fraction", "above 0 and below 1", self.fraction)

    def fractions(self) -> list[float]:
        # At stop the fraction has fallen to nothing.
        return super().fractions()[:-1]

    def dropped(self, number: int) -> float:
        """Share of the live weights that update ``number`` exchanges."""
        return self.fraction / 2 * (1.0 + cos(pi * number / self.updates))

    def reads_gradient(self, number: int) -> bool:
        return number > 0

    def update(self, targets: Targets, number: int) -> None:
        if number == 0:
            targets.prune()
            return
        importance = targets.score()
        survivors = _survivors(targets, importance, 1.0 - self.dropped(number))
        _grow(targets, survivors, importance, targets.gradients())


@dataclass(frozen=True, kw_only=True)
class Mest(Span):
    """Elastic mutation (MEST; Yuan et al. 2021, arXiv 2110.14032).

    At ``start`` the recipe's score prunes to the target. Every update prunes beyond the target
    density d, to ``d * (1 - f)``, and grows back to d at random; f falls linearly from ``fraction``
    at ``start`` to zero at ``stop``. With a soft memory bound (their &S) it prunes to d and grows
    to ``d * (1 + f)``, so that what came is trained before it is judged: the sparsity is below the
    target until ``stop``. What grows starts from zero. Bundles stay.

    Parameters
    ----------
    fraction
        f at ``start``. The authors prune from 90 to 92 % at first: 0.2; soft, grow to 85 %: 0.5.
    soft
        Whether the density overshoots.
    gradient_weight
        A live weight's importance is its score plus this times its gradient's magnitude.
    """

    kind = "mest"
    stop: float = 0.75
    fraction: float = 0.2
    soft: bool = False
    gradient_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = is_number(self.fraction) and 0 < self.fraction < 1
        require(good, "fraction", "above 0 and below 1", self.fraction)
        require(isinstance(self.soft, bool), "soft", "true or false", self.soft)
        good = is_number(self.gradient_weight) and self.gradient_weight >= 0
        require(good, "gradient_weight", "at least 0", self.gradient_weight)

    def mutated(self, number: int) -> float:
        """f of update ``number``."""
        return self.fraction * (1.0 - number / self.updates)

    def reads_gradient(self, number: int) -> bool:
        return number > 0 and self.gradient_weight > 0

    def update(self, targets: Targets, number: int) -> None:
        if number == 0:
            targets.prune()
        importance = targets.score()
        if self.reads_gradient(number):
            importance = [
                score + self.gradient_weight * gradient
                for score, gradient in zip(importance, targets.gradients(), strict=True)
            ]
        share = self.mutated(number)
        shrunk, grown = (1.0, 1.0 + share) if self.soft else (1.0 - share, 1.0)
        if number or self.soft:
            survivors = _survivors(targets, importance, shrunk)
            _grow(targets, survivors, importance, targets.random(number), grown)
