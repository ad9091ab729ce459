"""Shapes of layers, and where a weight column lives in the scratchpad.

Columns of a weight matrix are ordered (kernel row, kernel column, input channel). Each pixel's
channels are padded to whole scratchpad rows (``lanes * block`` channels), so a column's bank does
not depend on the position, and a mask that is conflict-free once is conflict-free everywhere.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError


class LayerKind(enum.Enum):
    """What the float layer was; the engine runs all of them as one matrix."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    CONV2D = "conv2d"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One layer's input channels and window, as (height, width) pairs.

    Parameters
    ----------
    kind
        Linear and Conv1d use windows of height 1.
    in_channels
        Input channels of the float layer.
    kernel, stride, padding, dilation
        As torch: (height, width). Linear: all ones, padding zero.
    unfold
        The driver hands each window as one pixel of ``kernel * in_channels`` channels (im2col).
        For layers with fewer channels than banks, whose taps would all fall on a few banks.
    """

    kind: LayerKind
    in_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    unfold: bool = False

    def __post_init__(self) -> None:
        pairs = (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
        for key, low in pairs:
            value = getattr(self, key)
            if len(value) != 2 or any(not isinstance(v, int) or v < low for v in value):
                raise GshwError(f"{key} must be two integers of at least {low}, not {value}")
        if self.in_channels < 1:
            raise GshwError(f"in_channels must be at least 1, not {self.in_channels}")

    @staticmethod
    def linear(in_features: int) -> "Geometry":
        """Geometry of a fully connected layer."""
        return Geometry(kind=LayerKind.LINEAR, in_channels=in_features)

    @property
    def n_taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def n_columns(self) -> int:
        """Columns of the weight matrix: taps times input channels."""
        return self.n_taps * self.in_channels

    @property
    def stored_kernel(self) -> tuple[int, int]:
        """Window as the scratchpad sees it: (1, 1) when unfolded."""
        return (1, 1) if self.unfold else self.kernel

    @property
    def stored_channels(self) -> int:
        """Channels of one pixel in the scratchpad, before padding."""
        return self.n_columns if self.unfold else self.in_channels

    def words_per_pixel(self, config: EngineConfig) -> int:
        """Scratchpad rows that one input pixel takes."""
        return -(-self.stored_channels // config.channels_per_row)

    def n_words(self, config: EngineConfig) -> int:
        """Column words per bank: one for every stored tap and word of a pixel."""
        return self.stored_kernel[0] * self.stored_kernel[1] * self.words_per_pixel(config)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output pixels (height, width) for an input of this size.

        Raises
        ------
        GshwError
            When the window does not fit the padded input.
        """
        size = []
        for axis, extent in enumerate((height, width)):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            free = extent + 2 * self.padding[axis] - span
            if free < 0:
                raise GshwError(
                    f"input of {height} x {width} pixels is smaller than the window "
                    f"({span} along axis {axis}, padding {self.padding[axis]})"
                )
            size.append(free // self.stride[axis] + 1)
        return size[0], size[1]

    def to_blocks(self, config: EngineConfig, matrix: NDArray) -> NDArray:
        """Lay a (n_rows, n_columns) matrix out in blocks, padding channels with zeros.

        Returns
        -------
        ndarray
            Shape (n_rows, n_words, lanes, block), the matrix's dtype: element (row, word, bank,
            channel). ``word`` counts (tap, word of the pixel).
        """
        n_rows, n_columns = matrix.shape
        if n_columns != self.n_columns:
            raise GshwError(f"matrix must have {self.n_columns} columns, not {n_columns}")
        words = self.words_per_pixel(config)
        stored_taps = self.stored_kernel[0] * self.stored_kernel[1]
        padded = words * config.channels_per_row
        shape = (n_rows, stored_taps * words, config.lanes, config.block)
        if padded == self.stored_channels:
            return np.ascontiguousarray(matrix).reshape(shape)
        blocks = np.zeros((n_rows, stored_taps, padded), dtype=matrix.dtype)
        blocks[:, :, : self.stored_channels] = matrix.reshape(
            n_rows, stored_taps, self.stored_channels
        )
        return blocks.reshape(shape)

    def from_blocks(self, config: EngineConfig, blocks: NDArray) -> NDArray:
        """Inverse of :meth:`to_blocks`: drop the padding channels."""
        stored_taps = self.stored_kernel[0] * self.stored_kernel[1]
        flat = blocks.reshape(blocks.shape[0], stored_taps, -1)
        return flat[:, :, : self.stored_channels].reshape(blocks.shape[0], self.n_columns)

    def word_offsets(self, config: EngineConfig, pitch: int) -> NDArray[np.int64]:
        """Scratchpad offset of each column word for a stored map ``pitch`` pixels wide.

        Returns
        -------
        ndarray
            Shape (n_words,), int64: ``(ky * dilation * pitch + kx * dilation) * words + word``.
        """
        words = self.words_per_pixel(config)
        height, width = self.stored_kernel
        pixel = (
            np.arange(height)[:, None] * self.dilation[0] * pitch
            + np.arange(width)[None, :] * self.dilation[1]
        )
        return (pixel.reshape(-1, 1) * words + np.arange(words)).reshape(-1)


def conv_matrix(weight: NDArray) -> NDArray:
    """Flatten a channel-first convolution weight to (out, kernel row, kernel column, in).

    Parameters
    ----------
    weight
        Shape (n_out, n_in, height, width), or (n_out, n_in, width) for one dimension, or
        (n_out, n_in) for a linear layer.

    Returns
    -------
    ndarray
        Shape (n_out, height * width * n_in).
    """
    if weight.ndim == 2:
        return weight
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
