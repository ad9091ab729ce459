"""Sums of matrix products that one node of the engine can compute.

A pending :class:`Affine` collects what adds up before a clamp: a convolution, its batch norm, a
skip. When something else reads it, it becomes a node.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
ONES: Pair = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Kernel, stride, padding and dilation as (height, width); torch's meaning."""

    kernel: Pair = ONES
    stride: Pair = ONES
    padding: Pair = (0, 0)
    dilation: Pair = ONES

    @property
    def is_point(self) -> bool:
        """Reads just its own pixel."""
        return self.kernel == ONES and self.padding == (0, 0)


POINT = Window()


def pair(value: Any, fill: int, *, flat: bool) -> Pair:
    """A torch argument of one or two numbers as (height, width)."""
    values = [value] if isinstance(value, int) else list(value)
    if flat:
        return fill, int(values[0])
    return int(values[0]), int(values[-1])


@dataclass(frozen=True, kw_only=True)
class Term:
    """One matrix over one tensor.

    Parameters
    ----------
    tensor
        That it reads.
    channels, first
        That it reads of the tensor: how many, from which on.
    weight
        Shape (n_rows, channels / groups, kernel height, kernel width), float64; of an embedded
        point (n_rows, channels / groups, 1, 1).
    groups
        Of the convolution; as many as channels and rows: a diagonal.
    step
        Reads every ``step``-th pixel.
    window
        On the pixels that are read.
    key
        Name of the weight in the model; None for what has none, such as a skip.
    start, size
        Rectangle of the tensor's pixels that it reads; no size: all.
    columns
        Where the weight is some input channels of a whole one: the first, and of how many.
    rows
        Where the weight is some rows of a whole one: the first, and of how many.
    tap
        Of the window that the weight is for, where it is a point embedded in a larger window.
    """

    tensor: str
    channels: int
    weight: NDArray[np.float64]
    groups: int = 1
    step: Pair = ONES
    window: Window = POINT
    key: str | None = None
    first: int = 0
    tap: int | None = None
    start: Pair = (0, 0)
    size: Pair | None = None
    columns: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None

    @property
    def n_rows(self) -> int:
        return self.weight.shape[0]

    @property
    def is_skip(self) -> bool:
        """A diagonal of single pixels: an addition, maybe scaled."""
        taps = self.weight.reshape(self.n_rows, -1).any(axis=0)
        return self.groups == self.channels == self.n_rows and np.count_nonzero(taps) <= 1

    @property
    def alone(self) -> "Term":
        """The same as a point where it was embedded."""
        if self.tap is None:
            return self
        step, stride = self.step, self.window.stride
        return replace(
            self, window=POINT, step=(step[0] * stride[0], step[1] * stride[1]), tap=None
        )

    def scaled(self, factor: NDArray[np.float64]) -> "Term":
        """Rows times a factor each."""
        return replace(self, weight=self.weight * factor[:, None, None, None])

    def normal(self) -> "Term":
        """A strided point reads fewer pixels instead."""
        if not self.window.is_point:
            return self
        step = (self.step[0] * self.window.stride[0], self.step[1] * self.window.stride[1])
        return replace(self, step=step, window=POINT)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A sum of terms and a bias, shape (n_rows,) float64.

    ``maximum``: of the one term's products the largest instead, without a bias.
    """

    terms: tuple[Term, ...]
    bias: NDArray[np.float64]
    maximum: bool = False

    @property
    def n_rows(self) -> int:
        return self.bias.size

    def scaled(self, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> "Affine":
        """``factor * self + offset``, by rows."""
        return Affine(
            terms=tuple(term.scaled(factor) for term in self.terms),
            bias=self.bias * factor + offset,
        )


def skip(tensor: str, channels: int) -> Affine:
    """A tensor by itself."""
    term = Term(
        tensor=tensor, channels=channels, weight=np.ones((channels, 1, 1, 1)), groups=channels
    )
    return Affine(terms=(term,), bias=np.zeros(channels))


def main_window(terms: tuple[Term, ...]) -> Window:
    """The window that all terms share: that of the first that is not a point."""
    return next((term.window for term in terms if not term.window.is_point), POINT)


def embedded(term: Term, window: Window, size: Pair, sizes: Mapping[str, Pair]) -> Term | None:
    """A point as one tap of a larger window, or None where there is no such tap.

    Parameters
    ----------
    size
        Pixels that the window's own term reads.
    sizes
        Of every tensor.
    """
    if term.window == window:
        return term if _read_size(term, sizes) == size else None
    if not term.window.is_point:
        return None
    taps, steps = [], []
    for axis in range(2):
        tap, rest = divmod(window.padding[axis], window.dilation[axis])
        step, uneven = divmod(term.step[axis], window.stride[axis])
        if rest or uneven or tap >= window.kernel[axis]:
            return None
        taps.append(tap)
        steps.append(step)
    tap = taps[0] * window.kernel[1] + taps[1]
    found = replace(term, step=(steps[0], steps[1]), window=window, tap=tap)
    return found if _read_size(found, sizes) == size else None


def _read_size(term: Term, sizes: Mapping[str, Pair]) -> Pair:
    height, width = term.size or sizes[term.tensor]
    return -(-height // term.step[0]), -(-width // term.step[1])


def added(a: Affine, b: Affine, sizes: Mapping[str, Pair]) -> Affine | None:
    """The sum as one node, or None where the windows do not go together."""
    terms = (*a.terms, *b.terms)
    window = main_window(terms)
    largest = next((term for term in terms if term.window == window), terms[0])
    size = _read_size(largest, sizes)
    found = [embedded(term, window, size, sizes) for term in terms]
    whole = tuple(term for term in found if term is not None)
    if len(whole) < len(terms):
        return None
    return Affine(terms=whole, bias=a.bias + b.bias)
