"""The float network as sums, clamps and the ranges that calibration saw."""

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray
from torch import Tensor

from pruning.networks.affine import Affine, Pair


@dataclass(kw_only=True)
class FloatTensor:
    """A tensor that becomes codes.

    Parameters
    ----------
    name
        In the network.
    size
        (height, width).
    nonnegative
        By what computes it, or, of an input, by what calibration saw.
    magnitude
        That the highest code stands for.
    values
        What calibration saw, shape (n_samples, channels, height, width).
    """

    name: str
    size: Pair
    channels: int
    nonnegative: bool
    magnitude: float
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class FloatNode:
    """One node of the engine: ``clamp(affine, low, high)``; None is no clamp.

    Parameters
    ----------
    name
        Of the node and of its output.
    """

    name: str
    affine: Affine
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class FloatNetwork:
    """Nodes in order, tensors by name.

    ``magnitude_of`` gives the magnitude of calibrated values.
    """

    tensors: dict[str, FloatTensor]
    nodes: tuple[FloatNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    magnitude_of: Callable[[NDArray], float]
