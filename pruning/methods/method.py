"""What every pruning method has in common, and the two that only follow a schedule."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gshw.errors import GshwError
from pruning.checks import is_integer, is_number, require
from pruning.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """When and how masks change. Subclasses are frozen dataclasses; fields are the parameters."""

    kind: ClassVar[str]
    """The name in recipes."""

    @abstractmethod
    def fractions(self) -> list[float]:
        """Moments of the updates, as fractions of the training, rising."""

    @abstractmethod
    def update(self, targets: Targets, number: int) -> None:
        """Do what is due at the update of this number, counted from 0."""

    @property
    def settled(self) -> float:
        """Fraction of the training from which on the weights' scale may change."""
        return 0.0

    def penalty(self, targets: Targets) -> Tensor | None:
        """What to add to the loss now; None for nothing."""
        return None

    def reads_gradient(self, number: int) -> bool:
        """Whether the update of this number reads the dense gradients of the step before it."""
        return False

    def steps(self, n_steps: int) -> list[int]:
        """The optimiser steps after which the updates are due, strictly rising; 0 is before all.

        Raises
        ------
        GshwError
            If two updates would fall on one step.
        """
        steps = [round(fraction * n_steps) for fraction in self.fractions()]
        if len(set(steps)) < len(steps):
            raise GshwError(
                f"method {self.kind!r} makes {len(steps)} updates between steps {steps[0]} and "
                f"{steps[-1]}, more than there are steps; train longer or lower updates"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class OneShot(Method):
    """All at once, then training under the mask.

    Parameters
    ----------
    start
        When, as a fraction of the training.
    """

    kind = "one-shot"
    start: float = 0.0

    def __post_init__(self) -> None:
        good = is_number(self.start) and 0 <= self.start < 1
        require(good, "start", "at least 0 and below 1", self.start)

    def fractions(self) -> list[float]:
        return [self.start]

    def update(self, targets: Targets, number: int) -> None:
        targets.prune()


@dataclass(frozen=True, kw_only=True)
class Span(Method):
    """A method of evenly spaced updates.

    Parameters
    ----------
    start, stop
        Fractions of the training.
    updates
        Intervals between them.
    """

    start: float = 0.0
    stop: float = 0.5
    updates: int = 10

    def __post_init__(self) -> None:
        good = is_number(self.start) and 0 <= self.start < 1
        require(good, "start", "at least 0 and below 1", self.start)
        good = is_number(self.stop) and self.start < self.stop <= 1
        require(good, "stop", f"above start = {self.start:g} and at most 1", self.stop)
        good = is_integer(self.updates) and self.updates >= 1
        require(good, "updates", "an integer of at least 1", self.updates)

    def fractions(self) -> list[float]:
        width = self.stop - self.start
        return [self.start + width * i / self.updates for i in range(self.updates + 1)]


@dataclass(frozen=True, kw_only=True)
class Gradual(Span):
    """Cubic schedule of Zhu & Gupta 2017 (arXiv 1710.01878).

    After update i of n the sparsity is ``s + (initial - s) * (1 - i / n)**3`` with the target's s.
    Weights are scored by their value below the mask, so a pruned one may come back.

    Parameters
    ----------
    initial
        Sparsity at ``start``; capped by the target's own.
    """

    kind = "gradual"
    initial: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = is_number(self.initial) and 0 <= self.initial < 1
        require(good, "initial", "at least 0 and below 1", self.initial)

    def sparsity(self, final: float, number: int) -> float:
        """Sparsity from update ``number`` on."""
        left = (1.0 - number / self.updates) ** 3
        return final + (min(self.initial, final) - final) * left

    def update(self, targets: Targets, number: int) -> None:
        if number or self.initial:
            targets.prune(lambda final: self.sparsity(final, number))
