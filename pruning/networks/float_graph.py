"""The float network as sums, clamps and the ranges that calibration saw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gshw.network.graph import Source
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
    fraction
        Codes are fractions of 1, of all their bits but the sign: whatever the magnitude.
    host
        Whether only the host has it.
    """

    name: str
    size: Pair
    channels: int
    nonnegative: bool
    magnitude: float
    values: Tensor
    fraction: bool = False
    host: bool = False


@dataclass(frozen=True, kw_only=True)
class FloatNode:
    """One node of the engine: ``clamp(affine, low, high)``; None is no clamp.

    Parameters
    ----------
    name
        Of the node and of what it computes.
    table
        A function that its results go through at once: the tensor of its name has a scale, but is
        nowhere.
    piece_of
        Name of the node that this one computes some rows of.
    """

    name: str
    affine: Affine
    low: float | None
    high: float | None
    table: "FloatHostNode | None" = None
    piece_of: str = ""

    @property
    def whole(self) -> str:
        """Name of all that it computes a piece of."""
        return self.piece_of or self.name

    @property
    def output(self) -> str:
        """The tensor that it writes."""
        return self.whole if self.table is None else self.table.targets[0].tensor

    @property
    def tensors_read(self) -> list[str]:
        """In order."""
        return [term.tensor for term in self.affine.terms]


@dataclass(frozen=True, kw_only=True)
class FloatHostNode:
    """What the host computes; see :mod:`gshw.network.host`.

    Parameters
    ----------
    sources, targets
        What it reads and writes.
    key
        Name of its table in the model, if it has one.
    table
        Float values of the table, or of the constant.
    factor
        Of products of queries and keys.
    value
        That it fills with.
    apply, kind
        Where its table is of a function: of float values, and what tells it from others.
    gain, offset, epsilon
        Of a layer norm; no gain is 1, no offset 0.
    numbers
        Of the function, those that do not depend on scales.
    """

    name: str
    function: str
    sources: tuple[Source, ...]
    targets: tuple[Source, ...]
    key: str | None = None
    table: NDArray[np.float64] | None = None
    factor: float = 1.0
    value: int = 0
    apply: Callable[[Tensor], Tensor] | None = None
    kind: str = ""
    gain: NDArray[np.float64] | None = None
    offset: NDArray[np.float64] | None = None
    epsilon: float = 0.0
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def tensors_read(self) -> list[str]:
        """In order."""
        return [source.tensor for source in self.sources]


@dataclass(frozen=True, kw_only=True)
class TorchLayout:
    """How torch has a tensor that codes hold as (n_samples, height, width, channels).

    Parameters
    ----------
    shape
        Torch's, without the samples.
    axis
        Of the channels, the samples' being 0; 0 for token numbers, shape (n_samples, steps).
    is_flat
        Channels and pixels are one axis.
    """

    shape: tuple[int, ...]
    axis: int
    is_flat: bool = False

    def codes(self, x: NDArray) -> NDArray:
        """From torch's order to that of codes."""
        if not self.axis:
            return x[:, None, :, None]
        pixels = self.shape[: self.axis - 1] + self.shape[self.axis :]
        height, width = (1,) * (2 - len(pixels)) + pixels
        return np.moveaxis(x, self.axis, -1).reshape(len(x), height, width, -1)

    def values(self, x: NDArray) -> NDArray:
        """Inverse of :meth:`codes`."""
        if self.is_flat:
            return np.moveaxis(x, 3, 1).reshape(len(x), *self.shape)
        if not self.axis:
            return x[:, 0, :, 0]
        pixels = self.shape[: self.axis - 1] + self.shape[self.axis :]
        return np.moveaxis(x.reshape(len(x), *pixels, x.shape[3]), -1, self.axis)


@dataclass(frozen=True, kw_only=True)
class FloatNetwork:
    """Nodes in order, tensors by name.

    ``magnitude_of`` gives the magnitude of calibrated values, ``layouts`` how torch has inputs and
    outputs.
    """

    tensors: dict[str, FloatTensor]
    nodes: tuple[FloatNode | FloatHostNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layouts: dict[str, TorchLayout]
    magnitude_of: Callable[[NDArray], float]

    @property
    def matrices(self) -> tuple[FloatNode, ...]:
        """Nodes of the engine."""
        return tuple(node for node in self.nodes if isinstance(node, FloatNode))
